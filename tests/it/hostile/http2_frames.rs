//! HTTP/2 by hand: frames as bytes, header blocks without compression, and what the proxy makes of them.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    task::JoinHandle,
    time::timeout,
};

use super::cases::CASE_TIMEOUT;
use crate::harness::with_timeout;

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PUSH_PROMISE: u8 = 5;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 1;
pub const ACK: u8 = 1;
pub const END_HEADERS: u8 = 4;
pub const PADDED: u8 = 8;

/// What the client says first.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// One frame.
pub fn encode_frame(kind: u8, flags: u8, stream: u32, payload: impl AsRef<[u8]>) -> Vec<u8> {
    let payload = payload.as_ref();
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// One setting.
pub fn encode_setting(id: u16, value: u32) -> Vec<u8> {
    [&id.to_be_bytes()[..], &value.to_be_bytes()].concat()
}

/// One header as a literal that is not kept in the table.
pub fn encode_header(name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Vec<u8> {
    [vec![0], encode_string(name.as_ref()), encode_string(value.as_ref())].concat()
}

/// A string without Huffman coding.
pub fn encode_string(text: &[u8]) -> Vec<u8> {
    [encode_integer(text.len(), 7, 0), text.to_vec()].concat()
}

/// An integer with a prefix of this many bits, and what stands before it in its first byte (RFC 7541 §5.1).
pub fn encode_integer(value: usize, bits: u32, first: u8) -> Vec<u8> {
    let most = (1 << bits) - 1;
    if value < most {
        return vec![first | value as u8];
    }
    let (mut bytes, mut rest) = (vec![first | most as u8], value - most);
    while rest >= 128 {
        bytes.push(rest as u8 | 128);
        rest /= 128;
    }
    bytes.push(rest as u8);
    bytes
}

/// How a stream, or the whole connection, ended.
#[derive(Debug, PartialEq, Eq)]
pub enum StreamEnd {
    /// With HTTP 200.
    Served,
    /// With another status.
    Refused,
    /// With RST_STREAM and this code.
    Reset(u32),
    /// With GOAWAY and this code.
    GoAway(u32),
    /// Without a word.
    Closed,
    /// Not at all.
    TimedOut,
}

/// One frame of the proxy's.
#[derive(Debug)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    /// The number that a RST_STREAM or a GOAWAY gives for its reason.
    fn error_code(&self) -> u32 {
        let at = if self.kind == GOAWAY { 4 } else { 0 };
        let bytes = self.payload.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
        u32::from_be_bytes(bytes.expect("a code"))
    }
}

/// A client's side of a connection.
pub struct FrameClient {
    reader: OwnedReadHalf,
    writer: Option<OwnedWriteHalf>,
    buffer: Vec<u8>,
}

impl FrameClient {
    /// Connects, and says nothing yet.
    pub async fn connect(address: SocketAddr) -> Self {
        let stream = with_timeout(TcpStream::connect(address)).await.expect("a connection");
        stream.set_nodelay(true).expect("a socket");
        let (reading, writing) = stream.into_split();
        Self { reader: reading, writer: Some(writing), buffer: Vec::new() }
    }

    /// Sends bytes as they are. The proxy may have had enough before all was sent.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let writing = self.writer.as_mut().expect("the writing side");
        let _ = with_timeout(writing.write_all(bytes.as_ref())).await;
    }

    /// The same, while something else is done.
    pub fn send_in_background(&mut self, bytes: Vec<u8>) -> JoinHandle<OwnedWriteHalf> {
        let mut writing = self.writer.take().expect("the writing side");
        tokio::spawn(async move {
            let _ = timeout(CASE_TIMEOUT, writing.write_all(&bytes)).await;
            writing
        })
    }

    /// The next frame; `None` at the end of the connection.
    pub async fn next_frame(&mut self) -> Option<Frame> {
        loop {
            if let Some(&[a, b, c, kind, flags, ref stream @ ..]) = self.buffer.first_chunk::<9>() {
                let length = u32::from_be_bytes([0, a, b, c]) as usize;
                if self.buffer.len() >= 9 + length {
                    let stream = u32::from_be_bytes(*stream);
                    let payload = self.buffer.drain(..9 + length).skip(9).collect();
                    return Some(Frame { kind, flags, stream, payload });
                }
            }
            if !self.reader.read_buf(&mut self.buffer).await.is_ok_and(|read| read > 0) {
                return None;
            }
        }
    }

    /// How this stream ends, or the connection before it.
    pub async fn stream_end(&mut self, stream: u32) -> StreamEnd {
        let end = async {
            loop {
                match self.next_frame().await {
                    None => return StreamEnd::Closed,
                    Some(frame) if frame.kind == GOAWAY && frame.error_code() != 0 => {
                        return StreamEnd::GoAway(frame.error_code());
                    }
                    Some(frame) if frame.stream != stream => {}
                    Some(frame) if frame.kind == RST_STREAM => return StreamEnd::Reset(frame.error_code()),
                    // `:status: 200` has a place of its own in the static table.
                    Some(frame) if frame.kind == HEADERS => match frame.payload.first() {
                        Some(0x88) => return StreamEnd::Served,
                        _ => return StreamEnd::Refused,
                    },
                    Some(_) => {}
                }
            }
        };
        timeout(CASE_TIMEOUT, end).await.unwrap_or(StreamEnd::TimedOut)
    }

    /// All frames until there is one like this, or none any more.
    pub async fn read_until(&mut self, mut wanted: impl FnMut(&Frame) -> bool) -> Vec<Frame> {
        with_timeout(async {
            let mut frames = Vec::new();
            while let Some(frame) = self.next_frame().await {
                let found = wanted(&frame);
                frames.push(frame);
                if found {
                    break;
                }
            }
            frames
        })
        .await
    }
}
