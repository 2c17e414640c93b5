//! `[replay]`: where request bodies wait in case they have to be sent again.

use std::path::PathBuf;

use super::error::Error;
use super::files;
use super::section::Section;
use super::size;

pub(super) const KEYS: &[&str] = &["memory", "dir"];

/// `[replay]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replay {
    /// In bytes, all bodies together; beyond it they go to temporary files. May be 0.
    pub memory: u64,
    /// Where those files go; None: the system's own place for them.
    pub dir: Option<PathBuf>,
}

pub(super) fn read(root: &Section<'_>) -> Result<Replay, Error> {
    let section = root.section("replay", KEYS)?;
    Ok(Replay {
        memory: section.or("memory", 256 << 20, |item| size::read(item, 0..=size::LARGEST))?,
        dir: section.maybe("dir", files::directory)?,
    })
}
