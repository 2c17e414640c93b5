//! Opens connections to a single server, a cluster, or the primary that sentinels name.
//!
//! The Redis client takes only certificates and makes its TLS settings itself, so those of `upstream/trust.rs` cannot be
//! used; TLS versions, built-in authorities and key log are the same.

use std::{fs, io, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ErrorKind, IntoConnectionInfo, Pipeline,
    ProtocolVersion, PushInfo, RedisConnectionInfo, RedisError, RedisFuture, RedisResult, TlsCertificates,
    TlsMode, Value,
    aio::{ConnectionLike, MultiplexedConnection},
    cluster::{ClusterClient, ClusterClientBuilder},
    cluster_async::ClusterConnection,
    io::AsyncDNSResolver,
    sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType},
};
use tokio::{
    sync::{Mutex, mpsc},
    time::Instant,
};

use super::{StoreError, notification::StoreEvent};
use crate::{
    config::{RedisConfig, StoreNode, Topology},
    secret::seal::Sealer,
    upstream::tcp,
};

/// Longest wait for one response. A request that waits for a token gains nothing from a slower store.
pub(super) const RESPONSE_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest wait for a TCP connection with its handshakes.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest wait for each step of a probe of one sentinel.
const PROBE_TIMEOUT: Duration = Duration::from_millis(300);

/// A connection to one server, or to all nodes of a cluster.
#[derive(Clone)]
pub(super) enum StoreConnection {
    Single(MultiplexedConnection),
    Cluster(ClusterConnection),
}

/// Looks names up with the resolver of the process. The Redis client still resolves the names of sentinels itself.
struct SharedResolver;

impl AsyncDNSResolver for SharedResolver {
    fn resolve<'a, 'b: 'a>(
        &'a self,
        host: &'b str,
        port: u16,
    ) -> RedisFuture<'a, Box<dyn Iterator<Item = SocketAddr> + Send + 'a>> {
        Box::pin(async move {
            let addresses = tcp::resolve(host, port, Instant::now() + CONNECT_TIMEOUT).await;
            let addresses = addresses.map_err(|error| io::Error::other(error.to_string()))?;
            Ok(Box::new(addresses.into_iter()) as _)
        })
    }
}

/// Opens connections with one set of trusted certificates.
pub(super) struct Dialer {
    client: DialerClient,
    /// The content of `ca_file`.
    ca: Option<Vec<u8>>,
}

/// The client for each topology.
enum DialerClient {
    Single(Client, Box<AsyncConnectionConfig>),
    Cluster(ClusterClient),
    Sentinel(Box<SentinelDialer>),
}

/// The client of a server that sentinels name.
pub(super) struct SentinelDialer {
    client: Mutex<SentinelClient>,
    config: AsyncConnectionConfig,
    /// A client of each sentinel itself, to find out after a failure what failed.
    sentinels: Vec<Client>,
}

impl Dialer {
    /// Push messages of a connection go to `event_sender`, if `sealer` verifies their signature.
    pub(super) fn new(
        redis: &RedisConfig,
        sealer: Arc<Sealer>,
        event_sender: mpsc::UnboundedSender<StoreEvent>,
    ) -> Result<Self, StoreError> {
        let ca = redis.ca_file.as_deref().map(read_ca_file).transpose()?;
        let certificates = TlsCertificates { client_tls: None, root_cert: ca.clone() };
        let on_push = move |info: PushInfo| {
            StoreEvent::from_push(info, &sealer).map_or(Ok(()), |event| event_sender.send(event))
        };
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(RESPONSE_TIMEOUT))
            .set_dns_resolver(SharedResolver);
        let client = match &redis.topology {
            Topology::Single => DialerClient::Single(
                single_client(redis, certificates)?,
                Box::new(config.set_push_sender(on_push)),
            ),
            Topology::Cluster => DialerClient::Cluster(
                cluster_client_builder(redis, certificates)?.push_sender(on_push).build()?,
            ),
            Topology::Sentinel(master) => {
                let sentinels = sentinel_probes(redis, &certificates)?;
                let client = Mutex::new(sentinel_client(redis, master, certificates)?);
                let config = config.set_push_sender(on_push);
                DialerClient::Sentinel(Box::new(SentinelDialer { client, config, sentinels }))
            }
        };
        Ok(Self { client, ca })
    }

    /// Whether both trust the same certificates.
    pub(super) fn has_same_ca(&self, other: &Self) -> bool {
        self.ca == other.ca
    }

    /// Opens a connection.
    pub(super) async fn connect(&self) -> RedisResult<StoreConnection> {
        Ok(match &self.client {
            DialerClient::Single(client, config) => {
                StoreConnection::Single(client.get_multiplexed_async_connection_with_config(config).await?)
            }
            DialerClient::Cluster(client) => StoreConnection::Cluster(client.get_async_connection().await?),
            DialerClient::Sentinel(dialer) => StoreConnection::Single(dialer.connect().await?),
        })
    }
}

impl SentinelDialer {
    /// The sentinels are asked each time: after a failover another server is the primary.
    async fn connect(&self) -> RedisResult<MultiplexedConnection> {
        let error = match self.client.lock().await.get_async_connection_with_config(&self.config).await {
            Ok(connection) => return Ok(connection),
            Err(error) => error,
        };
        if error.kind() == ErrorKind::MasterNameNotFoundBySentinel {
            return Err(error);
        }
        Err(match self.sentinel_error().await {
            Some(refusal) => (refusal.kind(), "the sentinel refused or failed", refusal.to_string()).into(),
            None => (error.kind(), "the master refused or failed", error.to_string()).into(),
        })
    }

