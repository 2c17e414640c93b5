//! Files and directories that settings name: there, and readable, before anything starts.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::error::{Error, quoted};
use super::section::{Item, Place};

/// The longest file that holds a secret.
const LONGEST_SECRET: u64 = 64 << 10;

/// A file that can be read. What is in it is looked at by whoever uses it.
pub(super) fn readable(item: &Item<'_>) -> Result<PathBuf, Error> {
    let path = item.path()?;
    open(item, &path)?;
    Ok(path)
}

/// The same for a file that only its owner should read.
pub(super) fn private(item: &Item<'_>) -> Result<PathBuf, Error> {
    let path = readable(item)?;
    warn_if_public(&item.place, &path);
    Ok(path)
}

/// What a file with a secret says.
pub(super) fn secret_text(item: &Item<'_>) -> Result<Zeroizing<String>, Error> {
    let path = private(item)?;
    let name = quoted(&path.to_string_lossy());
    let mut bytes = Zeroizing::new(Vec::new());
    open(item, &path)?
        .take(LONGEST_SECRET + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| item.error(format!("{name} cannot be read: {e}")))?;
    if bytes.len() as u64 > LONGEST_SECRET {
        return Err(item.error(format!("{name} is too long for a secret")));
    }
    let text = std::str::from_utf8(&bytes).map_err(|_| item.error(format!("{name} is not text")))?;
    Ok(Zeroizing::new(text.to_owned()))
}

pub(super) fn directory(item: &Item<'_>) -> Result<PathBuf, Error> {
    let path = item.path()?;
    let name = quoted(&path.to_string_lossy());
    let metadata = fs::metadata(&path).map_err(|e| item.error(format!("{name} cannot be used: {e}")))?;
    if !metadata.is_dir() {
        return Err(item.error(format!("{name} is not a directory")));
    }
    Ok(path)
}

/// Looks before it opens, for opening a pipe would wait for ever.
fn open(item: &Item<'_>, path: &Path) -> Result<File, Error> {
    let name = quoted(&path.to_string_lossy());
    let refuse = |e: std::io::Error| item.error(format!("{name} cannot be read: {e}"));
    if !fs::metadata(path).map_err(refuse)?.is_file() {
        return Err(item.error(format!("{name} is not a file")));
    }
    File::open(path).map_err(refuse)
}

#[cfg(unix)]
fn warn_if_public(place: &Place<'_>, path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    if fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o004 != 0) {
        let name = quoted(&path.to_string_lossy());
        place.warn(format!("{name} can be read by everybody on this machine; chmod o-r takes that back"));
    }
}

#[cfg(not(unix))]
fn warn_if_public(_: &Place<'_>, _: &Path) {}
