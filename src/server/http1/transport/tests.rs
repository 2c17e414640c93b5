use std::future::{Future, poll_fn};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};

use super::*;

fn next_chunk(body: &mut Http1IncomingBody) -> impl Future<Output = Result<Option<Bytes>, BodySourceError>> {
    poll_fn(|cx| body.poll_chunk(cx))
}

#[tokio::test]
async fn body_reader_of_finished_request_gets_no_later_bytes() {
    let (mut client, server) = UnixStream::pair().expect("a pair");
    let transport = Transport::new(Stream::Unix(server));
    transport.state().framing = Framing::Length(6);
    let mut first = transport.incoming_body(Some(6));
    client.write_all(b"onetwo").await.expect("write accepted");
    assert_eq!(next_chunk(&mut first).await, Ok(Some(Bytes::from_static(b"onetwo"))));

    transport.state().finish_body();
    transport.state().framing = Framing::Length(5);
    let mut second = transport.incoming_body(Some(5));
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
    let mut body = transport.incoming_body(Some(6));
    drop(transport);
    assert_eq!(client.read(&mut [0; 1]).await.expect("the end"), 0);
    assert_eq!(next_chunk(&mut body).await, Err(BodySourceError::Aborted));
}

#[tokio::test]
async fn waiting_body_reader_holds_no_buffer() {
    let (mut client, server) = UnixStream::pair().expect("a pair");
    let transport = Transport::new(Stream::Unix(server));
    transport.state().framing = Framing::Length(1 << 20);
    let mut body = transport.incoming_body(Some(1 << 20));
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
async fn waiting_reader_of_a_fast_body_keeps_its_buffer() {
    let (mut client, server) = UnixStream::pair().expect("a pair");
    let transport = Transport::new(Stream::Unix(server));
    transport.state().framing = Framing::Length(1 << 20);
    let mut body = transport.incoming_body(Some(1 << 20));
    let sent = SLOW_BODY_BYTES as usize + buffer_pool::BUFFER_BYTES;
    client.write_all(&vec![b'x'; sent]).await.expect("write accepted");
    let (mut received, mut chunks) = (0, Vec::new());
    while received < sent {
        let chunk = next_chunk(&mut body).await.expect("a chunk").expect("no end");
        received += chunk.len();
        // The upstream has not taken them yet.
        chunks.push(chunk);
    }
    assert!(body.poll_chunk(&mut Context::from_waker(Waker::noop())).is_pending());
    assert!(transport.state().read_buf.capacity() > 0);
}
