//! The admin listener, for operators and their tools: health, metrics, recent exchanges, actions, and a dashboard for
//! all of these.

mod actions;
mod agent_list;
mod agents;
mod api;
mod callbacks;
mod detail;
mod encoding;
mod error;
mod exchange_filter;
mod exchange_json;
mod guard;
mod health;
mod last_reload;
mod openapi;
mod overview;
mod page;
mod query;
mod quotas;
mod replay;
mod requests;
mod response;
mod scrape;
mod settings;
mod suites;
mod trouble;
mod write_timeout_stream;

use std::{
    convert::Infallible,
    mem,
    net::IpAddr,
    ptr,
    sync::{Arc, Weak},
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use http::{Method, Request, Response, StatusCode, header};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::{
    sync::{Semaphore, watch},
    time::{Instant, sleep, timeout},
};

use self::{
    actions::Action,
    api::Resource,
    encoding::AcceptedEncoding,
    error::{AdminResult, ApiError},
    response::AdminBody,
    trouble::Troubles,
    write_timeout_stream::WriteTimeoutStream,
};
pub use self::{
    actions::{ReloadFn, ReloadReport},
    guard::AdminKeys,
    last_reload::LastReload,
};
use crate::{
    blocking,
    config::Address,
    directory::Directory,
    http1::io::Stream,
    inspector::RecentExchanges,
    proxy::ProxySettings,
    server::{BoundListener, ConnectionLimiter, ConnectionPermit, Listener, Server},
    state::State,
    telemetry::{access_log::AccessLog, metrics::Metrics, traces::Traces},
    time::clock::{self, unix_seconds},
    tokens::TokenCache,
};

/// Bounds the time for a request's header block, and between two requests.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// A client that reads none of its response for this time is disconnected.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);
/// Bounds the buffers of a connection: hyper's default of 400 KiB would apply before a key is presented.
const MAX_BUFFER_BYTES: usize = 32 * 1024;
/// Bounds the concurrent readers of the stream of exchanges.
pub const MAX_STREAM_READERS: usize = 32;

/// The state of the admin listener. If a key is configured, all but the health checks require it.
pub struct Admin {
    /// The hashes of the admin keys.
    pub keys: AdminKeys,
    /// The configured name of this replica.
    pub replica: Option<String>,
    /// Where a trace is shown.
    pub trace_url: Option<String>,
    /// Agents and clients.
    pub directory: Arc<ArcSwap<Directory>>,
    /// The addresses of the proxy and of the admin listener.
    pub listeners: Vec<Address>,
    /// The addresses of the proxy alone.
    pub proxy_listeners: Vec<Address>,
    /// Whether the proxy's listeners use TLS.
    pub tls: bool,
    /// Turns true when the proxy accepts no more requests.
    pub stopping: watch::Receiver<bool>,
    /// When the process started.
    pub started_at: SystemTime,
    /// The metrics of requests.
    pub metrics: Arc<Metrics>,
    /// The recent exchanges.
    pub recent: Arc<RecentExchanges>,
    /// The traces, if a collector is configured.
    pub traces: Option<Traces>,
    /// Limits the connections.
    pub connections: ConnectionLimiter,
    /// Limits the readers of the stream to [`MAX_STREAM_READERS`].
    pub stream_permits: Arc<Semaphore>,
    /// The token service.
    pub token_cache: Arc<TokenCache>,
    /// What outlives the process, where it is configured.
    pub state: Option<Arc<State>>,
    /// The proxy's server.
    pub server: Arc<Server>,
    /// The proxy's settings, with the limits that all workers share.
    pub settings: Arc<ProxySettings>,
    /// The access log.
    pub access_log: AccessLog,
    /// Reloads the configuration.
    pub reload: ReloadFn,
    /// The result of the last reload, whatever caused it.
    pub last_reload: Arc<LastReload>,
    /// The directory whose removed agents and clients have no metrics any more.
    pub pruned: Mutex<Weak<Directory>>,
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
                self.connections.evict_one();
                sleep(Duration::from_millis(50)).await;
                continue;
            };
            let permit = tokio::select! {
                _ = ended.wait_for(|ended| *ended) => break,
                permit = self.connections.acquire() => permit,
            };
            let Some(permit) = permit else { break };
            tokio::spawn(self.clone().serve_connection(stream, peer, permit));
        }
        drop(bound);
    }

    /// At the start of each minute, collects the metrics and drops those of removed agents and clients, until `ended`
    /// turns true.
    pub async fn run_maintenance(self: Arc<Self>, mut ended: watch::Receiver<bool>) {
        while timeout(until_next_minute(), ended.wait_for(|ended| *ended)).await.is_err() {
            self.collect_metrics(true).await;
        }
    }

    /// Collects the metrics of the workers, then drops those of removed agents and clients, if the directory has changed or
    /// `always`: requests may end after their agent was removed. Workers and token refreshes lock the same for a moment, so
    /// this has the ordinary priority.
    async fn collect_metrics(self: &Arc<Self>, always: bool) {
        let admin = self.clone();
        let collect = move || {
            admin.metrics.collect(SystemTime::now());
            admin.prune_removed(always);
        };
        let _ = blocking::spawn(collect).await;
    }

    fn prune_removed(&self, always: bool) {
        let directory = self.directory.load_full();
        let pruned = mem::replace(&mut *self.pruned.lock(), Arc::downgrade(&directory));
        if always || !ptr::eq(pruned.as_ptr(), &*directory) {
            self.metrics.prune_removed(&self.directory);
            self.token_cache.retain_agents(|agent| self.directory.load().find_agent(agent).is_some());
        }
    }

    async fn serve_connection(
        self: Arc<Self>,
        stream: Stream,
        peer: Option<IpAddr>,
        permit: Arc<ConnectionPermit>,
    ) {
        permit.register_waker().await;
        let service = service_fn(|request| {
            let (admin, permit) = (self.clone(), permit.clone());
            async move {
                permit.mark_active();
                let presents_key = request.headers().contains_key(header::AUTHORIZATION);
                let accepted = AcceptedEncoding::of(&request);
                let response = accepted.encode(admin.clone().handle_logged(request, peer).await).await;
                // A stream keeps its connection active.
                if !matches!(response.body(), AdminBody::Stream(_)) {
                    permit.mark_idle(Instant::now());
                }
                if presents_key && response.status() == StatusCode::UNAUTHORIZED {
                    sleep(admin.server.count_wrong_key(peer)).await;
                }
                Ok::<_, Infallible>(response)
            }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .max_buf_size(MAX_BUFFER_BYTES)
            .serve_connection(
                TokioIo::new(WriteTimeoutStream::new(stream, permit.clone(), WRITE_TIMEOUT)),
                service,
            );
        let result = tokio::select! {
            result = connection => result,
            () = permit.close_requested() => return,
        };
        if let Err(error) = result {
            tracing::debug!(%error, "admin connection failed");
        }
    }

    /// Handles a request; logs one that may have changed something, with the name of its key and its address.
    async fn handle_logged(
        self: Arc<Self>,
        request: Request<Incoming>,
        peer: Option<IpAddr>,
    ) -> Response<AdminBody> {
        let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
        let role = self.keys.role(request.headers()).filter(|_| !is_read);
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let response = self.handle(request).await.unwrap_or_else(ApiError::into_response);
        if let Some(role) = role {
            let (key, peer) = (role.as_str(), peer.map(|peer| peer.to_string()).unwrap_or_default());
            tracing::info!(key, peer, %method, path, status = response.status().as_u16(), "admin action");
        }
        response
    }

    async fn handle(self: Arc<Self>, request: Request<Incoming>) -> AdminResult {
        let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
        match request.uri().path() {
            "/healthz" | "/readyz" if !is_read => return Err(ApiError::method_not_allowed("GET, HEAD")),
            "/healthz" => return Ok(self.health(false, &Troubles::default())),
            "/readyz" => return Ok(self.ready().await),
            _ => {}
        }
        if let Some(resource) = Resource::from_path(request.uri().path()) {
            return self.serve_api(resource, request).await;
        }
        let access = guard::authorize(&self.keys, &request);
        let action = Action::from_path(request.uri().path()).filter(|_| *request.method() == Method::POST);
        match action {
            // It acts in a client's name, as a change of the clients would let one do.
            Some(Action::Replay) => {
                guard::check_csrf(&request).and_then(|()| guard::authorize_write(&self.keys, &request))
            }
            Some(_) => access.and_then(|()| guard::check_csrf(&request)),
            // The page contains no data, and other sites may link to it.
            None if request.uri().path() == "/" => access,
            None => access.and_then(|()| guard::check_same_origin(&request)),
        }?;
        self.handle_authorized(&request).await
    }

    async fn handle_authorized(self: Arc<Self>, request: &Request<Incoming>) -> AdminResult {
        let path = request.uri().path();
        if let Some(action) = Action::from_path(path) {
            return match request.method() {
                &Method::POST => self.handle_action(action, request.uri().query()).await,
                _ => Err(ApiError::method_not_allowed("POST")),
            };
        }
        if let Some(response) = self.handle_suites(request).await {
            return response;
        }
        if let Some(response) = self.handle_callbacks(request).await {
            return response;
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return Err(ApiError::method_not_allowed("GET, HEAD"));
        }
        Ok(match path {
            "/" => page::page(),
            "/metrics" => self.scrape().await,
            "/api/agents" => self.agents(request.uri().query()).await?,
            "/api/config" => self.config(),
            "/api/errcodes" => agents::errcodes(),
            "/api/openapi.json" => openapi::document(),
            "/api/quotas" => self.quotas(),
            "/api/overview" => self.overview(request.uri().query()).await?,
            "/api/requests" => self.requests(request.uri().query()).await?,
            "/api/requests/stream" => self.stream(request)?,
            _ => {
                return Err(ApiError::not_found(
                    "unknown path; use /, /healthz, /readyz, /metrics, /api/agents, /api/callbacks, /api/clients, /api/config, /api/errcodes, \
                 /api/openapi.json, /api/overview, /api/quotas, /api/requests, /api/requests/stream, /api/suites, \
                 /api/suites/NAME/corps or /api/suites/NAME/install-link, or POST to /api/agents/NAME/refresh, /api/agents/NAME/inspect or /api/reload",
                ));
            }
        })
    }
}

/// The time until the next minute starts.
fn until_next_minute() -> Duration {
    let since = clock::since_epoch(SystemTime::now());
    let next = Duration::from_secs((since.as_secs() / 60 + 1) * 60);
    // A margin, because the timer's clock may be slightly ahead of the wall clock.
    next - since + Duration::from_millis(5)
}

/// Milliseconds with three decimals.
fn milliseconds(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1000.0
}
