//! The header names that this proxy acts on, and which of them are forwarded.

/// What a header's name means to this proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeaderKind {
    /// Any other name.
    Other,
    /// `Authorization`
    Authorization,
    /// `Connection`
    Connection,
    /// `Content-Disposition`
    ContentDisposition,
    /// `Content-Encoding`
    ContentEncoding,
    /// `Content-Length`
    ContentLength,
    /// `Content-Type`
    ContentType,
    /// `Date`
    Date,
    /// `Expect`
    Expect,
    /// `Forwarded`
    Forwarded,
    /// `Host`
    Host,
    /// `Idempotency-Key`
    IdempotencyKey,
    /// `Keep-Alive`
    KeepAlive,
    /// `Traceparent`
    Traceparent,
    /// `Transfer-Encoding`
    TransferEncoding,
    /// `User-Agent`
    UserAgent,
    /// `X-Api-Key`
    ApiKey,
    /// `X-Forwarded-For`
    ForwardedFor,
    /// `X-Request-Id`
    RequestId,
    /// `X-Wecom-Agent`
    WecomAgent,
    /// `X-Wecom-Debug`
    WecomDebug,
    /// `X-Wecom-Retried`
    WecomRetried,
    /// `X-Wecom-Hint`
    WecomHint,
    /// Any other name that begins with `X-Wecom-`.
    WecomOther,
    /// Data about the client's network or application (`Via`, other `X-Forwarded-*`, `X-Real-IP` and similar,
    /// `X-Original-*`, `X-Envoy-*`, `X-Scheme`, `Tracestate`, `Baggage`, `Cookie`, `Referer`, `Origin`), and
    /// `Idempotency-Key-Retry`, which is meant for this proxy.
    ClientInfo,
    /// A hop-by-hop header (RFC 9110 §7.6.1) without a variant of its own.
    HopByHop,
}

impl HeaderKind {
    /// Classifies a name, ignoring case.
    pub fn from_name(name: &[u8]) -> Self {
        let is = |canonical: &str| name_matches(name, canonical);
        // Length and first letter leave one or two candidates.
        match (name.len(), name.first().map_or(0, |first| first | 0x20)) {
            (2, b't') if is("TE") => Self::HopByHop,
            (3, b'v') if is("Via") => Self::ClientInfo,
            (4, b'h') if is("Host") => Self::Host,
            (4, b'd') if is("Date") => Self::Date,
            (6, b'e') if is("Expect") => Self::Expect,
            (6, b'c') if is("Cookie") => Self::ClientInfo,
            (6, b'o') if is("Origin") => Self::ClientInfo,
            (7, b't') if is("Trailer") => Self::HopByHop,
            (7, b'u') if is("Upgrade") => Self::HopByHop,
            (7, b'b') if is("Baggage") => Self::ClientInfo,
            (7, b'r') if is("Referer") => Self::ClientInfo,
            (9, b'f') if is("Forwarded") => Self::Forwarded,
            (10, b'c') if is("Connection") => Self::Connection,
            (10, b'k') if is("Keep-Alive") => Self::KeepAlive,
            (10, b'u') if is("User-Agent") => Self::UserAgent,
            (10, b't') if is("Tracestate") => Self::ClientInfo,
            (11, b't') if is("Traceparent") => Self::Traceparent,
            (12, b'c') if is("Content-Type") => Self::ContentType,
            (13, b'a') if is("Authorization") => Self::Authorization,
            (14, b'c') if is("Content-Length") => Self::ContentLength,
            (14, b'h') if is("HTTP2-Settings") => Self::HopByHop,
            (14, b't') if is("True-Client-IP") => Self::ClientInfo,
            (15 | 21, b'i') => Self::from_i_name(name),
            (16, b'c') if is("Content-Encoding") => Self::ContentEncoding,
            (16, b'c') if is("CF-Connecting-IP") => Self::ClientInfo,
            (17, b't') if is("Transfer-Encoding") => Self::TransferEncoding,
            (19, b'c') if is("Content-Disposition") => Self::ContentDisposition,
            (16 | 18 | 19 | 25, b'p') => match () {
                () if is("Proxy-Connection") => Self::HopByHop,
                () if is("Proxy-Authenticate") => Self::HopByHop,
                () if is("Proxy-Authorization") => Self::HopByHop,
                () if is("Proxy-Authentication-Info") => Self::HopByHop,
                () => Self::Other,
            },
            (8.., b'x') => Self::from_x_name(name),
            _ => Self::Other,
        }
    }

    /// Classifies a name that begins with I.
    fn from_i_name(name: &[u8]) -> Self {
        match name {
            name if name_matches(name, "Idempotency-Key") => Self::IdempotencyKey,
            name if name_matches(name, "Idempotency-Key-Retry") => Self::ClientInfo,
            _ => Self::Other,
        }
    }

    /// Classifies a name that begins with X.
    fn from_x_name(name: &[u8]) -> Self {
        let is = |canonical: &str| name_matches(name, canonical);
        let begins = |prefix: &str| {
            name.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix.as_bytes()))
        };
        match name.len() {
            8 if is("X-Scheme") => Self::ClientInfo,
            9 if is("X-Api-Key") => Self::ApiKey,
            9 if is("X-Real-IP") => Self::ClientInfo,
            11 if is("X-Client-IP") => Self::ClientInfo,
            12 if is("X-Request-Id") => Self::RequestId,
            15 if is("X-Forwarded-For") => Self::ForwardedFor,
            _ if ["x-forwarded-", "x-original-", "x-envoy-"].into_iter().any(begins) => Self::ClientInfo,
            _ if !begins("x-wecom-") => Self::Other,
            12 if is("X-Wecom-Hint") => Self::WecomHint,
            13 if is("X-Wecom-Agent") => Self::WecomAgent,
            13 if is("X-Wecom-Debug") => Self::WecomDebug,
            15 if is("X-Wecom-Retried") => Self::WecomRetried,
            _ => Self::WecomOther,
        }
    }

    pub(super) fn mask(self) -> u32 {
        1 << self as u32
    }

    /// Whether the header is hop-by-hop, in either direction.
    pub(super) fn is_hop_by_hop(self) -> bool {
        matches!(self, Self::Connection | Self::KeepAlive | Self::TransferEncoding | Self::HopByHop)
    }

    /// Whether the proxy writes this header of a response itself.
    pub(super) fn is_set_by_proxy(self) -> bool {
        matches!(
            self,
            Self::ContentLength | Self::RequestId | Self::WecomAgent | Self::WecomRetried | Self::WecomHint
        )
    }

    /// Whether a header of a request is not forwarded although it is end-to-end: the client's credentials, what is
    /// meant for this proxy, data about the client, and what the proxy writes or handles itself.
    pub(super) fn is_stripped_from_request(self) -> bool {
        matches!(
            self,
            Self::Host
                | Self::ContentLength
                | Self::Expect
                | Self::Authorization
                | Self::ApiKey
                | Self::ClientInfo
                | Self::Forwarded
                | Self::IdempotencyKey
                | Self::ForwardedFor
                | Self::Traceparent
                | Self::WecomAgent
                | Self::WecomDebug
                | Self::WecomRetried
                | Self::WecomHint
                | Self::WecomOther
        )
    }
}

/// Compares names ignoring case; the canonical spelling is tried first, because it is common and quicker.
#[inline]
fn name_matches(name: &[u8], canonical: &str) -> bool {
    name == canonical.as_bytes() || name.eq_ignore_ascii_case(canonical.as_bytes())
}
