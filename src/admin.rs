//! The admin listener, for operators and their tools: health, metrics, recent exchanges, actions, and a dashboard for
//! all of these.

mod actions;
mod agents;
mod connection_limit;
mod detail;
mod guard;
mod health;
mod overview;
mod page;
mod requests;
mod response;
mod scrape;

use std::{
    convert::Infallible,
    net::IpAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use http::{Method, Request, Response, StatusCode, header};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    sync::{Notify, Semaphore, watch},
    time::{sleep, timeout},
};

use self::{
    actions::Action,
    connection_limit::{AdminConnectionPermit, WriteTimeoutStream},
    guard::AccessDenied,
    response::{AdminBody, error_response, method_not_allowed},
};
pub use self::{
    actions::{ReloadFn, ReloadReport},
    connection_limit::AdminConnectionLimiter,
};
use crate::{
    config::{Address, KeyHash},
    directory::Directory,
    http1::io::Stream,
    inspector::RecentExchanges,
    proxy::ProxySettings,
    server::{BoundListener, Listener, Server},
    telemetry::{access_log::AccessLog, metrics::Metrics, traces::Traces},
    tokens::TokenService,
};

/// Bounds the time for a request's header block, between two requests, and until the next bytes of a response are read.
const IO_TIMEOUT: Duration = Duration::from_secs(30);
/// Bounds the buffers of a connection: hyper's default of 400 KiB would apply before a key is presented.
const MAX_BUFFER_BYTES: usize = 32 * 1024;
/// Bounds the concurrent readers of the stream of exchanges.
pub const MAX_STREAM_READERS: usize = 32;

/// The state of the admin listener. If a key is configured, all but the health checks require it.
pub struct Admin {
    /// The hash of the admin key.
    pub key: Option<KeyHash>,
    /// Agents and clients.
    pub directory: Arc<ArcSwap<Directory>>,
    /// The addresses of the proxy and of the admin listener.
    pub listeners: Vec<Address>,
    /// Whether the proxy's listeners use TLS.
    pub tls: bool,
    /// Turns true when the proxy accepts no more requests.
    pub stopping: watch::Receiver<bool>,
    /// The metrics of requests.
    pub metrics: Arc<Metrics>,
    /// The recent exchanges.
    pub recent: Arc<RecentExchanges>,
    /// The traces, if a collector is configured.
    pub traces: Option<Traces>,
    /// Limits the connections.
    pub connections: AdminConnectionLimiter,
    /// Limits the readers of the stream to [`MAX_STREAM_READERS`].
    pub stream_permits: Arc<Semaphore>,
    /// The token service.
    pub token_service: Arc<TokenService>,
    /// The proxy's server.
    pub server: Arc<Server>,
    /// The proxy's settings, with the limits that all workers share.
    pub settings: Arc<ProxySettings>,
    /// The access log.
    pub access_log: AccessLog,
    /// Reloads the configuration.
    pub reload: ReloadFn,
}

impl Admin {
    /// Serves until `ended` turns true and keeps `bound` open until then.
    pub async fn serve(
        self: Arc<Self>,
        mut listener: Listener,
        bound: BoundListener,
        mut ended: watch::Receiver<bool>,
    ) {
        loop {
            let accepted = tokio::select! {
                _ = ended.wait_for(|ended| *ended) => break,
                accepted = listener.accept() => accepted,
            };
            let Ok((stream, peer)) = accepted else {
                // Out of file descriptors: close a connection to free one; its client can connect again.
                self.connections.close_longest_idle();
                sleep(Duration::from_millis(50)).await;
                continue;
            };
            let permit = tokio::select! {
                _ = ended.wait_for(|ended| *ended) => break,
                permit = self.connections.acquire() => permit,
            };
            tokio::spawn(self.clone().serve_connection(stream, peer, permit));
        }
        drop(bound);
    }

    /// At the start of each minute, collects the metrics and drops those of removed agents and clients, until `ended`
    /// turns true.
    pub async fn run_maintenance(self: Arc<Self>, mut ended: watch::Receiver<bool>) {
        while timeout(until_next_minute(), ended.wait_for(|ended| *ended)).await.is_err() {
            let admin = self.clone();
            let collected = tokio::task::spawn_blocking(move || {
                admin.metrics.collect(SystemTime::now());
                admin.prune_removed();
            });
            let _ = collected.await;
        }
    }

