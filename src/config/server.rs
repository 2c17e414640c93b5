//! `[server]`: the listeners for callers, and their limits and timeouts.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use super::address::{self, Address};
use super::duration::{self, POSITIVE_RANGE, RANGE_WITH_ZERO};
use super::error::{Error, quote};
use super::files;
use super::reader::{ConfigTable, ConfigValue, MAX_CONCURRENCY};
use super::size;

pub(super) const KEYS: &[&str] = &[
    "listen",
    "tls",
    "open",
    "max_connections",
    "header_timeout",
    "idle_timeout",
    "body_timeout",
    "max_request_body",
    "shutdown_grace",
];

pub(super) const TLS_KEYS: &[&str] = &["cert", "key", "client_ca"];

/// `[server]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerConfig {
    /// At least one, without duplicates.
    pub listen: Vec<Address>,
    /// `None`: plain text.
    pub tls: Option<ServerTlsConfig>,
    /// Whether callers without a key are allowed on an address that is not loopback.
    pub open: bool,
    /// Maximum of open connections; at least 1.
    pub max_connections: usize,
    /// Bounds the time to the end of a request's header block, and the TLS handshake.
    pub header_timeout: Duration,
    /// Bounds the idle time between two requests of a connection.
    pub idle_timeout: Duration,
    /// Bounds the pause between two chunks of a request's body, and how long a client may leave response bytes unread.
    pub body_timeout: Duration,
    /// Maximum size of a request's body in bytes; at least 1.
    pub max_request_body: u64,
    /// Bounds the wait for requests in flight at shutdown; may be zero.
    pub shutdown_grace: Duration,
}

/// `server.tls`: readable files, not yet parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerTlsConfig {
    /// The certificate chain, PEM.
    pub cert: PathBuf,
    /// The private key, PEM.
    pub key: PathBuf,
    /// The CA of the certificates that callers must present; `None`: callers need none.
    pub client_ca: Option<PathBuf>,
}

pub(super) fn read(root: &ConfigTable<'_>) -> Result<ServerConfig, Error> {
    let section = root.subtable("server", KEYS)?;
    let timeout = |key, seconds| {
        section.read_or(key, Duration::from_secs(seconds), |item| duration::read(item, POSITIVE_RANGE))
    };
    let default = Address::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)));
    Ok(ServerConfig {
        listen: section.read_or("listen", vec![default], |item| address::read(item, &[]))?,
        tls: section.read_optional("tls", read_tls)?,
        open: section.read_or("open", false, ConfigValue::boolean)?,
        max_connections: section
            .read_or("max_connections", 10_000, |item| item.count(1..=MAX_CONCURRENCY))?,
        header_timeout: timeout("header_timeout", 10)?,
        idle_timeout: timeout("idle_timeout", 75)?,
        body_timeout: timeout("body_timeout", 30)?,
        max_request_body: section
            .read_or("max_request_body", 64 << 20, |item| size::read(item, 1..=size::MAX_SIZE_BYTES))?,
        shutdown_grace: section.read_or("shutdown_grace", Duration::from_secs(30), |item| {
            duration::read(item, RANGE_WITH_ZERO)
        })?,
    })
}

fn read_tls(item: &ConfigValue<'_>) -> Result<ServerTlsConfig, Error> {
    let section = item.table("a table like { cert = \"server.pem\", key = \"server.key\" }", TLS_KEYS)?;
    Ok(ServerTlsConfig {
        cert: section.read_required("cert", "cert = \"server.pem\"", files::read_file_path)?,
        key: section.read_required("key", "key = \"server.key\"", files::read_private_file_path)?,
        client_ca: section.read_optional("client_ca", files::read_file_path)?,
    })
}

/// Refuses an address that other machines can reach, if there are no clients and `server.open` is not set: every caller
/// could use the agents.
pub(super) fn reject_open_on_public_address(
    root: &ConfigTable<'_>,
    server: &ServerConfig,
    no_clients: bool,
) -> Result<(), Error> {
    let public = server.listen.iter().find(|address| !address.is_loopback());
    let Some(public) = public.filter(|_| no_clients && !server.open) else {
        return Ok(());
    };
    Err(root.subtable("server", KEYS)?.location_of("listen").error(format!(
        "{} can be reached from other machines, and without [clients.*] any of them could use the agents; \
         add a client (\"wecom-proxy key NAME\" prints the lines), or set server.open = true to allow it",
        quote(&public.to_string())
    )))
}
