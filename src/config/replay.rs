//! `[replay]`: where request bodies wait in case they have to be sent again.

use std::path::PathBuf;

use super::error::Error;
use super::files;
use super::section::Section;
use super::server::Server;
use super::size;

pub(super) const KEYS: &[&str] = &["memory", "disk", "dir"];

/// `[replay]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replay {
    /// In bytes, all bodies together; beyond it they go to temporary files. May be 0.
    pub memory: u64,
    /// In bytes, all those files together; a body that is known not to fit is refused. May be 0.
    pub disk: u64,
    /// Where those files go; None: the system's own place for them.
    pub dir: Option<PathBuf>,
}

pub(super) fn read(root: &Section<'_>, server: &Server) -> Result<Replay, Error> {
    let section = root.section("replay", KEYS)?;
    let replay = Replay {
        memory: section.or("memory", 256 << 20, |item| size::read(item, 0..=size::LARGEST))?,
        disk: section.or("disk", 4 << 30, |item| size::read(item, 0..=size::LARGEST))?,
        dir: section.maybe("dir", files::directory)?,
    };
    if replay.disk.max(replay.memory / 8) < server.max_request_body {
        section.place("disk").warn(
            "is smaller than server.max_request_body: bodies that fit neither in it nor in an eighth of replay.memory \
             are refused or not sent again",
        );
    }
    Ok(replay)
}
