//! What operators see and do: the state of each target, dead letters, redelivery. Shows no message.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Callbacks, status::TargetNotes, stored_event::EventHead, target::Target};
use crate::{
    state::{Collection, ReadError, WriteError},
    time::clock,
};

/// How often each result was counted.
type ResultCounts = BTreeMap<&'static str, u64>;

/// All callbacks.
#[derive(Debug, Serialize)]
pub struct CallbackOverview {
    /// Whether this process delivers; another one does otherwise.
    pub delivers: bool,
    /// By name.
    pub callbacks: Vec<CallbackStatus>,
}

/// A callback and its targets.
#[derive(Debug, Serialize)]
pub struct CallbackStatus {
    /// The callback's name.
    pub name: String,
    /// How often each result of a request was counted by this process.
    pub received: ResultCounts,
    /// Messages that this process accepted in the last minute.
    pub accepted_last_minute: u64,
    /// Its targets, in the order of the file.
    pub targets: Vec<TargetStatus>,
}

/// A target. Times are in seconds since 1970.
#[derive(Debug, Serialize)]
pub struct TargetStatus {
    /// The target's name.
    pub name: String,
    /// Messages that wait for it; always 0 for one that clients read.
    pub pending: u64,
    /// Dead letters.
    pub dead: u64,
    /// When the oldest of those that wait arrived.
    pub oldest: Option<f64>,
    /// When it last accepted a message from any process, to a second.
    pub last_success: Option<f64>,
    /// Why it last did not.
    pub last_error: Option<String>,
    /// When that was.
    pub last_error_at: Option<f64>,
    /// What it accepted from this process in the last minute.
    pub delivered_last_minute: u64,
    /// How often each result of an attempt was counted by this process.
    pub attempts: ResultCounts,
}

/// The counts of a callback and its targets.
#[derive(Debug)]
pub struct CallbackCounts {
    /// The callback's name.
    pub name: String,
    /// Requests by result.
    pub received: ResultCounts,
    /// Attempts by target and result.
    pub attempts: Vec<(String, ResultCounts)>,
}

/// The messages to list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventQueue {
    /// Those that wait.
    Pending,
    /// Dead letters.
    Dead,
}

/// A message for a target, without its content. Times are in seconds since 1970.
#[derive(Debug, Serialize)]
pub struct EventSummary {
    /// The message's id.
    pub id: String,
    /// The target's name.
    pub target: String,
    /// Event, InfoType or MsgType.
    pub event: String,
    /// When it arrived.
    pub received_at: f64,
    /// When it is, or was, a dead letter.
    pub deadline: f64,
    /// When it is due.
    pub next_attempt: f64,
    /// Attempts made.
    pub attempts: u32,
    /// Why the last one failed.
    pub last_error: Option<String>,
}

/// Milliseconds as seconds.
fn seconds(millis: u64) -> f64 {
    millis as f64 / 1000.0
}

impl Callbacks {
    /// How often each result was counted by this process: of requests by callback, and of attempts by target.
    pub fn counts(&self) -> Vec<CallbackCounts> {
        let endpoints = self.endpoints.load_full();
        let counts = endpoints.values().map(|endpoint| CallbackCounts {
            name: endpoint.name.clone(),
            received: endpoint.received.counts.counted().collect(),
            attempts: endpoint
                .targets
                .iter()
                .map(|target| (target.name.clone(), target.counts.counted().collect()))
                .collect(),
        });
        counts.collect()
    }

    /// All callbacks, with what the state has of them.
    pub async fn status(&self) -> Result<CallbackOverview, ReadError> {
        let endpoints = self.endpoints.load_full();
        let (mut callbacks, notes) = (Vec::with_capacity(endpoints.len()), self.queue.notes().await?);
        for endpoint in endpoints.values() {
            let mut targets = Vec::with_capacity(endpoint.targets.len());
            for target in &endpoint.targets {
                targets.push(self.target_status(target, &notes).await?);
            }
            callbacks.push(CallbackStatus {
                name: endpoint.name.clone(),
                received: endpoint.received.counts.counted().collect(),
                accepted_last_minute: endpoint.received.accepted_lately.total(clock::unix_now()),
                targets,
            });
        }
        Ok(CallbackOverview { delivers: *self.is_held.borrow(), callbacks })
    }

    async fn target_status(&self, target: &Target, notes: &TargetNotes) -> Result<TargetStatus, ReadError> {
        let (callback, name) = (&*target.callback, &*target.name);
        let (pending, oldest) = self.queue.summarize(Collection::CallbackPending, callback, name).await?;
        let (dead, _) = self.queue.summarize(Collection::CallbackDead, callback, name).await?;
        let (last_success, last_error) = target.status.lock().newest(notes, [callback, name]);
        let (last_error, last_error_at) = last_error.map(|last| (last.error, seconds(last.at))).unzip();
        Ok(TargetStatus {
            name: target.name.clone(),
            pending,
            dead,
            oldest: oldest.map(seconds),
            last_success: last_success.map(seconds),
            last_error,
            last_error_at,
            delivered_last_minute: target.delivered_lately.total(clock::unix_now()),
            attempts: target.counts.counted().collect(),
        })
    }

    /// Messages of a callback, at most `limit`, behind the `cursor` of an earlier list; and the cursor of the next list.
    pub async fn events(
        &self,
        callback: &str,
        queue: EventQueue,
        cursor: &str,
        limit: usize,
    ) -> Result<(Vec<EventSummary>, Option<String>), ReadError> {
        let collection = match queue {
            EventQueue::Pending => Collection::CallbackPending,
            EventQueue::Dead => Collection::CallbackDead,
        };
        let summarize = |name: &str, head: EventHead| EventSummary {
            target: name.split('/').nth(1).unwrap_or_default().to_owned(),
            id: head.id,
            event: head.event,
            received_at: seconds(head.received_at),
            deadline: seconds(head.deadline),
            next_attempt: seconds(head.due),
            attempts: head.attempts,
            last_error: head.last_error,
        };
        self.queue.list(collection, [callback, cursor], limit, summarize).await
    }

    /// Puts the dead letters of this id back into the queues of their targets; returns the names of these.
    pub async fn redeliver(&self, callback: &str, id: &str) -> Result<Vec<String>, WriteError> {
        let mut redelivered = Vec::new();
        let Some(endpoint) = self.endpoint(callback) else { return Ok(redelivered) };
        let now = clock::unix_now_millis();
        for target in &endpoint.targets {
            let settings = target.settings.load_full();
            let ordered = settings.and_then(|settings| settings.push.as_ref().map(|push| push.ordered));
            let Some(ordered) = ordered else { continue };
            if self.queue.redeliver(callback, &target.name, id, ordered, now).await? {
                target.changed.send_replace(());
                redelivered.push(target.name.clone());
            }
        }
        Ok(redelivered)
    }
}
