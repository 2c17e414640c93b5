//! The second port, for operators and their tools: what is well and what is not, what was counted, what came through last,
//! a page that shows it all, and the orders that it takes.

mod agents;
mod answer;
mod detail;
mod guard;
mod health;
mod orders;
mod overview;
mod page;
mod requests;
mod scrape;
mod seats;

use std::{
    convert::Infallible,
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use http::{Method, Request, Response, StatusCode};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    sync::{Notify, Semaphore, watch},
    time::{sleep, timeout},
};

use self::{
    answer::{Body, not_allowed, problem},
    guard::Refused,
    orders::Order,
    seats::{Seat, Watched},
};
pub use self::{
    orders::{Reload, Reloaded},
    seats::Seats,
};
use crate::{
    access::AccessLog,
    config::{Address, KeyHash},
    directory::Directory,
    io::Stream,
    metrics::Metrics,
    proxy::Rules,
    recent::Recent,
    server::{Bound, Listener, Server},
    tokens::Issuer,
    traces::Traces,
};

/// How long an operator's tool may take for a request's head, between two, and to take the next bytes of an answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// Most bytes of a request, and of untaken responses, that a connection holds.
const MAX_BUFFER: usize = 64 * 1024;
/// So many may follow the stream of exchanges at once.
pub const MOST_READERS: usize = 32;

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
    pub recent: Arc<Recent>,
    /// The traces, where somebody receives them.
    pub traces: Option<Traces>,
    /// Places for connections.
    pub seats: Seats,
    /// Places for those who follow the exchanges; see [`MOST_READERS`].
    pub readers: Arc<Semaphore>,
    /// Where tokens come from.
    pub issuer: Arc<Issuer>,
    /// The way in.
    pub server: Arc<Server>,
    /// The bounds of all workers.
    pub rules: Arc<Rules>,
    /// The access log.
    pub access: AccessLog,
    /// Reads the configuration again.
    pub reload: Reload,
}

impl Admin {
    /// Serves until `ended` turns true; `bound` stays open that long.
    pub async fn serve(
        self: Arc<Self>,
        mut listener: Listener,
        bound: Bound,
        mut ended: watch::Receiver<bool>,
    ) {
        loop {
            let accepted = tokio::select! {
                _ = ended.wait_for(|ended| *ended) => break,
                accepted = listener.accept() => accepted,
            };
            let Ok((stream, ..)) = accepted else {
                // Out of descriptors: whoever asks will ask again.
                self.seats.ask_one_to_leave();
                sleep(Duration::from_millis(50)).await;
                continue;
            };
            let seat = tokio::select! {
                _ = ended.wait_for(|ended| *ended) => break,
                seat = self.seats.seat() => seat,
            };
            tokio::spawn(self.clone().converse(stream, seat));
        }
        drop(bound);
    }

    /// Collects what was counted when a minute begins, and drops what is left of removed agents and clients, until `ended`
    /// turns true.
    pub async fn keep_time(self: Arc<Self>, mut ended: watch::Receiver<bool>) {
        while timeout(to_next_minute(), ended.wait_for(|ended| *ended)).await.is_err() {
            let admin = self.clone();
            let collected = tokio::task::spawn_blocking(move || {
                admin.metrics.collect(SystemTime::now());
                admin.forget_removed();
            });
            let _ = collected.await;
        }
    }

    fn forget_removed(&self) {
        let directory = self.directory.load_full();
        self.metrics.forget_removed(&directory);
        self.issuer.keep_renewals_of(|agent| directory.agent(agent, None).is_some());
    }

    async fn converse(self: Arc<Self>, stream: Stream, seat: Arc<Seat>) {
        let cut = Arc::new(Notify::new());
        let service = service_fn(|request| {
            let (admin, cut, seat) = (self.clone(), cut.clone(), seat.clone());
            async move {
                let _busy = seat.busy();
                let answer = admin.answer(request, cut).await;
                if matches!(answer.body(), Body::Stream(_)) {
                    seat.follow();
                }
                Ok::<_, Infallible>(answer)
            }
        });
        let serving = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(PATIENCE)
            .max_buf_size(MAX_BUFFER)
            .serve_connection(TokioIo::new(Watched::new(stream, seat.clone(), PATIENCE)), service);
        let served = tokio::select! {
            served = serving => served,
            () = cut.notified() => return,
            () = seat.asked() => return,
        };
        if let Err(error) = served {
            tracing::debug!(%error, "a connection to the admin listener ended");
        }
    }

    /// Answers one request; `cut` ends its connection.
    async fn answer(self: Arc<Self>, request: Request<Incoming>, cut: Arc<Notify>) -> Response<Body> {
        let reads = matches!(*request.method(), Method::GET | Method::HEAD);
        match request.uri().path() {
            "/healthz" | "/readyz" if !reads => return not_allowed("GET, HEAD"),
            "/healthz" => return self.health(false),
            "/readyz" => return self.health(true),
            _ => {}
        }
        let admitted = guard::admit(self.key.as_ref(), &request);
        let admitted = match request.method() {
            &Method::POST if Order::of(request.uri().path()).is_some() => {
                admitted.and_then(|()| guard::admit_order(&request))
            }
            // The page itself tells nothing, and a link may lead to it.
            _ if request.uri().path() == "/" => admitted,
            _ => admitted.and_then(|()| guard::admit_reader(&request)),
        };
        match admitted {
            Ok(()) => self.answer_admitted(&request, cut).await,
            Err(Refused::Unauthenticated { shown }) => answer::unauthenticated(shown),
            Err(Refused::Forbidden(words)) => problem(StatusCode::FORBIDDEN, words),
        }
    }

    async fn answer_admitted(
        self: Arc<Self>,
        request: &Request<Incoming>,
        cut: Arc<Notify>,
    ) -> Response<Body> {
        let path = request.uri().path();
        if let Some(order) = Order::of(path) {
            return match request.method() {
                &Method::POST => self.obey(order, request.uri().query()).await,
                _ => not_allowed("POST"),
            };
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return not_allowed("GET, HEAD");
        }
        match path {
            "/" => page::page(),
            "/metrics" => self.scrape().await,
            "/api/agents" => self.agents(),
            "/api/errcodes" => agents::errcodes(),
            "/api/overview" => self.overview().await,
            "/api/requests" => self.requests(request.uri().query()).await,
            "/api/requests/stream" => self.stream(request, cut),
            _ => problem(
                StatusCode::NOT_FOUND,
                "there is /, /healthz, /readyz, /metrics, /api/agents, /api/errcodes, /api/overview, /api/requests, \
                 /api/requests/stream, and to POST to, /api/agents/NAME/refresh, /api/agents/NAME/inspect and /api/reload",
            ),
        }
    }
}

/// How long until the next minute has begun.
fn to_next_minute() -> Duration {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let next = Duration::from_secs((since.as_secs() / 60 + 1) * 60);
    // Not a moment too early, where the clocks differ.
    next - since + Duration::from_millis(5)
}

/// Seconds since 1970.
fn epoch(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Milliseconds with three decimals.
fn milliseconds(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1000.0
}
