//! An upstream that records every byte of every request, answers what is canonical, and hangs up on all else.

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
use crate::harness::with_timeout;

/// The token that it gives out.
pub const TOKEN: &str = "TOKEN-OF-THE-RECORDER";

/// What has come of one request.
#[derive(Debug, Clone)]
pub enum ArrivalState {
    /// A canonical beginning; whether its head is whole.
    Partial { head: bool },
    /// A whole canonical request.
    Complete(CanonicalRequest),
    /// Not canonical, and why.
    NotCanonical(String),
}

/// One request, or the beginning of one.
#[derive(Debug, Clone)]
pub struct RecordedArrival {
    /// Its place among all arrivals; the answer to it says the same.
    pub nth: usize,
    pub state: ArrivalState,
    /// Its connection takes no more.
    pub closed: bool,
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
        // Hundreds may come at once: who does not fit would be sent away in the end.
        let listener = socket.listen(4096).expect("it listens");
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

    /// How much has arrived.
    pub fn arrival_count(&self) -> usize {
        lock(&self.log).arrivals.len()
    }

    /// What arrived after the first `count`, but for the proxy's own calls for a token. All that was sent by now is in it:
    /// what lies in the kernel is taken first.
    pub async fn arrivals_since(&self, count: usize) -> Vec<RecordedArrival> {
        with_timeout(async {
            while self.has_unread() {
                yield_now().await;
            }
        })
        .await;
        let log = lock(&self.log);
        let own = |arrival: &&RecordedArrival| !matches!(&arrival.state, ArrivalState::Complete(seen) if seen.is_gettoken());
        log.arrivals[count..].iter().filter(own).cloned().collect()
    }

    fn has_unread(&self) -> bool {
        let waits = |stream: &Arc<TcpStream>| {
            let peeked = SockRef::from(&**stream).peek(&mut [MaybeUninit::uninit()]);
            !matches!(peeked, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
        };
        lock(&self.log).open_streams.iter().any(waits)
    }
}

fn lock(log: &Mutex<ArrivalLog>) -> MutexGuard<'_, ArrivalLog> {
    log.lock().expect("no panic while it is held")
}

/// Takes a connection's requests, one after the other, to its end.
async fn serve_connection(stream: Arc<TcpStream>, log: Arc<Mutex<ArrivalLog>>, host: String) {
    let mut bytes = Vec::new();
    let mut current = None;
    while let Some(mut state) = read_state(&stream, &mut bytes, &host).await {
        if let ArrivalState::Complete(seen) = &state
            && seen.is_gettoken()
            && canonical_request::find(
                &canonical_request::decode(seen.target.as_bytes()),
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
            ArrivalState::Complete(seen) => {
                current = None;
                if write_all(&stream, &response_for(&seen, nth)).await.is_err() {
                    break;
                }
            }
            ArrivalState::NotCanonical(_) => break,
        }
    }
    let mut log = lock(&log);
    log.open_streams.retain(|live| !Arc::ptr_eq(live, &stream));
    if let Some(nth) = current {
        log.arrivals[nth].closed = true;
    }
}

/// Reads on, and says what there is now; `None` at the end of the stream.
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
        Ok(ParseStatus::Complete(seen, taken)) if taken == bytes.len() => {
            bytes.clear();
            ArrivalState::Complete(seen)
        }
        Ok(ParseStatus::Complete(..)) => {
            ArrivalState::NotCanonical("there are bytes behind a request".to_owned())
        }
        Err(why) => ArrivalState::NotCanonical(why),
    })
}

async fn write_all(stream: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        stream.writable().await?;
        match stream.try_write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Says which request it is for, so that an answer to another one is noticed.
fn response_for(seen: &CanonicalRequest, nth: usize) -> Vec<u8> {
    let body = match seen.is_gettoken() {
        true => format!(r#"{{"errcode":0,"errmsg":"ok","access_token":"{TOKEN}","expires_in":7200}}"#),
        false => format!(r#"{{"errcode":0,"errmsg":"ok","nth":{nth}}}"#),
    };
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    match seen.method.as_str() {
        "HEAD" => head.into_bytes(),
        _ => (head + &body).into_bytes(),
    }
}
