//! The filter in a query of `/api/requests`.

use std::{
    ops::RangeInclusive,
    time::{Duration, SystemTime},
};

use super::query::parameters;
use crate::{
    config::parse_duration,
    inspector::{ErrcodeFilter, Exchange, ExchangeFilter, FailureFilter},
    telemetry::metrics::FailureClass,
    time::clock,
};

const UNKNOWN: &str = "unknown parameter; use agent, client, errcode, status, path, id, trace_id, method, kind, failed, retried, \
                       slower_than, before or limit";

/// The `before` of the page after this exchange: its end in nanoseconds since 1970.
pub(super) fn next_cursor(last: &Exchange) -> String {
    clock::since_epoch(last.entry().ended_at).as_nanos().to_string()
}

/// Parses the filter and the limit of a query.
pub(super) fn parse_filter(query: Option<&str>) -> Result<(ExchangeFilter, Option<usize>), String> {
    let (mut filter, mut limit) = (ExchangeFilter::default(), None);
    for (name, value) in parameters(query) {
        let error = |hint: &str| format!("{name}: {hint}");
        match name {
            "agent" => filter.agent = Some(value),
            "client" => filter.client = Some(value),
            "path" => filter.path = Some(value),
            "id" => filter.request_id = Some(value),
            "trace_id" => filter.trace_id = Some(value),
            "method" => filter.method = Some(value.to_ascii_uppercase()),
            "kind" => filter.kind = Some(value),
            // Also written as one would in a program: `errcode!=0`.
            "errcode" | "errcode!" => {
                let errcode = parse_errcode_filter(&value, name.ends_with('!'));
                filter.errcode = Some(errcode.ok_or_else(|| error("write a number like 60020, or !0"))?);
            }
            "failed" => {
                let failed = parse_failure(&value);
                filter.failed = failed.ok_or_else(|| error("write 1, outage, refused, wecom or caller"))?;
            }
            "retried" if matches!(&*value, "" | "0" | "1") => filter.retried = value != "0",
            "slower_than" => {
                let time = parse_time(&value).ok_or_else(|| error("write 500ms, 2s or milliseconds"))?;
                filter.slower_than = Some(time);
            }
            "before" => {
                let before = value.parse().ok().map(Duration::from_nanos);
                let before = before.and_then(|before| SystemTime::UNIX_EPOCH.checked_add(before));
                filter.before = Some(before.ok_or_else(|| error("write the next of a response"))?);
            }
            "status" => {
                filter.status = Some(parse_status_range(&value).ok_or_else(|| error("write 502 or 5xx"))?)
            }
            "limit" => limit = Some(value.parse().map_err(|_| error("write a number like 100"))?),
            _ => return Err(UNKNOWN.to_owned()),
        }
    }
    Ok((filter, limit))
}

fn parse_errcode_filter(value: &str, is_negated: bool) -> Option<ErrcodeFilter> {
    let (value, is_negated) = match value.strip_prefix('!') {
        Some(value) => (value, !is_negated),
        None => (value, is_negated),
    };
    let errcode = value.parse().ok()?;
    Some(if is_negated { ErrcodeFilter::IsNot(errcode) } else { ErrcodeFilter::Is(errcode) })
}

/// `Some(None)`: any exchange, failed or not.
fn parse_failure(value: &str) -> Option<Option<FailureFilter>> {
    match value {
        "0" => Some(None),
        "" | "1" => Some(Some(FailureFilter::Any)),
        class => {
            let class = FailureClass::ALL.into_iter().find(|known| known.as_str() == class)?;
            Some(Some(FailureFilter::Class(class)))
        }
    }
}

fn parse_time(value: &str) -> Option<Duration> {
    value.parse().ok().map(Duration::from_millis).or_else(|| parse_duration(value))
}

/// Parses `502` or `5xx`.
fn parse_status_range(text: &str) -> Option<RangeInclusive<u16>> {
    match text.strip_suffix("xx") {
        Some(class) => {
            class.parse().ok().filter(|class| *class < 10).map(|class: u16| class * 100..=class * 100 + 99)
        }
        None => text.parse().ok().map(|status: u16| status..=status),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_filter_reads_filter_and_limit() {
        let (filter, limit) =
            parse_filter(Some("agent=hr&client=&errcode=-1&status=5xx&path=user%2Fget&limit=7"))
                .expect("a filter");
        let expected = ExchangeFilter {
            agent: Some("hr".to_owned()),
            client: Some(String::new()),
            errcode: Some(ErrcodeFilter::Is(-1)),
            status: Some(500..=599),
            path: Some("user/get".to_owned()),
            ..ExchangeFilter::default()
        };
        assert_eq!((filter, limit), (expected, Some(7)));
        assert_eq!(parse_filter(Some("status=0")).expect("a filter").0.status, Some(0..=0));
        let long = "failed=outage&retried=1&slower_than=2s&method=post&kind=overloaded&trace_id=0af7&before=1500000000";
        let expected = ExchangeFilter {
            failed: Some(FailureFilter::Class(FailureClass::Outage)),
            retried: true,
            slower_than: Some(Duration::from_secs(2)),
            method: Some("POST".to_owned()),
            kind: Some("overloaded".to_owned()),
            trace_id: Some("0af7".to_owned()),
            before: Some(SystemTime::UNIX_EPOCH + Duration::from_millis(1500)),
            ..ExchangeFilter::default()
        };
        assert_eq!(parse_filter(Some(long)), Ok((expected, None)));
        for (query, expected) in [
            ("errcode!=0", ErrcodeFilter::IsNot(0)),
            ("errcode=!0", ErrcodeFilter::IsNot(0)),
            ("errcode=0", ErrcodeFilter::Is(0)),
        ] {
            assert_eq!(parse_filter(Some(query)).expect("a filter").0.errcode, Some(expected), "{query}");
        }
        assert_eq!(parse_filter(Some("failed")).expect("a filter").0.failed, Some(FailureFilter::Any));
        assert_eq!(
            parse_filter(Some("slower_than=500")).expect("a filter").0.slower_than,
            parse_time("500ms")
        );
        for invalid in [
            "errcode=x",
            "status=5x",
            "status=99xx",
            "limit=-1",
            "agnet=hr",
            "=",
            "errcode=",
            "failed=2",
            "retried=x",
            "slower_than=",
            "before=x",
        ] {
            assert!(parse_filter(Some(invalid)).is_err(), "{invalid}");
        }
    }
}
