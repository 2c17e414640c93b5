//! Connect errors with two messages: a general one for callers, a detailed one for the log.

use std::{borrow::Cow, fmt, io};

use crate::config::UpstreamId;

/// The keys that messages name.
const KEYS: [&str; 4] = ["upstream.url", "upstream.via", "upstream.ca_file", "upstream.connect_timeout"];

/// Why connecting failed. `Display` is the detailed message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectError {
    pub(super) public_message: Cow<'static, str>,
    log_message: Option<String>,
}

impl ConnectError {
    /// An error whose message contains no address, port, host or file.
    pub fn new(public_message: impl Into<Cow<'static, str>>) -> Self {
        Self { public_message: public_message.into(), log_message: None }
    }

    /// An error with a separate log message, which may contain them.
    pub fn with_log_message(public_message: impl Into<Cow<'static, str>>, log_message: String) -> Self {
        Self { public_message: public_message.into(), log_message: Some(log_message) }
    }

    /// A failed TCP connect to `address`.
    pub(super) fn tcp(address: impl fmt::Display, error: &io::Error) -> Self {
        let (public_message, advice) = match error.kind() {
            io::ErrorKind::ConnectionRefused => {
                ("connection refused", "; nothing listens there, or a firewall rejects it")
            }
            io::ErrorKind::TimedOut => (
                "connect timed out",
                "; a firewall may drop it, or an egress proxy is required (upstream.via)",
            ),
            io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => ("no route to host", ""),
            _ => ("connect failed", ""),
        };
        Self::with_log_message(public_message, format!("cannot connect to {address}: {error}{advice}"))
    }

    /// Names the keys of this upstream's table in place of those of `[upstream]`.
    pub(super) fn in_section(self, id: &UpstreamId) -> Self {
        if id.name().is_none() {
            return self;
        }
        let section = id.section();
        let rename = |text: &str| {
            KEYS.iter()
                .fold(text.to_owned(), |text, key| text.replace(key, &key.replacen("upstream", &section, 1)))
        };
        Self {
            public_message: rename(&self.public_message).into(),
            log_message: self.log_message.as_deref().map(rename),
        }
    }

    /// Marks the error as one of the connection to the egress proxy.
    pub(super) fn via_egress_proxy(self) -> Self {
        let log_message = format!("the egress proxy (upstream.via): {self}");
        Self::with_log_message(format!("the egress proxy: {}", self.public_message), log_message)
    }
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.log_message.as_deref().unwrap_or(&self.public_message))
    }
}
