//! Hands messages that were just stored to the delivery of their target, which need not read them from the state then.
//!
//! The name of each message in memory is claimed before the message is stored, until its delivery has ended, so that
//! what is read from the state meanwhile is not sent a second time.

use std::{collections::HashSet, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};

use super::{queue::PendingEvent, stored_event::StoredEvent};
use crate::state::Precondition;

/// Messages that wait in memory for one target at most; more wait in the state alone.
const MAX_HANDED_OVER: usize = 64;
/// Larger messages are read from the state, so that memory stays bounded.
const MAX_HANDED_OVER_BYTES: usize = 64 * 1024;

/// The way from the receiver URL to the delivery of one target.
pub(super) struct EventHandoff {
    sender: mpsc::Sender<ClaimedEvent>,
    /// Until the delivery takes it.
    receiver: Mutex<Option<mpsc::Receiver<ClaimedEvent>>>,
    /// The names of all messages of this target in memory.
    claimed: Mutex<HashSet<String>>,
    /// Makes the delivery look at the state.
    changed: watch::Sender<()>,
}

/// A message in memory.
pub(super) struct ClaimedEvent {
    pub(super) pending: PendingEvent,
    pub(super) claim: NameClaim,
}

/// The claim of a message's name, until it is dropped.
pub(super) struct NameClaim {
    handoff: Arc<EventHandoff>,
    name: String,
}

impl EventHandoff {
    pub(super) fn new(changed: watch::Sender<()>) -> Self {
        let (sender, receiver) = mpsc::channel(MAX_HANDED_OVER);
        Self { sender, receiver: Mutex::new(Some(receiver)), claimed: Mutex::default(), changed }
    }

    /// The receiving end; `None` if it was taken before.
    pub(super) fn take_receiver(&self) -> Option<mpsc::Receiver<ClaimedEvent>> {
        self.receiver.lock().take()
    }

    /// Whether there is room for a message.
    pub(super) fn has_room_for(&self, event: &StoredEvent) -> bool {
        event.message.len() + event.raw_body.len() <= MAX_HANDED_OVER_BYTES && self.sender.capacity() > 0
    }

    /// The names that are claimed now.
    pub(super) fn claimed_names(&self) -> HashSet<String> {
        self.claimed.lock().clone()
    }
}

impl NameClaim {
    /// Claims the name of a message that is about to be stored, or was read from the state; `None` if it is claimed.
    pub(super) fn new(handoff: Arc<EventHandoff>, name: String) -> Option<Self> {
        let is_new = handoff.claimed.lock().insert(name.clone());
        is_new.then_some(())?;
        Some(Self { handoff, name })
    }

    /// Hands over the message, which was stored with this version. Without room, the delivery reads it from the state.
    pub(super) fn hand_over(self, event: StoredEvent, version: u64) {
        let handoff = self.handoff.clone();
        let pending =
            PendingEvent { name: self.name.clone(), precondition: Precondition::Version(version), event };
        if handoff.sender.try_send(ClaimedEvent { pending, claim: self }).is_err() {
            handoff.changed.send_replace(());
        }
    }
}

impl Drop for NameClaim {
    fn drop(&mut self) {
        self.handoff.claimed.lock().remove(&self.name);
    }
}

#[cfg(test)]
mod tests {
    use super::{super::stored_event::tests::event, *};

    #[test]
    fn message_has_one_claim_until_its_delivery_ends() {
        let handoff = Arc::new(EventHandoff::new(watch::Sender::new(())));
        let mut receiver = handoff.take_receiver().expect("the first");
        let claim = |name: &str| NameClaim::new(handoff.clone(), name.to_owned());
        claim("a").expect("free").hand_over(event("1", 1), 7);
        // As read from the state while it waits in the channel.
        assert!(claim("a").is_none());
        let handed_over = receiver.try_recv().expect("a message");
        assert_eq!(handed_over.pending.precondition, Precondition::Version(7));
        assert!(claim("a").is_none(), "it is being sent");
        drop(handed_over);
        drop(claim("a").expect("free again"));
        assert!(handoff.claimed_names().is_empty());
    }

    #[test]
    fn message_without_room_is_left_to_the_state() {
        let changed = watch::Sender::new(());
        let seen = changed.subscribe();
        let handoff = Arc::new(EventHandoff::new(changed));
        for number in 0..=MAX_HANDED_OVER {
            assert_eq!(handoff.has_room_for(&event("1", 1)), number < MAX_HANDED_OVER);
            assert!(!seen.has_changed().expect("open"));
            let claim = NameClaim::new(handoff.clone(), number.to_string()).expect("free");
            claim.hand_over(event("1", 1), 1);
        }
        assert!(seen.has_changed().expect("open"), "the delivery looks at the state");
        assert_eq!(handoff.claimed_names().len(), MAX_HANDED_OVER);
        let mut large = event("1", 1);
        large.message = vec![b'x'; MAX_HANDED_OVER_BYTES + 1].into();
        let empty = EventHandoff::new(watch::Sender::new(()));
        assert!(!empty.has_room_for(&large) && empty.has_room_for(&event("1", 1)));
    }
}
