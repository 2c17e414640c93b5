//! Texts of I/O errors on paths that the configuration names.

use crate::{format_text, text::Text};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The text for a file that cannot be read, with the cause and a hint.
pub(super) fn unreadable_message(path: &Path, error: &io::Error) -> Text {
    format_text!("cannot be read: {}{}", "无法读取：{}{}", error, path_hint(path, error))
}

/// A hint for a path that cannot be used; empty if there is none.
pub(super) fn path_hint(path: &Path, error: &io::Error) -> Text {
    match error.kind() {
        io::ErrorKind::NotFound if path.is_relative() => match std::env::current_dir() {
            Ok(directory) => {
                format_text!("; it was looked for in {}", "；查找的目录是 {}", directory.display())
            }
            Err(_) => Text::default(),
        },
        io::ErrorKind::PermissionDenied => permission_hint(path),
        _ => Text::default(),
    }
}

/// Names the user that needs the permission, and the file's owner and mode.
fn permission_hint(path: &Path) -> Text {
    // The owner of /proc/self would be wrong: without core dumps it is root.
    let user = rustix::process::geteuid().as_raw();
    match fs::metadata(path) {
        Ok(file) => {
            let mode = file.mode() & 0o777;
            format_text!(
                "; user {}, which runs this program, needs read permission: the file belongs to user {}, group {}, and has \
                 mode {mode:03o}; chown or chmod it",
                "；运行本程序的用户 {} 需要读权限：文件属于用户 {}、组 {}，权限为 {mode:03o}；请用 chown 或 chmod 修改",
                user,
                file.uid(),
                file.gid()
            )
        }
        Err(_) => format_text!(
            "; user {}, which runs this program, needs access to each directory of the path",
            "；运行本程序的用户 {} 需要有路径中每个目录的访问权限",
            user
        ),
    }
}
