//! Why no connection could be made, in two forms: general terms for callers, and all details for the log.

use std::{borrow::Cow, fmt, io};

use super::UpstreamErrorKind;

/// Why no connection could be made. `Display` has the details.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectError {
    public_message: Cow<'static, str>,
    log_message: Option<String>,
}

impl ConnectError {
    /// A reason that names no address, port, host or file.
    pub fn new(text: impl Into<Cow<'static, str>>) -> Self {
        Self { public_message: text.into(), log_message: None }
    }

    /// The same with a text for the log, which may name them.
    pub fn with_log_message(text: impl Into<Cow<'static, str>>, detail: String) -> Self {
        Self { public_message: text.into(), log_message: Some(detail) }
    }

    /// A TCP connection to `address` that was not made.
    pub(super) fn tcp(address: impl fmt::Display, error: &io::Error) -> Self {
        let (general, advice) = match error.kind() {
            io::ErrorKind::ConnectionRefused => {
                ("connection refused", "; nothing listens there, or a firewall refuses")
            }
            io::ErrorKind::TimedOut => (
                "connecting timed out",
                "; a firewall may be in the way, or the way out leads through a proxy (upstream.via)",
            ),
            io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => ("no route to it", ""),
            _ => ("the connection could not be made", ""),
        };
        Self::with_log_message(general, format!("cannot connect to {address}: {error}{advice}"))
    }

    /// The same, where it was the egress proxy that could not be reached.
    pub(super) fn via_egress_proxy(self) -> Self {
        let detail = format!("the egress proxy (upstream.via): {self}");
        Self::with_log_message(format!("the egress proxy: {}", self.public_message), detail)
    }
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.log_message.as_deref().unwrap_or(&self.public_message))
    }
}

impl UpstreamErrorKind {
    /// What callers may see of it: no address, port, host or file, which `Display` may name.
    pub fn public_message(&self) -> Cow<'_, str> {
        match self {
            Self::Unreachable(why) => why.public_message.as_ref().into(),
            Self::Io(_) => "the connection failed".into(),
            Self::Http2(_) => "the HTTP/2 connection failed".into(),
            other => other.to_string().into(),
        }
    }
}

impl From<&UpstreamErrorKind> for ConnectError {
    fn from(flaw: &UpstreamErrorKind) -> Self {
        match flaw {
            UpstreamErrorKind::Unreachable(why) => why.clone(),
            other => Self::with_log_message(other.public_message().into_owned(), other.to_string()),
        }
    }
}
