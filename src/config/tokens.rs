//! `[tokens]`: when tokens are renewed, and where replicas share them.

use std::time::Duration;

use super::duration;
use super::error::Error;
use super::secret;
use super::section::{Item, Section};
use super::url;
use crate::secret::Masked;

pub(super) const KEYS: &[&str] = &["refresh_errcodes", "refresh_ahead", "store"];

pub(super) const REDIS_KEYS: &[&str] = &["redis", "prefix", "key"];

/// Half of what a token lives; more would renew it all the time.
const FURTHEST_AHEAD: Duration = Duration::from_secs(3600);

const SHORTEST_STORE_KEY: usize = 32;

const EXAMPLE_URL: &str = "redis://127.0.0.1:6379/0";

const EXPECTED_STORE: &str =
    "\"memory\" or { redis = \"redis://127.0.0.1:6379/0\", key = { env = \"STORE_KEY\" } }";

/// `[tokens]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokens {
    /// The errcodes that mean: this token no longer serves. Never 0; empty: none does.
    pub refresh_errcodes: Vec<i64>,
    /// How long before its expiry a used token is renewed; zero: not before.
    pub refresh_ahead: Duration,
    /// Where tokens are kept.
    pub store: Store,
}

/// Where tokens and tickets are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Store {
    /// In this process.
    Memory,
    /// In Redis or Valkey, shared with other replicas.
    Redis(Redis),
}

impl Store {
    /// `memory` or `redis`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Redis(_) => "redis",
        }
    }
}

/// `tokens.store` with `redis` in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redis {
    /// As it was written; may hold a password.
    pub url: Masked,
    /// Whether it is a `rediss` one.
    pub tls: bool,
    /// In lower case, an IPv6 address without brackets.
    pub host: String,
    /// To connect to.
    pub port: u16,
    /// The database's number.
    pub database: u32,
    /// What every name in the store starts with.
    pub prefix: String,
    /// What the values are encrypted under; 32 characters or more.
    pub key: Masked,
}

pub(super) fn read(root: &Section<'_>) -> Result<Tokens, Error> {
    let section = root.section("tokens", KEYS)?;
    Ok(Tokens {
        refresh_errcodes: section.or("refresh_errcodes", vec![40014, 42001], read_errcodes)?,
        refresh_ahead: section.or("refresh_ahead", Duration::from_secs(300), |item| {
            duration::read(item, Duration::ZERO..=FURTHEST_AHEAD)
        })?,
        store: section.or("store", Store::Memory, read_store)?,
    })
}

fn read_errcodes(item: &Item<'_>) -> Result<Vec<i64>, Error> {
    let items = item.list("a list of errcodes like [40014, 42001]")?;
    items
        .iter()
        .map(|item| item.number(1..=i64::from(i32::MAX) as u64).map(|errcode| errcode as i64))
        .collect()
}

fn read_store(item: &Item<'_>) -> Result<Store, Error> {
    match item.as_str() {
        Some("memory") => Ok(Store::Memory),
        // Not shown: it may be a URL with a password.
        Some(_) => Err(item.error(format!("must be {EXPECTED_STORE}"))),
        None => read_redis(item).and_then(|_| Err(unbuilt(item))),
    }
}

/// The one place that stands between a valid `redis` table and [`Store::Redis`].
fn unbuilt(item: &Item<'_>) -> Error {
    item.error("redis is not built yet; use \"memory\"")
}

fn read_redis(item: &Item<'_>) -> Result<Redis, Error> {
    let section = item.section(EXPECTED_STORE, REDIS_KEYS)?;
    let url = section.need("redis", &format!("redis = {EXAMPLE_URL:?}"), |item| {
        Ok((
            Masked::new(item.text("a URL")?),
            url::read(item, &["redis", "rediss"], EXAMPLE_URL)?,
            item.clone(),
        ))
    });
    let (text, url, url_item) = url?;
    Ok(Redis {
        url: text,
        tls: url.scheme == "rediss",
        database: read_database(&url_item, url.rest)?,
        port: url.port.unwrap_or(6379),
        host: url.host,
        prefix: section.or("prefix", "wecom-proxy:".to_owned(), read_prefix)?,
        key: section.need("key", "key = { env = \"STORE_KEY\" }", read_store_key)?,
    })
}

fn read_database(item: &Item<'_>, rest: &str) -> Result<u32, Error> {
    let number = rest.strip_prefix('/').unwrap_or(rest);
    if number.is_empty() {
        return Ok(0);
    }
    let digits = number.bytes().all(|byte| byte.is_ascii_digit());
    number.parse().ok().filter(|_| digits).ok_or_else(|| {
        item.error(format!(
            "must hold nothing but the database's number after the host, as in {EXAMPLE_URL:?}"
        ))
    })
}

/// Braces are kept for the hash tags by which a cluster keeps a lock beside its value.
fn read_prefix(item: &Item<'_>) -> Result<String, Error> {
    let text = item.text("a string like \"wecom-proxy:\"")?;
    if text.len() > 64 || !text.bytes().all(|b| b.is_ascii_graphic() && !b"{}*?[]\\".contains(&b)) {
        return Err(item.error("must be at most 64 visible ASCII characters, none of { } [ ] * ? \\"));
    }
    Ok(text.to_owned())
}

fn read_store_key(item: &Item<'_>) -> Result<Masked, Error> {
    let key = secret::read(item)?;
    if key.expose().len() < SHORTEST_STORE_KEY {
        return Err(item.error(format!("is too short; it must have {SHORTEST_STORE_KEY} characters or more")));
    }
    Ok(key)
}
