//! An upstream that records every request, responds to canonical ones, and closes the connection on any other.

use std::{
    io,
    mem::MaybeUninit,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
};

use socket2::SockRef;
use tokio::{
    net::{TcpSocket, TcpStream},
    task::yield_now,
};

use super::canonical_request::{self, CanonicalRequest, ParseStatus};
use crate::{harness::with_timeout, raw_http::write_all};

/// The token that it issues.
pub const TOKEN: &str = "TOKEN-OF-THE-RECORDER";

/// The state of a received request.
#[derive(Debug, Clone)]
pub enum ArrivalState {
    /// The canonical beginning of a request; `head` tells whether its head is complete.
    Partial { head: bool },
    /// A complete canonical request.
    Complete(CanonicalRequest),
    /// A non-canonical request, with the reason.
    NotCanonical(String),
}

/// A request, or the beginning of one.
#[derive(Debug, Clone)]
pub struct RecordedArrival {
    /// Its index among all arrivals; the response contains the same number.
    pub nth: usize,
    pub state: ArrivalState,
    /// Whether its connection has ended.
    pub closed: bool,
}

impl RecordedArrival {
    fn is_gettoken(&self) -> bool {
        matches!(&self.state, ArrivalState::Complete(request) if request.is_gettoken())
    }
}

#[derive(Default)]
struct ArrivalLog {
    arrivals: Vec<RecordedArrival>,
    open_streams: Vec<Arc<TcpStream>>,
}

/// The upstream.
pub struct RecordingUpstream {
    pub address: SocketAddr,
    log: Arc<Mutex<ArrivalLog>>,
}

impl RecordingUpstream {
    /// Listens on a free port.
    pub async fn new() -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a port");
        // A backlog for hundreds of simultaneous connects.
        let listener = socket.listen(4096).expect("a listener");
        let address = listener.local_addr().expect("an address");
        let log = Arc::<Mutex<ArrivalLog>>::default();
        let shared = log.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let stream = Arc::new(stream);
                lock(&shared).open_streams.push(stream.clone());
                tokio::spawn(serve_connection(stream, shared.clone(), address.to_string()));
            }
        });
        Self { address, log }
    }

    /// Number of arrivals.
    pub fn arrival_count(&self) -> usize {
        lock(&self.log).arrivals.len()
    }

    /// The arrivals after the first `count`, without the proxy's gettoken calls. Includes all bytes sent so far, because the
    /// kernel's receive buffers are emptied first.
    pub async fn arrivals_since(&self, count: usize) -> Vec<RecordedArrival> {
        with_timeout(async {
            while self.has_unread() {
                yield_now().await;
            }
        })
        .await;
        let log = lock(&self.log);
        log.arrivals[count..].iter().filter(|arrival| !arrival.is_gettoken()).cloned().collect()
    }

    fn has_unread(&self) -> bool {
        let has_bytes = |stream: &Arc<TcpStream>| {
            let peeked = SockRef::from(&**stream).peek(&mut [MaybeUninit::uninit()]);
            !matches!(peeked, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
        };
        lock(&self.log).open_streams.iter().any(has_bytes)
    }
}

fn lock(log: &Mutex<ArrivalLog>) -> MutexGuard<'_, ArrivalLog> {
    log.lock().expect("no panic under the lock")
}

/// Serves the requests of a connection until it ends.
async fn serve_connection(stream: Arc<TcpStream>, log: Arc<Mutex<ArrivalLog>>, host: String) {
    let mut bytes = Vec::new();
    let mut current = None;
    while let Some(mut state) = read_state(&stream, &mut bytes, &host).await {
        if let ArrivalState::Complete(request) = &state
            && request.is_gettoken()
            && canonical_request::find(
                &canonical_request::decode(request.target.as_bytes()),
                b"&corpsecret=not-a-secret-",
            )
            .is_none()
        {
            state = ArrivalState::NotCanonical("a client's gettoken".to_owned());
        }
        let nth = {
            let mut log = lock(&log);
            let nth = *current.get_or_insert(log.arrivals.len());
            let arrival = RecordedArrival { nth, state: state.clone(), closed: false };
            match log.arrivals.get_mut(nth) {
                Some(known) => *known = arrival,
                None => log.arrivals.push(arrival),
            }
            nth
        };
        match state {
            ArrivalState::Partial { .. } => {}
            ArrivalState::Complete(request) => {
                current = None;
                if write_all(&stream, &response_for(&request, nth)).await.is_err() {
                    break;
                }
            }
            ArrivalState::NotCanonical(_) => break,
        }
    }
    let mut log = lock(&log);
    log.open_streams.retain(|open| !Arc::ptr_eq(open, &stream));
    if let Some(nth) = current {
        log.arrivals[nth].closed = true;
    }
}

/// Reads more bytes and returns the state of the request; `None` at the end of the stream.
async fn read_state(stream: &TcpStream, bytes: &mut Vec<u8>, host: &str) -> Option<ArrivalState> {
    loop {
        stream.readable().await.ok()?;
        match stream.try_read_buf(bytes) {
            Ok(0) => return None,
            Ok(_) => break,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return None,
        }
    }
    Some(match canonical_request::parse_request(bytes, host) {
        Ok(ParseStatus::Partial { head }) => ArrivalState::Partial { head },
        Ok(ParseStatus::Complete(request, length)) if length == bytes.len() => {
            bytes.clear();
            ArrivalState::Complete(request)
        }
        Ok(ParseStatus::Complete(..)) => ArrivalState::NotCanonical("bytes after a request".to_owned()),
        Err(why) => ArrivalState::NotCanonical(why),
    })
}

/// The response, with the number of its request, so that a mixed-up response is detected.
fn response_for(request: &CanonicalRequest, nth: usize) -> Vec<u8> {
    let body = match request.is_gettoken() {
        true => format!(r#"{{"errcode":0,"errmsg":"ok","access_token":"{TOKEN}","expires_in":7200}}"#),
        false => format!(r#"{{"errcode":0,"errmsg":"ok","nth":{nth}}}"#),
    };
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    match request.method.as_str() {
        "HEAD" => head.into_bytes(),
        _ => (head + &body).into_bytes(),
    }
}
