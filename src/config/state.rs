//! `[state]`: where agents, clients and messages are kept that must outlive the process.

use std::path::PathBuf;

use super::error::Error;
use super::reader::{ConfigTable, ConfigValue};
use super::secret;
use super::store::{RedisConfig, StoreConfig};
use super::tokens::TokensConfig;
use crate::secret::Masked;
use crate::text;

pub(super) const KEYS: &[&str] = &["path", "key", "old_key", "shared"];

/// `[state]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StateConfig {
    /// In a file.
    File(StateFileConfig),
    /// In the Redis or Valkey of `tokens.store`, under its key.
    Shared(Box<RedisConfig>),
}

/// `[state]` with `path`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateFileConfig {
    /// The SQLite file; made where it is missing.
    pub path: PathBuf,
    /// The secret that encrypts the values; at least 32 characters.
    pub key: Masked,
    /// The previous `key`, with which existing values can still be decrypted.
    pub old_key: Option<Masked>,
}

/// `None` where the file has no `[state]`.
pub(super) fn read(root: &ConfigTable<'_>, tokens: &TokensConfig) -> Option<StateConfig> {
    root.read_optional("state", |item| read_state(&item.table(text!("a table", "表"), KEYS)?, tokens))
}

fn read_state(section: &ConfigTable<'_>, tokens: &TokensConfig) -> Result<StateConfig, Error> {
    if section.read_or("shared", false, ConfigValue::boolean) {
        for key in ["path", "key", "old_key"] {
            if let Some(item) = section.find(key) {
                return Err(item.error(text!(
                    "conflicts with shared = true, which keeps the state in tokens.store under its key",
                    "与 shared = true 冲突，那样状态保存在 tokens.store 中，用它的 key 加密"
                )));
            }
        }
        return match &tokens.store {
            StoreConfig::Redis(redis) => Ok(StateConfig::Shared(redis.clone())),
            StoreConfig::Memory if section.is_broken("tokens.store") => Err(Error::recorded()),
            StoreConfig::Memory => Err(section.location_of("shared").error(
                text!("needs tokens.store = { redis = … }; without it, write path = \"/var/lib/wecom-proxy/state.db\"", "需要 tokens.store = { redis = … }；没有它时，请写 path = \"/var/lib/wecom-proxy/state.db\""),
            )),
        };
    }
    let path = section.read_required("path", "path = \"/var/lib/wecom-proxy/state.db\"", ConfigValue::path);
    let key = section.read_required("key", "key = { env = \"WECOM_PROXY_STATE_KEY\" }", secret::read_long);
    Ok(StateConfig::File(StateFileConfig {
        path: path?,
        key: key?,
        old_key: section.read_optional("old_key", secret::read_long),
    }))
}

/// The error for a setting that needs the table, where the file has none.
pub(super) fn needs_state(item: &ConfigValue<'_>) -> Error {
    item.error(
        text!("needs [state], which keeps what must outlive the process; write [state] with path = \
         \"/var/lib/wecom-proxy/state.db\" and key = { env = \"WECOM_PROXY_STATE_KEY\" }", "需要 [state]，它保存重启后仍要保留的内容；请写 [state]，其中 path = \"/var/lib/wecom-proxy/state.db\"，key = { env = \"WECOM_PROXY_STATE_KEY\" }"),
    )
}
