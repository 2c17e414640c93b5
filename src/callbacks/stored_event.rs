//! A message on its way to one target, as it is kept in the state.

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::wecom::callback::message::Format;

/// A message for one target. No `Debug`: it contains the message.
#[derive(Clone)]
pub(super) struct StoredEvent {
    pub(super) head: EventHead,
    /// The decrypted message.
    pub(super) message: Zeroizing<Vec<u8>>,
    /// The body as WeCom sent it, if the target gets it raw.
    pub(super) raw_body: Vec<u8>,
}

/// What is known of a message besides its bytes. Times are in milliseconds since 1970.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct EventHead {
    /// The same for all targets; sorted by arrival.
    pub(super) id: String,
    /// Event, InfoType or MsgType; empty if it has none.
    pub(super) event: String,
    pub(super) received_at: u64,
    /// After this it is a dead letter.
    pub(super) deadline: u64,
    /// When the next attempt is due.
    pub(super) due: u64,
    /// Attempts made.
    pub(super) attempts: u32,
    /// Why the last attempt failed.
    #[serde(default)]
    pub(super) last_error: Option<String>,
    pub(super) receive_id: String,
    /// Whether the pushed body was JSON.
    pub(super) is_json: bool,
    #[serde(default)]
    pub(super) agent_id: Option<String>,
    #[serde(default)]
    pub(super) to_user_name: Option<String>,
    #[serde(default)]
    pub(super) raw: Option<RawHead>,
}

/// What belongs to a raw body.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct RawHead {
    pub(super) query: String,
    pub(super) content_type: Option<String>,
}

impl EventHead {
    /// The format of the pushed body.
    pub(super) fn format(&self) -> Format {
        if self.is_json { Format::Json } else { Format::Xml }
    }
}

impl StoredEvent {
    /// Length and JSON of the head, length of the message, the message, the raw body.
    pub(super) fn encode(&self) -> Zeroizing<Vec<u8>> {
        // A struct of texts and numbers always has a JSON form.
        let head = serde_json::to_vec(&self.head).unwrap_or_default();
        let mut bytes =
            Zeroizing::new(Vec::with_capacity(8 + head.len() + self.message.len() + self.raw_body.len()));
        for part in [&head, &*self.message] {
            bytes.extend_from_slice(&u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes());
            bytes.extend_from_slice(part);
        }
        bytes.extend_from_slice(&self.raw_body);
        bytes
    }

    /// `None` for bytes that [`Self::encode`] did not make.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (head, rest) = split_part(bytes)?;
        let (message, raw_body) = split_part(rest)?;
        Some(Self {
            head: serde_json::from_slice(head).ok()?,
            message: Zeroizing::new(message.to_vec()),
            raw_body: raw_body.to_vec(),
        })
    }
}

/// The part behind a length, and what follows it.
fn split_part(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    rest.split_at_checked(u32::from_be_bytes(*length) as usize)
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(in crate::callbacks) fn event(id: &str, due: u64) -> StoredEvent {
        let head = EventHead {
            id: id.to_owned(),
            event: "change_contact".to_owned(),
            received_at: due,
            deadline: due + 86_400_000,
            due,
            attempts: 0,
            last_error: None,
            receive_id: "ww1".to_owned(),
            is_json: false,
            agent_id: Some("218".to_owned()),
            to_user_name: None,
            raw: None,
        };
        StoredEvent { head, message: Zeroizing::new(b"<xml/>".to_vec()), raw_body: Vec::new() }
    }

    proptest! {
        #[test]
        fn encoded_event_decodes(
            message in prop::collection::vec(any::<u8>(), 0..50),
            raw_body in prop::collection::vec(any::<u8>(), 0..50),
            due: u64,
        ) {
            let message = Zeroizing::new(message);
            let event = StoredEvent { message, raw_body, ..event("1", due / 2) };
            let Some(decoded) = StoredEvent::decode(&event.encode()) else { panic!("it decodes") };
            prop_assert_eq!((&*decoded.message, &decoded.raw_body), (&*event.message, &event.raw_body));
            prop_assert_eq!((decoded.head.id, decoded.head.due), (event.head.id, due / 2));
        }

        #[test]
        fn decode_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let _ = StoredEvent::decode(&bytes).is_some();
        }
    }
}
