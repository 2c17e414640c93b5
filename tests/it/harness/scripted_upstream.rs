//! An HTTP/1.1 upstream that sends exactly the bytes that a test sets.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::net::{TcpListener, TcpStream};

use super::{raw_http::write_all, wait_for};

/// The path of the calls that run the test's steps; every other call gets a valid response.
pub const CASE_PATH: &str = "/cgi-bin/case";

/// A step of handling a call.
#[derive(Clone, Debug)]
pub enum Step {
    /// Sends these bytes.
    Send(Vec<u8>),
    /// Sends these bytes repeatedly until the peer closes.
    SendForever(Vec<u8>),
    /// Sends these bytes one by one, at this interval.
    SendSlowly(Vec<u8>, Duration),
    /// Reads the body of the call.
    ReadBody,
    /// Closes the connection.
    Close,
    /// Closes the connection with a reset.
    Reset,
    /// Sends nothing more, and reads until the peer closes.
    ReadOnly,
    /// Neither sends nor reads.
    Hang,
}

/// The upstream. It serves until its runtime is dropped.
pub struct ScriptedUpstream {
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// The steps for gettoken; a valid response if `None`.
    gettoken_steps: Mutex<Option<Vec<Step>>>,
    /// The steps for the next calls of [`CASE_PATH`], the next last; the first entry stays.
    steps: Mutex<Vec<Vec<Step>>>,
    heads: Mutex<Vec<String>>,
    /// Number of gettoken calls.
    gettoken_count: AtomicUsize,
    connections: Mutex<Vec<Weak<TcpStream>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ScriptedUpstream {
    pub async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let shared = Arc::<Shared>::default();
        let task_shared = shared.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                // An unsolicited response must arrive before the next request.
                stream.set_nodelay(true).expect("a socket");
                let stream = Arc::new(stream);
                lock(&task_shared.connections).push(Arc::downgrade(&stream));
                tokio::spawn(
                    ScriptedConnection { stream, shared: task_shared.clone(), buffer: Vec::new() }.serve(),
                );
            }
        });
        Self { address, shared }
    }

    /// Sets the steps for all following calls of [`CASE_PATH`].
    pub fn set_steps(&self, steps: Vec<Step>) {
        *lock(&self.shared.steps) = vec![steps];
    }

    /// Sets the steps for the next call of [`CASE_PATH`], and those for the calls after it.
    pub fn set_steps_once_then(&self, first: Vec<Step>, then: Vec<Step>) {
        *lock(&self.shared.steps) = vec![then, first];
    }

    /// Sets the steps for all following gettoken calls.
    pub fn set_gettoken_steps(&self, steps: Vec<Step>) {
        *lock(&self.shared.gettoken_steps) = Some(steps);
    }

    /// Number of gettoken calls.
    pub fn gettoken_count(&self) -> usize {
        self.shared.gettoken_count.load(Ordering::Relaxed)
    }

    /// Sends these bytes on every open connection, without a request.
    pub async fn send_unsolicited(&self, bytes: &[u8]) {
        for stream in self.open_streams() {
            let _ = write_all(&stream, bytes).await;
        }
    }

    /// Waits until at most `max` connections are open.
    pub async fn wait_for_open_connections(&self, max: usize) {
        wait_for("closed connections", async || self.open_streams().len() <= max).await;
    }

    fn open_streams(&self) -> Vec<Arc<TcpStream>> {
        lock(&self.shared.connections).iter().filter_map(Weak::upgrade).collect()
    }

    /// The request lines since the last call, without gettoken.
    pub fn take_request_lines(&self) -> Vec<String> {
        let heads = std::mem::take(&mut *lock(&self.shared.heads));
        let lines = heads.iter().map(|head| head.lines().next().unwrap_or_default().to_owned());
        lines.filter(|line| !line.contains("/cgi-bin/gettoken?")).collect()
    }
}

