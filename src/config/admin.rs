//! `[admin]`: the second port, for whoever runs the proxy.

use std::net::{Ipv4Addr, SocketAddr};

use super::address::{self, Address};
use super::error::{Error, quote};
use super::key_hash::{self, KeyHash};
use super::otlp::{self, OtlpConfig};
use super::reader::ConfigTable;
use super::server::ServerConfig;

pub(super) const KEYS: &[&str] = &["listen", "key_sha256", "recent", "otlp"];

/// Each is kept with its heads, so a million of them would be gigabytes.
const MAX_RECENT: u64 = 100_000;

/// `[admin]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminConfig {
    /// At least one, none of the server's.
    pub listen: Vec<Address>,
    /// Who may ask; None only where every address is loopback.
    pub key_sha256: Option<KeyHash>,
    /// Exchanges kept for the inspector; may be 0.
    pub recent: usize,
    /// Where traces go.
    pub otlp: Option<OtlpConfig>,
}

pub(super) fn read(root: &ConfigTable<'_>, server: &ServerConfig) -> Result<Option<AdminConfig>, Error> {
    if root.find("admin").is_none() {
        return Ok(None);
    }
    let section = root.subtable("admin", KEYS)?;
    let default = Address::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, 9090)));
    let admin = AdminConfig {
        listen: section.read_or("listen", vec![default], |item| address::read(item, &server.listen))?,
        key_sha256: section.read_optional("key_sha256", key_hash::read)?,
        recent: section.read_or("recent", 500, |item| item.count(0..=MAX_RECENT))?,
        otlp: section.read_optional("otlp", otlp::read)?,
    };
    if let Some(exposed) =
        admin.listen.iter().find(|address| !address.is_loopback() && admin.key_sha256.is_none())
    {
        return Err(section.location_of("listen").error(format!(
            "{} can be reached from other machines, so admin.key_sha256 is needed: the line of that name in what \"wecom-proxy key NAME\" prints, under [admin]",
            quote(&exposed.to_string())
        )));
    }
    Ok(Some(admin))
}
