//! Files and directories that settings name. They must exist and be readable before anything starts.

use std::fs::{self, File, Metadata};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::error::{Error, quote};
use super::loaded_files::SecretMode;
use super::path_error::{path_hint, unreadable_message};
use super::reader::{ConfigValue, Location};
use super::regular_file::open_regular;
use super::text_encoding::decode_utf8;
use crate::text::Text;
use crate::{format_text, text};

/// Bounds a file with a secret.
const MAX_SECRET_FILE_BYTES: u64 = 64 << 10;

/// Reads the path of a readable file. The content is validated where it is used.
pub(super) fn read_file_path(item: &ConfigValue<'_>) -> Result<PathBuf, Error> {
    let path = recorded_path(item)?;
    match open_regular_file(item, &path) {
        Err(error) if item.location.source.secrets() != SecretMode::Unread => Err(error),
        Err(error) => {
            item.location.warn(error.message);
            Ok(path)
        }
        Ok(_) => Ok(path),
    }
}

/// Reads the path of a readable file, with a warning if it is world-readable.
pub(super) fn read_private_file_path(item: &ConfigValue<'_>) -> Result<PathBuf, Error> {
    let path = recorded_path(item)?;
    if item.location.source.secrets() == SecretMode::Unread {
        return Ok(path);
    }
    let (_, metadata) = open_regular_file(item, &path)?;
    warn_if_world_readable(&item.location, &path, &metadata);
    Ok(path)
}

/// Reads the content of a file with a secret.
pub(super) fn read_secret_file(item: &ConfigValue<'_>) -> Result<Zeroizing<String>, Error> {
    let path = recorded_path(item)?;
    let SecretFile { text, metadata } = read_secret_text(&path).map_err(|reason| item.error(reason))?;
    warn_if_world_readable(&item.location, &path, &metadata);
    Ok(text)
}

/// The content of a file with a secret.
pub(super) struct SecretFile {
    /// Its whole text.
    pub(super) text: Zeroizing<String>,
    metadata: Metadata,
}

/// Reads a file with a secret. Opens it only once, because each agent may have one. The error names the file.
pub(super) fn read_secret_text(path: &Path) -> Result<SecretFile, Text> {
    let refuse = |reason: Text| format_text!("{} {}", "{} {}", quote(&path.to_string_lossy()), reason);
    let (file, metadata) = open_regular(path).map_err(&refuse)?;
    // One byte more than the file has, so that the read at its end does not grow the buffer.
    let capacity = metadata.len().min(MAX_SECRET_FILE_BYTES) as usize + 1;
    let mut bytes = Zeroizing::new(Vec::with_capacity(capacity));
    file.take(MAX_SECRET_FILE_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| refuse(unreadable_message(path, &e)))?;
    if bytes.len() as u64 > MAX_SECRET_FILE_BYTES {
        return Err(refuse(text!("is too long for a secret", "对密钥来说太长")));
    }
    let text = decode_utf8(&bytes)
        .map_err(|error| refuse(format_text!("line {}: {}", "第 {} 行：{}", error.line, error.message())))?;
    Ok(SecretFile { text: Zeroizing::new(text.to_owned()), metadata })
}

/// The path of a file that is about to be read.
fn recorded_path(item: &ConfigValue<'_>) -> Result<PathBuf, Error> {
    let path = item.path()?;
    item.location.source.record_file(&path);
    Ok(path)
}

pub(super) fn read_directory_path(item: &ConfigValue<'_>) -> Result<PathBuf, Error> {
    let path = item.path()?;
    let name = quote(&path.to_string_lossy());
    let metadata = fs::metadata(&path).map_err(|e| {
        item.error(format_text!(
            "{name} cannot be used: {}{}",
            "{name} 无法使用：{}{}",
            e,
            path_hint(&path, &e)
        ))
    })?;
    if !metadata.is_dir() {
        return Err(item.error(format_text!("{name} is not a directory", "{name} 不是目录")));
    }
    Ok(path)
}

fn open_regular_file(item: &ConfigValue<'_>, path: &Path) -> Result<(File, Metadata), Error> {
    open_regular(path)
        .map_err(|reason| item.error(format_text!("{} {}", "{} {}", quote(&path.to_string_lossy()), reason)))
}

fn warn_if_world_readable(location: &Location<'_>, path: &Path, metadata: &Metadata) {
    if metadata.permissions().mode() & 0o004 != 0 {
        let name = quote(&path.to_string_lossy());
        location.warn(format_text!(
            "{name} is world-readable; remove that with chmod o-r",
            "{name} 所有人可读；请用 chmod o-r 去掉该权限"
        ));
    }
}
