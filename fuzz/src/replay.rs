//! Replay buffers of request bodies: the counted usage equals the actual usage and stays within the budgets, and a replay
//! yields the original body.

use std::{future::poll_fn, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::runtime::Builder;
use wecom_proxy::{
    internals::{usage, wait_until_written},
    request_body::{
        BodyLimits, BodyReader, BodySource, BodySourceError, Owner, ReplayBody, ReplayBudget, RequestBody,
        RequestBodyError,
    },
};

/// Concurrent bodies.
const MAX_BODIES: usize = 4;
/// Memory per body that is allowed beyond an exhausted budget.
const UNBUDGETED_BYTES_PER_BODY: u64 = 4 * 1024;
/// Limit of a body, whatever the budgets are.
const MAX_BODY_BYTES: usize = 512 * 1024;

/// Input: a byte for each budget, then two bytes for each step.
pub fn check(data: &[u8]) {
    let [memory, disk, steps @ ..] = data else { return };
    let (memory, disk) = (budget(*memory), budget(*disk));
    let replay_budget = Arc::new(ReplayBudget::new(memory, disk, std::env::temp_dir()));
    let runtime = Builder::new_current_thread().enable_time().build().expect("a runtime");
    runtime.block_on(async {
        let mut bodies: Vec<TrackedBody> = Vec::new();
        for (number, step) in steps.chunks_exact(2).take(256).enumerate() {
            let index = usize::from(step[0] >> 4) % bodies.len().max(1);
            let (kind, may_start) = (step[0] & 7, bodies.len() < MAX_BODIES);
            match (kind, bodies.get_mut(index)) {
                (0 | 1, _) if may_start => {
                    let declares_length = step[0] & 8 > 0;
                    bodies.extend(TrackedBody::start(&replay_budget, number, declares_length, step[1]).await);
                }
                (2, Some(body)) => body.rewind().await,
                (3, Some(body)) => body.body.commit(),
                (4, Some(_)) => drop(bodies.swap_remove(index)),
                (_, Some(body)) => body.read_chunks(step[1] % 16).await,
                _ => {}
            }
            for body in &bodies {
                wait_until_written(&body.body).await;
            }
            let (in_memory, in_files) = bodies
                .iter()
                .map(|body| usage(&body.body))
                .fold((0, 0), |sum, body| (sum.0 + body.0, sum.1 + body.1));
            let counted = (replay_budget.memory_used(), replay_budget.disk_used());
            assert_eq!((in_memory, in_files), counted, "counted usage differs from actual usage");
            assert!(
                in_memory <= memory + UNBUDGETED_BYTES_PER_BODY * bodies.len() as u64,
                "{in_memory} of {memory}"
            );
            assert!(in_files <= disk, "{in_files} of {disk}");
        }
    });
    // Waits for blocking writes that are still in progress.
    drop(runtime);
    assert_eq!((replay_budget.memory_used(), replay_budget.disk_used()), (0, 0), "usage was not released");
}

/// 0, or up to 1 MiB, in bytes.
fn budget(byte: u8) -> u64 {
    let scale = u64::from(byte) % 21;
    if scale == 0 { 0 } else { (1 << scale) + u64::from(byte / 21) }
}

/// A body, and the position of its reader.
struct TrackedBody {
    body: ReplayBody,
    reader: BodyReader,
    position: usize,
    content: Arc<[u8]>,
}

impl TrackedBody {
    /// Starts a body; `None` if its length is declared and exceeds the budgets.
    async fn start(
        replay_budget: &Arc<ReplayBudget>,
        number: usize,
        declares_length: bool,
        selector: u8,
    ) -> Option<Self> {
        let lengths = chunk_lengths(selector);
        let length = lengths.iter().sum::<usize>();
        let content: Arc<[u8]> =
            (0..length).map(|index| (index * 31 + number * 7 + index / 251) as u8).collect();
        let source =
            InMemorySource { content: content.clone(), chunk_lengths: lengths, position: 0, declares_length };
        let limits = BodyLimits { max_bytes: MAX_BODY_BYTES as u64, idle_timeout: Duration::from_secs(1) };
        let before = (replay_budget.memory_used(), replay_budget.disk_used());
        match ReplayBody::new(
            RequestBody::Streamed(Box::new(source)),
            limits,
            Some((replay_budget, Owner::of(None))),
        ) {
            Ok(body) => {
                let body = body.expect("a body");
                if body.needs_admission() {
                    let admitted = poll_fn(|cx| body.poll_admitted(cx)).await;
                    assert_eq!(admitted, Ok(()), "nothing was reserved since the check");
                }
                let reader = body.reader().expect("the first reader");
                Some(Self { body, reader, position: 0, content })
            }
            Err(_) => {
                assert!(declares_length, "refused a body without a declared length");
                assert_eq!(before, (replay_budget.memory_used(), replay_budget.disk_used()));
                None
            }
        }
    }

    async fn read_chunks(&mut self, count: u8) {
        for _ in 0..=count {
            match poll_fn(|cx| self.reader.poll_chunk(cx)).await.expect("a readable body") {
                Some(chunk) => {
                    assert!(!chunk.is_empty(), "an empty chunk");
                    assert!(
                        self.content[self.position..].starts_with(&chunk),
                        "differs from position {} on",
                        self.position
                    );
                    self.position += chunk.len();
                }
                None => assert_eq!(self.position, self.content.len(), "ended early"),
            }
        }
    }

    /// Starts another attempt, if the body is replayable.
    async fn rewind(&mut self) {
        let replayable = self.body.is_replayable();
        let Some(reader) = self.body.reader() else { return assert!(!replayable) };
        assert!(replayable);
        let mut superseded = std::mem::replace(&mut self.reader, reader);
        self.position = 0;
        assert_eq!(poll_fn(|cx| superseded.poll_chunk(cx)).await, Err(RequestBodyError::Superseded));
    }
}

/// The chunk lengths of a body: few or many chunks, from one byte to 70,000 bytes.
fn chunk_lengths(selector: u8) -> Vec<usize> {
    const LENGTHS: [usize; 8] = [1, 7, 100, 1023, 4095, 4096, 20_000, 70_000];
    let (first, second) = (LENGTHS[usize::from(selector) % 8], LENGTHS[usize::from(selector >> 3) % 8]);
    let count = 1 + usize::from(selector >> 6) * 20;
    let mut lengths = vec![first];
    let mut total = first;
    for index in 0..count {
        let length = if index % 2 == 0 { second } else { first };
        total += length;
        if total > MAX_BODY_BYTES {
            break;
        }
        lengths.push(length);
    }
    lengths
}

/// A completely received body, in chunks that are slices of larger buffers.
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
        let chunk = (!self.chunk_lengths.is_empty()).then(|| {
            let (from, length) = (self.position, self.chunk_lengths.remove(0));
            self.position += length;
            Bytes::from([&self.content[from..from + length], &[0; 1000]].concat()).slice(..length)
        });
        std::task::Poll::Ready(Ok(chunk))
    }

    fn is_ended(&self) -> bool {
        self.chunk_lengths.is_empty()
    }
}
