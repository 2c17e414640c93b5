//! `[admin]`: the second port, for whoever runs the proxy.

use std::net::{Ipv4Addr, SocketAddr};

use super::address::{self, Address};
use super::error::{Error, quoted};
use super::keyhash::{self, KeyHash};
use super::otlp::{self, Otlp};
use super::section::Section;
use super::server::Server;

pub(super) const KEYS: &[&str] = &["listen", "key_sha256", "recent", "otlp"];

/// Each is kept with its heads, so a million of them would be gigabytes.
const MOST_RECENT: u64 = 100_000;

/// `[admin]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    /// At least one, none of the server's.
    pub listen: Vec<Address>,
    /// Who may ask; None only where every address is loopback.
    pub key_sha256: Option<KeyHash>,
    /// Exchanges kept for the inspector; may be 0.
    pub recent: usize,
    /// Where traces go.
    pub otlp: Option<Otlp>,
}

pub(super) fn read(root: &Section<'_>, server: &Server) -> Result<Option<Admin>, Error> {
    if root.find("admin").is_none() {
        return Ok(None);
    }
    let section = root.section("admin", KEYS)?;
    let default = Address::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, 9090)));
    let admin = Admin {
        listen: section.or("listen", vec![default], |item| address::read(item, &server.listen))?,
        key_sha256: section.maybe("key_sha256", keyhash::read)?,
        recent: section.or("recent", 500, |item| item.count(0..=MOST_RECENT))?,
        otlp: section.maybe("otlp", otlp::read)?,
    };
    if let Some(exposed) =
        admin.listen.iter().find(|address| !address.is_loopback() && admin.key_sha256.is_none())
    {
        return Err(section.place("listen").error(format!(
            "{} can be reached from other machines, so admin.key_sha256 is needed: the line of that name in what \"wecom-proxy key NAME\" prints, under [admin]",
            quoted(&exposed.to_string())
        )));
    }
    Ok(Some(admin))
}
