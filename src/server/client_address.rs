//! The client's address behind trusted proxies (`server.trusted_proxies`): for log, traces and limits by address. It
//! never says which client calls.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use arc_swap::ArcSwap;

use crate::{
    config::{ClientAddressHeader, TrustedProxies},
    http1::headers::{HeaderKind, Headers},
};

/// Maximum number of trusted proxies that one request may have passed; bounds the work for a long header.
const MAX_HOPS: usize = 32;

/// The addresses of a header, from the right; `None` for an element without one.
type Hops = Vec<Option<IpAddr>>;

/// The other end of a connection.
#[derive(Clone, Copy)]
pub(super) struct Peer {
    /// Its address, or the one that a header of the PROXY protocol names; `None` over a Unix socket.
    pub(super) address: Option<IpAddr>,
    /// A trusted proxy passes the connection on and names no client, so it may come from anywhere: no header of its
    /// requests is believed.
    pub(super) is_unnamed: bool,
}

impl From<Option<IpAddr>> for Peer {
    fn from(address: Option<IpAddr>) -> Self {
        Self { address, is_unnamed: false }
    }
}

/// The trusted proxies; a reload replaces them.
pub(super) struct ClientAddresses {
    /// Whether there are any: spares the common request the rest.
    is_enabled: AtomicBool,
    trusted: ArcSwap<TrustedProxies>,
}

impl ClientAddresses {
    pub(super) fn new(trusted: &TrustedProxies) -> Self {
        Self {
            is_enabled: AtomicBool::new(!trusted.is_empty()),
            trusted: ArcSwap::from_pointee(trusted.clone()),
        }
    }

    pub(super) fn replace(&self, trusted: TrustedProxies) {
        let is_enabled = !trusted.is_empty();
        self.trusted.store(Arc::new(trusted));
        self.is_enabled.store(is_enabled, Ordering::Relaxed);
    }

    /// Whether a connection from this peer begins with a header of the PROXY protocol.
    pub(super) fn sends_proxy_header(&self, peer: Option<IpAddr>) -> bool {
        self.is_enabled.load(Ordering::Relaxed) && {
            let trusted = self.trusted.load();
            trusted.proxy_protocol && trusted.trusts(peer)
        }
    }

    /// Whether trusted proxies begin a connection with a header of the PROXY protocol.
    pub(super) fn has_proxy_protocol(&self) -> bool {
        self.trusted.load().proxy_protocol
    }

    /// The address of the client that sent these headers through `peer`.
    #[inline]
    pub(super) fn of_request(&self, peer: Peer, headers: &Headers) -> Option<IpAddr> {
        match self.is_enabled.load(Ordering::Relaxed) && !peer.is_unnamed {
            true => client_address(&self.trusted.load(), peer.address, headers),
            false => peer.address,
        }
    }
}

/// The rightmost address that is not trusted, from the peer through the header's elements. What stands left of an
/// element without an address may be the caller's own invention, so the search ends there with the last address.
fn client_address(trusted: &TrustedProxies, peer: Option<IpAddr>, headers: &Headers) -> Option<IpAddr> {
    if !trusted.trusts(peer) {
        return peer;
    }
    let (kind, split): (_, fn(&[u8]) -> Hops) = match trusted.header {
        ClientAddressHeader::XForwardedFor => (HeaderKind::ForwardedFor, forwarded_for_addresses),
        ClientAddressHeader::Forwarded => (HeaderKind::Forwarded, forwarded_addresses),
    };
    // A later line continues the one before it.
    let lines: Vec<_> = headers.values(kind).collect();
    let mut address = peer;
    for hop in lines.into_iter().rev().flat_map(split).take(MAX_HOPS) {
        let Some(hop) = hop else { break };
        address = Some(hop);
        if !trusted.trusts(address) {
            break;
        }
    }
    address
}

/// The addresses of `X-Forwarded-For`, from the right; `None` for an element that is none.
fn forwarded_for_addresses(value: &[u8]) -> Hops {
    let elements = value.rsplit(|byte| *byte == b',').map(<[u8]>::trim_ascii);
    elements.filter(|element| !element.is_empty()).take(MAX_HOPS).map(parse_address).collect()
}

/// The addresses of `for` in `Forwarded` (RFC 7239 §4), from the right; `None` for an element without one.
fn forwarded_addresses(value: &[u8]) -> Hops {
    let mut addresses = Vec::new();
    let mut rest = Some(value);
    while let Some(text) = rest.filter(|_| addresses.len() < MAX_HOPS) {
        // Quotes are matched from the right, where the trusted proxy wrote: a quote that a caller left open does not
        // reach into its element.
        let mut is_quoted = false;
        let comma = text.iter().rposition(|byte| {
            is_quoted ^= *byte == b'"';
            *byte == b',' && !is_quoted
        });
        let element = text[comma.map_or(0, |comma| comma + 1)..].trim_ascii();
        rest = comma.map(|comma| &text[..comma]);
        if !element.is_empty() {
            addresses.push(for_address(element));
        }
    }
    addresses
}

fn for_address(element: &[u8]) -> Option<IpAddr> {
    if element.contains(&b'\\') {
        return None;
    }
    let mut is_quoted = false;
    let pairs = element.rsplit(|byte| {
        is_quoted ^= *byte == b'"';
        *byte == b';' && !is_quoted
    });
    let mut pairs = pairs.filter_map(|pair| {
        let pair = pair.trim_ascii();
        let equals = memchr::memchr(b'=', pair)?;
        pair[..equals].eq_ignore_ascii_case(b"for").then(|| &pair[equals + 1..])
    });
    let value = pairs.next().filter(|_| pairs.next().is_none())?;
    let unquoted = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\""));
    parse_address(unquoted.unwrap_or(value))
}