    /// The error of the last sentinel; `None` if any of them accepts its login.
    async fn sentinel_error(&self) -> Option<RedisError> {
        let mut last_error = None;
        for sentinel in &self.sentinels {
            let config = AsyncConnectionConfig::new()
                .set_connection_timeout(Some(PROBE_TIMEOUT))
                .set_response_timeout(Some(PROBE_TIMEOUT));
            let probe = async {
                let mut connection = sentinel.get_multiplexed_async_connection_with_config(&config).await?;
                redis::cmd("ROLE").query_async::<Vec<Value>>(&mut connection).await
            };
            match probe.await.map(|role| role.into_iter().next()) {
                Ok(Some(role)) if role == Value::BulkString(b"sentinel".to_vec()) => {
                    return None;
                }
                Ok(_) => last_error = Some((ErrorKind::InvalidClientConfig, "this is no sentinel").into()),
                Err(error) => last_error = Some(error),
            }
        }
        last_error
    }
}

fn single_client(redis: &RedisConfig, certificates: TlsCertificates) -> RedisResult<Client> {
    let mut settings =
        RedisConnectionInfo::default().set_db(redis.database.into()).set_protocol(ProtocolVersion::RESP3);
    if let Some(user) = &redis.user {
        settings = settings.set_username(user);
    }
    if let Some(password) = &redis.password {
        settings = settings.set_password(password.expose());
    }
    let node = redis
        .nodes
        .first()
        .map(|node| connection_address(node, redis.tls).into_connection_info())
        .transpose()?;
    let node = node.ok_or((redis::ErrorKind::InvalidClientConfig, "no server configured"))?;
    let node = node.set_redis_settings(settings);
    if redis.tls { Client::build_with_tls(node, certificates) } else { Client::open(node) }
}

fn cluster_client_builder(
    redis: &RedisConfig,
    certificates: TlsCertificates,
) -> RedisResult<ClusterClientBuilder> {
    let nodes = redis.nodes.iter().map(|node| connection_address(node, redis.tls).into_connection_info());
    let mut builder = ClusterClientBuilder::new(nodes.collect::<RedisResult<Vec<_>>>()?)
        .use_protocol(ProtocolVersion::RESP3)
        .connection_timeout(CONNECT_TIMEOUT)
        .response_timeout(RESPONSE_TIMEOUT)
        .async_dns_resolver(SharedResolver)
        .retries(1);
    if let Some(user) = &redis.user {
        builder = builder.username(user);
    }
    if let Some(password) = &redis.password {
        builder = builder.password(password.expose());
    }
    Ok(if redis.tls { builder.tls(TlsMode::Secure).certs(certificates) } else { builder })
}

/// A client of each sentinel, with the sentinels' login.
fn sentinel_probes(redis: &RedisConfig, certificates: &TlsCertificates) -> RedisResult<Vec<Client>> {
    let client = |node| {
        let mut settings = RedisConnectionInfo::default();
        if let Some(user) = &redis.sentinel_user {
            settings = settings.set_username(user);
        }
        if let Some(password) = &redis.sentinel_password {
            settings = settings.set_password(password.expose());
        }
        let node = connection_address(node, redis.tls).into_connection_info()?.set_redis_settings(settings);
        if redis.tls { Client::build_with_tls(node, certificates.clone()) } else { Client::open(node) }
    };
    redis.nodes.iter().map(client).collect()
}

/// User, password and database are those of the servers; sentinels have a login of their own.
fn sentinel_client(
    redis: &RedisConfig,
    master: &str,
    certificates: TlsCertificates,
) -> RedisResult<SentinelClient> {
    let sentinels = redis.nodes.iter().map(|node| connection_address(node, redis.tls));
    let mut builder = SentinelClientBuilder::new(sentinels, master, SentinelServerType::Master)?
        .set_client_to_redis_db(redis.database.into())
        .set_client_to_redis_protocol(ProtocolVersion::RESP3);
    if let Some(user) = &redis.user {
        builder = builder.set_client_to_redis_username(user);
    }
    if let Some(password) = &redis.password {
        builder = builder.set_client_to_redis_password(password.expose());
    }
    if let Some(user) = &redis.sentinel_user {
        builder = builder.set_client_to_sentinel_username(user);
    }
    if let Some(password) = &redis.sentinel_password {
        builder = builder.set_client_to_sentinel_password(password.expose());
    }
    if redis.tls {
        builder = builder
            .set_client_to_redis_tls_mode(TlsMode::Secure)
            .set_client_to_redis_certificates(certificates.clone())
            .set_client_to_sentinel_tls_mode(TlsMode::Secure)
            .set_client_to_sentinel_certificates(certificates);
    }
    builder.build()
}

fn connection_address(node: &StoreNode, tls: bool) -> ConnectionAddr {
    let (host, port) = (node.host.clone(), node.port);
    match tls {
        true => ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None },
        false => ConnectionAddr::Tcp(host, port),
    }
}

fn read_ca_file(path: &Path) -> Result<Vec<u8>, StoreError> {
    fs::read(path).map_err(|error| StoreError::CaFile { path: path.to_owned(), error })
}

impl StoreConnection {
    /// Subscribes to a channel.
    pub(super) async fn subscribe(&mut self, channel: &str) -> RedisResult<()> {
        match self {
            Self::Single(connection) => connection.subscribe(channel).await,
            Self::Cluster(connection) => connection.subscribe(channel).await,
        }
    }
}

impl ConnectionLike for StoreConnection {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        match self {
            Self::Single(connection) => connection.req_packed_command(command),
            Self::Cluster(connection) => connection.req_packed_command(command),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        commands: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self {
            Self::Single(connection) => connection.req_packed_commands(commands, offset, count),
            Self::Cluster(connection) => connection.req_packed_commands(commands, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        match self {
            Self::Single(connection) => connection.get_db(),
            Self::Cluster(connection) => connection.get_db(),
        }
    }
}
