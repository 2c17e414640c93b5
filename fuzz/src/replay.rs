//! What is kept of request bodies: what is counted is what is held, within the budgets, and what is sent again is what came.

use std::{future::poll_fn, sync::Arc, time::Duration};

use bytes::Bytes;
use wecom_proxy::{
    fuzz::{block_on, usage, wait_until_written},
    request_body::{
        BodyLimits, BodyReader, BodySource, BodySourceError, Owner, ReplayBody, ReplayBudget, RequestBody,
        RequestBodyError,
    },
};

/// Bodies at once.
const MAX_BODIES: usize = 4;
/// What a body may take of memory that is used up.
const UNBUDGETED_BYTES_PER_BODY: u64 = 4 * 1024;
/// No file grows beyond this, whatever the budgets are.
const MAX_BODY_BYTES: usize = 512 * 1024;

/// The input is a byte for each budget, and then two bytes for each thing that is done.
pub fn check(data: &[u8]) {
    let [memory, disk, steps @ ..] = data else { return };
    let (memory, disk) = (budget(*memory), budget(*disk));
    let shelf = Arc::new(ReplayBudget::new(memory, disk, std::env::temp_dir()));
    let all = block_on(async {
        let mut kept: Vec<TrackedBody> = Vec::new();
        for (nth, step) in steps.chunks_exact(2).take(256).enumerate() {
            let which = usize::from(step[0] >> 4) % kept.len().max(1);
            let (what, may_begin) = (step[0] & 7, kept.len() < MAX_BODIES);
            match (what, kept.get_mut(which)) {
                (0 | 1, _) if may_begin => {
                    kept.extend(TrackedBody::start(&shelf, nth, step[0] & 8 > 0, step[1]).await);
                }
                (2, Some(one)) => one.rewind().await,
                (3, Some(one)) => one.body.commit(),
                (4, Some(_)) => drop(kept.swap_remove(which)),
                (_, Some(one)) => one.read_chunks(step[1] % 16).await,
                _ => {}
            }
            for one in &kept {
                wait_until_written(&one.body).await;
            }
            let (in_memory, in_files) = kept
                .iter()
                .map(|one| usage(&one.body))
                .fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
            let counted = (shelf.memory_used(), shelf.disk_used());
            assert_eq!((in_memory, in_files), counted, "what is counted is what is held");
            assert!(
                in_memory <= memory + UNBUDGETED_BYTES_PER_BODY * kept.len() as u64,
                "{in_memory} of {memory}"
            );
            assert!(in_files <= disk, "{in_files} of {disk}");
        }
    });
    all.expect("a runtime");
    assert_eq!((shelf.memory_used(), shelf.disk_used()), (0, 0), "all of it is given back");
}

/// Nothing, or up to 1 MiB.
fn budget(byte: u8) -> u64 {
    let scale = u64::from(byte) % 21;
    if scale == 0 { 0 } else { (1 << scale) + u64::from(byte / 21) }
}

/// A body, and how far its reader has come.
struct TrackedBody {
    body: ReplayBody,
    reader: BodyReader,
    position: usize,
    content: Arc<[u8]>,
}

impl TrackedBody {
    /// A new body; `None` where it was announced and there is no room for it.
    async fn start(shelf: &Arc<ReplayBudget>, nth: usize, announced: bool, how: u8) -> Option<Self> {
        let lengths = chunk_lengths(how);
        let length = lengths.iter().sum::<usize>();
        let whole: Arc<[u8]> = (0..length).map(|at| (at * 31 + nth * 7 + at / 251) as u8).collect();
        let source = InMemorySource {
            content: whole.clone(),
            chunk_lengths: lengths,
            position: 0,
            declares_length: announced,
        };
        let bounds = BodyLimits { max_bytes: MAX_BODY_BYTES as u64, idle_timeout: Duration::from_secs(1) };
        let before = (shelf.memory_used(), shelf.disk_used());
        match ReplayBody::new(RequestBody::Streamed(Box::new(source)), bounds, Some((shelf, Owner::of(None))))
        {
            Ok(upload) => {
                let upload = upload.expect("a body");
                if upload.needs_admission() {
                    let admitted = poll_fn(|cx| upload.poll_admitted(cx)).await;
                    assert_eq!(admitted, Ok(()), "nothing was reserved since the check");
                }
                let reader = upload.reader().expect("the first reader");
                Some(Self { body: upload, reader, position: 0, content: whole })
            }
            Err(_) => {
                assert!(announced, "only what is announced is refused");
                assert_eq!(before, (shelf.memory_used(), shelf.disk_used()));
                None
            }
        }
    }

    async fn read_chunks(&mut self, pieces: u8) {
        for _ in 0..=pieces {
            match poll_fn(|cx| self.reader.poll_chunk(cx)).await.expect("it is there") {
                Some(piece) => {
                    assert!(!piece.is_empty(), "an empty piece is no progress");
                    assert!(
                        self.content[self.position..].starts_with(&piece),
                        "from {} on it is another",
                        self.position
                    );
                    self.position += piece.len();
                }
                None => assert_eq!(self.position, self.content.len(), "it ends too early"),
            }
        }
    }

    /// Another attempt, where there can be one.
    async fn rewind(&mut self) {
        let can = self.body.is_replayable();
        let Some(reader) = self.body.reader() else { return assert!(!can) };
        assert!(can);
        let mut before = std::mem::replace(&mut self.reader, reader);
        self.position = 0;
        assert_eq!(poll_fn(|cx| before.poll_chunk(cx)).await, Err(RequestBodyError::Superseded));
    }
}

/// The lengths of a body's pieces: few or many, of one byte or as large as a read.
fn chunk_lengths(how: u8) -> Vec<usize> {
    const LENGTHS: [usize; 8] = [1, 7, 100, 1023, 4095, 4096, 20_000, 70_000];
    let (first, then) = (LENGTHS[usize::from(how) % 8], LENGTHS[usize::from(how >> 3) % 8]);
    let many = 1 + usize::from(how >> 6) * 20;
    let mut lengths = vec![first];
    let mut sum = first;
    for nth in 0..many {
        let length = if nth % 2 == 0 { then } else { first };
        sum += length;
        if sum > MAX_BODY_BYTES {
            break;
        }
        lengths.push(length);
    }
    lengths
}

/// A client that has sent all of it, in pieces that are slices of larger buffers.
struct InMemorySource {
    content: Arc<[u8]>,
    chunk_lengths: Vec<usize>,
    position: usize,
    declares_length: bool,
}

impl BodySource for InMemorySource {
    fn content_length(&self) -> Option<u64> {
        self.declares_length.then_some(self.content.len() as u64)
    }

    fn poll_chunk(
        &mut self,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<Option<Bytes>, BodySourceError>> {
        let piece = (!self.chunk_lengths.is_empty()).then(|| {
            let (from, length) = (self.position, self.chunk_lengths.remove(0));
            self.position += length;
            Bytes::from([&self.content[from..from + length], &[0; 1000]].concat()).slice(..length)
        });
        std::task::Poll::Ready(Ok(piece))
    }

    fn is_ended(&self) -> bool {
        self.chunk_lengths.is_empty()
    }
}
