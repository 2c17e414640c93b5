//! The queue over a real state, at times that tests choose.

use std::{path::Path, sync::Arc};

use tempfile::TempDir;
use tokio::{
    sync::{mpsc, watch},
    time::{Duration, timeout},
};

use super::{
    delivery::finish,
    lease::DeliveryLease,
    queue::{CallbackQueue, NewEvent, NewEventKind, PendingEvent, message_hash, new_id},
    stored_event::tests::event,
    target::{Target, TargetSettings, usable_keys},
};
use crate::{
    config::{
        CallbackTarget, DeliveryMethod, StateConfig, StateFileConfig, TargetAddress, TargetForm, TargetUrl,
    },
    secret::Masked,
    state::{Collection, State, Write},
    time::clock,
};

const AES_KEY: &str = "jWmYm7qr5nMoAUwZRjGtBxmz3KA1tkAj3ykkR6q2B2C";

fn open_state(dir: &Path) -> Arc<State> {
    let key = Masked::new("key-of-the-state-0123456789-0123456789");
    let config = StateConfig::File(StateFileConfig { path: dir.join("state.db"), key, old_key: None });
    State::open(&config, Box::new(|_| {})).unwrap_or_else(|error| panic!("{error}"))
}

pub(super) fn settings(ordered: bool) -> TargetSettings {
    TargetSettings::new(
        &push_target(ordered),
        usable_keys(&Masked::new("token"), &Masked::new(AES_KEY)).expect("keys"),
    )
    .expect("settings")
}

fn push_target(ordered: bool) -> CallbackTarget {
    let address = TargetAddress::Tcp { tls: false, host: "127.0.0.1".to_owned(), port: 1 };
    let url = TargetUrl { address, path_and_query: "/".to_owned().into(), ca_file: None };
    let form = TargetForm::Plain { secret: None };
    let method = DeliveryMethod::Push { url, form, reply: false, ordered };
    CallbackTarget { name: "crm".to_owned(), events: Default::default(), method }
}

pub(super) struct Fixture {
    _dir: TempDir,
    pub(super) queue: CallbackQueue,
    pub(super) target: Arc<Target>,
}

impl Fixture {
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let queue = CallbackQueue { state: open_state(dir.path()) };
        Self { _dir: dir, queue, target: Arc::new(Target::new("hr", "crm")) }
    }

    /// Stores a message that arrived at `now`; returns its id.
    pub(super) async fn insert(&self, now: u64) -> String {
        let id = new_id(now);
        let hash = message_hash("ww1", id.as_bytes());
        let stored = self.queue.insert("hr", &hash, &[self.new_event(&id, now)], None, now).await;
        assert!(matches!(stored, Ok(Some(_))), "{stored:?}");
        id
    }

    fn new_event(&self, id: &str, now: u64) -> NewEvent<'_> {
        let kind = NewEventKind::Due { is_sent_already: false };
        NewEvent { target: &self.target.name, kind, event: event(id, now) }
    }

    async fn pending(&self) -> Vec<PendingEvent> {
        self.queue.pending("hr", "crm", 10).await.expect("readable").0
    }

    async fn summary(&self, collection: Collection) -> (u64, Option<u64>) {
        self.queue.summarize(collection, "hr", "crm").await.expect("readable")
    }
}

#[tokio::test]
async fn repeated_message_is_not_inserted_again() {
    let fixture = Fixture::new();
    let now = clock::unix_now_millis();
    for (hash, expected) in [("a", true), ("a", false), ("b", true)] {
        let stored =
            fixture.queue.insert("hr", hash, &[fixture.new_event(&new_id(now), now)], None, now).await;
        assert_eq!(stored.expect("stored").is_some(), expected);
    }
    assert_eq!(fixture.summary(Collection::CallbackPending).await, (2, Some(now)));
}

