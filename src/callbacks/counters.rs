//! Counts of what was received and delivered.

use std::{
    collections::VecDeque,
    sync::atomic::{AtomicU64, Ordering},
};

use parking_lot::Mutex;

/// Declares a result with its name in metrics.
macro_rules! results {
    ($(#[$doc:meta])+ $name:ident, $counts:ident, $($(#[$variant_doc:meta])+ $variant:ident = $text:literal,)+) => {
        $(#[$doc])+
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name {
            $($(#[$variant_doc])+ $variant,)+
        }

        impl $name {
            /// All results.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The name in metrics and logs.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }
        }

        /// How often each result was counted.
        #[derive(Debug, Default)]
        pub struct $counts([AtomicU64; $name::ALL.len()]);

        impl $counts {
            /// Counts one.
            pub fn count(&self, result: $name) {
                self.0[result as usize].fetch_add(1, Ordering::Relaxed);
            }

            /// The results that were counted, each with its number.
            pub fn counted(&self) -> impl Iterator<Item = (&'static str, u64)> {
                let counts = $name::ALL.iter().map(|result| {
                    (result.as_str(), self.0[*result as usize].load(Ordering::Relaxed))
                });
                counts.filter(|(_, count)| *count > 0)
            }
        }
    };
}

results! {
    /// What became of a request to a receiver URL.
    ReceiveResult, ReceiveCounts,
    /// A URL was verified.
    Verified = "verified",
    /// A message was accepted: it is durable.
    Accepted = "accepted",
    /// A message was received again within 20 minutes.
    Duplicate = "duplicate",
    /// A message for a corp that did not authorise the suite, as far as is known, was accepted.
    UnknownCorp = "unknown-corp",
    /// The signature is wrong or missing.
    Signature = "signature",
    /// The encrypted text is no base64, or no whole number of blocks.
    Encoding = "encoding",
    /// The padding is wrong, as under another EncodingAESKey.
    Padding = "padding",
    /// The length field is wrong.
    Length = "length",
    /// The message is for another receiveid.
    ReceiveId = "receiveid",
    /// The timestamp is too far from the clock.
    Stale = "stale",
    /// The body is neither well-formed XML nor JSON with an encrypted message.
    Malformed = "malformed",
    /// The XML has a document type declaration.
    Dtd = "dtd",
    /// The body is too large.
    TooLarge = "too-large",
    /// The state did not make the message durable in time.
    NotDurable = "not-durable",
}

results! {
    /// What became of an attempt to deliver a message.
    DeliveryResult, DeliveryCounts,
    /// The target responded with 2xx.
    Delivered = "delivered",
    /// The attempt failed; there will be another one.
    Failed = "failed",
    /// The deadline has passed: the message is a dead letter.
    Dead = "dead",
}

/// How much was counted in the last minute, by second.
#[derive(Debug, Default)]
pub(super) struct LastMinute(Mutex<VecDeque<(u64, u64)>>);

impl LastMinute {
    const SECONDS: u64 = 60;

    /// Counts one at a time in seconds.
    pub(super) fn add(&self, now: u64) {
        let mut seconds = self.0.lock();
        match seconds.back_mut() {
            Some((second, count)) if *second >= now => *count += 1,
            _ => seconds.push_back((now, 1)),
        }
        while seconds.len() as u64 > Self::SECONDS {
            seconds.pop_front();
        }
    }

    /// What was counted within the minute before this time.
    pub(super) fn total(&self, now: u64) -> u64 {
        let is_recent = |second: u64| second + Self::SECONDS > now;
        self.0.lock().iter().filter(|(second, _)| is_recent(*second)).map(|(_, count)| count).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_counted_separately() {
        let counts = ReceiveCounts::default();
        counts.count(ReceiveResult::Stale);
        counts.count(ReceiveResult::Stale);
        counts.count(ReceiveResult::NotDurable);
        assert_eq!(counts.counted().collect::<Vec<_>>(), [("stale", 2), ("not-durable", 1)]);
    }

    #[test]
    fn only_the_last_minute_is_counted() {
        let lately = LastMinute::default();
        for second in 100..300 {
            lately.add(second);
            lately.add(second);
        }
        assert_eq!((lately.total(299), lately.total(329), lately.total(359)), (120, 60, 0));
    }
}