/// An address, with or without port, brackets or zone.
fn parse_address(text: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(text).ok()?;
    let bracketed = || text.strip_prefix('[')?.split_once(']').map(|(inner, _)| inner);
    let address = match text.parse::<SocketAddr>() {
        Ok(address) => address.ip(),
        Err(_) => {
            let text = bracketed().unwrap_or(text);
            text.split_once('%').map_or(text, |(address, _)| address).parse().ok()?
        }
    };
    Some(address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(header: ClientAddressHeader, peer: &str, lines: &[&str]) -> String {
        let networks = ["10.0.0.0/8", "127.0.0.1", "2001:db8::/32"];
        let toml = format!(
            "[server]\ntrusted_proxies = {networks:?}\n[agents.a]\ncorpid = \"ww1\"\nsecret = \"s3cret-of-a\"\n"
        );
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("proxy.toml");
        std::fs::write(&path, toml).expect("a file");
        let mut trusted = crate::config::load(&path).expect("a configuration").server.trusted;
        trusted.header = header;
        let name = match header {
            ClientAddressHeader::XForwardedFor => "X-Forwarded-For",
            ClientAddressHeader::Forwarded => "forwarded",
        };
        let other = match header {
            ClientAddressHeader::XForwardedFor => ("Forwarded", "for=6.6.6.6"),
            ClientAddressHeader::Forwarded => ("X-Forwarded-For", "6.6.6.6"),
        };
        let mut pairs: Vec<_> = lines.iter().map(|line| (name, *line)).collect();
        pairs.push(other);
        let addresses = ClientAddresses::new(&trusted);
        let peer = (!peer.is_empty()).then(|| peer.parse().expect("an address"));
        addresses
            .of_request(Peer::from(peer), &Headers::from_pairs(&pairs))
            .map_or("none".to_owned(), |address| address.to_string())
    }

    #[test]
    fn x_forwarded_for_names_rightmost_untrusted_address() {
        for (peer, lines, expected) in [
            ("127.0.0.1", &["192.0.2.1"][..], "192.0.2.1"),
            ("127.0.0.1", &["6.6.6.6, 192.0.2.1"], "192.0.2.1"),
            ("127.0.0.1", &["6.6.6.6, 192.0.2.1, 10.1.1.1"], "192.0.2.1"),
            ("127.0.0.1", &["6.6.6.6, 192.0.2.1", "10.1.1.1,"], "192.0.2.1"),
            ("127.0.0.1", &["6.6.6.6", "192.0.2.1"], "192.0.2.1"),
            ("127.0.0.1", &["10.2.2.2,10.1.1.1"], "10.2.2.2"),
            ("127.0.0.1", &["192.0.2.1:4711"], "192.0.2.1"),
            ("127.0.0.1", &["[2001:db9::1]:443"], "2001:db9::1"),
            ("127.0.0.1", &["[2001:db9::1]"], "2001:db9::1"),
            ("127.0.0.1", &["fe80::1%eth0"], "fe80::1"),
            ("127.0.0.1", &["::ffff:192.0.2.1"], "192.0.2.1"),
            ("::ffff:127.0.0.1", &["192.0.2.1"], "192.0.2.1"),
            ("127.0.0.1", &["6.6.6.6, unknown, 10.1.1.1"], "10.1.1.1"),
            ("127.0.0.1", &["6.6.6.6, junk"], "127.0.0.1"),
            ("127.0.0.1", &[], "127.0.0.1"),
            ("192.0.2.9", &["6.6.6.6"], "192.0.2.9"),
            ("", &["6.6.6.6"], "none"),
        ] {
            assert_eq!(find(ClientAddressHeader::XForwardedFor, peer, lines), expected, "{lines:?}");
        }
        let long = "10.0.0.1,".repeat(5000);
        assert_eq!(find(ClientAddressHeader::XForwardedFor, "127.0.0.1", &[&long]), "10.0.0.1");
    }

    #[test]
    fn forwarded_names_rightmost_untrusted_address() {
        for (lines, expected) in [
            (&["for=192.0.2.1"][..], "192.0.2.1"),
            (&["For=\"192.0.2.1:80\";proto=https;by=10.0.0.1"], "192.0.2.1"),
            (&["proto=http; for=\"[2001:db9::1]:80\", for=10.1.1.1"], "2001:db9::1"),
            (&["for=6.6.6.6", "for=192.0.2.1"], "192.0.2.1"),
            (&["for=6.6.6.6;by=\"a,b\", for=192.0.2.1"], "192.0.2.1"),
            (&["host=\"a;for=6.6.6.6\";for=192.0.2.1"], "192.0.2.1"),
            (&["for=6.6.6.6, for=_hidden, for=10.1.1.1"], "10.1.1.1"),
            (&["for=6.6.6.6, proto=http"], "127.0.0.1"),
            // A quote that the caller left open.
            (&["for=6.6.6.6;x=\", for=192.0.2.1"], "192.0.2.1"),
            (&["for=6.6.6.6;x=\", for=\"[2001:db9::1]:80\""], "2001:db9::1"),
            (&["for=6.6.6.6;x=\"\\", "for=\"192.0.2.1\""], "192.0.2.1"),
            (&["for=192.0.2.1;for=6.6.6.6"], "127.0.0.1"),
        ] {
            assert_eq!(find(ClientAddressHeader::Forwarded, "127.0.0.1", lines), expected, "{lines:?}");
        }
    }
}
