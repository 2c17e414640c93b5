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

use super::canon::{self, Read, Seen};
use crate::stage::soon;

/// The token that it gives out.
pub const TOKEN: &str = "TOKEN-OF-THE-RECORDER";

/// What has come of one request.
#[derive(Debug, Clone)]
pub enum State {
    /// A canonical beginning; whether its head is whole.
    Part { head: bool },
    /// A whole canonical request.
    Whole(Seen),
    /// Not canonical, and why.
    Wrong(String),
}

/// One request, or the beginning of one.
#[derive(Debug, Clone)]
pub struct Arrival {
    /// Its place among all arrivals; the answer to it says the same.
    pub nth: usize,
    pub state: State,
    /// Its connection takes no more.
    pub closed: bool,
}

#[derive(Default)]
struct Log {
    arrivals: Vec<Arrival>,
    live: Vec<Arc<TcpStream>>,
}

/// The upstream.
pub struct Recorder {
    pub address: SocketAddr,
    log: Arc<Mutex<Log>>,
}

impl Recorder {
    /// Listens on a free port.
    pub async fn new() -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a port");
        // Hundreds may come at once: who does not fit would be sent away in the end.
        let listener = socket.listen(4096).expect("it listens");
        let address = listener.local_addr().expect("an address");
        let log = Arc::<Mutex<Log>>::default();
        let shared = log.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let stream = Arc::new(stream);
                lock(&shared).live.push(stream.clone());
                tokio::spawn(take(stream, shared.clone(), address.to_string()));
            }
        });
        Self { address, log }
    }

    /// How much has arrived.
    pub fn len(&self) -> usize {
        lock(&self.log).arrivals.len()
    }

    /// What arrived after the first `count`, but for the proxy's own calls for a token. All that was sent by now is in it:
    /// what lies in the kernel is taken first.
    pub async fn since(&self, count: usize) -> Vec<Arrival> {
        soon(async {
            while self.has_unread() {
                yield_now().await;
            }
        })
        .await;
        let log = lock(&self.log);
        let own = |arrival: &&Arrival| !matches!(&arrival.state, State::Whole(seen) if seen.is_gettoken());
        log.arrivals[count..].iter().filter(own).cloned().collect()
    }

    fn has_unread(&self) -> bool {
        let waits = |stream: &Arc<TcpStream>| {
            let peeked = SockRef::from(&**stream).peek(&mut [MaybeUninit::uninit()]);
            !matches!(peeked, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
        };
        lock(&self.log).live.iter().any(waits)
    }
}

fn lock(log: &Mutex<Log>) -> MutexGuard<'_, Log> {
    log.lock().expect("no panic while it is held")
}

/// Takes a connection's requests, one after the other, to its end.
async fn take(stream: Arc<TcpStream>, log: Arc<Mutex<Log>>, host: String) {
    let mut bytes = Vec::new();
    let mut current = None;
    while let Some(mut state) = more(&stream, &mut bytes, &host).await {
        if let State::Whole(seen) = &state
            && seen.is_gettoken()
            && canon::find(&canon::decode(seen.target.as_bytes()), b"&corpsecret=not-a-secret-").is_none()
        {
            state = State::Wrong("a client's gettoken".to_owned());
        }
        let nth = {
            let mut log = lock(&log);
            let nth = *current.get_or_insert(log.arrivals.len());
            let arrival = Arrival { nth, state: state.clone(), closed: false };
            match log.arrivals.get_mut(nth) {
                Some(known) => *known = arrival,
                None => log.arrivals.push(arrival),
            }
            nth
        };
        match state {
            State::Part { .. } => {}
            State::Whole(seen) => {
                current = None;
                if write(&stream, &answer(&seen, nth)).await.is_err() {
                    break;
                }
            }
            State::Wrong(_) => break,
        }
    }
    let mut log = lock(&log);
    log.live.retain(|live| !Arc::ptr_eq(live, &stream));
    if let Some(nth) = current {
        log.arrivals[nth].closed = true;
    }
}

/// Reads on, and says what there is now; `None` at the end of the stream.
async fn more(stream: &TcpStream, bytes: &mut Vec<u8>, host: &str) -> Option<State> {
    loop {
        stream.readable().await.ok()?;
        match stream.try_read_buf(bytes) {
            Ok(0) => return None,
            Ok(_) => break,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return None,
        }
    }
    Some(match canon::read(bytes, host) {
        Ok(Read::Part { head }) => State::Part { head },
        Ok(Read::Whole(seen, taken)) if taken == bytes.len() => {
            bytes.clear();
            State::Whole(seen)
        }
        Ok(Read::Whole(..)) => State::Wrong("there are bytes behind a request".to_owned()),
        Err(why) => State::Wrong(why),
    })
}

async fn write(stream: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
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
fn answer(seen: &Seen, nth: usize) -> Vec<u8> {
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
