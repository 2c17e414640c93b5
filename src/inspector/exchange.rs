//! The summary of one exchange, and the filter over exchanges.

use std::{
    ops::RangeInclusive,
    sync::Arc,
    time::{Duration, SystemTime},
};

use super::redaction_queue::DetailCell;
use crate::{
    telemetry::{
        access_log::{AccessLogEntry, OwnedEntry},
        metrics::FailureClass,
    },
    time::clock,
};

/// Summary of one exchange, with the data of its access log entry.
#[derive(Debug, Clone, Default)]
pub struct Exchange {
    entry: OwnedEntry,
    /// Captured details, if the capture was on.
    pub detail: Option<Arc<DetailCell>>,
}

impl Exchange {
    /// Its access log entry, without upstream and hint; the path is truncated to 1 KiB, and the query has names only.
    pub fn entry(&self) -> AccessLogEntry<'_> {
        self.entry.entry()
    }

    /// Whether the path may have been longer than what is kept of it.
    pub fn may_have_cut_path(&self) -> bool {
        self.entry.may_have_cut_path()
    }

    /// Tells two exchanges apart, but not two copies of one.
    pub(super) fn identity(&self) -> (SystemTime, Box<str>) {
        let entry = self.entry();
        (entry.ended_at, entry.request_id.into())
    }

    pub(super) fn is_notable(&self) -> bool {
        is_notable(&self.entry())
    }

    /// Overwrites this slot with another exchange.
    pub(super) fn overwrite(&mut self, entry: &AccessLogEntry<'_>, detail: Option<Arc<DetailCell>>) {
        self.entry.overwrite(entry);
        self.detail = detail;
    }
}

/// Filter over exchanges; the default matches all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExchangeFilter {
    /// Name of the agent; empty matches exchanges without one.
    pub agent: Option<String>,
    /// Name of the client; empty matches exchanges without one.
    pub client: Option<String>,
    /// The errcode.
    pub errcode: Option<ErrcodeFilter>,
    /// Range of HTTP statuses, inclusive.
    pub status: Option<RangeInclusive<u16>>,
    /// Substring of the path.
    pub path: Option<String>,
    /// The request id.
    pub request_id: Option<String>,
    /// The trace id.
    pub trace_id: Option<String>,
    /// The HTTP method.
    pub method: Option<String>,
    /// The kind of the proxy's own error.
    pub kind: Option<String>,
    /// Whether it failed, or in which way.
    pub failed: Option<FailureFilter>,
    /// Whether it was retried.
    pub retried: bool,
    /// Took longer than this.
    pub slower_than: Option<Duration>,
    /// Ended before this.
    pub before: Option<SystemTime>,
    /// Ended in this millisecond since 1970.
    pub ended_in_ms: Option<u128>,
}

/// Filter by errcode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrcodeFilter {
    /// This one.
    Is(i64),
    /// Any but this one.
    IsNot(i64),
}

/// Filter by failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureFilter {
    /// Failed in any way.
    Any,
    /// Failed in this way.
    Class(FailureClass),
}

impl ExchangeFilter {
    /// Whether an exchange matches.
    pub fn matches(&self, exchange: &Exchange) -> bool {
        let entry = exchange.entry();
        let equals =
            |wanted: &Option<String>, name: &str| wanted.as_ref().is_none_or(|wanted| wanted == name);
        equals(&self.agent, entry.agent.unwrap_or_default())
            && equals(&self.request_id, entry.request_id)
            && equals(&self.client, entry.client.unwrap_or_default())
            && equals(&self.trace_id, entry.trace_id.unwrap_or_default())
            && equals(&self.method, entry.method)
            && equals(&self.kind, entry.error.unwrap_or_default())
            && self.errcode.is_none_or(|filter| match filter {
                ErrcodeFilter::Is(errcode) => entry.errcode == Some(errcode),
                ErrcodeFilter::IsNot(errcode) => entry.errcode.is_some_and(|found| found != errcode),
            })
            && self.failed.is_none_or(|filter| match filter {
                FailureFilter::Any => FailureClass::of(&entry).is_some(),
                FailureFilter::Class(class) => FailureClass::of(&entry) == Some(class),
            })
            && (!self.retried || entry.retried.is_some())
            && self.slower_than.is_none_or(|time| entry.total_time > time)
            && self.before.is_none_or(|before| entry.ended_at < before)
            && self.ended_in_ms.is_none_or(|ms| clock::since_epoch(entry.ended_at).as_millis() == ms)
            && self.status.as_ref().is_none_or(|statuses| statuses.contains(&entry.status))
            && self.path.as_ref().is_none_or(|part| entry.path.contains(&**part))
    }
}

/// Whether an exchange is worth keeping longer.
pub(super) fn is_notable(entry: &AccessLogEntry<'_>) -> bool {
    entry.is_failed() || entry.retried.is_some() || entry.is_slow()
}
