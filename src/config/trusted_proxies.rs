//! `server.trusted_proxies`, `server.client_address` and `server.proxy_protocol`: who may name the client's address, and
//! how.

use std::fmt;
use std::net::IpAddr;

use super::error::{Error, quote};
use super::reader::{ConfigTable, ConfigValue, read_all};
use crate::text::Text;
use crate::{format_text, text};

const EXPECTED: Text = text!(
    "a list like [\"127.0.0.1\", \"10.0.0.0/8\", \"unix\"]",
    "[\"127.0.0.1\", \"10.0.0.0/8\", \"unix\"] 这样的列表"
);

/// Who may name the address of a client, and how. By default no peer may.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustedProxies {
    /// The addresses of trusted proxies.
    pub networks: Vec<IpNetwork>,
    /// Whether everything that connects over a unix socket is trusted.
    pub unix: bool,
    /// The header that names the client's address.
    pub header: ClientAddressHeader,
    /// Whether each connection from a trusted proxy begins with a header of the PROXY protocol.
    pub proxy_protocol: bool,
}

/// The header in which trusted proxies name the client's address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientAddressHeader {
    /// `X-Forwarded-For`
    #[default]
    XForwardedFor,
    /// `Forwarded` (RFC 7239)
    Forwarded,
}

pub(super) const HEADERS: [(&str, ClientAddressHeader); 2] =
    [("x-forwarded-for", ClientAddressHeader::XForwardedFor), ("forwarded", ClientAddressHeader::Forwarded)];

/// Addresses with a common prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IpNetwork {
    address: IpAddr,
    prefix_bits: u32,
}

impl IpNetwork {
    /// Whether the address belongs to the network. An IPv4 address mapped to IPv6 counts as IPv4.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                let differing = u32::from(network) ^ u32::from(address);
                differing.checked_shr(32 - self.prefix_bits).unwrap_or(0) == 0
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                let differing = u128::from(network) ^ u128::from(address);
                differing.checked_shr(128 - self.prefix_bits).unwrap_or(0) == 0
            }
            _ => false,
        }
    }

    /// `10.0.0.0/8`, or an address alone.
    pub fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address = address.parse::<IpAddr>().ok()?;
        let max_bits = if address.is_ipv4() { 32 } else { 128 };
        let digits = |prefix: &&str| prefix.bytes().all(|byte| byte.is_ascii_digit());
        let prefix_bits: u32 = match prefix {
            None => max_bits,
            Some(prefix) => Some(prefix).filter(digits)?.parse().ok().filter(|bits| *bits <= max_bits)?,
        };
        match address.to_canonical() {
            // The network of mapped addresses is that of the IPv4 addresses.
            mapped @ IpAddr::V4(_) if max_bits == 128 => {
                Some(Self { address: mapped, prefix_bits: prefix_bits.checked_sub(96)? })
            }
            address => Some(Self { address, prefix_bits }),
        }
    }
}

impl fmt::Display for IpNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix_bits)
    }
}

impl TrustedProxies {
    /// Whether a peer is trusted; `None` stands for a unix socket.
    pub fn trusts(&self, peer: Option<IpAddr>) -> bool {
        peer.map_or(self.unix, |peer| self.networks.iter().any(|network| network.contains(peer)))
    }

    /// Whether any peer is trusted.
    pub fn is_empty(&self) -> bool {
        self.networks.is_empty() && !self.unix
    }
}

/// Reads the three keys of `[server]`.
pub(super) fn read(section: &ConfigTable<'_>) -> TrustedProxies {
    let mut trusted = section.read_or("trusted_proxies", TrustedProxies::default(), read_list);
    trusted.header =
        section.read_or("client_address", ClientAddressHeader::XForwardedFor, |item| item.one_of(&HEADERS));
    trusted.proxy_protocol = section.read_or("proxy_protocol", false, ConfigValue::boolean);
    if trusted.proxy_protocol && trusted.is_empty() {
        let location = section.location_of("proxy_protocol");
        location.warn(text!(
            "has no effect: server.trusted_proxies names no peer that it applies to",
            "不起作用：server.trusted_proxies 中没有适用的来源"
        ));
    }
    trusted
}

fn read_list(item: &ConfigValue<'_>) -> Result<TrustedProxies, Error> {
    let mut trusted = TrustedProxies::default();
    read_all(&item.list(EXPECTED)?, |item| {
        let text = item.string(text!(
            "an address like \"127.0.0.1\", a network like \"10.0.0.0/8\", or \"unix\"",
            "\"127.0.0.1\" 这样的地址、\"10.0.0.0/8\" 这样的网段，或 \"unix\""
        ))?;
        if text == "unix" {
            trusted.unix = true;
            return Ok(());
        }
        let Some(network) = IpNetwork::parse(text) else {
            return Err(item.error(format_text!("{} is neither an address like \"127.0.0.1\", nor a network like \"10.0.0.0/8\", nor \"unix\"", "{} 既不是 \"127.0.0.1\" 这样的地址，也不是 \"10.0.0.0/8\" 这样的网段，也不是 \"unix\"",
                quote(text))));
        };
        if network.prefix_bits == 0 {
            item.location.warn(text!(
                "trusts every peer, so each caller can write the address that is logged for it",
                "信任所有来源，因此每个调用者都能改写日志中记录的地址"
            ));
        }
        trusted.networks.push(network);
        Ok(())
    })?;
    Ok(trusted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn network_contains_addresses_with_its_prefix() {
        for (network, inside, outside) in [
            ("10.0.0.0/8", "10.255.0.1", "11.0.0.1"),
            ("10.0.0.0/8", "::ffff:10.1.1.1", "::10.1.1.1"),
            ("127.0.0.1", "127.0.0.1", "127.0.0.2"),
            ("0.0.0.0/0", "255.1.1.1", "::1"),
            ("::/0", "2001:db8::1", "10.0.0.1"),
            ("2001:db8::/33", "2001:db8:7fff::", "2001:db8:8000::"),
            ("::1", "::1", "::2"),
            ("::ffff:10.0.0.0/104", "10.2.3.4", "11.0.0.1"),
        ] {
            let parsed = IpNetwork::parse(network).unwrap();
            assert!(parsed.contains(inside.parse().unwrap()), "{network} {inside}");
            assert!(!parsed.contains(outside.parse().unwrap()), "{network} {outside}");
        }
        for text in
            ["", "10", "10.0.0.0/33", "10.0.0.0/", "10.0.0.0/+8", "::/129", "localhost", "::ffff:10.0.0.0/8"]
        {
            assert_eq!(IpNetwork::parse(text), None, "{text}");
        }
    }
}
