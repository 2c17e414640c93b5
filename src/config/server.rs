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
use super::socket_access::{self, SocketAccess};
use super::trusted_proxies::{self, TrustedProxies};
use crate::text::Text;
use crate::{format_text, text};

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
    "trusted_proxies",
    "client_address",
    "proxy_protocol",
    "socket_mode",
    "socket_group",
    "reload",
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
    /// The proxies that may name the client's address.
    pub trusted: TrustedProxies,
    /// Mode and group of the unix sockets in `listen`.
    pub socket_access: SocketAccess,
    /// What makes the proxy read its files again.
    pub reload: ReloadTrigger,
}

/// `server.reload`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReloadTrigger {
    /// SIGHUP and the admin listener only.
    Signal,
    /// Also each change of a file that the configuration was read from or names.
    Watch,
}

pub(super) const RELOAD_TRIGGERS: [(&str, ReloadTrigger); 2] =
    [("signal", ReloadTrigger::Signal), ("watch", ReloadTrigger::Watch)];

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

pub(super) fn read(root: &ConfigTable<'_>) -> ServerConfig {
    let section = root.subtable("server", KEYS);
    let timeout = |key, seconds| {
        section.read_or(key, Duration::from_secs(seconds), |item| duration::read(item, POSITIVE_RANGE))
    };
    let default = Address::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)));
    ServerConfig {
        listen: section.read_or("listen", vec![default], |item| address::read(item, &[])),
        tls: section.read_optional("tls", read_tls),
        open: section.read_or("open", false, ConfigValue::boolean),
        max_connections: section.read_or("max_connections", 10_000, |item| item.count(1..=MAX_CONCURRENCY)),
        header_timeout: timeout("header_timeout", 10),
        idle_timeout: timeout("idle_timeout", 75),
        body_timeout: timeout("body_timeout", 30),
        max_request_body: section
            .read_or("max_request_body", 64 << 20, |item| size::read(item, 1..=size::MAX_SIZE_BYTES)),
        shutdown_grace: section
            .read_or("shutdown_grace", Duration::from_secs(30), |item| duration::read(item, RANGE_WITH_ZERO)),
        trusted: trusted_proxies::read(&section),
        socket_access: socket_access::read(&section),
        reload: section.read_or("reload", ReloadTrigger::Signal, |item| item.one_of(&RELOAD_TRIGGERS)),
    }
}

fn read_tls(item: &ConfigValue<'_>) -> Result<ServerTlsConfig, Error> {
    let section = item.table(
        text!(
            "a table like { cert = \"server.pem\", key = \"server.key\" }",
            "{ cert = \"server.pem\", key = \"server.key\" } 这样的表"
        ),
        TLS_KEYS,
    )?;
    let cert = section.read_required("cert", "cert = \"server.pem\"", files::read_file_path);
    let key = section.read_required("key", "key = \"server.key\"", files::read_private_file_path);
    Ok(ServerTlsConfig {
        cert: cert?,
        key: key?,
        client_ca: section.read_optional("client_ca", files::read_file_path),
    })
}

/// Refuses an address that other machines can reach where there are no clients, if `server.open` is not set.
pub(super) fn reject_open_on_public_address(root: &ConfigTable<'_>, server: &ServerConfig) {
    if let Some(message) = open_on_public_address(server) {
        let location = root.subtable("server", KEYS).location_of("listen");
        location.record(location.error(message));
    }
}

/// Why a proxy without clients must not be open on these addresses: every caller could use the agents.
pub(super) fn open_on_public_address(server: &ServerConfig) -> Option<Text> {
    let public = server.listen.iter().find(|address| !address.is_loopback());
    public.filter(|_| !server.open).map(|public| {
        format_text!("{} can be reached from other machines, and without [clients.*] any of them could use the agents; \
             add a client (\"wecom-proxy key NAME\" prints the lines), or set server.open = true to allow it", "{} 能从其他机器访问，而没有 [clients.*] 时它们都可以使用这些应用；请添加调用方（\"wecom-proxy key NAME\" 会打印所需的几行），或设置 server.open = true 明确允许",
            quote(&public.to_string()))
    })
}

/// Warns of trusted proxies where callers need no key.
pub(super) fn warn_of_trusted_proxies_when_open(
    root: &ConfigTable<'_>,
    server: &ServerConfig,
    is_open: bool,
) {
    if is_open && !server.trusted.is_empty() {
        root.subtable("server", KEYS).location_of("trusted_proxies").warn(
            text!("only says which addresses are logged, not who may call: this proxy is open, and serves whatever reaches it", "只决定日志中记录哪个地址，不决定谁可以调用：此代理是开放的，来者不拒"),
        );
    }
}
