//! Raw HTTP as a client and as an upstream, for messages that no library would send or accept.

use std::{io, net::SocketAddr};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};

use crate::{harness::with_timeout, leak_detector};

/// A connection on which a test sends raw bytes.
pub struct RawConnection {
    pub stream: TcpStream,
    buffer: Vec<u8>,
    output: Option<OutputCapture>,
}

/// The first bytes that the proxy sent on a connection, for the leak detector.
#[derive(Default)]
struct OutputCapture(Vec<u8>);

impl Drop for OutputCapture {
    fn drop(&mut self) {
        let text = String::from_utf8_lossy(&self.0);
        // The body is checked only in the proxy's own responses; WeCom's bodies are forwarded unchanged.
        let head = text.split_once("\r\n\r\n").map_or(&*text, |(head, _)| head);
        leak_detector::record_output("", head, text[head.len()..].as_bytes());
    }
}

impl RawConnection {
    /// Connects to the proxy.
    pub async fn connect(address: SocketAddr) -> Self {
        Self::from_stream(with_timeout(TcpStream::connect(address)).await.expect("a connection"))
    }

    /// Uses an established connection.
    pub fn from_stream(stream: TcpStream) -> Self {
        Self { stream, buffer: Vec::new(), output: Some(OutputCapture::default()) }
    }

    /// Uses a connection that an upstream accepted: what comes on it is not shown to clients.
    pub fn accepted(stream: TcpStream) -> Self {
        Self { stream, buffer: Vec::new(), output: None }
    }

    /// Sends raw bytes. An error may mean that the peer has responded and closed already.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        with_timeout(async {
            self.stream.write_all(bytes.as_ref()).await?;
            self.stream.flush().await
        })
        .await
    }

    /// Reads more bytes; false at the end of the stream.
    pub async fn read_more(&mut self) -> io::Result<bool> {
        let read = with_timeout(self.stream.read_buf(&mut self.buffer)).await?;
        if let Some(OutputCapture(captured)) =
            self.output.as_mut().filter(|output| output.0.len() < 64 * 1024)
        {
            captured.extend_from_slice(&self.buffer[self.buffer.len() - read..]);
        }
        Ok(read > 0)
    }

    /// A head with the empty line that ends it; a partial head if the stream ends first.
    pub async fn read_head(&mut self) -> String {
        loop {
            if let Some(at) = self.buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                let head: Vec<u8> = self.buffer.drain(..at + 4).collect();
                return String::from_utf8_lossy(&head).into_owned();
            }
            if !self.read_more().await.unwrap_or(false) {
                return String::from_utf8_lossy(&std::mem::take(&mut self.buffer)).into_owned();
            }
        }
    }

    /// The next `count` bytes.
    pub async fn read_exact(&mut self, count: usize) -> Vec<u8> {
        while self.buffer.len() < count {
            assert!(self.read_more().await.expect("more bytes"), "the stream ended early");
        }
        self.buffer.drain(..count).collect()
    }

    /// The next `count` bytes; `None` if the stream ends first.
    pub async fn try_read_exact(&mut self, count: usize) -> Option<Vec<u8>> {
        while self.buffer.len() < count {
            if !self.read_more().await.unwrap_or(false) {
                return None;
            }
        }
        Some(self.buffer.drain(..count).collect())
    }

    /// A response with Content-Length: its head, and its body as text.
    pub async fn read_response(&mut self) -> (String, String) {
        let head = self.read_head().await;
        let length = head.to_ascii_lowercase().lines().find_map(|line| {
            line.strip_prefix("content-length:").map(|length| length.trim().parse().expect("a number"))
        });
        let body = self.read_exact(length.unwrap_or(0)).await;
        (head, String::from_utf8_lossy(&body).into_owned())
    }

    /// All bytes until the stream ends, and the error that ended it.
    pub async fn read_to_end(&mut self) -> (Vec<u8>, io::Result<()>) {
        loop {
            match self.read_more().await {
                Ok(true) => {}
                Ok(false) => return (std::mem::take(&mut self.buffer), Ok(())),
                Err(error) => return (std::mem::take(&mut self.buffer), Err(error)),
            }
        }
    }

    /// Closes the connection with a reset.
    pub fn reset(self) {
        self.stream.set_zero_linger().expect("a socket");
    }
}

/// A GET of this path through the agent `hr`.
pub fn raw_get(path: &str) -> String {
    format!("GET /hr{path} HTTP/1.1\r\nHost: proxy.test\r\n\r\n")
}

/// One-byte chunks, each with a chunk extension of `extension` bytes.
pub fn chunks_with_extensions(chunks: usize, extension: usize) -> String {
    format!("1;{}\r\n \r\n", "e".repeat(extension)).repeat(chunks)
}

/// Writes all bytes to a stream that others write to and close.
pub async fn write_all(stream: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        with_timeout(stream.writable()).await?;
        match stream.try_write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// An upstream that responds to gettoken as WeCom does, and hands every other call to the test.
pub struct ManualUpstream {
    pub address: SocketAddr,
    calls: mpsc::UnboundedReceiver<UpstreamCall>,
}

/// A call to a [`ManualUpstream`]: its head, and the connection for the response.
pub struct UpstreamCall {
    pub head: String,
    pub connection: RawConnection,
}

impl ManualUpstream {
    /// Listens on a free port.
    pub async fn new() -> Self {
        leak_detector::add_secret("TOKEN-OF-THE-UPSTREAM");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (calls, receiver) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve_gettoken(RawConnection::accepted(stream), calls.clone()));
            }
        });
        Self { address, calls: receiver }
    }

    /// The next call.
    pub async fn next_call(&mut self) -> UpstreamCall {
        with_timeout(self.try_next_call()).await.expect("a running upstream")
    }

    /// The next call, with the head of a response that is too long for all buffers.
    pub async fn next_download(&mut self) -> UpstreamCall {
        let mut call = self.next_call().await;
        let head = "HTTP/1.1 200 OK\r\nContent-Type: video/mp4\r\nContent-Length: 9000000000\r\n\r\n";
        call.connection.send(head).await.expect("sent");
        call
    }

    /// As [`next_call`](Self::next_call) without a time limit; `None` once the upstream has ended.
    pub async fn try_next_call(&mut self) -> Option<UpstreamCall> {
        self.calls.recv().await
    }
}

async fn serve_gettoken(mut connection: RawConnection, calls: mpsc::UnboundedSender<UpstreamCall>) {
    // No time limit, because a persistent connection may be idle until the test ends.
    while let Ok(()) = connection.stream.readable().await {
        let head = connection.read_head().await;
        if head.is_empty() {
            return;
        }
        if !head.starts_with("GET /cgi-bin/gettoken?") {
            let _ = calls.send(UpstreamCall { head, connection });
            return;
        }
        let body = r#"{"errcode":0,"errmsg":"ok","access_token":"TOKEN-OF-THE-UPSTREAM","expires_in":7200}"#;
        let length = body.len();
        let head =
            format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n");
        if connection.send(head + body).await.is_err() {
            return;
        }
    }
}
