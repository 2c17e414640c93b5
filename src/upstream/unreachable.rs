//! Why no connection could be made, in two forms: general terms for callers, and all details for the log.

use std::{borrow::Cow, fmt, io};

use super::Flaw;

/// Why no connection could be made. `Display` has the details.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreachable {
    general: Cow<'static, str>,
    detail: Option<String>,
}

impl Unreachable {
    /// A reason that names no address, port, host or file.
    pub fn general(text: impl Into<Cow<'static, str>>) -> Self {
        Self { general: text.into(), detail: None }
    }

    /// The same with a text for the log, which may name them.
    pub fn with_detail(text: impl Into<Cow<'static, str>>, detail: String) -> Self {
        Self { general: text.into(), detail: Some(detail) }
    }

    /// A TCP connection to `address` that was not made.
    pub(super) fn connect(address: impl fmt::Display, error: &io::Error) -> Self {
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
        Self::with_detail(general, format!("cannot connect to {address}: {error}{advice}"))
    }

    /// The same, where it was the egress proxy that could not be reached.
    pub(super) fn at_egress_proxy(self) -> Self {
        let detail = format!("the egress proxy (upstream.via): {self}");
        Self::with_detail(format!("the egress proxy: {}", self.general), detail)
    }
}

impl fmt::Display for Unreachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.detail.as_deref().unwrap_or(&self.general))
    }
}

impl Flaw {
    /// What callers may see of it: no address, port, host or file, which `Display` may name.
    pub fn public(&self) -> Cow<'_, str> {
        match self {
            Self::Unreachable(why) => why.general.as_ref().into(),
            Self::Io(_) => "the connection failed".into(),
            Self::Http2(_) => "the HTTP/2 connection failed".into(),
            other => other.to_string().into(),
        }
    }
}

impl From<&Flaw> for Unreachable {
    fn from(flaw: &Flaw) -> Self {
        match flaw {
            Flaw::Unreachable(why) => why.clone(),
            other => Self::with_detail(other.public().into_owned(), other.to_string()),
        }
    }
}
