//! Why the configured store cannot be used.

use std::path::PathBuf;

use crate::{display_text, format_text, text, text::Text};

/// Why the configured store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The Redis client rejects the address or a setting.
    Settings(#[from] redis::RedisError),
    /// The file of trusted certificates cannot be read.
    CaFile {
        /// Its path.
        path: PathBuf,
        /// The system's error.
        error: std::io::Error,
    },
    /// No cipher key can be derived from the configured key.
    Key,
}

display_text!(StoreError);

impl StoreError {
    /// The key of the file, and what is wrong with it.
    pub fn text(&self) -> Text {
        match self {
            Self::Settings(error) => format_text!("tokens.store: {error}", "tokens.store：{error}"),
            Self::CaFile { path, error } => format_text!(
                "tokens.store.ca_file: {} cannot be read: {}",
                "tokens.store.ca_file：{} 无法读取：{}",
                path.display(),
                error
            ),
            Self::Key => text!("tokens.store.key: invalid key", "tokens.store.key：密钥无效"),
        }
    }
}
