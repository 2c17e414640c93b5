//! Connect errors with two messages: a general one for callers, a detailed one for the log.

use std::{borrow::Cow, fmt, io};

use crate::{config::UpstreamId, format_text, text, text::Text};

/// The keys that messages name.
const KEYS: [&str; 4] = ["upstream.url", "upstream.via", "upstream.ca_file", "upstream.connect_timeout"];

/// Why connecting failed. `Display` is the detailed message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectError {
    pub(super) public_message: Cow<'static, str>,
    /// For operators. In a box, because errors are moved more often than they are read.
    details: Box<Text>,
}

impl ConnectError {
    /// An error whose message contains no address, port, host or file.
    pub fn new(message: Text) -> Self {
        Self { public_message: message.english().to_owned().into(), details: Box::new(message) }
    }

    /// An error with a separate message for operators, which may contain them.
    pub fn with_details(public_message: impl Into<Cow<'static, str>>, details: Text) -> Self {
        Self { public_message: public_message.into(), details: Box::new(details) }
    }

    /// The detailed message.
    pub fn text(&self) -> &Text {
        &self.details
    }

    /// A failed TCP connect to `address`.
    pub(super) fn tcp(address: impl fmt::Display, error: &io::Error) -> Self {
        let (public_message, advice) = match error.kind() {
            io::ErrorKind::ConnectionRefused => (
                "connection refused",
                text!(
                    "; nothing listens there, or a firewall rejects it",
                    "；那里没有程序监听，或被防火墙拒绝"
                ),
            ),
            io::ErrorKind::TimedOut => (
                "connect timed out",
                text!(
                    "; a firewall may drop it, or an egress proxy is required (upstream.via)",
                    "；可能被防火墙丢弃，或需要出口代理（upstream.via）"
                ),
            ),
            io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
                ("no route to host", Text::default())
            }
            _ => ("connect failed", Text::default()),
        };
        Self::with_details(
            public_message,
            format_text!("cannot connect to {address}: {}{}", "无法连接 {address}：{}{}", error, advice),
        )
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
            details: Box::new(self.details.map(rename)),
        }
    }

    /// Marks the error as one of the connection to the egress proxy.
    pub(super) fn via_egress_proxy(self) -> Self {
        let details = format_text!(
            "the egress proxy (upstream.via): {}",
            "出口代理（upstream.via）：{}",
            *self.details
        );
        Self::with_details(format!("the egress proxy: {}", self.public_message), details)
    }
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.details.english())
    }
}
