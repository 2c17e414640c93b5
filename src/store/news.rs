//! What replicas tell each other over the store's channel. Everything is right without it, only later. It is signed, for who
//! may speak there need not be a replica.

use redis::{FromRedisValue, PushInfo, PushKind};

use super::seal::Sealer;

/// What happened to something in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// There is a newer record.
    Renewed,
    /// There is a newer record, and it is the refused token again.
    SameAgain,
    /// There is a record that a replica has had for longer than the store.
    Known,
    /// The token of this fence was refused.
    Refused,
    /// A lease ended without a record.
    Ended,
}

/// One piece of news.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct News {
    /// What happened.
    pub event: Event,
    /// The fence of the record that is meant; 0 where there is none.
    pub fence: u64,
    /// To what: a name in the store.
    pub name: String,
}

const WORDS: [(Event, &str); 5] = [
    (Event::Renewed, "renewed"),
    (Event::SameAgain, "same"),
    (Event::Known, "known"),
    (Event::Refused, "refused"),
    (Event::Ended, "ended"),
];

impl News {
    /// As it goes over the channel.
    pub(super) fn to_text(&self, sealer: &Sealer) -> Option<String> {
        let word = WORDS.iter().find(|(event, _)| *event == self.event).map_or("", |(_, word)| word);
        sealer.sign(&format!("{word} {} {}", self.fence, self.name))
    }

    pub(super) fn parse(text: &str, sealer: &Sealer) -> Option<Self> {
        let mut parts = sealer.signed(text)?.split(' ');
        let (word, fence, name) = (parts.next()?, parts.next()?, parts.next()?);
        let (event, _) = WORDS.iter().find(|(_, known)| *known == word)?;
        Some(Self { event: *event, fence: fence.parse().ok()?, name: name.to_owned() })
    }
}

/// What the store says without having been asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Word {
    /// Another replica tells something, or this one did.
    News(News),
    /// The store is there, for the first time or again.
    Joined,
    /// A connection to it broke.
    Lost,
}

impl Word {
    pub(super) fn of(info: PushInfo, sealer: &Sealer) -> Option<Self> {
        match info.kind {
            PushKind::Disconnection => Some(Self::Lost),
            PushKind::Message => {
                let text = info.data.into_iter().nth(1)?;
                News::parse(&String::from_redis_value(text).ok()?, sealer).map(Self::News)
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
        fn news_come_as_they_went(which in 0..WORDS.len(), fence in any::<u64>(), name in "[0-9a-z:]{1,40}") {
            let news = News { event: WORDS[which].0, fence, name };
            let sealer = sealer();
            prop_assert_eq!(News::parse(&news.to_text(&sealer).expect("text"), &sealer), Some(news));
        }

        #[test]
        fn any_text_is_survived(text in ".{0,60}") {
            let sealer = sealer();
            prop_assert_eq!(News::parse(&text, &sealer), None);
            let _ = News::parse(&sealer.sign(&text).expect("signed"), &sealer);
        }
    }
}
