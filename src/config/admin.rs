//! `[admin]`: the admin listener, for operators.

use std::net::{Ipv4Addr, SocketAddr};

use super::address::{self, Address};
use super::error::{Error, quote};
use super::key_hash::{self, KeyHash};
use super::otlp::{self, OtlpConfig};
use super::reader::ConfigTable;
use super::server::ServerConfig;

pub(super) const KEYS: &[&str] = &["listen", "key_sha256", "recent", "otlp"];

/// Bounds memory: each exchange is kept with its header blocks, so a million of them would take gigabytes.
const MAX_RECENT: u64 = 100_000;

/// `[admin]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminConfig {
    /// At least one, different from the addresses in `[server]`.
    pub listen: Vec<Address>,
    /// The hash of the admin key; `None` only if every address is loopback.
    pub key_sha256: Option<KeyHash>,
    /// The number of exchanges kept for the inspector; may be 0.
    pub recent: usize,
    /// The collector for traces.
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
    if let Some(public) =
        admin.listen.iter().find(|address| !address.is_loopback() && admin.key_sha256.is_none())
    {
        return Err(section.location_of("listen").error(format!(
            "{} can be reached from other machines, so admin.key_sha256 is required: put the line of that name that \"wecom-proxy key NAME\" prints under [admin]",
            quote(&public.to_string())
        )));
    }
    Ok(Some(admin))
}
