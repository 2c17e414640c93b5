//! `[quotas]`: WeCom's limits of calls, observed or kept.

use super::error::Error;
use super::pattern::{self, PathPattern};
use super::rate_limit::{self, RateLimit};
use super::reader::{ConfigTable, ConfigValue, name_of, read_all};
use crate::text;

pub(super) const KEYS: &[&str] = &["mode", "limit"];
pub(super) const LIMIT_KEYS: &[&str] = &["path", "per", "limit"];

const EXAMPLE: &str = "path = \"/cgi-bin/oa/*\", per = \"corp\", limit = \"600/m\"";

/// `[quotas]`
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct QuotasConfig {
    /// What is done about quotas.
    pub mode: QuotaMode,
    /// Rows that are added to the built-in table, or replace its rows of the same path, scope and window.
    pub limits: Vec<QuotaLimit>,
}

/// What is done about quotas.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum QuotaMode {
    /// Nothing is counted.
    Off,
    /// Calls are counted and reported.
    #[default]
    Observe,
    /// Calls wait, or are refused, before a quota is spent.
    Shape,
}

/// What a quota counts together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum QuotaScope {
    /// All calls of a company.
    Corp,
    /// All calls of an application.
    Agent,
    /// All calls from this proxy's address.
    Address,
    /// What an application sends to one member.
    Member,
    /// All calls with one credential in the query, such as a robot's key. Only in the built-in table.
    Credential,
}

impl QuotaScope {
    /// Its name in `per`.
    pub fn name(self) -> &'static str {
        name_of(&SCOPES, &self)
    }
}

/// By name. The last one is of the built-in table only.
const SCOPES: [(&str, QuotaScope); 5] = [
    ("corp", QuotaScope::Corp),
    ("agent", QuotaScope::Agent),
    ("address", QuotaScope::Address),
    ("member", QuotaScope::Member),
    ("credential", QuotaScope::Credential),
];

pub(super) const MODES: [(&str, QuotaMode); 3] =
    [("observe", QuotaMode::Observe), ("shape", QuotaMode::Shape), ("off", QuotaMode::Off)];

/// A row: each call that `path` matches has a quota of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuotaLimit {
    /// The calls.
    pub path: PathPattern,
    /// What is counted together.
    pub per: QuotaScope,
    /// The limit.
    pub limit: RateLimit,
}

pub(super) fn read(root: &ConfigTable<'_>) -> QuotasConfig {
    let section = root.subtable("quotas", KEYS);
    QuotasConfig {
        mode: section.read_or("mode", QuotaMode::default(), |item| item.one_of(&MODES)),
        limits: section.read_or("limit", Vec::new(), read_limits),
    }
}

fn read_limits(item: &ConfigValue<'_>) -> Result<Vec<QuotaLimit>, Error> {
    read_all(&item.list(text!("tables like [[quotas.limit]]", "[[quotas.limit]] 这样的表"))?, read_limit)
}

fn read_limit(item: &ConfigValue<'_>) -> Result<QuotaLimit, Error> {
    let section =
        item.table(text!("a table with path, per and limit", "含 path、per 和 limit 的表"), LIMIT_KEYS)?;
    // All are read before the first error counts.
    let path = section.read_required("path", EXAMPLE, pattern::read_path);
    let per = section.read_required("per", EXAMPLE, |item| item.one_of(&SCOPES[..4]));
    let limit = section.read_required("limit", EXAMPLE, rate_limit::read);
    Ok(QuotaLimit { path: path?, per: per?, limit: limit? })
}
