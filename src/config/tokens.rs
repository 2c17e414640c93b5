//! `[tokens]`: when tokens are refreshed, and the store that replicas share.

use std::time::Duration;

use super::duration;
use super::error::Error;
use super::reader::{ConfigTable, ConfigValue, read_all};
use super::secret;
use super::store::{self, StoreConfig};
use crate::secret::Masked;
use crate::text;

pub(super) const KEYS: &[&str] =
    &["refresh_errcodes", "refresh_ahead", "renewals_per_hour", "pass_key", "store"];

/// Half of a token's lifetime; with more, tokens would be refreshed all the time.
const MAX_REFRESH_AHEAD: Duration = Duration::from_secs(3600);

/// A higher limit has no effect: WeCom allows fewer calls per IP address.
const MAX_RENEWALS_PER_HOUR: u64 = 10_000_000;

/// `[tokens]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokensConfig {
    /// The errcodes that mean that the token is no longer valid. Never 0; may be empty.
    pub refresh_errcodes: Vec<i64>,
    /// How long before its expiry a used token is refreshed; zero disables this.
    pub refresh_ahead: Duration,
    /// Maximum of refreshes per hour beyond each agent's first token and each expiry, all agents together; `None`: the
    /// larger of 300 and 3 for each agent in use.
    pub renewals_per_hour: Option<u32>,
    /// The secret under which passes for clients are issued; at least 32 characters. `None`: the agent's secret.
    pub pass_key: Option<Masked>,
    /// Where tokens are stored.
    pub store: StoreConfig,
}

pub(super) fn read(root: &ConfigTable<'_>) -> TokensConfig {
    let section = root.subtable("tokens", KEYS);
    TokensConfig {
        refresh_errcodes: section.read_or("refresh_errcodes", vec![40014, 42001], read_errcodes),
        refresh_ahead: section.read_or("refresh_ahead", Duration::from_secs(300), |item| {
            duration::read(item, Duration::ZERO..=MAX_REFRESH_AHEAD)
        }),
        renewals_per_hour: section.read_optional("renewals_per_hour", |item| {
            item.integer(1..=MAX_RENEWALS_PER_HOUR).map(|hourly| u32::try_from(hourly).unwrap_or(u32::MAX))
        }),
        pass_key: section.read_optional("pass_key", secret::read_long),
        store: section.read_or("store", StoreConfig::Memory, store::read),
    }
}

fn read_errcodes(item: &ConfigValue<'_>) -> Result<Vec<i64>, Error> {
    let items =
        item.list(text!("a list of errcodes like [40014, 42001]", "errcode 列表，如 [40014, 42001]"))?;
    read_all(&items, |item| item.integer(1..=i64::from(i32::MAX) as u64).map(|errcode| errcode as i64))
}
