//! A body that is read more than once.

use std::{
    future::Future,
    sync::atomic::{AtomicUsize, Ordering},
    task::Wake,
};

use super::*;

/// A client that has sent these chunks, and the length it declared.
struct StaticSource(Vec<&'static [u8]>, Option<u64>);

impl BodySource for StaticSource {
    fn content_length(&self) -> Option<u64> {
        self.1
    }

    fn poll_chunk(&mut self, _: &mut Context<'_>) -> Poll<Result<Option<Bytes>, BodySourceError>> {
        let next = (!self.0.is_empty()).then(|| Bytes::from_static(self.0.remove(0)));
        Poll::Ready(Ok(next))
    }

    fn is_ended(&self) -> bool {
        self.0.is_empty()
    }
}

fn replay_body(chunks: &[&'static [u8]]) -> (ReplayBody, Arc<ReplayBudget>) {
    replay_body_of_length(chunks, None)
}

fn replay_body_of_length(chunks: &[&'static [u8]], length: Option<u64>) -> (ReplayBody, Arc<ReplayBudget>) {
    let budget = Arc::new(ReplayBudget::new(1 << 20, 1 << 20, std::env::temp_dir()));
    let limits = BodyLimits { max_bytes: 1 << 20, idle_timeout: Duration::from_secs(1) };
    let body = RequestBody::Streamed(Box::new(StaticSource(chunks.to_vec(), length)));
    (ReplayBody::new(body, limits, Some((&budget, Owner::of(None)))).expect("room").expect("a body"), budget)
}

fn read_chunk(reader: &mut BodyReader) -> Option<Bytes> {
    match reader.poll_chunk(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(Ok(chunk)) => chunk,
        other => panic!("{other:?}"),
    }
}

#[test]
fn committed_reader_still_replays_the_buffer() {
    let (body, budget) = replay_body(&[b"one ", b"two ", b"three"]);
    let mut first = body.reader().expect("a reader");
    assert_eq!([read_chunk(&mut first), read_chunk(&mut first)].concat_all(), "one two ");
    let mut second = body.reader().expect("another");
    body.commit();
    let mut buffered = Vec::new();
    while let Some(chunk) = read_chunk(&mut second) {
        buffered.extend_from_slice(&chunk);
    }
    assert_eq!(buffered, b"one two three");
    assert_eq!(budget.memory_used(), 0, "the buffer is freed");
}

#[test]
fn buffered_body_is_read_more_than_once() {
    let limits = BodyLimits { max_bytes: 1 << 20, idle_timeout: Duration::from_secs(1) };
    let buffered = ReplayBody::new(RequestBody::Complete(Bytes::from_static(b"one")), limits, None);
    let buffered = buffered.expect("room").expect("a body");
    for _ in 0..2 {
        assert_eq!(buffered.reader().expect("a reader").into_complete().expect("all of it"), "one");
    }
    let mut reader = buffered.reader().expect("a reader");
    assert_eq!(read_chunk(&mut reader).expect("a chunk"), "one");
    let mut reader = reader.into_complete().expect_err("already read");
    assert_eq!(read_chunk(&mut reader), None);
    let (chunks, _budget) = replay_body(&[b"one"]);
    let mut reader = chunks.reader().expect("a reader").into_complete().expect_err("a streamed body");
    assert_eq!(read_chunk(&mut reader).expect("a chunk"), "one");
}

#[test]
fn content_length_mismatch_aborts_the_body() {
    for (length, expected) in
        [(6, Some(RequestBodyError::Aborted)), (7, None), (8, Some(RequestBodyError::Aborted))]
    {
        let (body, _budget) = replay_body_of_length(&[b"one ", b"two"], Some(length));
        let mut reader = body.reader().expect("a reader");
        let mut cx = Context::from_waker(Waker::noop());
        let mut error = None;
        while error.is_none() && !reader.is_ended() {
            let Poll::Ready(chunk) = reader.poll_chunk(&mut cx) else { panic!("all chunks are available") };
            error = chunk.err();
        }
        assert_eq!((error, body.error()), (expected, expected), "{length}");
    }
}

/// A client that sends nothing more.
struct PendingSource;

impl BodySource for PendingSource {
    fn content_length(&self) -> Option<u64> {
        None
    }

    fn poll_chunk(&mut self, _: &mut Context<'_>) -> Poll<Result<Option<Bytes>, BodySourceError>> {
        Poll::Pending
    }

    fn is_ended(&self) -> bool {
        false
    }
}

#[tokio::test]
async fn waiting_reader_is_woken_when_superseded() {
    struct Calls(AtomicUsize);
    impl Wake for Calls {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    let limits = BodyLimits { max_bytes: 1 << 20, idle_timeout: Duration::from_secs(1000) };
    let body = ReplayBody::new(RequestBody::Streamed(Box::new(PendingSource)), limits, None);
    let body = body.expect("room").expect("a body");
    let mut readers = Vec::new();
    for nth in 0..3 {
        let calls = Arc::new(Calls(AtomicUsize::new(0)));
        let waker = Waker::from(calls.clone());
        readers.push((body.reader().expect("a reader"), calls, waker));
        for (one, (reader, calls, waker)) in readers.iter_mut().enumerate() {
            // Earlier readers were woken once, and the newest one waits.
            let polled = reader.poll_chunk(&mut Context::from_waker(waker));
            assert_eq!(calls.0.load(Ordering::Relaxed), usize::from(one < nth), "{one} of {nth}");
            match one < nth {
                true => assert_eq!(polled, Poll::Ready(Err(RequestBodyError::Superseded))),
                false => assert_eq!(polled, Poll::Pending),
            }
        }
    }
}

#[test]
fn committed_first_attempt_frees_the_buffer() {
    let (body, budget) = replay_body(&[b"one ", b"two ", b"three"]);
    let mut first = body.reader().expect("a reader");
    read_chunk(&mut first);
    assert_eq!(budget.memory_used(), 1024, "the first block");
    body.commit();
    assert_eq!(budget.memory_used(), 0);
    assert_eq!([read_chunk(&mut first), read_chunk(&mut first)].concat_all(), "two three");
    assert_eq!((read_chunk(&mut first), budget.memory_used()), (None, 0));
    assert!(!body.is_replayable());
}

trait ConcatAll {
    fn concat_all(self) -> String;
}

impl ConcatAll for [Option<Bytes>; 2] {
    fn concat_all(self) -> String {
        let chunks = self.into_iter().flatten().map(|chunk| String::from_utf8_lossy(&chunk).into_owned());
        chunks.collect()
    }
}

fn receive(body: &ReplayBody, limit: ReceiveLimit) -> Result<Option<u64>, RequestBodyError> {
    let mut deadline = Deadline::unset();
    let mut receiving = std::pin::pin!(body.receive(limit, &mut deadline));
    match receiving.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(received) => received,
        Poll::Pending => panic!("a source that is always ready"),
    }
}

fn read_all(body: &ReplayBody) -> String {
    let mut reader = body.reader().expect("a reader");
    std::iter::from_fn(|| read_chunk(&mut reader))
        .map(|chunk| String::from_utf8(chunk.into()).expect("text"))
        .collect()
}

#[test]
fn received_body_is_read_from_its_start() {
    for (limit, expected) in [
        (ReceiveLimit::Whole, Some(13)),
        (ReceiveLimit::InMemory(13), Some(13)),
        (ReceiveLimit::InMemory(12), None),
        (ReceiveLimit::InMemory(0), None),
    ] {
        let (body, _budget) = replay_body(&[b"one ", b"two ", b"three"]);
        assert_eq!(receive(&body, limit), Ok(expected), "{limit:?}");
        assert_eq!(read_all(&body), "one two three", "{limit:?}");
        assert_eq!(receive(&body, ReceiveLimit::Whole), Ok(Some(13)), "for a second attempt");
    }
}

/// A body that is not kept for a retry frees what was received once it is read.
#[test]
fn committed_body_keeps_what_was_received_until_it_is_read() {
    let (body, budget) = replay_body(&[b"one ", b"two ", b"three"]);
    assert_eq!(receive(&body, ReceiveLimit::InMemory(8)), Ok(None));
    body.commit();
    assert_eq!(read_all(&body), "one two three");
    assert_eq!(budget.memory_used(), 0);
}

/// Without room in memory a body streams as it arrives; without any room a whole one fails.
#[test]
fn body_beyond_the_budget_is_not_received() {
    let limits = BodyLimits { max_bytes: 1 << 20, idle_timeout: Duration::from_secs(1) };
    let budget = Arc::new(ReplayBudget::new(1024, 0, std::env::temp_dir()));
    for (limit, expected) in [
        (ReceiveLimit::InMemory(4096), Ok(None)),
        (ReceiveLimit::Whole, Err(RequestBodyError::ReplayBudgetExceeded)),
    ] {
        let source = StaticSource(vec![b"one ", &[b'2'; 300], b"three"], None);
        let body = RequestBody::Streamed(Box::new(source));
        let body = ReplayBody::new(body, limits, Some((&budget, Owner::of(None)))).expect("room");
        let body = body.expect("a body");
        assert_eq!(receive(&body, limit), expected);
        if expected.is_ok() {
            assert_eq!(read_all(&body).len(), 309);
        }
    }
}
