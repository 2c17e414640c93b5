//! What `wecom-proxy state` does with a configured state.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use zeroize::Zeroizing;

use super::{Collection, OpenError, shared, sqlite};
use crate::{config::StateConfig, display_text, format_text, text, text::Text};

/// What a check found.
#[derive(Debug, PartialEq, Eq)]
pub struct CheckReport {
    /// The schema's version; `None` for a shared state, which has none.
    pub schema: Option<i64>,
    /// The number of records by collection.
    pub counts: BTreeMap<String, usize>,
    /// Records that cannot be decrypted, as `collection:name`.
    pub unreadable: Vec<String>,
    /// The number of records that are sealed under another key than the current one.
    pub under_old_key: usize,
}

/// What a change of the key did.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct RekeyReport {
    /// The number of values that were sealed under the current key before.
    pub current: usize,
    /// The number of values that are sealed under the current key now.
    pub resealed: usize,
    /// Records that cannot be decrypted and stay as they are, as `collection:name`.
    pub unreadable: Vec<String>,
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum MaintenanceError {
    /// The state cannot be opened.
    Open(#[from] OpenError),
    /// The shared state does not respond.
    Store(String),
    /// A shared state has no file.
    Shared,
    /// There is no state yet.
    Missing(PathBuf),
    /// The backup exists.
    TargetExists(PathBuf),
    /// The backup cannot be written.
    Target {
        /// The backup.
        path: PathBuf,
        /// The cause.
        reason: Text,
    },
}

display_text!(MaintenanceError);

impl MaintenanceError {
    fn text(&self) -> Text {
        match self {
            Self::Open(error) => error.text(),
            Self::Store(error) => format_text!("tokens.store: {error}", "tokens.store：{error}"),
            Self::Shared => text!(
                "state.shared: this state is in Redis; copy it with Redis's own means, an RDB or AOF file",
                "state.shared：此状态在 Redis 中；请用 Redis 自己的方式（RDB 或 AOF 文件）备份"
            ),
            Self::Missing(path) => format_text!(
                "state.path: {} does not exist; the proxy makes it at its first start",
                "state.path：{} 不存在；代理第一次启动时会创建它",
                path.display()
            ),
            Self::TargetExists(path) => format_text!(
                "{} exists and was not changed; name another file",
                "{} 已存在，没有改动；请换一个文件名",
                path.display()
            ),
            Self::Target { path, reason } => {
                format_text!("{} cannot be written: {}", "{} 无法写入：{}", path.display(), reason)
            }
        }
    }

    /// Whether another configuration or command line would help.
    pub fn is_configuration(&self) -> bool {
        match self {
            Self::Open(error) => error.is_configuration(),
            Self::Shared | Self::Missing(_) | Self::TargetExists(_) => true,
            Self::Store(_) | Self::Target { .. } => false,
        }
    }
}

/// Refuses a file that does not exist in a directory that does: nothing is wrong with it, so its own error says too much.
fn require_file(path: &Path) -> Result<(), MaintenanceError> {
    let is_new = path.try_exists().is_ok_and(|exists| !exists)
        && path.parent().is_none_or(|directory| directory.as_os_str().is_empty() || directory.is_dir());
    if is_new { Err(MaintenanceError::Missing(path.to_owned())) } else { Ok(()) }
}

/// Copies the file of the state as it is at this moment into a new file of mode 0600. Needs no key. Blocks.
pub fn backup(config: &StateConfig, target: &Path) -> Result<(), MaintenanceError> {
    match config {
        StateConfig::File(file) => {
            require_file(&file.path)?;
            sqlite::maintenance::backup(&file.path, target)
        }
        StateConfig::Shared(_) => Err(MaintenanceError::Shared),
    }
}

/// How many clients the state has; `None` where it cannot be read, or is not in a file. Changes nothing. Blocks.
pub fn count_clients(config: &StateConfig) -> Option<usize> {
    match config {
        StateConfig::File(file) => sqlite::maintenance::count(&file.path, Collection::Clients).ok(),
        StateConfig::Shared(_) => None,
    }
}

/// Reads and decrypts everything; changes nothing. Blocks.
pub async fn check(config: &StateConfig) -> Result<CheckReport, MaintenanceError> {
    match config {
        StateConfig::File(file) => {
            require_file(&file.path)?;
            Ok(sqlite::maintenance::check(file)?)
        }
        StateConfig::Shared(redis) => shared::maintenance::check(redis).await,
    }
}

/// The names of all records of a collection; none if the file does not exist yet. Changes nothing.
pub async fn names(config: &StateConfig, collection: Collection) -> Result<Vec<String>, MaintenanceError> {
    match config {
        StateConfig::File(file) => Ok(sqlite::maintenance::names(file, collection)?),
        StateConfig::Shared(redis) => shared::maintenance::names(redis, collection).await,
    }
}

/// The value of one record; changes nothing. Blocks.
pub async fn read(
    config: &StateConfig,
    collection: Collection,
    name: &str,
) -> Result<Option<Zeroizing<Vec<u8>>>, MaintenanceError> {
    match config {
        StateConfig::File(file) => Ok(sqlite::maintenance::read(file, collection, name)?),
        StateConfig::Shared(redis) => shared::maintenance::read(redis, collection, name).await,
    }
}

/// Seals every value under the current key that is still sealed under the old one. Versions stay. Blocks.
pub async fn rekey(config: &StateConfig) -> Result<RekeyReport, MaintenanceError> {
    match config {
        StateConfig::File(file) => sqlite::maintenance::rekey(file),
        StateConfig::Shared(redis) => shared::maintenance::rekey(redis).await,
    }
}