    fn prune_removed(&self) {
        let directory = self.directory.load_full();
        self.metrics.prune_removed(&directory);
        self.token_service.retain_agents(|agent| directory.agent_by_name(agent).is_some());
    }

    async fn serve_connection(
        self: Arc<Self>,
        stream: Stream,
        peer: Option<IpAddr>,
        permit: Arc<AdminConnectionPermit>,
    ) {
        let close = Arc::new(Notify::new());
        let service = service_fn(|request| {
            let (admin, close, permit) = (self.clone(), close.clone(), permit.clone());
            async move {
                let guard = permit.begin_request();
                let presents_key = request.headers().contains_key(header::AUTHORIZATION);
                let response = admin.clone().handle(request, close).await;
                if matches!(response.body(), AdminBody::Stream(_)) {
                    permit.mark_streaming();
                }
                drop(guard);
                if presents_key && response.status() == StatusCode::UNAUTHORIZED {
                    sleep(admin.server.count_wrong_key(peer)).await;
                }
                Ok::<_, Infallible>(response)
            }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(IO_TIMEOUT)
            .max_buf_size(MAX_BUFFER_BYTES)
            .serve_connection(
                TokioIo::new(WriteTimeoutStream::new(stream, permit.clone(), IO_TIMEOUT)),
                service,
            );
        let result = tokio::select! {
            result = connection => result,
            () = close.notified() => return,
            () = permit.close_requested() => return,
        };
        if let Err(error) = result {
            tracing::debug!(%error, "admin connection failed");
        }
    }

    /// Handles one request; notifying `close` closes its connection.
    async fn handle(self: Arc<Self>, request: Request<Incoming>, close: Arc<Notify>) -> Response<AdminBody> {
        let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
        match request.uri().path() {
            "/healthz" | "/readyz" if !is_read => return method_not_allowed("GET, HEAD"),
            "/healthz" => return self.health(false),
            "/readyz" => return self.health(true),
            _ => {}
        }
        let access = guard::authorize(self.key.as_ref(), &request);
        let access = match request.method() {
            &Method::POST if Action::from_path(request.uri().path()).is_some() => {
                access.and_then(|()| guard::check_csrf(&request))
            }
            // The page contains no data, and other sites may link to it.
            _ if request.uri().path() == "/" => access,
            _ => access.and_then(|()| guard::check_same_origin(&request)),
        };
        match access {
            Ok(()) => self.handle_authorized(&request, close).await,
            Err(AccessDenied::Unauthenticated { presented }) => response::unauthenticated(presented),
            Err(AccessDenied::Forbidden(message)) => error_response(StatusCode::FORBIDDEN, message),
        }
    }

    async fn handle_authorized(
        self: Arc<Self>,
        request: &Request<Incoming>,
        close: Arc<Notify>,
    ) -> Response<AdminBody> {
        let path = request.uri().path();
        if let Some(action) = Action::from_path(path) {
            return match request.method() {
                &Method::POST => self.handle_action(action, request.uri().query()).await,
                _ => method_not_allowed("POST"),
            };
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return method_not_allowed("GET, HEAD");
        }
        match path {
            "/" => page::page(),
            "/metrics" => self.scrape().await,
            "/api/agents" => self.agents(),
            "/api/errcodes" => agents::errcodes(),
            "/api/overview" => self.overview().await,
            "/api/requests" => self.requests(request.uri().query()).await,
            "/api/requests/stream" => self.stream(request, close),
            _ => error_response(
                StatusCode::NOT_FOUND,
                "unknown path; use /, /healthz, /readyz, /metrics, /api/agents, /api/errcodes, /api/overview, /api/requests or \
                 /api/requests/stream, or POST to /api/agents/NAME/refresh, /api/agents/NAME/inspect or /api/reload",
            ),
        }
    }
}

/// The time until the next minute starts.
fn until_next_minute() -> Duration {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let next = Duration::from_secs((since.as_secs() / 60 + 1) * 60);
    // A margin, because the timer's clock may be slightly ahead of the wall clock.
    next - since + Duration::from_millis(5)
}

/// Seconds since 1970.
fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Milliseconds with three decimals.
fn milliseconds(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1000.0
}
