//! Notifications between replicas over the store's pub/sub channel. A lost one only delays: state is always read
//! from the store. They are signed, because other programs may be able to publish there.

use redis::{FromRedisValue, PushInfo, PushKind};

use crate::secret::seal::Sealer;

/// What happened to a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotificationKind {
    /// A newer record was stored.
    Updated,
    /// A newer record was stored, and gettoken had returned the refused token again.
    Unchanged,
    /// A replica restored a record that it had in memory and the store had lost.
    Restored,
    /// WeCom refused the token of this fence.
    Refused,
    /// A lease ended without a record.
    LeaseEnded,
}

/// A message on the channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notification {
    /// The event.
    pub kind: NotificationKind,
    /// The fence of the record; 0 where there is none.
    pub fence: u64,
    /// A name in the store.
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
    /// The signed text that is published.
    pub(super) fn encode(&self, sealer: &Sealer) -> Option<String> {
        let kind_name =
            KIND_NAMES.iter().find(|(kind, _)| *kind == self.kind).map_or("", |(_, kind_name)| kind_name);
        sealer.sign(&format!("{kind_name} {} {}", self.fence, self.name))
    }

    pub(super) fn parse(text: &str, sealer: &Sealer) -> Option<Self> {
        let mut parts = sealer.verify(text)?.split(' ');
        let (kind_name, fence, name) = (parts.next()?, parts.next()?, parts.next()?);
        let (kind, _) = KIND_NAMES.iter().find(|(_, known)| *known == kind_name)?;
        Some(Self { kind: *kind, fence: fence.parse().ok()?, name: name.to_owned() })
    }
}

/// An event of the store's connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreEvent {
    /// A notification of another replica, or this one's own.
    Notification(Notification),
    /// A connection was established.
    Connected,
    /// A connection broke.
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
        Sealer::new("store", &Masked::new("a key of the tests, long enough for it"), None).expect("a key")
    }

    proptest! {
        #[test]
        fn notification_encoded_then_parsed_is_unchanged(which in 0..KIND_NAMES.len(), fence in any::<u64>(), name in "[0-9a-z:]{1,40}") {
            let notification = Notification { kind: KIND_NAMES[which].0, fence, name };
            let sealer = sealer();
            prop_assert_eq!(Notification::parse(&notification.encode(&sealer).expect("text"), &sealer), Some(notification));
        }

        #[test]
        fn notification_from_any_text_never_panics(text in ".{0,60}") {
            let sealer = sealer();
            prop_assert_eq!(Notification::parse(&text, &sealer), None);
            let _ = Notification::parse(&sealer.sign(&text).expect("signed"), &sealer);
        }
    }
}
