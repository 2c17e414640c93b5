//! What is kept of request bodies: what is counted is what is held, within the budgets, and what is sent again is what came.

use std::{future::poll_fn, sync::Arc, time::Duration};

use bytes::Bytes;
use wecom_proxy::{
    fuzz::{held, on_runtime, written},
    upload::{Body, Bounds, Cut, Owner, Reader, Shelf, Source, Upload, UploadError},
};

/// Bodies at once.
const BODIES: usize = 4;
/// What a body may take of memory that is used up.
const FREE_PER_BODY: u64 = 4 * 1024;
/// No file grows beyond this, whatever the budgets are.
const MAX_BODY: usize = 512 * 1024;

/// The input is a byte for each budget, and then two bytes for each thing that is done.
pub fn check(data: &[u8]) {
    let [memory, disk, steps @ ..] = data else { return };
    let (memory, disk) = (budget(*memory), budget(*disk));
    let shelf = Arc::new(Shelf::new(memory, disk, std::env::temp_dir()));
    let all = on_runtime(async {
        let mut kept: Vec<Kept> = Vec::new();
        for (nth, step) in steps.chunks_exact(2).take(256).enumerate() {
            let which = usize::from(step[0] >> 4) % kept.len().max(1);
            let (what, may_begin) = (step[0] & 7, kept.len() < BODIES);
            match (what, kept.get_mut(which)) {
                (0 | 1, _) if may_begin => {
                    kept.extend(Kept::begin(&shelf, nth, step[0] & 8 > 0, step[1]));
                }
                (2, Some(one)) => one.rewind().await,
                (3, Some(one)) => one.upload.settle(),
                (4, Some(_)) => drop(kept.swap_remove(which)),
                (_, Some(one)) => one.read(step[1] % 16).await,
                _ => {}
            }
            for one in &kept {
                written(&one.upload).await;
            }
            let (in_memory, in_files) = kept
                .iter()
                .map(|one| held(&one.upload))
                .fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
            let counted = (shelf.in_memory(), shelf.in_files());
            assert_eq!((in_memory, in_files), counted, "what is counted is what is held");
            assert!(in_memory <= memory + FREE_PER_BODY * kept.len() as u64, "{in_memory} of {memory}");
            assert!(in_files <= disk, "{in_files} of {disk}");
        }
    });
    all.expect("a runtime");
    assert_eq!((shelf.in_memory(), shelf.in_files()), (0, 0), "all of it is given back");
}

/// Nothing, or up to 1 MiB.
fn budget(byte: u8) -> u64 {
    let scale = u64::from(byte) % 21;
    if scale == 0 { 0 } else { (1 << scale) + u64::from(byte / 21) }
}

/// A body, and how far its reader has come.
struct Kept {
    upload: Upload,
    reader: Reader,
    at: usize,
    whole: Arc<[u8]>,
}

impl Kept {
    /// A new body; `None` where it was announced and there is no room for it.
    fn begin(shelf: &Arc<Shelf>, nth: usize, announced: bool, how: u8) -> Option<Self> {
        let lengths = lengths(how);
        let length = lengths.iter().sum::<usize>();
        let whole: Arc<[u8]> = (0..length).map(|at| (at * 31 + nth * 7 + at / 251) as u8).collect();
        let source = Sent { whole: whole.clone(), lengths, at: 0, announced };
        let bounds = Bounds { bytes: MAX_BODY as u64, silence: Duration::from_secs(1) };
        let before = (shelf.in_memory(), shelf.in_files());
        match Upload::new(Body::Streamed(Box::new(source)), bounds, Some((shelf, Owner::default()))) {
            Ok(upload) => {
                let upload = upload.expect("a body");
                let reader = upload.reader().expect("the first reader");
                Some(Self { upload, reader, at: 0, whole })
            }
            Err(_) => {
                assert!(announced, "only what is announced is refused");
                assert_eq!(before, (shelf.in_memory(), shelf.in_files()));
                None
            }
        }
    }

    async fn read(&mut self, pieces: u8) {
        for _ in 0..=pieces {
            match poll_fn(|cx| self.reader.poll_piece(cx)).await.expect("it is there") {
                Some(piece) => {
                    assert!(!piece.is_empty(), "an empty piece is no progress");
                    assert!(self.whole[self.at..].starts_with(&piece), "from {} on it is another", self.at);
                    self.at += piece.len();
                }
                None => assert_eq!(self.at, self.whole.len(), "it ends too early"),
            }
        }
    }

    /// Another attempt, where there can be one.
    async fn rewind(&mut self) {
        let can = self.upload.can_be_read_again();
        let Some(reader) = self.upload.reader() else { return assert!(!can) };
        assert!(can);
        let mut before = std::mem::replace(&mut self.reader, reader);
        self.at = 0;
        assert_eq!(poll_fn(|cx| before.poll_piece(cx)).await, Err(UploadError::Superseded));
    }
}

/// The lengths of a body's pieces: few or many, of one byte or as large as a read.
fn lengths(how: u8) -> Vec<usize> {
    const LENGTHS: [usize; 8] = [1, 7, 100, 1023, 4095, 4096, 20_000, 70_000];
    let (first, then) = (LENGTHS[usize::from(how) % 8], LENGTHS[usize::from(how >> 3) % 8]);
    let many = 1 + usize::from(how >> 6) * 20;
    let mut lengths = vec![first];
    let mut sum = first;
    for nth in 0..many {
        let length = if nth % 2 == 0 { then } else { first };
        sum += length;
        if sum > MAX_BODY {
            break;
        }
        lengths.push(length);
    }
    lengths
}

/// A client that has sent all of it, in pieces that are slices of larger buffers.
struct Sent {
    whole: Arc<[u8]>,
    lengths: Vec<usize>,
    at: usize,
    announced: bool,
}

impl Source for Sent {
    fn declared(&self) -> Option<u64> {
        self.announced.then_some(self.whole.len() as u64)
    }

    fn poll_piece(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<Option<Bytes>, Cut>> {
        let piece = (!self.lengths.is_empty()).then(|| {
            let (from, length) = (self.at, self.lengths.remove(0));
            self.at += length;
            Bytes::from([&self.whole[from..from + length], &[0; 1000]].concat()).slice(..length)
        });
        std::task::Poll::Ready(Ok(piece))
    }

    fn is_ended(&self) -> bool {
        self.lengths.is_empty()
    }
}
