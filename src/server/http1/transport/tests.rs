use std::future::{Future, poll_fn};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};

use super::*;
use crate::{request_body::BodySource, server::http1::incoming_body::Http1IncomingBody};

fn next_chunk(body: &mut Http1IncomingBody) -> impl Future<Output = Result<Option<Bytes>, BodySourceError>> {
    poll_fn(|cx| body.poll_chunk(cx))
}

#[tokio::test]
async fn body_reader_of_finished_request_gets_no_later_bytes() {
    let (mut client, server) = UnixStream::pair().expect("a pair");
    let transport = Transport::new(Stream::Unix(server));
    transport.state().framing = Framing::Length(6);
    let mut first = Http1IncomingBody::new(&transport, Some(6));
    client.write_all(b"onetwo").await.expect("write accepted");
    assert_eq!(next_chunk(&mut first).await, Ok(Some(Bytes::from_static(b"onetwo"))));

    transport.state().finish_body();
    transport.state().framing = Framing::Length(5);
    let mut second = Http1IncomingBody::new(&transport, Some(5));
    client.write_all(b"three").await.expect("write accepted");
    assert_eq!((next_chunk(&mut first).await, first.is_ended()), (Err(BodySourceError::Aborted), false));
    assert_eq!(next_chunk(&mut second).await, Ok(Some(Bytes::from_static(b"three"))));
    assert!(second.is_ended());
}

#[tokio::test]
async fn body_reader_does_not_keep_connection_open() {
    let (mut client, server) = UnixStream::pair().expect("a pair");
    let transport = Transport::new(Stream::Unix(server));
    transport.state().framing = Framing::Length(6);
    let mut body = Http1IncomingBody::new(&transport, Some(6));
    drop(transport);
    assert_eq!(client.read(&mut [0; 1]).await.expect("the end"), 0);
    assert_eq!(next_chunk(&mut body).await, Err(BodySourceError::Aborted));
}

#[tokio::test]
async fn waiting_body_reader_holds_no_buffer() {
    let (mut client, server) = UnixStream::pair().expect("a pair");
    let transport = Transport::new(Stream::Unix(server));
    transport.state().framing = Framing::Length(1 << 20);
    let mut body = Http1IncomingBody::new(&transport, Some(1 << 20));
    // The second part fills the first read, so that the next one is large.
    for part in [100, 4 * buffer_pool::BUFFER_BYTES, 100] {
        client.write_all(&vec![b'x'; part]).await.expect("write accepted");
        let mut received = 0;
        while received < part {
            received += next_chunk(&mut body).await.expect("a chunk").map_or(0, |chunk| chunk.len());
        }
        let mut context = Context::from_waker(Waker::noop());
        assert!(body.poll_chunk(&mut context).is_pending());
        assert_eq!(transport.state().read_buf.capacity(), 0, "after {part} bytes");
    }
}

#[tokio::test]
async fn waiting_reader_of_a_fast_body_keeps_only_a_buffer_in_use() {
    let (mut client, server) = UnixStream::pair().expect("a pair");
    let transport = Transport::new(Stream::Unix(server));
    transport.state().framing = Framing::Length(1 << 20);
    let mut body = Http1IncomingBody::new(&transport, Some(1 << 20));
    let sent = SLOW_BODY_BYTES as usize + buffer_pool::BUFFER_BYTES;
    for in_use in [true, false] {
        client.write_all(&vec![b'x'; sent]).await.expect("write accepted");
        let (mut received, mut chunks) = (0, Vec::new());
        while received < sent {
            let chunk = next_chunk(&mut body).await.expect("a chunk").expect("no end");
            received += chunk.len();
            // The upstream has not taken them yet.
            chunks.extend(in_use.then_some(chunk));
        }
        assert!(body.poll_chunk(&mut Context::from_waker(Waker::noop())).is_pending());
        assert_eq!(transport.state().read_buf.capacity() > 0, in_use);
    }
}

#[tokio::test]
async fn slow_body_that_waits_for_something_else_holds_no_buffer() {
    let (mut client, server) = UnixStream::pair().expect("a pair");
    let transport = Transport::new(Stream::Unix(server));
    transport.state().framing = Framing::Length(1 << 20);
    let mut body = Http1IncomingBody::new(&transport, Some(1 << 20));
    client.write_all(&[b'x'; 100]).await.expect("write accepted");
    next_chunk(&mut body).await.expect("a chunk");
    assert!(transport.state().read_buf.capacity() > 0);
    body.release_buffer();
    assert_eq!(transport.state().read_buf.capacity(), 0);
}

#[tokio::test]
async fn ended_body_holds_no_large_buffer_while_its_response_is_awaited() {
    let (mut client, server) = UnixStream::pair().expect("a pair");
    let transport = Transport::new(Stream::Unix(server));
    let length = 4 * buffer_pool::BUFFER_BYTES;
    transport.state().framing = Framing::Length(length as u64);
    let mut body = Http1IncomingBody::new(&transport, Some(length as u64));
    client.write_all(&vec![b'x'; length]).await.expect("write accepted");
    let mut capacity = 0;
    while !body.is_ended() {
        next_chunk(&mut body).await.expect("a chunk");
        capacity = capacity.max(transport.state().read_buf.capacity());
    }
    assert!(capacity > 2 * buffer_pool::BUFFER_BYTES);
    for _ in 0..2 {
        let mut context = Context::from_waker(Waker::noop());
        assert!(transport.state().poll_disconnected(&mut context, false).is_pending());
    }
    // One for the next request, as streams other than TCP read into it.
    assert!(transport.state().read_buf.capacity() <= buffer_pool::BUFFER_BYTES);
}
