//! Files and directories that settings name: there, and readable, before anything starts.

use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::error::{Error, quote};
use super::reader::{ConfigValue, Location};

/// The longest file that holds a secret.
const MAX_SECRET_FILE_BYTES: u64 = 64 << 10;

/// A file that can be read. What is in it is looked at by whoever uses it.
pub(super) fn read_file_path(item: &ConfigValue<'_>) -> Result<PathBuf, Error> {
    let path = item.path()?;
    open_regular_file(item, &path)?;
    Ok(path)
}

/// The same for a file that only its owner should read.
pub(super) fn read_private_file_path(item: &ConfigValue<'_>) -> Result<PathBuf, Error> {
    let path = item.path()?;
    let (_, metadata) = open_regular_file(item, &path)?;
    warn_if_world_readable(&item.location, &path, &metadata);
    Ok(path)
}

/// What a file with a secret says. Each agent may have such a file, so it is looked at and opened only once.
pub(super) fn read_secret_file(item: &ConfigValue<'_>) -> Result<Zeroizing<String>, Error> {
    let path = item.path()?;
    let (file, metadata) = open_regular_file(item, &path)?;
    warn_if_world_readable(&item.location, &path, &metadata);
    let refuse = |what: &str| item.error(format!("{} {what}", quote(&path.to_string_lossy())));
    // Room for all of it and one byte for the end to be found at once.
    let room = metadata.len().min(MAX_SECRET_FILE_BYTES) as usize + 1;
    let mut bytes = Zeroizing::new(Vec::with_capacity(room));
    file.take(MAX_SECRET_FILE_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| refuse(&unreadable_message(&path, &e)))?;
    if bytes.len() as u64 > MAX_SECRET_FILE_BYTES {
        return Err(refuse("is too long for a secret"));
    }
    let text = std::str::from_utf8(&bytes).map_err(|_| refuse("is not text"))?;
    Ok(Zeroizing::new(text.to_owned()))
}

pub(super) fn read_directory_path(item: &ConfigValue<'_>) -> Result<PathBuf, Error> {
    let path = item.path()?;
    let name = quote(&path.to_string_lossy());
    let metadata = fs::metadata(&path)
        .map_err(|e| item.error(format!("{name} cannot be used: {e}{}", path_hint(&path, &e))))?;
    if !metadata.is_dir() {
        return Err(item.error(format!("{name} is not a directory")));
    }
    Ok(path)
}

/// That a file cannot be read, why, and what to do about it.
pub(super) fn unreadable_message(path: &Path, error: &io::Error) -> String {
    format!("cannot be read: {error}{}", path_hint(path, error))
}

/// What to do where a path cannot be used.
pub(super) fn path_hint(path: &Path, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound if path.is_relative() => match std::env::current_dir() {
            Ok(here) => format!("; it was looked for in {}", here.display()),
            Err(_) => String::new(),
        },
        io::ErrorKind::PermissionDenied => permission_hint(path),
        _ => String::new(),
    }
}

/// Who is not let in, and by whom.
#[cfg(unix)]
fn permission_hint(path: &Path) -> String {
    use std::os::unix::fs::MetadataExt;
    // Not the owner of /proc/self: of a process that leaves no core dumps it is root.
    let runner = format!("user {}, who runs this program,", rustix::process::geteuid().as_raw());
    match fs::metadata(path) {
        Ok(file) => format!(
            "; {runner} must be let in: it belongs to user {}, group {}, and has mode {:03o}; chown or chmod it",
            file.uid(),
            file.gid(),
            file.mode() & 0o777
        ),
        Err(_) => format!("; {runner} must be let into each directory on the way there"),
    }
}

#[cfg(not(unix))]
fn permission_hint(_: &Path) -> String {
    String::new()
}

/// Looks before it opens, for opening a pipe would wait for ever.
fn open_regular_file(item: &ConfigValue<'_>, path: &Path) -> Result<(File, Metadata), Error> {
    let refuse = |what: &str| item.error(format!("{} {what}", quote(&path.to_string_lossy())));
    let unreadable = |e: io::Error| refuse(&unreadable_message(path, &e));
    let metadata = fs::metadata(path).map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(refuse("is not a file"));
    }
    Ok((File::open(path).map_err(unreadable)?, metadata))
}

#[cfg(unix)]
fn warn_if_world_readable(place: &Location<'_>, path: &Path, metadata: &Metadata) {
    use std::os::unix::fs::PermissionsExt;
    if metadata.permissions().mode() & 0o004 != 0 {
        let name = quote(&path.to_string_lossy());
        place.warn(format!("{name} can be read by everybody on this machine; chmod o-r takes that back"));
    }
}

#[cfg(not(unix))]
fn warn_if_world_readable(_: &Location<'_>, _: &Path, _: &Metadata) {}
