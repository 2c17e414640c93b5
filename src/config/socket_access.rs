//! `server.socket_mode` and `server.socket_group`: who may connect to the unix sockets.

use std::fs;

use super::error::{Error, quote};
use super::reader::{ConfigTable, ConfigValue};
use crate::{format_text, text};

/// Where names of groups are looked up.
const GROUP_FILE: &str = "/etc/group";

/// Mode and group of a unix socket; `None` leaves what the system gives it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketAccess {
    /// The permission bits.
    pub mode: Option<u32>,
    /// The group's number.
    pub group: Option<u32>,
}

pub(super) fn read(section: &ConfigTable<'_>) -> SocketAccess {
    SocketAccess {
        mode: section.read_optional("socket_mode", read_mode),
        group: section.read_optional("socket_group", read_group),
    }
}

fn read_mode(item: &ConfigValue<'_>) -> Result<u32, Error> {
    let text =
        item.string(text!("octal digits in quotes, like \"0660\"", "带引号的八进制数，如 \"0660\""))?;
    let is_octal = (3..=4).contains(&text.len()) && text.bytes().all(|byte| matches!(byte, b'0'..=b'7'));
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| is_octal && *mode <= 0o777);
    mode.ok_or_else(|| {
        item.error(format_text!(
            "{} is not a mode; write one like \"0660\"",
            "{} 不是权限；请写成 \"0660\"",
            quote(text)
        ))
    })
}

fn read_group(item: &ConfigValue<'_>) -> Result<u32, Error> {
    let text = item.string(text!(
        "a group's name or number in quotes, like \"www-data\"",
        "带引号的组名或组号，如 \"www-data\""
    ))?;
    if let Ok(number) = text.parse() {
        return Ok(number);
    }
    let groups = fs::read_to_string(GROUP_FILE).unwrap_or_default();
    let number = groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(text)).then(|| fields.nth(1)?.parse().ok()).flatten()
    });
    number.ok_or_else(|| {
        item.error(format_text!(
            "there is no group {} in {GROUP_FILE}; write its number if it is known elsewhere",
            "{GROUP_FILE} 中没有组 {}；若它在别处定义，请写组号",
            quote(text)
        ))
    })
}
