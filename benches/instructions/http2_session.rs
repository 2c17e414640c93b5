//! An HTTP/2 client with prior knowledge that opens several streams at once.

use std::{
    io::{self, Write},
    net::TcpStream,
    os::unix::net::UnixStream,
};

use crate::{
    counter::uncounted,
    harness::{TOKEN, TestProxy, poll_until, try_accept, try_read, try_read_bytes},
};

/// Connection preface with empty SETTINGS, and the acknowledgement of the server's.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\0\0\x04\x01\0\0\0\0";
const FRAME_HEADER_BYTES: usize = 9;
const DATA_FRAME: u8 = 0;
const HEADERS_FRAME: u8 = 1;
const WINDOW_UPDATE_FRAME: u8 = 8;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// Entries of HPACK's static table (RFC 7541, appendix A): `:method: GET` and `:scheme: http` as indexed headers.
const STATIC_HEADERS: [u8; 2] = [0x82, 0x86];
const STATIC_TABLE_ENTRIES: usize = 61;

/// A client connection whose requests are forwarded to the upstream.
pub struct Http2Session<'a> {
    proxy: &'a TestProxy,
    client: UnixStream,
    upstreams: Vec<TcpStream>,
    response: Vec<u8>,
    /// The request's header block: with all headers in full, and with all of them in the dynamic table.
    blocks: [Vec<u8>; 2],
    next_stream: u32,
    received: Vec<u8>,
    /// Bytes of DATA that the client has received and not allowed again.
    unacknowledged: u32,
}

impl<'a> Http2Session<'a> {
    /// A connection for requests with these headers, and an upstream that sends `response` for each.
    pub fn open(proxy: &'a TestProxy, headers: &[(&str, &str)], response: String) -> io::Result<Self> {
        let mut client = proxy.connect()?;
        client.write_all(PREFACE)?;
        let (mut full, mut indexed) = (STATIC_HEADERS.to_vec(), STATIC_HEADERS.to_vec());
        for (nth, (name, value)) in headers.iter().enumerate() {
            // A literal with incremental indexing, without Huffman code (RFC 7541 §6.2.1).
            full.push(0x40);
            for text in [name, value] {
                full.push(u8::try_from(text.len()).map_err(io::Error::other)?);
                full.extend_from_slice(text.as_bytes());
            }
            indexed.push(0x80 | (STATIC_TABLE_ENTRIES + headers.len() - nth) as u8);
        }
        Ok(Self {
            proxy,
            client,
            upstreams: Vec::new(),
            response: response.into_bytes(),
            blocks: [full, indexed],
            next_stream: 1,
            received: Vec::new(),
            unacknowledged: 0,
        })
    }

    /// Opens `streams` streams in one write and waits for their responses. Counts the proxy's runtime, but not the
    /// client and the upstream.
    pub fn exchange(&mut self, streams: usize) {
        uncounted(|| {
            let requests = self.request_frames(streams);
            self.client.write_all(&requests).expect("the proxy accepts the requests");
        });
        let proxy = self.proxy;
        let (mut responded, mut ended) = (0, 0);
        proxy.block_on(poll_until(|| {
            responded += self.respond();
            ended += self.read_responses();
            assert!(ended <= responded, "the proxy has responded by itself");
            ended == streams
        }));
    }

    fn request_frames(&mut self, streams: usize) -> Vec<u8> {
        let mut frames = Vec::new();
        if self.unacknowledged > 0 {
            push_frame(&mut frames, WINDOW_UPDATE_FRAME, 0, 0, &self.unacknowledged.to_be_bytes());
            self.unacknowledged = 0;
        }
        for _ in 0..streams {
            let block = &self.blocks[usize::from(self.next_stream > 1)];
            push_frame(&mut frames, HEADERS_FRAME, END_STREAM | END_HEADERS, self.next_stream, block);
            self.next_stream += 2;
        }
        frames
    }

    /// Responds to the requests that have reached the upstream; returns how many.
    fn respond(&mut self) -> usize {
        self.upstreams.extend(std::iter::from_fn(|| try_accept(self.proxy.upstream_listener())));
        let mut responded = 0;
        for upstream in &mut self.upstreams {
            let Some(request) = try_read(upstream) else { continue };
            assert!(request.contains(TOKEN), "{request}");
            upstream.write_all(&self.response).expect("the proxy accepts the response");
            responded += 1;
        }
        responded
    }

    /// Reads the frames that have arrived; returns the number of streams that they end.
    fn read_responses(&mut self) -> usize {
        self.received.extend(try_read_bytes(&mut self.client).unwrap_or_default());
        let mut ended = 0;
        while let Some([high, middle, low, kind, flags, ..]) =
            self.received.first_chunk::<FRAME_HEADER_BYTES>().copied()
        {
            let length = u32::from_be_bytes([0, high, middle, low]);
            let end = FRAME_HEADER_BYTES + length as usize;
            if self.received.len() < end {
                break;
            }
            if kind == DATA_FRAME {
                self.unacknowledged += length;
                ended += usize::from(flags & END_STREAM);
            }
            self.received.drain(..end);
        }
        ended
    }
}

fn push_frame(frames: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    frames.extend_from_slice(&(payload.len() as u32).to_be_bytes()[1..]);
    frames.extend_from_slice(&[kind, flags]);
    frames.extend_from_slice(&stream.to_be_bytes());
    frames.extend_from_slice(payload);
}
