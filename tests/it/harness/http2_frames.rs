//! Raw HTTP/2: frames as bytes, header blocks without Huffman coding, and the outcome of streams.

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

use super::{CASE_TIMEOUT, with_timeout};

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

/// The client connection preface (RFC 9113, section 3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Encodes a frame.
pub fn encode_frame(kind: u8, flags: u8, stream: u32, payload: impl AsRef<[u8]>) -> Vec<u8> {
    let payload = payload.as_ref();
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Encodes a setting.
pub fn encode_setting(id: u16, value: u32) -> Vec<u8> {
    [&id.to_be_bytes()[..], &value.to_be_bytes()].concat()
}

/// Encodes a header as a literal without indexing (RFC 7541, section 6.2.2).
pub fn encode_header(name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Vec<u8> {
    [vec![0], encode_string(name.as_ref()), encode_string(value.as_ref())].concat()
}

/// Encodes a string without Huffman coding.
pub fn encode_string(text: &[u8]) -> Vec<u8> {
    [encode_integer(text.len(), 7, 0), text.to_vec()].concat()
}

/// Encodes an integer with a prefix of `bits` bits; `first` holds the other bits of the first byte (RFC 7541, section 5.1).
pub fn encode_integer(value: usize, bits: u32, first: u8) -> Vec<u8> {
    let max = (1 << bits) - 1;
    if value < max {
        return vec![first | value as u8];
    }
    let (mut bytes, mut rest) = (vec![first | max as u8], value - max);
    while rest >= 128 {
        bytes.push(rest as u8 | 128);
        rest /= 128;
    }
    bytes.push(rest as u8);
    bytes
}

/// How a stream or its connection ended.
#[derive(Debug, PartialEq, Eq)]
pub enum StreamEnd {
    /// Response with status 200.
    Served,
    /// Response with another status.
    Refused,
    /// RST_STREAM with this error code.
    Reset(u32),
    /// GOAWAY with this error code.
    GoAway(u32),
    /// Connection closed without a frame for the stream.
    Closed,
    /// No end within the time limit.
    TimedOut,
}

/// A frame from the proxy.
#[derive(Debug)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    /// The error code of a RST_STREAM or GOAWAY frame.
    fn error_code(&self) -> u32 {
        let offset = if self.kind == GOAWAY { 4 } else { 0 };
        let bytes = self.payload.get(offset..offset + 4).and_then(|bytes| bytes.try_into().ok());
        u32::from_be_bytes(bytes.expect("a code"))
    }
}

/// The client side of an HTTP/2 connection.
pub struct FrameClient {
    reader: OwnedReadHalf,
    writer: Option<OwnedWriteHalf>,
    buffer: Vec<u8>,
}

impl FrameClient {
    /// Connects without sending the preface.
    pub async fn connect(address: SocketAddr) -> Self {
        let stream = with_timeout(TcpStream::connect(address)).await.expect("a connection");
        stream.set_nodelay(true).expect("a socket");
        let (reader, writer) = stream.into_split();
        Self { reader, writer: Some(writer), buffer: Vec::new() }
    }

    /// Sends raw bytes. The proxy may close before all are sent.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let writer = self.writer.as_mut().expect("a writer");
        let _ = with_timeout(writer.write_all(bytes.as_ref())).await;
    }

    /// Sends raw bytes in a task.
    pub fn send_in_background(&mut self, bytes: Vec<u8>) -> JoinHandle<OwnedWriteHalf> {
        let mut writer = self.writer.take().expect("a writer");
        tokio::spawn(async move {
            let _ = timeout(CASE_TIMEOUT, writer.write_all(&bytes)).await;
            writer
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

    /// How this stream ends; the end of the connection if that is earlier.
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
                    // 0x88 is the static table entry `:status: 200`.
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

    /// All frames up to the first that matches, or to the end of the connection.
    pub async fn read_until(&mut self, mut matches: impl FnMut(&Frame) -> bool) -> Vec<Frame> {
        with_timeout(async {
            let mut frames = Vec::new();
            while let Some(frame) = self.next_frame().await {
                let found = matches(&frame);
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
