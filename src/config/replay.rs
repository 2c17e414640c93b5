//! `[replay]`: memory and disk for request bodies that are kept for a retry.

use std::path::PathBuf;

use super::files;
use super::reader::ConfigTable;
use super::server::ServerConfig;
use super::size;
use crate::text;

pub(super) const KEYS: &[&str] = &["memory", "disk", "dir"];

/// `[replay]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplayConfig {
    /// Memory for all bodies together, in bytes; the rest goes to temporary files. May be 0.
    pub memory: u64,
    /// Disk space for all temporary files together, in bytes; a body whose length is known not to fit is refused. May
    /// be 0.
    pub disk: u64,
    /// The directory of the temporary files; `None`: the system's.
    pub dir: Option<PathBuf>,
}

pub(super) fn read(root: &ConfigTable<'_>, server: &ServerConfig) -> ReplayConfig {
    let section = root.subtable("replay", KEYS);
    let replay = ReplayConfig {
        memory: section.read_or("memory", 256 << 20, |item| size::read(item, 0..=size::MAX_SIZE_BYTES)),
        disk: section.read_or("disk", 4 << 30, |item| size::read(item, 0..=size::MAX_SIZE_BYTES)),
        dir: section.read_optional("dir", files::read_directory_path),
    };
    if replay.disk.max(replay.memory / 8) < server.max_request_body {
        section.location_of("disk").warn(
            text!("is smaller than server.max_request_body: bodies that fit neither in it nor in an eighth of replay.memory \
             are refused or not retried", "小于 server.max_request_body：既放不进它、也放不进 replay.memory 八分之一的正文会被拒绝或不重试"),
        );
    }
    replay
}
