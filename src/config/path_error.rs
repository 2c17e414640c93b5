//! Texts of I/O errors on paths that the configuration names.

use std::fs;
use std::io;
use std::path::Path;

/// The text for a file that cannot be read, with the cause and a hint.
pub(super) fn unreadable_message(path: &Path, error: &io::Error) -> String {
    format!("cannot be read: {error}{}", path_hint(path, error))
}

/// A hint for a path that cannot be used; empty if there is none.
pub(super) fn path_hint(path: &Path, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound if path.is_relative() => match std::env::current_dir() {
            Ok(directory) => format!("; it was looked for in {}", directory.display()),
            Err(_) => String::new(),
        },
        io::ErrorKind::PermissionDenied => permission_hint(path),
        _ => String::new(),
    }
}

/// Names the user that needs the permission, and the file's owner and mode.
#[cfg(unix)]
fn permission_hint(path: &Path) -> String {
    use std::os::unix::fs::MetadataExt;
    // The owner of /proc/self would be wrong: without core dumps it is root.
    let user = format!("user {}, which runs this program,", rustix::process::geteuid().as_raw());
    match fs::metadata(path) {
        Ok(file) => format!(
            "; {user} needs read permission: the file belongs to user {}, group {}, and has mode {:03o}; chown or chmod it",
            file.uid(),
            file.gid(),
            file.mode() & 0o777
        ),
        Err(_) => format!("; {user} needs access to each directory of the path"),
    }
}

#[cfg(not(unix))]
fn permission_hint(_: &Path) -> String {
    String::new()
}
