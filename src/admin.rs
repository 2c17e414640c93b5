//! The second port, for operators and their tools: what is well and what is not, what was counted, what came through last,
//! a page that shows it all, and the orders that it takes.

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

/// How long an operator's tool may take for a request's head, between two, and to take the next bytes of an answer.
const IO_TIMEOUT: Duration = Duration::from_secs(30);
/// Caps what a connection buffers of a request's head, and of a response: hyper's own bound is 400 KiB before a key is shown.
const MAX_BUFFER_BYTES: usize = 32 * 1024;
/// So many may follow the stream of exchanges at once.
pub const MAX_STREAM_READERS: usize = 32;

/// What the admin listener answers from. With a key all but the health checks need it.
pub struct Admin {
    /// Who may ask.
    pub key: Option<KeyHash>,
    /// Agents and clients.
    pub directory: Arc<ArcSwap<Directory>>,
    /// Where the proxy and this listen.
    pub listeners: Vec<Address>,
    /// Whether the proxy's own speak TLS.
    pub tls: bool,
    /// Turns true when no more requests are taken.
    pub stopping: watch::Receiver<bool>,
    /// What was counted of requests.
    pub metrics: Arc<Metrics>,
    /// The last exchanges.
    pub recent: Arc<RecentExchanges>,
    /// The traces, where somebody receives them.
    pub traces: Option<Traces>,
    /// Places for connections.
    pub connections: AdminConnectionLimiter,
    /// Places for those who follow the exchanges; see [`MOST_READERS`].
    pub stream_permits: Arc<Semaphore>,
    /// Where tokens come from.
    pub token_service: Arc<TokenService>,
    /// The way in.
    pub server: Arc<Server>,
    /// The bounds of all workers.
    pub settings: Arc<ProxySettings>,
    /// The access log.
    pub access_log: AccessLog,
    /// Reads the configuration again.
    pub reload: ReloadFn,
}

impl Admin {
    /// Serves until `ended` turns true; `bound` stays open that long.
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
                // Out of descriptors: whoever asks will ask again.
                self.connections.close_longest_idle();
                sleep(Duration::from_millis(50)).await;
                continue;
            };
            let seat = tokio::select! {
                _ = ended.wait_for(|ended| *ended) => break,
                seat = self.connections.acquire() => seat,
            };
            tokio::spawn(self.clone().serve_connection(stream, peer, seat));
        }
        drop(bound);
    }

    /// Collects what was counted when a minute begins, and drops what is left of removed agents and clients, until `ended`
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
        self.token_service.retain_agents(|agent| directory.agent(agent, None).is_some());
    }

    async fn serve_connection(
        self: Arc<Self>,
        stream: Stream,
        peer: Option<IpAddr>,
        seat: Arc<AdminConnectionPermit>,
    ) {
        let cut = Arc::new(Notify::new());
        let service = service_fn(|request| {
            let (admin, cut, seat) = (self.clone(), cut.clone(), seat.clone());
            async move {
                let busy = seat.begin_request();
                let shows_key = request.headers().contains_key(header::AUTHORIZATION);
                let answer = admin.clone().handle(request, cut).await;
                if matches!(answer.body(), AdminBody::Stream(_)) {
                    seat.mark_streaming();
                }
                drop(busy);
                if shows_key && answer.status() == StatusCode::UNAUTHORIZED {
                    sleep(admin.server.wrong_key_delay(peer)).await;
                }
                Ok::<_, Infallible>(answer)
            }
        });
        let serving = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(IO_TIMEOUT)
            .max_buf_size(MAX_BUFFER_BYTES)
            .serve_connection(
                TokioIo::new(WriteTimeoutStream::new(stream, seat.clone(), IO_TIMEOUT)),
                service,
            );
        let served = tokio::select! {
            served = serving => served,
            () = cut.notified() => return,
            () = seat.close_requested() => return,
        };
        if let Err(error) = served {
            tracing::debug!(%error, "a connection to the admin listener ended");
        }
    }

    /// Answers one request; `cut` ends its connection.
    async fn handle(self: Arc<Self>, request: Request<Incoming>, cut: Arc<Notify>) -> Response<AdminBody> {
        let reads = matches!(*request.method(), Method::GET | Method::HEAD);
        match request.uri().path() {
            "/healthz" | "/readyz" if !reads => return method_not_allowed("GET, HEAD"),
            "/healthz" => return self.health(false),
            "/readyz" => return self.health(true),
            _ => {}
        }
        let admitted = guard::authorize(self.key.as_ref(), &request);
        let admitted = match request.method() {
            &Method::POST if Action::from_path(request.uri().path()).is_some() => {
                admitted.and_then(|()| guard::check_csrf(&request))
            }
            // The page itself tells nothing, and a link may lead to it.
            _ if request.uri().path() == "/" => admitted,
            _ => admitted.and_then(|()| guard::check_same_origin(&request)),
        };
        match admitted {
            Ok(()) => self.handle_authorized(&request, cut).await,
            Err(AccessDenied::Unauthenticated { presented: shown }) => response::unauthenticated(shown),
            Err(AccessDenied::Forbidden(words)) => error_response(StatusCode::FORBIDDEN, words),
        }
    }

    async fn handle_authorized(
        self: Arc<Self>,
        request: &Request<Incoming>,
        cut: Arc<Notify>,
    ) -> Response<AdminBody> {
        let path = request.uri().path();
        if let Some(order) = Action::from_path(path) {
            return match request.method() {
                &Method::POST => self.handle_action(order, request.uri().query()).await,
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
            "/api/requests/stream" => self.stream(request, cut),
            _ => error_response(
                StatusCode::NOT_FOUND,
                "there is /, /healthz, /readyz, /metrics, /api/agents, /api/errcodes, /api/overview, /api/requests, \
                 /api/requests/stream, and to POST to, /api/agents/NAME/refresh, /api/agents/NAME/inspect and /api/reload",
            ),
        }
    }
}

/// How long until the next minute has begun.
fn until_next_minute() -> Duration {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let next = Duration::from_secs((since.as_secs() / 60 + 1) * 60);
    // Not a moment too early, where the clocks differ.
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
