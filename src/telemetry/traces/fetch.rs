//! The spans of calls that fetch tokens: children of the request that caused one, or traces of their own.

use std::{borrow::Cow, time::Duration};

use opentelemetry_proto::tonic::{
    common::v1::KeyValue,
    trace::v1::{Span, span::Link, span::SpanKind},
};

use super::{
    CommonAttributes, Traces, UpstreamAttributes,
    context::{IdGenerator, TraceContext},
    span::{number, text, with_error},
};
use crate::{
    time::clock,
    tokens::{CausingRequest, EndedFetch, FetchCause, FetchObserver},
};

/// Keeps the calls that fetch tokens for the exporter.
pub struct FetchTracer {
    traces: Traces,
    ids: IdGenerator,
}

/// A call, and its place in a trace.
pub(super) struct TracedFetch {
    fetch: EndedFetch,
    trace_id: [u8; 16],
    parent_id: Option<[u8; 8]>,
    /// The request that caused it, where it is a trace of its own.
    link: Option<CausingRequest>,
}

impl FetchTracer {
    pub(super) fn new(traces: Traces) -> Self {
        Self { traces, ids: IdGenerator::default() }
    }
}

impl FetchObserver for FetchTracer {
    /// Keeps the span of a call in the running task. It is a child of the request that caused the call if that one is
    /// exported for certain, as are those whose token was refused; else a trace of its own, which is sampled, or kept if the
    /// call failed.
    fn observe(&self, fetch: EndedFetch) {
        let cause = FetchCause::current().request();
        let parent = cause.filter(|cause| cause.sampled || fetch.is_refusal);
        let fetch = match parent {
            Some(CausingRequest { trace_id, span_id, .. }) => {
                TracedFetch { fetch, trace_id, parent_id: Some(span_id), link: None }
            }
            None => {
                let root = TraceContext::new_root(&self.ids, self.traces.sampler());
                if !root.sampled && fetch.error.is_none() {
                    return;
                }
                TracedFetch { fetch, trace_id: root.trace_id, parent_id: None, link: cause }
            }
        };
        self.traces.keep_fetch(fetch);
    }
}

impl TracedFetch {
    pub(super) fn span(self, common: &CommonAttributes, ids: &IdGenerator) -> Span {
        let EndedFetch { agent, method, path, upstream, reason, ended_at, duration, errcode, error, .. } =
            self.fetch;
        let mut attributes: Vec<KeyValue> = vec![text("http.request.method", method)];
        if let Some(UpstreamAttributes { url, host, port }) = common.upstreams.get(upstream) {
            attributes.extend([
                text("url.full", format!("{url}{path}")),
                text("server.address", &**host),
                number("server.port", *port),
            ]);
        }
        attributes.extend([
            text("url.template", path),
            text("wecom.refresh_reason", reason),
            text("wecom.agent", agent),
        ]);
        attributes.extend(errcode.map(|errcode| number("wecom.errcode", errcode)));
        let ended_at = clock::since_epoch(ended_at);
        let nanos = |at: Duration| u64::try_from(at.as_nanos()).unwrap_or(u64::MAX);
        let link = self.link.map(|CausingRequest { trace_id, span_id, .. }| Link {
            trace_id: trace_id.into(),
            span_id: span_id.into(),
            ..Link::default()
        });
        let span = Span {
            trace_id: self.trace_id.into(),
            span_id: ids.next_span_id().into(),
            parent_span_id: self.parent_id.map(Vec::from).unwrap_or_default(),
            name: format!("{method} {path}"),
            kind: SpanKind::Client.into(),
            start_time_unix_nano: nanos(ended_at.saturating_sub(duration)),
            end_time_unix_nano: nanos(ended_at),
            attributes,
            links: link.into_iter().collect(),
            ..Span::default()
        };
        let (kind, message) = error.unzip();
        with_error(span, kind.map(Cow::into_owned), &message.unwrap_or_default(), true)
    }
}
