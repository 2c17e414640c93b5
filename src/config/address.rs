//! Addresses to listen on: `"127.0.0.1:8080"`, `"[::1]:0"`, `"localhost:8080"`, `"unix:/run/wecom-proxy.sock"`.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use super::error::{Error, quote};
use super::reader::{ConfigValue, read_all};
use crate::text::Text;
use crate::{format_text, text};

/// The size of `sun_path` on Linux without the final NUL; macOS allows 4 bytes less.
const MAX_UNIX_PATH_BYTES: usize = 107;

const EXAMPLES: Text = text!(
    "\"127.0.0.1:8080\", \"[::1]:8080\", \"localhost:8080\" or \"unix:/run/wecom-proxy.sock\"",
    "\"127.0.0.1:8080\"、\"[::1]:8080\"、\"localhost:8080\" 或 \"unix:/run/wecom-proxy.sock\""
);

/// An address to listen on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// An IP address and a port, which may be 0; `localhost` is read as 127.0.0.1.
    Tcp(SocketAddr),
    /// A unix socket; a relative path is resolved against the file's directory.
    Unix(PathBuf),
}

impl Address {
    /// Whether only this machine can reach the address, as with every unix socket.
    pub fn is_loopback(&self) -> bool {
        match self {
            Self::Tcp(address) => address.ip().to_canonical().is_loopback(),
            Self::Unix(_) => true,
        }
    }

    /// Where to connect to it from this machine: the loopback address in place of one that stands for all; `None` for a
    /// unix socket.
    pub fn to_connect(&self) -> Option<SocketAddr> {
        let Self::Tcp(mut address) = *self else { return None };
        if address.ip().is_unspecified() {
            address.set_ip(match address {
                SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
                SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
            });
        }
        Some(address)
    }

    /// Whether the two cannot be bound at the same time. Port 0 never conflicts: each bind gets another port.
    fn conflicts_with(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Tcp(one), Self::Tcp(other)) => {
                let (one_ip, other_ip) = (one.ip().to_canonical(), other.ip().to_canonical());
                let is_any = one_ip.is_unspecified() || other_ip.is_unspecified();
                one.port() == other.port()
                    && one.port() != 0
                    && (one_ip == other_ip || is_any && one_ip.is_ipv4() == other_ip.is_ipv4())
            }
            (one, other) => one == other,
        }
    }

    /// Whether this address is `[::]`, and the other one an IPv4 address that it includes unless the system says
    /// otherwise (`net.ipv6.bindv6only`, or `BindIPv6Only=` of a systemd socket).
    fn includes_ipv4(&self, other: &Self) -> bool {
        let (Self::Tcp(one), Self::Tcp(other)) = (self, other) else { return false };
        let is_ipv6_any = one.ip().is_ipv6() && one.ip().is_unspecified();
        is_ipv6_any && other.ip().to_canonical().is_ipv4() && one.port() == other.port() && one.port() != 0
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Reads one address or a list of them; refuses duplicates and addresses in `taken`.
pub(super) fn read(item: &ConfigValue<'_>, taken: &[Address]) -> Result<Vec<Address>, Error> {
    let mut addresses: Vec<Address> = Vec::new();
    let items = item.one_or_list(format_text!(
        "an address like {}, or a list of them",
        "{} 这样的地址，或地址列表",
        EXAMPLES
    ))?;
    read_all(&items, |item| {
        let address = read_address(item)?;
        let others = || addresses.iter().chain(taken);
        if let Some(other) = others().find(|other| other.conflicts_with(&address)) {
            let of = match *other == address {
                true => Text::default(),
                false => format_text!(", {}", "（{}）", quote(&other.to_string())),
            };
            return Err(item.error(format_text!(
                "{} is already used by another listener{}",
                "{} 已被另一个监听占用{}",
                quote(&address.to_string()),
                of
            )));
        }
        if let Some(other) =
            others().find(|other| other.includes_ipv4(&address) || address.includes_ipv4(other))
        {
            item.location.warn(format_text!("{} overlaps with {}: on most systems [::] takes IPv4 too, and the second cannot be opened; keep [::] alone", "{} 与 {} 重叠：多数系统上 [::] 也接收 IPv4，后一个会打开失败；只保留 [::]",
                quote(&address.to_string()),
                quote(&other.to_string())));
        }
        addresses.push(address);
        Ok(())
    })?;
    if addresses.is_empty() {
        return Err(item.error(format_text!(
            "is empty; name at least one address like {}",
            "为空；请至少写一个地址，如 {}",
            EXAMPLES
        )));
    }
    Ok(addresses)
}

fn read_address(item: &ConfigValue<'_>) -> Result<Address, Error> {
    let text = item.string(format_text!("an address like {}", "{} 这样的地址", EXAMPLES))?;
    if let Some(path) = text.strip_prefix("unix:") {
        return read_unix_path(item, path);
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(Address::Tcp(address));
    }
    let refuse = |reason: Text| Err(item.error(format_text!("{} {}", "{} {}", quote(text), reason)));
    let Some((host, port)) =
        text.rsplit_once(':').filter(|(host, _)| !host.contains(':') || host.starts_with('['))
    else {
        return refuse(format_text!("is not an address; write one like {}", "不是地址；请写成 {}", EXAMPLES));
    };
    let Some(port) = port.parse::<u16>().ok().filter(|_| !port.starts_with('+')) else {
        return refuse(text!(
            "has no port from 0 to 65535 after its last colon",
            "的最后一个冒号后没有 0 到 65535 之间的端口"
        ));
    };
    match host {
        "localhost" => Ok(Address::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))),
        "" | "*" => refuse(format_text!(
            "names no address; write \"127.0.0.1:{port}\" for this machine only, or \"0.0.0.0:{port}\" for every interface",
            "没有地址；只供本机访问请写 \"127.0.0.1:{port}\"，所有网卡请写 \"0.0.0.0:{port}\""
        )),
        _ => refuse(format_text!(
            "does not start with an IP address or localhost; write one like {}",
            "不是以 IP 地址或 localhost 开头；请写成 {}",
            EXAMPLES
        )),
    }
}

