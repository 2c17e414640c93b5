//! A body that is read more than once.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    task::Wake,
};

use super::*;

/// A client that has sent these, and what it said of their length.
struct Sent(Vec<&'static [u8]>, Option<u64>);

impl Source for Sent {
    fn declared(&self) -> Option<u64> {
        self.1
    }

    fn poll_piece(&mut self, _: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Cut>> {
        let next = (!self.0.is_empty()).then(|| Bytes::from_static(self.0.remove(0)));
        Poll::Ready(Ok(next))
    }

    fn is_ended(&self) -> bool {
        self.0.is_empty()
    }
}

fn upload(pieces: &[&'static [u8]]) -> (Upload, Arc<Shelf>) {
    declared(pieces, None)
}

fn declared(pieces: &[&'static [u8]], length: Option<u64>) -> (Upload, Arc<Shelf>) {
    let shelf = Arc::new(Shelf::new(1 << 20, 1 << 20, std::env::temp_dir()));
    let bounds = Bounds { bytes: 1 << 20, silence: Duration::from_secs(1) };
    let body = Body::Streamed(Box::new(Sent(pieces.to_vec(), length)));
    (Upload::new(body, bounds, Some((&shelf, Owner::default()))).expect("room").expect("a body"), shelf)
}

fn read(reader: &mut Reader) -> Option<Bytes> {
    match reader.poll_piece(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(Ok(piece)) => piece,
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_attempt_that_is_settled_early_still_gets_all_that_was_kept() {
    let (upload, shelf) = upload(&[b"one ", b"two ", b"three"]);
    let mut first = upload.reader().expect("a reader");
    assert_eq!([read(&mut first), read(&mut first)].concat_all(), "one two ");
    let mut second = upload.reader().expect("another");
    upload.settle();
    let mut whole = Vec::new();
    while let Some(piece) = read(&mut second) {
        whole.extend_from_slice(&piece);
    }
    assert_eq!(whole, b"one two three");
    assert_eq!(shelf.in_memory(), 0, "what was kept is gone");
}

#[test]
fn a_body_that_is_here_already_is_taken_whole_and_again() {
    let bounds = Bounds { bytes: 1 << 20, silence: Duration::from_secs(1) };
    let whole = Upload::new(Body::Whole(Bytes::from_static(b"one")), bounds, None);
    let whole = whole.expect("room").expect("a body");
    for _ in 0..2 {
        assert_eq!(whole.reader().expect("a reader").into_whole().expect("all of it"), "one");
    }
    let mut begun = whole.reader().expect("a reader");
    assert_eq!(read(&mut begun).expect("a piece"), "one");
    let mut begun = begun.into_whole().expect_err("it has been read");
    assert_eq!(read(&mut begun), None);
    let (pieces, _shelf) = upload(&[b"one"]);
    let mut coming = pieces.reader().expect("a reader").into_whole().expect_err("it is to come");
    assert_eq!(read(&mut coming).expect("a piece"), "one");
}

#[test]
fn a_body_is_as_long_as_its_head_said_or_broken() {
    for (length, wanted) in [(6, Some(UploadError::Broken)), (7, None), (8, Some(UploadError::Broken))] {
        let (upload, _shelf) = declared(&[b"one ", b"two"], Some(length));
        let mut reader = upload.reader().expect("a reader");
        let mut cx = Context::from_waker(Waker::noop());
        let mut failed = None;
        while failed.is_none() && !reader.is_ended() {
            let Poll::Ready(piece) = reader.poll_piece(&mut cx) else { panic!("all of it is here") };
            failed = piece.err();
        }
        assert_eq!((failed, upload.failure()), (wanted, wanted), "{length}");
    }
}

/// A client that sends nothing more.
struct Silent;

impl Source for Silent {
    fn declared(&self) -> Option<u64> {
        None
    }

    fn poll_piece(&mut self, _: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Cut>> {
        Poll::Pending
    }

    fn is_ended(&self) -> bool {
        false
    }
}

#[tokio::test]
async fn a_reader_that_waits_is_told_when_another_takes_over() {
    struct Calls(AtomicUsize);
    impl Wake for Calls {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    let bounds = Bounds { bytes: 1 << 20, silence: Duration::from_secs(1000) };
    let upload = Upload::new(Body::Streamed(Box::new(Silent)), bounds, None);
    let upload = upload.expect("room").expect("a body");
    let mut readers = Vec::new();
    for nth in 0..3 {
        let calls = Arc::new(Calls(AtomicUsize::new(0)));
        let waker = Waker::from(calls.clone());
        readers.push((upload.reader().expect("a reader"), calls, waker));
        for (one, (reader, calls, waker)) in readers.iter_mut().enumerate() {
            // Those of before were called once, and the newest one waits.
            let polled = reader.poll_piece(&mut Context::from_waker(waker));
            assert_eq!(calls.0.load(Ordering::Relaxed), usize::from(one < nth), "{one} of {nth}");
            match one < nth {
                true => assert_eq!(polled, Poll::Ready(Err(UploadError::Superseded))),
                false => assert_eq!(polled, Poll::Pending),
            }
        }
    }
}

#[test]
fn a_first_attempt_that_is_settled_keeps_nothing_more() {
    let (upload, shelf) = upload(&[b"one ", b"two ", b"three"]);
    let mut first = upload.reader().expect("a reader");
    read(&mut first);
    assert_eq!(shelf.in_memory(), 1024, "its first buffer");
    upload.settle();
    assert_eq!(shelf.in_memory(), 0);
    assert_eq!([read(&mut first), read(&mut first)].concat_all(), "two three");
    assert_eq!((read(&mut first), shelf.in_memory()), (None, 0));
    assert!(!upload.can_be_read_again());
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
