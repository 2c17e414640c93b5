//! What the requests of one client's connection tell its byte stream: that it is in use, how it is to end, and whether the
//! client takes what lies there for it.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::{
    runtime::Handle,
    time::{Instant, timeout},
};

/// How long, and how much, is read after the last answer from a client that was still sending.
pub const LINGER: Duration = Duration::from_secs(5);
/// See [`LINGER`].
pub const LINGER_BYTES: u64 = 256 * 1024 * 1024;
/// Longest piece of an answer over HTTP/2: what a frame holds by default.
const PIECE: usize = 16 * 1024;

/// What the requests of a connection and its stream know of one another. Clones share it.
#[derive(Debug, Clone)]
pub struct Link(Arc<State>);

#[derive(Debug)]
struct State {
    local: Option<SocketAddr>,
    peer: Option<IpAddr>,
    born: Instant,
    /// When the last request was done, in milliseconds since `born`.
    quiet_since: AtomicU64,
    /// Requests that are being served.
    requests: AtomicU32,
    /// Requests that ever were.
    begun: AtomicU32,
    lingers: AtomicBool,
    severed: AtomicBool,
}

/// A request is being served; dropped when its answer has been handed over.
#[derive(Debug)]
pub struct Busy {
    link: Link,
    turn: Option<Arc<Turn>>,
}

impl Link {
    /// The link of a connection that came in at `local` from `peer`; neither where it is a unix socket.
    pub fn new(local: Option<SocketAddr>, peer: Option<IpAddr>) -> Self {
        Self(Arc::new(State {
            local,
            peer,
            born: Instant::now(),
            quiet_since: AtomicU64::new(0),
            requests: AtomicU32::new(0),
            begun: AtomicU32::new(0),
            lingers: AtomicBool::new(false),
            severed: AtomicBool::new(false),
        }))
    }

    /// Marks the connection as in use.
    pub fn busy(&self) -> Busy {
        self.0.requests.fetch_add(1, Ordering::Relaxed);
        self.0.begun.fetch_add(1, Ordering::Relaxed);
        Busy { link: self.clone(), turn: Turn::of_this_stream() }
    }

    /// Whether `authority` is the address that the client connected to.
    pub fn is_local(&self, authority: &str) -> bool {
        self.0.local.is_some_and(|local| {
            let port = local.port();
            authority.parse::<SocketAddr>().is_ok_and(|named| named == local)
                || (local.ip().is_loopback() && authority.eq_ignore_ascii_case(&format!("localhost:{port}")))
        })
    }

    /// Where the client is.
    pub fn peer(&self) -> Option<IpAddr> {
        self.0.peer
    }

    /// Leaves a body that nobody will read, and that the client may still be sending. Whatever it is that was answered
    /// must not be lost for that: over HTTP/1 the connection closes with care, over HTTP/2 the rest is taken and thrown
    /// away, for clients take a reset stream for a failure even where the answer is there.
    pub fn leave(&self, body: Incoming) {
        match Handle::try_current() {
            Ok(runtime) if Turn::of_this_stream().is_some() => drop(runtime.spawn(throw_away(body))),
            _ => self.0.lingers.store(true, Ordering::Relaxed),
        }
    }

    /// Requests that ever were.
    pub fn begun(&self) -> u32 {
        self.0.begun.load(Ordering::Relaxed)
    }

    /// Whether the connection is to be closed with care.
    pub fn lingers(&self) -> bool {
        self.0.lingers.load(Ordering::Relaxed)
    }

    /// Whether the connection is to end with a reset.
    pub fn is_severed(&self) -> bool {
        self.0.severed.load(Ordering::Relaxed)
    }

    /// When the last request was done; when the connection came, if there was none.
    pub fn quiet_since(&self) -> Instant {
        self.0.born + Duration::from_millis(self.0.quiet_since.load(Ordering::Relaxed))
    }

    /// Whether a request is being served.
    pub fn is_busy(&self) -> bool {
        self.0.requests.load(Ordering::Relaxed) > 0
    }
}

impl Busy {
    /// Says that this answer broke off. Over HTTP/1 the connection will end with a reset: to a client that knows no
    /// framing, or does not look at it, an orderly close would mean that the answer is whole.
    pub fn sever(&self) {
        self.link.0.severed.store(true, Ordering::Relaxed);
    }

    /// Says that a piece of the answer is there for the client to take.
    pub fn offer(&self) {
        if let Some(turn) = &self.turn {
            turn.offer();
        }
    }

    /// Says that it is the upstream that has to go on, and no longer the client.
    pub fn owe(&self) {
        if let Some(turn) = &self.turn {
            turn.owe();
        }
    }

    /// Longest piece that is handed over at once. Over HTTP/2 the next one is asked for when this one is gone, and that
    /// is all that shows whether the client takes anything.
    pub fn longest_piece(&self) -> usize {
        if self.turn.is_some() { PIECE } else { usize::MAX }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let state = &self.link.0;
        let now = u64::try_from(state.born.elapsed().as_millis()).unwrap_or(u64::MAX);
        state.quiet_since.store(now, Ordering::Relaxed);
        state.requests.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Takes what still comes of a body, within bounds.
async fn throw_away(mut body: Incoming) {
    let all = async {
        let mut taken = 0;
        while let Some(Ok(frame)) = body.frame().await {
            taken += frame.data_ref().map_or(0, |data| data.len() as u64);
            if taken > LINGER_BYTES {
                return;
            }
        }
    };
    let _ = timeout(LINGER, all).await;
}

tokio::task_local! {
    static TURN: Arc<Turn>;
}

/// Whose turn it is on a stream. Odd while something lies there for the client; each piece has a number of its own.
#[derive(Debug, Default)]
pub struct Turn(AtomicU64);

impl Turn {
    /// Runs a stream's task with this as its turn.
    pub fn scope<F: Future>(self: Arc<Self>, stream: F) -> impl Future<Output = F::Output> {
        TURN.scope(self, stream)
    }

    /// That of the stream whose task this is; none over HTTP/1.
    pub fn of_this_stream() -> Option<Arc<Self>> {
        TURN.try_with(Arc::clone).ok()
    }

    /// There is a new piece for the client.
    pub fn offer(&self) {
        let now = self.0.load(Ordering::Relaxed);
        self.0.store(now + 1 + now % 2, Ordering::Relaxed);
    }

    /// There is nothing for the client.
    pub fn owe(&self) {
        let now = self.0.load(Ordering::Relaxed);
        self.0.store(now + now % 2, Ordering::Relaxed);
    }

    /// The number of what lies there for the client.
    pub fn offered(&self) -> Option<u64> {
        Some(self.0.load(Ordering::Relaxed)).filter(|now| now % 2 == 1)
    }
}