#[tokio::test]
async fn undeliverable_message_is_a_dead_letter_until_it_is_redelivered() {
    let (fixture, settings) = (Fixture::new(), settings(false));
    let now = clock::unix_now_millis();
    // It arrived a day ago but a second.
    let id = fixture.insert(now - 86_399_000).await;
    let mut pending = fixture.pending().await.remove(0);
    finish(&fixture.queue, &fixture.target, &settings, &mut pending, Err("HTTP 500".to_owned()))
        .await
        .expect("stored");
    // One more attempt is made right before the deadline.
    let mut pending = fixture.pending().await.remove(0);
    assert_eq!(pending.event.head.due, pending.event.head.deadline - 500);
    pending.event.head.deadline = now;
    finish(&fixture.queue, &fixture.target, &settings, &mut pending, Err("HTTP 500".to_owned()))
        .await
        .expect("stored");
    assert_eq!(fixture.summary(Collection::CallbackPending).await, (0, None));
    assert_eq!(fixture.summary(Collection::CallbackDead).await, (1, Some(now - 86_399_000)));
    let list = fixture.queue.list(Collection::CallbackDead, ["hr", ""], 10, |_, head| head);
    let (dead, next) = list.await.expect("readable");
    assert_eq!((dead[0].last_error.as_deref(), dead[0].attempts, next), (Some("HTTP 500"), 2, None));

    assert_eq!(fixture.queue.redeliver("hr", "crm", "unknown", false, now).await, Ok(false));
    assert_eq!(fixture.queue.redeliver("hr", "crm", &id, false, now).await, Ok(true));
    assert_eq!(fixture.queue.redeliver("hr", "crm", &id, false, now).await, Ok(false));
    let pending = fixture.pending().await.remove(0);
    assert_eq!((pending.event.head.attempts, pending.event.head.due), (0, now));
    assert!(pending.event.head.deadline > now, "it has time again");
    assert_eq!(fixture.summary(Collection::CallbackDead).await.0, 0);
}

#[tokio::test]
async fn retries_wait_behind_what_is_due() {
    let (fixture, settings) = (Fixture::new(), settings(false));
    let now = clock::unix_now_millis();
    let (first, second) = (fixture.insert(now - 20).await, fixture.insert(now - 10).await);
    let mut pending = fixture.pending().await.remove(0);
    assert_eq!(pending.event.head.id, first);
    finish(&fixture.queue, &fixture.target, &settings, &mut pending, Err("refused".to_owned()))
        .await
        .expect("stored");
    let order: Vec<_> = fixture.pending().await;
    let ids: Vec<_> = order.iter().map(|pending| pending.event.head.id.as_str()).collect();
    assert_eq!(ids, [&*second, &*first]);
    assert!(order[1].event.head.due >= now + 900, "a second later");
    // What an ordered target does not accept stays first.
    let ordered = self::settings(true);
    let mut pending = fixture.pending().await.remove(0);
    finish(&fixture.queue, &fixture.target, &ordered, &mut pending, Err("refused".to_owned()))
        .await
        .expect("stored");
    let order = fixture.pending().await;
    assert_eq!(order[0].event.head.id, second);
}

#[tokio::test]
async fn delivered_message_leaves_nothing() {
    let (fixture, settings) = (Fixture::new(), settings(false));
    fixture.insert(clock::unix_now_millis()).await;
    let mut pending = fixture.pending().await.remove(0);
    finish(&fixture.queue, &fixture.target, &settings, &mut pending, Ok(())).await.expect("stored");
    assert_eq!(fixture.summary(Collection::CallbackPending).await, (0, None));
    assert!(fixture.target.status.lock().last_success().is_some());
}

#[tokio::test]
async fn late_failure_does_not_revive_a_message() {
    let now = clock::unix_now_millis();
    for (is_ordered, is_last) in [(false, false), (false, true), (true, false), (true, true)] {
        let (fixture, settings) = (Fixture::new(), settings(is_ordered));
        fixture.insert(now).await;
        let mut read = fixture.pending().await;
        let mut late = read.remove(0);
        if is_last {
            late.event.head.deadline = now;
        }
        // Another process, which has the lease now, delivers the message.
        fixture.queue.complete(&late.name, None).await.expect("stored");
        let refused = || Err("refused".to_owned());
        finish(&fixture.queue, &fixture.target, &settings, &mut late, refused()).await.expect("done");
        assert_eq!(fixture.summary(Collection::CallbackPending).await.0, 0, "{is_ordered} {is_last}");
        assert_eq!(fixture.summary(Collection::CallbackDead).await.0, 0, "{is_ordered} {is_last}");
    }
}

#[tokio::test]
async fn late_failure_does_not_replace_another_attempt() {
    let (fixture, settings) = (Fixture::new(), settings(false));
    fixture.insert(clock::unix_now_millis()).await;
    let read = async || fixture.pending().await;
    let (mut late, mut other) = (read().await.remove(0), read().await.remove(0));
    for (pending, error) in [(&mut other, "other"), (&mut late, "late")] {
        let failed = Err(error.to_owned());
        finish(&fixture.queue, &fixture.target, &settings, pending, failed).await.expect("done");
    }
    let left = read().await;
    assert_eq!((left.len(), left[0].event.head.last_error.as_deref()), (1, Some("other")));
}

