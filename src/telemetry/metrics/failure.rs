//! Classes of failed requests, and the failures that put an agent in trouble.

use std::{fmt, net::IpAddr, ops::AddAssign, time::SystemTime};

use crate::{telemetry::access_log::AccessLogEntry, wecom::errcode};

/// Kinds of the proxy's own errors that are outages: their status is 500 or above.
const OUTAGE_ERRORS: [&str; 6] = [
    "token-unavailable",
    "upstream-unreachable",
    "upstream-broke",
    "upstream-timeout",
    "overloaded",
    "shutting-down",
];
/// Kinds of the proxy's own errors that a mistake of the caller causes, whatever is configured.
const CALLER_ERRORS: [&str; 4] = ["bad-request", "no-agent", "body-too-large", "idempotency-mismatch"];
const UPSTREAM_TIMEOUT: &str = "upstream-timeout";

/// Why a request failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureClass {
    /// The proxy or WeCom could not serve it.
    Outage,
    /// The proxy refused it: key, permission, agent or rate limit.
    Refused,
    /// WeCom refused it.
    Wecom,
    /// Its parameters are wrong.
    Caller,
}

impl FailureClass {
    /// Every class.
    pub const ALL: [Self; 4] = [Self::Outage, Self::Refused, Self::Wecom, Self::Caller];

    /// Its name in the admin API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Outage => "outage",
            Self::Refused => "refused",
            Self::Wecom => "wecom",
            Self::Caller => "caller",
        }
    }

    /// The class of a request; `None` if it did not fail.
    pub fn of(entry: &AccessLogEntry<'_>) -> Option<Self> {
        if let Some(kind) = entry.error {
            return Some(match kind {
                _ if OUTAGE_ERRORS.contains(&kind) => Self::Outage,
                _ if CALLER_ERRORS.contains(&kind) => Self::Caller,
                _ => Self::Refused,
            });
        }
        match entry.errcode.filter(|errcode| *errcode != errcode::OK) {
            _ if entry.status >= 500 => Some(Self::Outage),
            Some(errcode) if errcode::is_outage(errcode) => Some(Self::Outage),
            Some(errcode) if errcode::is_caller_mistake(errcode) => Some(Self::Caller),
            Some(_) => Some(Self::Wecom),
            None if entry.status >= 400 => Some(Self::Wecom),
            None => None,
        }
    }
}

/// Failed requests by class.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FailureCounts {
    /// See [`FailureClass::Outage`].
    pub outage: u64,
    /// See [`FailureClass::Refused`].
    pub refused: u64,
    /// See [`FailureClass::Wecom`].
    pub wecom: u64,
    /// See [`FailureClass::Caller`].
    pub caller: u64,
}

impl FailureCounts {
    pub(super) fn add(&mut self, class: FailureClass) {
        *match class {
            FailureClass::Outage => &mut self.outage,
            FailureClass::Refused => &mut self.refused,
            FailureClass::Wecom => &mut self.wecom,
            FailureClass::Caller => &mut self.caller,
        } += 1;
    }

    /// All failed requests.
    pub fn total(&self) -> u64 {
        self.outage + self.refused + self.wecom + self.caller
    }
}

impl AddAssign for FailureCounts {
    fn add_assign(&mut self, other: Self) {
        self.outage += other.outage;
        self.refused += other.refused;
        self.wecom += other.wecom;
        self.caller += other.caller;
    }
}

/// What puts an agent in trouble.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TroubleReason {
    /// WeCom answered with an errcode that an operator has to act on.
    Errcode(i64),
    /// WeCom did not respond in time.
    UpstreamTimeout,
    /// At least half of the requests failed.
    HalfFailed,
}

impl fmt::Display for TroubleReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Errcode(errcode) => errcode.fmt(f),
            Self::UpstreamTimeout => f.write_str(UPSTREAM_TIMEOUT),
            Self::HalfFailed => f.write_str("half-failed"),
        }
    }
}

/// How often a reason occurred.
#[derive(Debug, Clone, Copy)]
pub(super) struct ReasonCount {
    pub(super) reason: TroubleReason,
    pub(super) last_at: SystemTime,
}

/// Failures of one agent that count for its trouble: outages and refusals of WeCom.
#[derive(Debug)]
pub(super) struct AgentFailures {
    pub(super) count: u32,
    pub(super) first_at: SystemTime,
    pub(super) reasons: Vec<ReasonCount>,
    /// The address that WeCom does not trust.
    pub(super) untrusted_address: Option<IpAddr>,
}

impl AgentFailures {
    pub(super) fn new(first_at: SystemTime) -> Self {
        Self { count: 0, first_at, reasons: Vec::new(), untrusted_address: None }
    }

    pub(super) fn record(&mut self, entry: &AccessLogEntry<'_>) {
        self.count = self.count.saturating_add(1);
        self.untrusted_address = entry.known_untrusted_address().or(self.untrusted_address);
        let errcode = entry.errcode.filter(|errcode| entry.is_wecom_errcode && errcode::is_trouble(*errcode));
        let reason = match (errcode, entry.error) {
            (Some(errcode), _) => TroubleReason::Errcode(errcode),
            (None, Some(UPSTREAM_TIMEOUT)) => TroubleReason::UpstreamTimeout,
            _ => return,
        };
        note_reason(&mut self.reasons, ReasonCount { reason, last_at: entry.ended_at });
    }
}

/// Adds a reason, or renews it. There are few.
pub(super) fn note_reason(reasons: &mut Vec<ReasonCount>, new: ReasonCount) {
    match reasons.iter_mut().find(|known| known.reason == new.reason) {
        Some(known) => known.last_at = known.last_at.max(new.last_at),
        None => reasons.push(new),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_belong_to_four_classes() {
        let response = |status, errcode| AccessLogEntry { status, errcode, ..AccessLogEntry::default() };
        let error = |kind| AccessLogEntry { status: 200, error: Some(kind), ..AccessLogEntry::default() };
        for (entry, expected) in [
            (response(200, Some(0)), None),
            (response(206, None), None),
            (response(0, None), None),
            (response(200, Some(60020)), Some(FailureClass::Outage)),
            (response(200, Some(45009)), Some(FailureClass::Outage)),
            (response(200, Some(-1)), Some(FailureClass::Outage)),
            (response(200, Some(40001)), Some(FailureClass::Outage)),
            (response(500, Some(0)), Some(FailureClass::Outage)),
            (response(503, None), Some(FailureClass::Outage)),
            (response(200, Some(60111)), Some(FailureClass::Caller)),
            (response(200, Some(40007)), Some(FailureClass::Caller)),
            (response(200, Some(48002)), Some(FailureClass::Wecom)),
            (response(200, Some(99_999_999)), Some(FailureClass::Wecom)),
            (response(404, None), Some(FailureClass::Wecom)),
            (error("token-unavailable"), Some(FailureClass::Outage)),
            (error("upstream-timeout"), Some(FailureClass::Outage)),
            (error("rate-limited"), Some(FailureClass::Refused)),
            (error("unauthenticated"), Some(FailureClass::Refused)),
            (error("unknown-agent"), Some(FailureClass::Refused)),
            (error("bad-request"), Some(FailureClass::Caller)),
        ] {
            assert_eq!(FailureClass::of(&entry), expected, "{entry:?}");
        }
    }
}
