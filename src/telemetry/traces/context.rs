//! The trace that a request belongs to: the caller's (W3C Trace Context) or a new one.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::{
    config::TraceSampler,
    http1::headers::{HeaderKind, Headers},
    secret::{hex, random_u64},
};

/// The increment of SplitMix64.
const GOLDEN_GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// The trace, the parent span and the sampling decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TraceContext {
    pub(super) trace_id: [u8; 16],
    /// The caller's span.
    pub(super) parent_id: Option<[u8; 8]>,
    /// The sampled flag: whether spans are recorded.
    pub(super) sampled: bool,
}

impl TraceContext {
    /// The caller's trace if there is exactly one valid traceparent header, else a new one.
    pub(super) fn from_headers(headers: &Headers, ids: &IdGenerator, sampler: TraceSampler) -> Self {
        let mut values = headers.values(HeaderKind::Traceparent);
        let received = values.next().filter(|_| values.next().is_none()).and_then(parse_traceparent);
        match received {
            None => Self::new_root(ids, sampler),
            Some(received) if sampler.parent_based => received,
            Some(received) => Self { sampled: is_sampled(received.trace_id, sampler), ..received },
        }
    }

    /// A new trace.
    pub(super) fn new_root(ids: &IdGenerator, sampler: TraceSampler) -> Self {
        let trace_id = ids.next_trace_id();
        Self { trace_id, parent_id: None, sampled: is_sampled(trace_id, sampler) }
    }
}

/// Decides by the last eight bytes of the trace id, as the SDKs of OpenTelemetry do, so that all decide alike.
fn is_sampled(trace_id: [u8; 16], sampler: TraceSampler) -> bool {
    (u128::from_be_bytes(trace_id) as u64 >> 1) < sampler.threshold
}

/// `00-<trace>-<span>-<flags>`, each in lower-case hexadecimal digits. A later version may append more.
fn parse_traceparent(text: &[u8]) -> Option<TraceContext> {
    let (head, rest) = text.split_at_checked(55)?;
    let is_formed =
        [2, 35, 52].iter().all(|at| head[*at] == b'-') && !head.iter().any(u8::is_ascii_uppercase);
    let [version] = hex::decode(&head[..2])?;
    let trace_id = hex::decode(&head[3..35])?;
    let parent = hex::decode(&head[36..52])?;
    let [flags] = hex::decode(&head[53..])?;
    let ends_correctly = rest.is_empty() || (version > 0 && rest[0] == b'-');
    let valid = is_formed && ends_correctly && version != 0xff && trace_id != [0; 16] && parent != [0; 8];
    valid.then_some(TraceContext { trace_id, parent_id: Some(parent), sampled: flags & 1 == 1 })
}

/// Generates ids: unique within the process, and random enough for sampling by id.
pub(super) struct IdGenerator {
    keys: [u64; 2],
    counter: AtomicU64,
}

impl Default for IdGenerator {
    fn default() -> Self {
        let key = || random_u64();
        Self { keys: [key(), key()], counter: AtomicU64::new(0) }
    }
}

impl IdGenerator {
    /// A new span id.
    pub(super) fn next_span_id(&self) -> [u8; 8] {
        let nth = self.counter.fetch_add(1, Relaxed);
        split_mix64(self.keys[0], nth).to_be_bytes()
    }

    fn next_trace_id(&self) -> [u8; 16] {
        let nth = self.counter.fetch_add(1, Relaxed);
        let halves = self.keys.map(|key| u128::from(split_mix64(key, nth)));
        (halves[1] << 64 | halves[0]).to_be_bytes()
    }
}

/// SplitMix64; never 0, which is not a valid id.
fn split_mix64(key: u64, nth: u64) -> u64 {
    let mut mixed = key.wrapping_add(nth.wrapping_mul(GOLDEN_GAMMA));
    mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    (mixed ^ mixed >> 31).max(1)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    const SPAN_ID: &str = "00f067aa0ba902b7";
    const TRACE_ID: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

    #[test]
    fn valid_traceparent_continues_trace() {
        for (text, sampled) in [
            (format!("00-{TRACE_ID}-{SPAN_ID}-01"), true),
            (format!("00-{TRACE_ID}-{SPAN_ID}-00"), false),
            (format!("cc-{TRACE_ID}-{SPAN_ID}-03-more"), true),
        ] {
            let context = parse_traceparent(text.as_bytes()).unwrap_or_else(|| panic!("{text}"));
            assert_eq!(u128::from_be_bytes(context.trace_id), 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736);
            assert_eq!(context.parent_id.map(u64::from_be_bytes), Some(0x00f0_67aa_0ba9_02b7));
            assert_eq!(context.sampled, sampled, "{text}");
        }
    }

    #[test]
    fn invalid_traceparent_starts_new_trace() {
        for text in [
            String::new(),
            format!("00-{TRACE_ID}-{SPAN_ID}-0"),
            format!("00-{TRACE_ID}-{SPAN_ID}-01-more"),
            format!("cc-{TRACE_ID}-{SPAN_ID}-01more"),
            format!("ff-{TRACE_ID}-{SPAN_ID}-01"),
            format!("00-{TRACE_ID}-{SPAN_ID}-0g"),
            format!("00-{}-{SPAN_ID}-01", TRACE_ID.to_uppercase()),
            format!("00-{}-{SPAN_ID}-01", "0".repeat(32)),
            format!("00-{TRACE_ID}-{}-01", "0".repeat(16)),
            format!("00_{TRACE_ID}-{SPAN_ID}-01"),
        ] {
            assert_eq!(parse_traceparent(text.as_bytes()), None, "{text}");
        }
        let valid = format!("00-{TRACE_ID}-{SPAN_ID}-00");
        let ids = IdGenerator::default();
        let twice = Headers::from_pairs(&[("traceparent", &valid), ("Traceparent", &valid)]);
        let context = TraceContext::from_headers(&twice, &ids, TraceSampler::default());
        assert!(context.parent_id.is_none() && context.sampled);
        assert_eq!(
            TraceContext::from_headers(
                &Headers::from_pairs(&[("TraceParent", &valid)]),
                &ids,
                TraceSampler::default()
            )
            .parent_id,
            hex::decode(SPAN_ID.as_bytes())
        );
    }

    #[test]
    fn generated_ids_are_unique() {
        let ids = IdGenerator { keys: [0, 0], counter: AtomicU64::new(0) };
        let spans: HashSet<_> = (0..10_000).map(|_| ids.next_span_id()).collect();
        let traces: HashSet<_> = (0..10_000).map(|_| ids.next_trace_id()).collect();
        assert_eq!((spans.len(), traces.len()), (10_000, 10_000));
    }

    proptest! {
        #[test]
        fn parse_traceparent_never_panics(text in prop::collection::vec(any::<u8>(), 0..70)) {
            let _ = parse_traceparent(&text);
        }
    }
}