#[test]
fn target_is_another_one_once_it_is_read_instead_of_pushed_to() {
    let pull = DeliveryMethod::Pull { clients: ["desktop".to_owned()].into() };
    let pull = CallbackTarget { method: pull, ..push_target(false) };
    let target = Target::new("hr", "crm");
    assert!(!target.has_same_task(&pull), "it was removed");
    target.replace_settings(Some(settings(false)));
    assert!(target.has_same_task(&push_target(true)) && !target.has_same_task(&pull));
    assert!(!target.has_same_task(&CallbackTarget { name: "other".to_owned(), ..push_target(true) }));
}

/// A process that tries to get the lease; it gives it up when dropped or stopped.
struct Candidate {
    is_held: watch::Receiver<bool>,
    is_wanted: watch::Sender<bool>,
    stop: watch::Sender<bool>,
    _deliveries: mpsc::Sender<()>,
}

impl Candidate {
    fn start(state: Arc<State>, owner: &str) -> Self {
        let (stop, stop_seen) = watch::channel(false);
        let (is_held, held) = watch::channel(false);
        let (deliveries, ended) = mpsc::channel(1);
        let (is_wanted, wanted) = watch::channel(true);
        tokio::spawn(DeliveryLease::new(state, owner.to_owned(), is_held, wanted).run(stop_seen, ended));
        Self { is_held: held, is_wanted, stop, _deliveries: deliveries }
    }

    async fn wait_held(&mut self) {
        let held = timeout(Duration::from_secs(25), self.is_held.wait_for(|held| *held)).await;
        assert!(held.is_ok_and(|held| held.is_ok()), "the lease is held");
    }
}

#[tokio::test]
async fn lease_is_held_by_one_process_and_handed_over() {
    let dir = tempfile::tempdir().expect("a directory");
    let (first, second) = (open_state(dir.path()), open_state(dir.path()));
    let mut one = Candidate::start(first, "one");
    one.wait_held().await;
    let mut other = Candidate::start(second, "other");
    assert!(timeout(Duration::from_millis(300), other.is_held.wait_for(|held| *held)).await.is_err());
    one.stop.send_replace(true);
    other.wait_held().await;
}

#[tokio::test]
async fn lease_of_a_killed_process_is_taken_over() {
    let dir = tempfile::tempdir().expect("a directory");
    let state = open_state(dir.path());
    let expires_at = clock::unix_now() + 2;
    let killed = Write::put(Collection::CallbackLease, "delivery", *b"killed").expires_at(expires_at);
    state.write(vec![killed]).await.expect("stored");
    Candidate::start(state, "other").wait_held().await;
}

#[tokio::test]
async fn lease_is_not_held_while_it_is_not_wanted() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut one = Candidate::start(open_state(dir.path()), "one");
    one.wait_held().await;
    one.is_wanted.send_replace(false);
    let ended = timeout(Duration::from_secs(5), one.is_held.wait_for(|held| !*held)).await.is_ok();
    assert!(ended, "before the next renewal");
    one.is_wanted.send_replace(true);
    one.wait_held().await;
}

#[tokio::test]
async fn lease_is_not_held_longer_while_the_state_hangs() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut one = Candidate::start(open_state(dir.path()), "one");
    one.wait_held().await;
    let lock = rusqlite::Connection::open(dir.path().join("state.db")).expect("the state");
    lock.execute_batch("BEGIN IMMEDIATE").expect("the lock");
    // From here on, time passes at once wherever only timers are waited for.
    tokio::time::pause();
    let ended = timeout(Duration::from_secs(20), one.is_held.wait_for(|held| !*held)).await;
    assert!(ended.is_ok(), "18 s after the last renewal");
}

#[tokio::test]
async fn list_of_large_messages_goes_on_over_pages() {
    let fixture = Fixture::new();
    let now = clock::unix_now_millis();
    for number in 0..40 {
        let mut new = fixture.new_event(&new_id(now), now);
        new.event.message = vec![b'x'; 300 * 1024].into();
        let stored = fixture.queue.insert("hr", &number.to_string(), &[new], None, now).await;
        assert!(matches!(stored, Ok(Some(_))), "{stored:?}");
    }
    let (first, has_more) = fixture.queue.pending("hr", "crm", 40).await.expect("readable");
    assert_eq!((first.len(), has_more), (14, true), "4 MiB at once");
    let list = async |after: &str, limit| {
        let list =
            fixture.queue.list(Collection::CallbackPending, ["hr", after], limit, |name, _| name.to_owned());
        list.await.expect("readable")
    };
    let (all, next) = list("", 1000).await;
    assert_eq!((all.len(), next), (40, None));
    let (begin, next) = list("", 25).await;
    let (rest, end) = list(&next.expect("a cursor"), 25).await;
    assert_eq!(([begin, rest].concat(), end), (all, None));
}
