//! `server.socket_mode` and `server.socket_group`: who may connect to the unix sockets.

use std::fs;

use super::error::{Error, quote};
use super::reader::{ConfigTable, ConfigValue};

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
    let text = item.string("octal digits in quotes, like \"0660\"")?;
    let is_octal = (3..=4).contains(&text.len()) && text.bytes().all(|byte| matches!(byte, b'0'..=b'7'));
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| is_octal && *mode <= 0o777);
    mode.ok_or_else(|| item.error(format!("{} is not a mode; write one like \"0660\"", quote(text))))
}

fn read_group(item: &ConfigValue<'_>) -> Result<u32, Error> {
    let text = item.string("a group's name or number in quotes, like \"www-data\"")?;
    if let Ok(number) = text.parse() {
        return Ok(number);
    }
    let groups = fs::read_to_string(GROUP_FILE).unwrap_or_default();
    let number = groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(text)).then(|| fields.nth(1)?.parse().ok()).flatten()
    });
    number.ok_or_else(|| {
        item.error(format!(
            "there is no group {} in {GROUP_FILE}; write its number if it is known elsewhere",
            quote(text)
        ))
    })
}
