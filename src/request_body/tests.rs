//! A body that is read more than once.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    task::Wake,
};

use super::*;

/// A client that has sent these, and what it said of their length.
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

fn replay_body(pieces: &[&'static [u8]]) -> (ReplayBody, Arc<ReplayBudget>) {
    replay_body_of_length(pieces, None)
}

fn replay_body_of_length(pieces: &[&'static [u8]], length: Option<u64>) -> (ReplayBody, Arc<ReplayBudget>) {
    let shelf = Arc::new(ReplayBudget::new(1 << 20, 1 << 20, std::env::temp_dir()));
    let bounds = BodyLimits { max_bytes: 1 << 20, idle_timeout: Duration::from_secs(1) };
    let body = RequestBody::Streamed(Box::new(StaticSource(pieces.to_vec(), length)));
    (ReplayBody::new(body, bounds, Some((&shelf, Owner::default()))).expect("room").expect("a body"), shelf)
}

fn read_chunk(reader: &mut BodyReader) -> Option<Bytes> {
    match reader.poll_chunk(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(Ok(piece)) => piece,
        other => panic!("{other:?}"),
    }
}

#[test]
fn committed_reader_still_replays_the_buffer() {
    let (upload, shelf) = replay_body(&[b"one ", b"two ", b"three"]);
    let mut first = upload.reader().expect("a reader");
    assert_eq!([read_chunk(&mut first), read_chunk(&mut first)].concat_all(), "one two ");
    let mut second = upload.reader().expect("another");
    upload.commit();
    let mut whole = Vec::new();
    while let Some(piece) = read_chunk(&mut second) {
        whole.extend_from_slice(&piece);
    }
    assert_eq!(whole, b"one two three");
    assert_eq!(shelf.memory_used(), 0, "what was kept is gone");
}

#[test]
fn buffered_body_is_read_more_than_once() {
    let bounds = BodyLimits { max_bytes: 1 << 20, idle_timeout: Duration::from_secs(1) };
    let whole = ReplayBody::new(RequestBody::Buffered(Bytes::from_static(b"one")), bounds, None);
    let whole = whole.expect("room").expect("a body");
    for _ in 0..2 {
        assert_eq!(whole.reader().expect("a reader").into_buffered().expect("all of it"), "one");
    }
    let mut begun = whole.reader().expect("a reader");
    assert_eq!(read_chunk(&mut begun).expect("a piece"), "one");
    let mut begun = begun.into_buffered().expect_err("it has been read");
    assert_eq!(read_chunk(&mut begun), None);
    let (pieces, _shelf) = replay_body(&[b"one"]);
    let mut coming = pieces.reader().expect("a reader").into_buffered().expect_err("it is to come");
    assert_eq!(read_chunk(&mut coming).expect("a piece"), "one");
}

#[test]
fn content_length_mismatch_aborts_the_body() {
    for (length, wanted) in
        [(6, Some(RequestBodyError::Aborted)), (7, None), (8, Some(RequestBodyError::Aborted))]
    {
        let (upload, _shelf) = replay_body_of_length(&[b"one ", b"two"], Some(length));
        let mut reader = upload.reader().expect("a reader");
        let mut cx = Context::from_waker(Waker::noop());
        let mut failed = None;
        while failed.is_none() && !reader.is_ended() {
            let Poll::Ready(piece) = reader.poll_chunk(&mut cx) else { panic!("all of it is here") };
            failed = piece.err();
        }
        assert_eq!((failed, upload.error()), (wanted, wanted), "{length}");
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
    let bounds = BodyLimits { max_bytes: 1 << 20, idle_timeout: Duration::from_secs(1000) };
    let upload = ReplayBody::new(RequestBody::Streamed(Box::new(PendingSource)), bounds, None);
    let upload = upload.expect("room").expect("a body");
    let mut readers = Vec::new();
    for nth in 0..3 {
        let calls = Arc::new(Calls(AtomicUsize::new(0)));
        let waker = Waker::from(calls.clone());
        readers.push((upload.reader().expect("a reader"), calls, waker));
        for (one, (reader, calls, waker)) in readers.iter_mut().enumerate() {
            // Those of before were called once, and the newest one waits.
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
    let (upload, shelf) = replay_body(&[b"one ", b"two ", b"three"]);
    let mut first = upload.reader().expect("a reader");
    read_chunk(&mut first);
    assert_eq!(shelf.memory_used(), 1024, "its first buffer");
    upload.commit();
    assert_eq!(shelf.memory_used(), 0);
    assert_eq!([read_chunk(&mut first), read_chunk(&mut first)].concat_all(), "two three");
    assert_eq!((read_chunk(&mut first), shelf.memory_used()), (None, 0));
    assert!(!upload.is_replayable());
}

trait ConcatAll {
    fn concat_all(self) -> String;
}

impl ConcatAll for [Option<Bytes>; 2] {
    fn concat_all(self) -> String {
        let pieces = self.into_iter().flatten().map(|piece| String::from_utf8_lossy(&piece).into_owned());
        pieces.collect()
    }
}
