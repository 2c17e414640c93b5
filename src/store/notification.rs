//! What replicas tell each other over the store's channel. Everything is right without it, only later. It is signed, for who
//! may speak there need not be a replica.

use redis::{FromRedisValue, PushInfo, PushKind};

use super::seal::Sealer;

/// What happened to something in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotificationKind {
    /// There is a newer record.
    Updated,
    /// There is a newer record, and it is the refused token again.
    Unchanged,
    /// There is a record that a replica has had for longer than the store.
    Restored,
    /// The token of this fence was refused.
    Refused,
    /// A lease ended without a record.
    LeaseEnded,
}

/// One piece of news.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notification {
    /// What happened.
    pub kind: NotificationKind,
    /// The fence of the record that is meant; 0 where there is none.
    pub fence: u64,
    /// To what: a name in the store.
    pub name: String,
}

const KIND_NAMES: [(NotificationKind, &str); 5] = [
    (NotificationKind::Updated, "renewed"),
    (NotificationKind::Unchanged, "same"),
    (NotificationKind::Restored, "known"),
    (NotificationKind::Refused, "refused"),
    (NotificationKind::LeaseEnded, "ended"),
];

impl Notification {
    /// As it goes over the channel.
    pub(super) fn encode(&self, sealer: &Sealer) -> Option<String> {
        let word = KIND_NAMES.iter().find(|(event, _)| *event == self.kind).map_or("", |(_, word)| word);
        sealer.sign(&format!("{word} {} {}", self.fence, self.name))
    }

    pub(super) fn parse(text: &str, sealer: &Sealer) -> Option<Self> {
        let mut parts = sealer.verify(text)?.split(' ');
        let (word, fence, name) = (parts.next()?, parts.next()?, parts.next()?);
        let (event, _) = KIND_NAMES.iter().find(|(_, known)| *known == word)?;
        Some(Self { kind: *event, fence: fence.parse().ok()?, name: name.to_owned() })
    }
}

/// What the store says without having been asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreEvent {
    /// Another replica tells something, or this one did.
    Notification(Notification),
    /// The store is there, for the first time or again.
    Connected,
    /// A connection to it broke.
    Disconnected,
}

impl StoreEvent {
    pub(super) fn from_push(info: PushInfo, sealer: &Sealer) -> Option<Self> {
        match info.kind {
            PushKind::Disconnection => Some(Self::Disconnected),
            PushKind::Message => {
                let text = info.data.into_iter().nth(1)?;
                Notification::parse(&String::from_redis_value(text).ok()?, sealer).map(Self::Notification)
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::secret::Masked;

    fn sealer() -> Sealer {
        Sealer::new(&Masked::new("a key of the tests, long enough for it"), None).expect("a key")
    }

    proptest! {
        #[test]
        fn notification_encoded_then_parsed_is_unchanged(which in 0..KIND_NAMES.len(), fence in any::<u64>(), name in "[0-9a-z:]{1,40}") {
            let news = Notification { kind: KIND_NAMES[which].0, fence, name };
            let sealer = sealer();
            prop_assert_eq!(Notification::parse(&news.encode(&sealer).expect("text"), &sealer), Some(news));
        }

        #[test]
        fn notification_from_any_text_never_panics(text in ".{0,60}") {
            let sealer = sealer();
            prop_assert_eq!(Notification::parse(&text, &sealer), None);
            let _ = Notification::parse(&sealer.sign(&text).expect("signed"), &sealer);
        }
    }
}