/// One connection.
struct ScriptedConnection {
    stream: Arc<TcpStream>,
    shared: Arc<Shared>,
    buffer: Vec<u8>,
}

impl ScriptedConnection {
    async fn serve(mut self) {
        while let Some(head) = self.read_head().await {
            lock(&self.shared.heads).push(head.clone());
            let target = head.split(' ').nth(1).unwrap_or_default();
            let is_gettoken = target.starts_with("/cgi-bin/gettoken?");
            let number =
                if is_gettoken { self.shared.gettoken_count.fetch_add(1, Ordering::Relaxed) } else { 0 };
            if let Some(steps) = self.steps_for(target) {
                for step in steps {
                    if !self.run_step(step, &head).await {
                        return;
                    }
                }
                continue;
            }
            self.read_body(&head).await;
            let body = if is_gettoken {
                format!(
                    "{{\"errcode\":0,\"access_token\":\"TOKEN-OF-THE-PEER-{number}\",\"expires_in\":7200}}"
                )
            } else {
                format!(
                    "{{\"errcode\":0,\"target\":\"{}\"}}",
                    target.split("access_token").next().unwrap_or("")
                )
            };
            if write_all(&self.stream, &json_response(&body)).await.is_err() {
                return;
            }
        }
    }

    /// The test's steps for this call; `None` for a valid response.
    fn steps_for(&self, target: &str) -> Option<Vec<Step>> {
        if target.starts_with("/cgi-bin/gettoken?") {
            return lock(&self.shared.gettoken_steps).clone();
        }
        if !target.starts_with(CASE_PATH) {
            return None;
        }
        let mut queued_steps = lock(&self.shared.steps);
        if queued_steps.len() > 1 { queued_steps.pop() } else { queued_steps.last().cloned() }
    }

    /// Runs a step; false if the connection ends.
    async fn run_step(&mut self, step: Step, head: &str) -> bool {
        match step {
            Step::Send(bytes) => write_all(&self.stream, &bytes).await.is_ok(),
            Step::SendForever(bytes) => {
                while write_all(&self.stream, &bytes).await.is_ok() {}
                false
            }
            Step::SendSlowly(bytes, period) => {
                let mut interval = tokio::time::interval(period);
                for byte in bytes {
                    interval.tick().await;
                    if write_all(&self.stream, &[byte]).await.is_err() {
                        return false;
                    }
                }
                true
            }
            Step::ReadBody => {
                self.read_body(head).await;
                true
            }
            Step::Close => false,
            Step::Reset => {
                self.stream.set_zero_linger().expect("a socket");
                false
            }
            Step::ReadOnly => {
                while self.read_more().await {}
                false
            }
            Step::Hang => std::future::pending().await,
        }
    }

    async fn read_head(&mut self) -> Option<String> {
        loop {
            if let Some(at) = self.buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                let head: Vec<u8> = self.buffer.drain(..at + 4).collect();
                return Some(String::from_utf8_lossy(&head).into_owned());
            }
            if !self.read_more().await {
                return None;
            }
        }
    }

    async fn read_body(&mut self, head: &str) {
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let length: usize = length.map_or(0, |length| length.parse().expect("a length"));
        while self.buffer.len() < length {
            if !self.read_more().await {
                return;
            }
        }
        self.buffer.drain(..length);
    }

    /// Reads more bytes; false at the end of the stream.
    async fn read_more(&mut self) -> bool {
        let mut buffer = [0; 64 * 1024];
        loop {
            if self.stream.readable().await.is_err() {
                return false;
            }
            match self.stream.try_read(&mut buffer) {
                Ok(0) => return false,
                Ok(read) => {
                    self.buffer.extend_from_slice(&buffer[..read]);
                    return true;
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => return false,
            }
        }
    }
}

/// A response with a JSON body.
pub fn json_response(body: &str) -> Vec<u8> {
    let length = body.len();
    format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}")
        .into()
}
