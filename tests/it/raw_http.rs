//! Both ends of the proxy spoken by hand, for what no library would send or accept.

use std::{io, net::SocketAddr};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};

use crate::{harness::with_timeout, leak_detector};

/// A connection on which a story says each byte.
pub struct RawConnection {
    pub stream: TcpStream,
    buffer: Vec<u8>,
    output: Option<OutputCapture>,
}

/// The beginning of what a proxy said on a connection, for whoever watches over its secrets.
#[derive(Default)]
struct OutputCapture(Vec<u8>);

impl Drop for OutputCapture {
    fn drop(&mut self) {
        let text = String::from_utf8_lossy(&self.0);
        // Of an answer that is not the proxy's own only the head is for it to answer for.
        let head = text.split_once("\r\n\r\n").map_or(&*text, |(head, _)| head);
        leak_detector::record_output("", head, text[head.len()..].as_bytes());
    }
}

impl RawConnection {
    /// To the proxy.
    pub async fn connect(address: SocketAddr) -> Self {
        Self::from_stream(with_timeout(TcpStream::connect(address)).await.expect("a connection"))
    }

    /// The same on a connection that is there.
    pub fn from_stream(stream: TcpStream) -> Self {
        Self { stream, buffer: Vec::new(), output: Some(OutputCapture::default()) }
    }

    /// Sends bytes as they are. The other side may have closed: what it said first is what counts.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        with_timeout(async {
            self.stream.write_all(bytes.as_ref()).await?;
            self.stream.flush().await
        })
        .await
    }

    /// Reads on; false at the end of the stream.
    pub async fn read_more(&mut self) -> io::Result<bool> {
        let read = with_timeout(self.stream.read_buf(&mut self.buffer)).await?;
        if let Some(OutputCapture(heard)) = self.output.as_mut().filter(|heard| heard.0.len() < 64 * 1024) {
            heard.extend_from_slice(&self.buffer[self.buffer.len() - read..]);
        }
        Ok(read > 0)
    }

    /// A head, with the empty line that ends it; what came of one where the stream ended first.
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

    /// The next bytes, this many.
    pub async fn read_exact(&mut self, count: usize) -> Vec<u8> {
        while self.buffer.len() < count {
            assert!(self.read_more().await.expect("more bytes"), "the stream ended early");
        }
        self.buffer.drain(..count).collect()
    }

    /// The next bytes, this many; `None` where the stream ends first.
    pub async fn try_read_exact(&mut self, count: usize) -> Option<Vec<u8>> {
        while self.buffer.len() < count {
            if !self.read_more().await.unwrap_or(false) {
                return None;
            }
        }
        Some(self.buffer.drain(..count).collect())
    }

    /// An answer with a length: its head, and its body as text.
    pub async fn read_response(&mut self) -> (String, String) {
        let head = self.read_head().await;
        let length = head.to_ascii_lowercase().lines().find_map(|line| {
            line.strip_prefix("content-length:").map(|length| length.trim().parse().expect("a number"))
        });
        let body = self.read_exact(length.unwrap_or(0)).await;
        (head, String::from_utf8_lossy(&body).into_owned())
    }

    /// All that comes until the stream ends, and how it ends.
    pub async fn read_to_end(&mut self) -> (Vec<u8>, io::Result<()>) {
        loop {
            match self.read_more().await {
                Ok(true) => {}
                Ok(false) => return (std::mem::take(&mut self.buffer), Ok(())),
                Err(error) => return (std::mem::take(&mut self.buffer), Err(error)),
            }
        }
    }

    /// Closes it with a reset.
    pub fn reset(self) {
        self.stream.set_zero_linger().expect("a socket");
    }
}

/// An upstream that answers gettoken as WeCom does, and leaves every other call to the story.
pub struct ManualUpstream {
    pub address: SocketAddr,
    calls: mpsc::UnboundedReceiver<UpstreamCall>,
}

/// A call that reached the puppet: its head, and the connection on which the story answers.
pub struct UpstreamCall {
    pub head: String,
    pub connection: RawConnection,
}

impl ManualUpstream {
    /// Listens on a free port.
    pub async fn new() -> Self {
        leak_detector::add_secret("TOKEN-OF-THE-PUPPET");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (calls, taken) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve_gettoken(
                    RawConnection { stream, buffer: Vec::new(), output: None },
                    calls.clone(),
                ));
            }
        });
        Self { address, calls: taken }
    }

    /// The next call.
    pub async fn next_call(&mut self) -> UpstreamCall {
        with_timeout(self.calls.recv()).await.expect("the listener lives")
    }
}

async fn serve_gettoken(mut line: RawConnection, calls: mpsc::UnboundedSender<UpstreamCall>) {
    // A kept connection may wait for its next call as long as the story lasts.
    while let Ok(()) = line.stream.readable().await {
        let head = line.read_head().await;
        if head.is_empty() {
            return;
        }
        if !head.starts_with("GET /cgi-bin/gettoken?") {
            let _ = calls.send(UpstreamCall { head, connection: line });
            return;
        }
        let body = r#"{"errcode":0,"errmsg":"ok","access_token":"TOKEN-OF-THE-PUPPET","expires_in":7200}"#;
        let length = body.len();
        let head =
            format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n");
        if line.send(head + body).await.is_err() {
            return;
        }
    }
}
