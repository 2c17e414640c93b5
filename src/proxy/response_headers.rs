//! Response headers added by the proxy.

use bytes::BufMut;

use super::{request::Request, request_context::RequestContext};
use crate::{
    http1::headers::{HeaderBlock, HeaderKind},
    time::milliseconds::put_milliseconds,
    tokens::ceil_seconds,
    wecom::errcode,
};

/// Appends the proxy's headers. `with_hint`: the client asked for `X-Wecom-Hint`.
pub(super) fn add_proxy_headers(context: &RequestContext, with_hint: bool, headers: &mut HeaderBlock) {
    headers.append(b"x-request-id", context.request_id.as_bytes());
    if let Some(agent) = &context.agent {
        headers.append(b"x-wecom-agent", agent.name.as_bytes());
    }
    let buf = headers.buffer_mut();
    buf.reserve(96);
    buf.put_slice(b"server-timing: token;dur=");
    put_milliseconds(buf, context.token_time);
    buf.put_slice(b", upstream;dur=");
    put_milliseconds(buf, context.upstream_time);
    buf.put_slice(b"\r\n");
    if let Some(errcode) = context.retried_after_errcode {
        headers.append(b"x-wecom-retried", itoa::Buffer::new().format(errcode).as_bytes());
    }
    if let Some(wait) = context.retry_after {
        headers.append(b"retry-after", itoa::Buffer::new().format(ceil_seconds(wait).max(1)).as_bytes());
    }
    if with_hint
        && let Some(hint) =
            context.recipients_hint.as_deref().or_else(|| context.wecom_errcode().and_then(errcode::hint))
    {
        headers.append(b"x-wecom-hint", hint.as_bytes());
    }
}

/// Whether the client asked for an explanation of the errcode (`X-Wecom-Debug: 1`).
pub(super) fn wants_hint(request: &Request) -> bool {
    request.headers.first(HeaderKind::WecomDebug).is_some_and(|value| value == b"1")
}
