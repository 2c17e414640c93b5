//! What is kept of a request that is to be carried out once.

use serde::{Deserialize, Serialize};

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub(super) enum Outcome {
    /// It is being carried out. The process that does so moves `alive_until` ahead, in milliseconds since 1970.
    Working { owner: u64, alive_until: u64 },
    /// It was carried out, and the response is kept.
    Done { status: u16, errcode: Option<i64>, has_date: bool, header_bytes: usize },
    /// It was carried out, and the response was too large to be kept.
    TooLarge,
    /// It may have been carried out.
    InDoubt,
}

/// The record of one request. A line of JSON, then for [`Outcome::Done`] headers and body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RequestRecord {
    /// Hash of query and body.
    pub(super) fingerprint: String,
    pub(super) outcome: Outcome,
    /// The headers, as many bytes as [`Outcome::Done`] says, and the body.
    pub(super) response: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
struct FirstLine {
    fingerprint: String,
    #[serde(flatten)]
    outcome: Outcome,
}

impl RequestRecord {
    pub(super) fn new(fingerprint: &str, outcome: Outcome) -> Self {
        Self { fingerprint: fingerprint.to_owned(), outcome, response: Vec::new() }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let Self { fingerprint, outcome, response } = self;
        let line = FirstLine { fingerprint: fingerprint.clone(), outcome: outcome.clone() };
        let mut encoded = serde_json::to_vec(&line).unwrap_or_default();
        encoded.push(b'\n');
        encoded.extend_from_slice(response);
        encoded
    }

    /// `None` for what no version of the program wrote.
    pub(super) fn decode(encoded: &[u8]) -> Option<Self> {
        let end = memchr::memchr(b'\n', encoded)?;
        let FirstLine { fingerprint, outcome } = serde_json::from_slice(&encoded[..end]).ok()?;
        let response = encoded[end + 1..].to_vec();
        match outcome {
            Outcome::Done { header_bytes, .. } if header_bytes > response.len() => None,
            _ => Some(Self { fingerprint, outcome, response }),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn record_is_decoded_as_encoded(
            headers in prop::collection::vec(any::<u8>(), 0..50), body in prop::collection::vec(any::<u8>(), 0..100),
            errcode in any::<Option<i64>>(),
        ) {
            let (status, has_date, header_bytes) = (200, true, headers.len());
            let outcome = Outcome::Done { status, errcode, has_date, header_bytes };
            let record = RequestRecord { response: [headers, body].concat(), ..RequestRecord::new("f0", outcome) };
            prop_assert_eq!(RequestRecord::decode(&record.encode()), Some(record));
        }

        #[test]
        fn any_bytes_are_decoded_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = RequestRecord::decode(&bytes);
        }
    }

    #[test]
    fn every_outcome_is_decoded_as_encoded() {
        let working = Outcome::Working { owner: u64::MAX, alive_until: 1 };
        for outcome in [working, Outcome::TooLarge, Outcome::InDoubt] {
            let record = RequestRecord::new("f0", outcome);
            assert_eq!(RequestRecord::decode(&record.encode()), Some(record));
        }
        let cut = br#"{"fingerprint":"f","outcome":"done","status":200,"errcode":0,"has_date":false,"header_bytes":9}
short"#;
        assert_eq!(RequestRecord::decode(cut), None);
    }
}
