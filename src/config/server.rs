//! `[server]`: where callers reach the proxy, and how long it waits for them.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use super::address::{self, Address};
use super::duration::{self, FROM_ZERO, POSITIVE};
use super::error::{Error, quoted};
use super::files;
use super::section::{Item, MOST_AT_ONCE, Section};
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
pub struct Server {
    /// At least one, none twice.
    pub listen: Vec<Address>,
    /// None: plain text.
    pub tls: Option<ServerTls>,
    /// Whether callers without a key are allowed on an address that is not loopback.
    pub open: bool,
    /// Connections at once; at least 1.
    pub max_connections: usize,
    /// To the end of a request's head, the TLS handshake too.
    pub header_timeout: Duration,
    /// Between two requests of a kept connection.
    pub idle_timeout: Duration,
    /// The longest silence inside a request's body.
    pub body_timeout: Duration,
    /// In bytes; at least 1.
    pub max_request_body: u64,
    /// How long requests in flight have at shutdown; may be zero.
    pub shutdown_grace: Duration,
}

/// `server.tls`: files that were there and readable, not yet parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerTls {
    /// The certificate chain, PEM.
    pub cert: PathBuf,
    /// The private key, PEM.
    pub key: PathBuf,
    /// Whose certificates callers must show; None: they need none.
    pub client_ca: Option<PathBuf>,
}

pub(super) fn read(root: &Section<'_>) -> Result<Server, Error> {
    let section = root.section("server", KEYS)?;
    let wait =
        |key, seconds| section.or(key, Duration::from_secs(seconds), |item| duration::read(item, POSITIVE));
    let default = Address::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)));
    Ok(Server {
        listen: section.or("listen", vec![default], |item| address::read(item, &[]))?,
        tls: section.maybe("tls", read_tls)?,
        open: section.or("open", false, Item::boolean)?,
        max_connections: section.or("max_connections", 10_000, |item| item.count(1..=MOST_AT_ONCE))?,
        header_timeout: wait("header_timeout", 10)?,
        idle_timeout: wait("idle_timeout", 75)?,
        body_timeout: wait("body_timeout", 30)?,
        max_request_body: section
            .or("max_request_body", 64 << 20, |item| size::read(item, 1..=size::LARGEST))?,
        shutdown_grace: section
            .or("shutdown_grace", Duration::from_secs(30), |item| duration::read(item, FROM_ZERO))?,
    })
}

fn read_tls(item: &Item<'_>) -> Result<ServerTls, Error> {
    let section = item.section("a table like { cert = \"server.pem\", key = \"server.key\" }", TLS_KEYS)?;
    Ok(ServerTls {
        cert: section.need("cert", "cert = \"server.pem\"", files::readable)?,
        key: section.need("key", "key = \"server.key\"", files::private)?,
        client_ca: section.maybe("client_ca", files::readable)?,
    })
}

/// Whoever reaches a proxy without clients uses its agents, so that must be this machine or be meant.
pub(super) fn refuse_open_to_the_world(
    root: &Section<'_>,
    server: &Server,
    no_clients: bool,
) -> Result<(), Error> {
    let exposed = server.listen.iter().find(|address| !address.is_loopback());
    let Some(exposed) = exposed.filter(|_| no_clients && !server.open) else {
        return Ok(());
    };
    Err(root.section("server", KEYS)?.place("listen").error(format!(
        "{} can be reached from other machines, and without [clients.*] everybody there could use the agents; \
         add a client (\"wecom-proxy key NAME\" prints the lines), or set server.open = true to allow it",
        quoted(&exposed.to_string())
    )))
}
