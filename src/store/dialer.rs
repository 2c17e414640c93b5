//! Opens connections to a single server, a cluster, or the primary that sentinels name.

use std::{fs, path::Path, sync::Arc, time::Duration};

use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, IntoConnectionInfo, Pipeline, ProtocolVersion,
    PushInfo, RedisConnectionInfo, RedisFuture, RedisResult, TlsCertificates, TlsMode, Value,
    aio::{ConnectionLike, MultiplexedConnection},
    cluster::{ClusterClient, ClusterClientBuilder},
    cluster_async::ClusterConnection,
    sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType},
};
use tokio::sync::{Mutex, mpsc};

use super::{StoreError, notification::StoreEvent, seal::Sealer};
use crate::config::{RedisConfig, StoreNode, Topology};

/// Longest wait for one response. A request that waits for a token gains nothing from a slower store.
pub(super) const RESPONSE_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest wait for a TCP connection with its handshakes.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// A connection to one server, or to all nodes of a cluster.
#[derive(Clone)]
pub(super) enum StoreConnection {
    Single(MultiplexedConnection),
    Cluster(ClusterConnection),
}

/// The client for each topology.
pub(super) enum Dialer {
    Single(Client, Box<AsyncConnectionConfig>),
    Cluster(ClusterClient),
    Sentinel(Box<Mutex<SentinelClient>>, Box<AsyncConnectionConfig>),
}

impl Dialer {
    /// Push messages of a connection go to `event_sender`, if `sealer` verifies their signature.
    pub(super) fn new(
        redis: &RedisConfig,
        sealer: Arc<Sealer>,
        event_sender: mpsc::UnboundedSender<StoreEvent>,
    ) -> Result<Self, StoreError> {
        let certificates = redis.ca_file.as_deref().map(read_ca_file).transpose()?;
        let certificates = TlsCertificates { client_tls: None, root_cert: certificates };
        let on_push = move |info: PushInfo| {
            StoreEvent::from_push(info, &sealer).map_or(Ok(()), |event| event_sender.send(event))
        };
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(RESPONSE_TIMEOUT));
        Ok(match &redis.topology {
            Topology::Single => {
                Self::Single(single_client(redis, certificates)?, Box::new(config.set_push_sender(on_push)))
            }
            Topology::Cluster => {
                Self::Cluster(cluster_client_builder(redis, certificates)?.push_sender(on_push).build()?)
            }
            Topology::Sentinel(master) => {
                let client = Box::new(Mutex::new(sentinel_client(redis, master, certificates)?));
                Self::Sentinel(client, Box::new(config.set_push_sender(on_push)))
            }
        })
    }

    /// Opens a connection.
    pub(super) async fn connect(&self) -> RedisResult<StoreConnection> {
        Ok(match self {
            Self::Single(client, config) => {
                StoreConnection::Single(client.get_multiplexed_async_connection_with_config(config).await?)
            }
            Self::Cluster(client) => StoreConnection::Cluster(client.get_async_connection().await?),
            Self::Sentinel(client, config) => {
                // The sentinels are asked each time: after a failover another server is the primary.
                let mut client = client.lock().await;
                StoreConnection::Single(client.get_async_connection_with_config(config).await?)
            }
        })
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
        .retries(1);
    if let Some(user) = &redis.user {
        builder = builder.username(user);
    }
    if let Some(password) = &redis.password {
        builder = builder.password(password.expose());
    }
    Ok(if redis.tls { builder.tls(TlsMode::Secure).certs(certificates) } else { builder })
}

/// User, password and database are those of the servers; sentinels get none.
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
