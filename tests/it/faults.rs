//! Upstream faults and client aborts, over each protocol of both sides. No call is executed twice that must not be, no wait
//! exceeds its time-out, no truncated response looks complete, and the next request is served.

mod client_aborts;
mod clients;
mod connection_drops;
mod early_responses;
mod idle_connections;
mod invalid_responses;
mod keep_alive;
mod tokens;

use std::fmt;

use wecom_proxy::simulator::Settings;

use crate::{
    certificates::Authority,
    harness::{TestProxy, scripted_upstream, with_upstream_tls},
};

/// The protocol of the simulated WeCom.
#[derive(Clone, Copy, PartialEq, Eq)]
enum UpstreamProtocol {
    Http1,
    Http1Tls,
    Http2,
}

impl UpstreamProtocol {
    /// Starts a proxy whose upstream speaks this protocol, with these lines in `[server]` and `[upstream]`; also returns the
    /// authority that issued the upstream's certificate.
    async fn start_proxy(self, server: &str, upstream: &str) -> (TestProxy, Authority) {
        let authority = Authority::new();
        let toml = format!(
            "[server]\nlisten = \"127.0.0.1:0\"\n{server}\n[upstream]\nurl = \"http://{{api}}\"\n{upstream}\n[replay]\nmemory = \
             \"64KiB\"\n{{agents}}"
        );
        let over_tls = |alpn| {
            let tls = authority.issue_server("127.0.0.1").server_config(&[alpn]);
            (Some(tls), with_upstream_tls(&toml, &authority.ca_file()))
        };
        let (tls, toml) = match self {
            Self::Http1 => (None, toml),
            Self::Http1Tls => over_tls("http/1.1"),
            Self::Http2 => over_tls("h2"),
        };
        (TestProxy::start_with_settings(Settings { tls, ..Settings::default() }, &toml).await, authority)
    }
}

impl fmt::Display for UpstreamProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Http1 => "an HTTP/1.1 upstream",
            Self::Http1Tls => "an HTTP/1.1 upstream over TLS",
            Self::Http2 => "an HTTP/2 upstream",
        })
    }
}

/// Runs the calls concurrently.
async fn run_concurrently(calls: impl Iterator<Item = impl Future<Output = ()>>) {
    let mut calls: Vec<_> = calls.map(Box::pin).collect();
    std::future::poll_fn(|cx| {
        calls.retain_mut(|call| call.as_mut().poll(cx).is_pending());
        if calls.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
}
