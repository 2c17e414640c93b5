//! Response headers added by the proxy.

use std::time::Duration;

use bytes::{BufMut, BytesMut};

use super::{request::Request, request_context::RequestContext};
use crate::{
    http1::headers::{HeaderBlock, HeaderKind},
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

/// Writes milliseconds with three decimals.
fn put_milliseconds(buf: &mut BytesMut, duration: Duration) {
    // Usually there was no wait.
    if duration.is_zero() {
        return buf.put_slice(b"0.000");
    }
    let micros = duration.as_micros() as u64;
    let thousandths = (micros % 1000) as u32;
    buf.put_slice(itoa::Buffer::new().format(micros / 1000).as_bytes());
    buf.put_u8(b'.');
    // The leading 1 keeps the zeros, and is cut off.
    buf.put_slice(&itoa::Buffer::new().format(1000 + thousandths).as_bytes()[1..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn milliseconds_have_three_decimals() {
        let text = |micros| {
            let mut buf = BytesMut::new();
            put_milliseconds(&mut buf, Duration::from_micros(micros));
            String::from_utf8(buf.to_vec()).expect("text")
        };
        assert_eq!([text(0), text(7), text(1234), text(5_000_010)], ["0.000", "0.007", "1.234", "5000.010"]);
    }
}