fn read_unix_path(item: &ConfigValue<'_>, path: &str) -> Result<Address, Error> {
    if path.is_empty() || path.contains('\0') {
        return Err(item.error(text!(
            "has no path after \"unix:\"; write one like \"unix:/run/wecom-proxy.sock\"",
            "的 \"unix:\" 后面没有路径；请写成 \"unix:/run/wecom-proxy.sock\""
        )));
    }
    let path = item.location.source.resolve(path);
    if path.as_os_str().len() > MAX_UNIX_PATH_BYTES {
        return Err(item.error(format_text!(
            "is too long for a unix socket; at most {MAX_UNIX_PATH_BYTES} bytes",
            "对 unix 套接字来说太长；最多 {MAX_UNIX_PATH_BYTES} 字节"
        )));
    }
    Ok(Address::Unix(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_loopback_covers_mapped_ipv6_and_unix() {
        for (text, loopback) in [
            ("127.0.0.1:80", true),
            ("127.9.9.9:80", true),
            ("[::1]:0", true),
            ("[::ffff:127.0.0.1]:80", true),
            ("0.0.0.0:80", false),
            ("[::]:80", false),
            ("10.0.0.1:80", false),
            ("[::ffff:10.0.0.1]:80", false),
        ] {
            assert_eq!(Address::Tcp(text.parse().unwrap()).is_loopback(), loopback, "{text}");
        }
        assert!(Address::Unix("/run/x.sock".into()).is_loopback());
    }

    #[test]
    fn overlapping_addresses_conflict() {
        let address = |text: &str| Address::Tcp(text.parse().unwrap());
        for (one, other, conflicts, includes) in [
            ("0.0.0.0:80", "127.0.0.1:80", true, false),
            ("127.0.0.1:80", "0.0.0.0:80", true, false),
            ("127.0.0.1:80", "[::ffff:127.0.0.1]:80", true, false),
            ("[::]:80", "[::1]:80", true, false),
            ("[::]:80", "0.0.0.0:80", false, true),
            ("[::]:80", "127.0.0.1:80", false, true),
            ("[::1]:80", "127.0.0.1:80", false, false),
            ("0.0.0.0:80", "127.0.0.1:81", false, false),
            ("0.0.0.0:0", "0.0.0.0:0", false, false),
        ] {
            let (one, other) = (address(one), address(other));
            assert_eq!(one.conflicts_with(&other), conflicts, "{one} {other}");
            assert_eq!(one.includes_ipv4(&other), includes, "{one} {other}");
        }
    }

    #[test]
    fn display_matches_config_syntax() {
        assert_eq!(Address::Tcp("[::1]:80".parse().unwrap()).to_string(), "[::1]:80");
        assert_eq!(Address::Unix("/run/x.sock".into()).to_string(), "unix:/run/x.sock");
    }
}
