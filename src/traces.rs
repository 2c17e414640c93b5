//! Traces for OpenTelemetry: each worker writes a request's spans where the request ends, and an exporter carries them to
//! their receiver.
//!
//! Spans are written as they go over the wire, into a buffer of the worker's own that is bounded: what does not fit is
//! dropped and counted, and no request waits for a receiver.

mod context;
mod exporter;
mod protobuf;
mod receiver;
mod span;
mod trace;

use std::{
    mem,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use http::Version;
use tokio::{sync::Notify, time::Instant};

use self::{
    context::{Context, Ids},
    span::{Page, Tree},
};
pub use self::{
    exporter::Exporter,
    receiver::{Receiver, ReceiverError},
    span::Facts,
    trace::{Doing, Outcome, Trace},
};
use crate::{access::Line, fields::Fields};

/// Most bytes of spans that wait, all workers together; a request takes about one thousand.
const WAITING: usize = 4 << 20;
/// So much of it a worker has at least, however many there are.
const LEAST_SHARE: usize = 256 * 1024;

/// The spans of all workers. Clones are the same.
#[derive(Clone)]
pub struct Traces(Arc<Desk>);

struct Desk {
    facts: Facts,
    sheets: Mutex<Vec<Arc<Mutex<Sheet>>>>,
    /// Most bytes on one sheet, but for the last request's.
    share: usize,
    dropped: AtomicU64,
    /// Something lies on a sheet that was empty.
    some: Notify,
    /// A sheet is half full.
    many: Notify,
}

/// What one worker has written.
#[derive(Default)]
struct Sheet {
    spans: Vec<u8>,
    draft: Vec<u8>,
}

/// Where one worker writes.
pub struct Tracer {
    desk: Arc<Desk>,
    sheet: Arc<Mutex<Sheet>>,
    ids: Ids,
}

impl Traces {
    /// Room for the spans of so many workers.
    pub fn new(facts: Facts, workers: usize) -> Self {
        Self::with_share(facts, (WAITING / workers.max(1)).max(LEAST_SHARE))
    }

    fn with_share(facts: Facts, share: usize) -> Self {
        let sheets = Mutex::default();
        let (some, many) = (Notify::new(), Notify::new());
        Self(Arc::new(Desk { facts, sheets, share, dropped: AtomicU64::new(0), some, many }))
    }

    /// Another worker's.
    pub fn tracer(&self) -> Tracer {
        let sheet = Arc::<Mutex<Sheet>>::default();
        lock(&self.0.sheets).push(sheet.clone());
        Tracer { desk: self.0.clone(), sheet, ids: Ids::default() }
    }

    /// How many spans were lost so far: there was no room for them, or the receiver would not have them.
    pub fn dropped(&self) -> u64 {
        self.0.dropped.load(Relaxed)
    }

    fn lose(&self, spans: u64) {
        self.0.dropped.fetch_add(spans, Relaxed);
    }

    /// Takes what lies on the sheets.
    fn take(&self, spans: &mut Vec<u8>) {
        let sheets = lock(&self.0.sheets).clone();
        let mut taken = Vec::new();
        for sheet in sheets {
            mem::swap(&mut lock(&sheet).spans, &mut taken);
            spans.extend_from_slice(&taken);
            taken.clear();
        }
    }
}

impl Tracer {
    /// The trace of a request with these header lines, which began now.
    pub fn begin(&self, fields: &Fields, version: Version, began: Instant) -> Box<Trace> {
        Box::new(Trace::new(Context::of(fields, &self.ids), version, began))
    }

    /// Writes the spans of a request that has ended, if anybody wants them. Never waits.
    pub fn write(&self, trace: &Trace, line: &Line<'_>) {
        if !trace.context.sampled {
            return;
        }
        let Self { desk, sheet, ids } = self;
        let tree = Tree { facts: &desk.facts, ids, trace, line };
        let mut sheet = lock(sheet);
        let Sheet { spans, draft } = &mut *sheet;
        let before = spans.len();
        if before >= desk.share {
            drop(sheet);
            desk.dropped.fetch_add(tree.len() as u64, Relaxed);
            return;
        }
        tree.write(&mut Page { spans, draft });
        let after = spans.len();
        drop(sheet);
        if before == 0 {
            desk.some.notify_one();
        }
        let half = desk.share / 2;
        if before < half && after >= half {
            desk.many.notify_one();
        }
    }
}

/// A lock that a panic elsewhere does not spoil.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
