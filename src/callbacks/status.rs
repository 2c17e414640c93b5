//! What the state keeps for operators: when each target last accepted a message, why it last did not, and the addresses
//! that pushed. It is written with what is written anyway, and at most once a second for each target.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::queue::CallbackQueue;
use crate::state::{Collection, PageLimit, ReadError, Record, Write};

/// How often the time of a success, or the same error, is written again, in milliseconds.
const NOTE_INTERVAL_MILLIS: u64 = 1000;
/// How long the notes of a target are kept that gets no messages, in seconds.
const NOTE_TTL_SECONDS: u64 = 365 * 24 * 3600;
/// How often an address is written again that pushes, in milliseconds.
const CALLER_INTERVAL_MILLIS: u64 = 3600 * 1000;
/// How long an address is kept, in seconds.
const CALLER_TTL_SECONDS: u64 = 7 * 24 * 3600;
/// Addresses of one callback that are noted at most: WeCom has some hundred.
const MAX_CALLERS: usize = 1024;
/// Bounds what is read of the state at once.
const NOTES_PER_PAGE: PageLimit = PageLimit { records: 1000, bytes: 4 << 20 };

/// The last outcomes of deliveries to a target. Times are in milliseconds since 1970.
#[derive(Debug, Default, Clone)]
pub(super) struct DeliveryStatus {
    last_success: Option<u64>,
    last_error: Option<LastDeliveryError>,
    /// When these two were written to the state.
    success_noted_at: u64,
    error_noted_at: u64,
}

/// Why a delivery failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LastDeliveryError {
    pub(super) at: u64,
    pub(super) error: String,
}

impl DeliveryStatus {
    /// Notes a success of a callback's target; returns what is to be written.
    pub(super) fn note_success(&mut self, target: [&str; 2], now: u64) -> Option<Write> {
        self.last_success = Some(now);
        if now.abs_diff(self.success_noted_at) < NOTE_INTERVAL_MILLIS {
            return None;
        }
        self.success_noted_at = now;
        Some(note(target, "success", now.to_string().into_bytes(), now))
    }

    /// Notes a failure; returns what is to be written.
    pub(super) fn note_error(&mut self, target: [&str; 2], now: u64, error: &str) -> Option<Write> {
        let is_known = self.last_error.as_ref().is_some_and(|last| last.error == error);
        let last = LastDeliveryError { at: now, error: error.to_owned() };
        // A struct of a number and a text always has a JSON form.
        let value = serde_json::to_vec(&last).unwrap_or_default();
        self.last_error = Some(last);
        if is_known && now.abs_diff(self.error_noted_at) < NOTE_INTERVAL_MILLIS {
            return None;
        }
        self.error_noted_at = now;
        Some(note(target, "error", value, now))
    }

    /// When this process last saw a success.
    #[cfg(test)]
    pub(super) fn last_success(&self) -> Option<u64> {
        self.last_success
    }

    /// The newest outcomes: those of this process, or those that another one has written.
    pub(super) fn newest(
        &self,
        notes: &TargetNotes,
        target: [&str; 2],
    ) -> (Option<u64>, Option<LastDeliveryError>) {
        let value = |kind: &str| notes.0.get(&note_name(target, kind));
        let success = value("success").and_then(|value| std::str::from_utf8(value).ok()?.parse().ok());
        let error = value("error").and_then(|value| serde_json::from_slice::<LastDeliveryError>(value).ok());
        let errors = [self.last_error.clone(), error].into_iter().flatten();
        (self.last_success.max(success), errors.max_by_key(|error| error.at))
    }
}

fn note_name([callback, target]: [&str; 2], kind: &str) -> String {
    format!("{callback}/{target}/{kind}")
}

fn note(target: [&str; 2], kind: &str, value: Vec<u8>, now: u64) -> Write {
    let name = note_name(target, kind);
    Write::put(Collection::CallbackStatus, name, value).expires_at(now / 1000 + NOTE_TTL_SECONDS)
}

/// What all processes have written of targets.
pub(super) struct TargetNotes(HashMap<String, Vec<u8>>);

impl CallbackQueue {
    /// Reads the notes of all targets.
    pub(super) async fn notes(&self) -> Result<TargetNotes, ReadError> {
        let (mut notes, mut after) = (HashMap::new(), Some(String::new()));
        while let Some(begin) = after {
            let page = self.state.scan_page(Collection::CallbackStatus, ["", &begin], NOTES_PER_PAGE).await?;
            let values = page
                .records
                .into_iter()
                .filter_map(|Record { name, value, .. }| Some((name, value?.to_vec())));
            notes.extend(values);
            after = page.after;
        }
        Ok(TargetNotes(notes))
    }
}

/// The addresses that pushed valid messages to one receiver URL, and when each was written to the state.
#[derive(Default)]
pub(super) struct Callers(Mutex<BTreeMap<IpAddr, u64>>);

impl Callers {
    /// What is to be written of a caller, unless it was lately; see [`Self::mark_noted`].
    pub(super) fn note(&self, callback: &str, caller: IpAddr, now: u64) -> Option<Write> {
        let callers = self.0.lock();
        let is_noted = match callers.get(&caller) {
            Some(noted_at) => now.abs_diff(*noted_at) < CALLER_INTERVAL_MILLIS,
            None => callers.len() >= MAX_CALLERS,
        };
        (!is_noted).then(|| {
            let write =
                Write::put(Collection::CallbackStatus, caller_name(callback, caller), now.to_string());
            write.expires_at(now / 1000 + CALLER_TTL_SECONDS)
        })
    }

    /// To be called once the note is durable.
    pub(super) fn mark_noted(&self, caller: IpAddr, now: u64) {
        self.0.lock().insert(caller, now);
    }
}

/// No target has an empty name.
fn caller_name(callback: &str, caller: IpAddr) -> String {
    format!("{callback}//{caller}")
}

/// The callback and the address in the name of a record; `None` for one of a target.
pub fn caller_of(name: &str) -> Option<(&str, IpAddr)> {
    let (callback, caller) = name.split_once("//")?;
    Some((callback, caller.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn caller_is_noted_once_an_hour_and_its_name_tells_it() {
        let (callers, caller) = (Callers::default(), IpAddr::from([192, 0, 2, 1]));
        let note = callers.note("hr", caller, 1000).expect("a note");
        assert_eq!(caller_of(&note.name), Some(("hr", caller)));
        assert!(callers.note("hr", caller, 1000).is_some(), "not durable yet");
        callers.mark_noted(caller, 1000);
        assert!(callers.note("hr", caller, 3_600_000).is_none());
        assert!(callers.note("hr", caller, 3_601_000).is_some());
        assert_eq!(caller_of("hr/crm/success"), None);
    }

    #[test]
    fn outcome_is_written_once_a_second_and_a_new_error_at_once() {
        let (target, mut status) = (["hr", "crm"], DeliveryStatus::default());
        let mut written = Vec::new();
        for (now, error) in [
            (5000, None),
            (5500, None),
            (6000, None),
            (6100, Some("a")),
            (6200, Some("a")),
            (6300, Some("b")),
        ] {
            let note = match error {
                None => status.note_success(target, now),
                Some(error) => status.note_error(target, now, error),
            };
            written.extend(note.map(|note| (now, note.name)));
        }
        let (success, error) = ("hr/crm/success".to_owned(), "hr/crm/error".to_owned());
        let expected = [(5000, success.clone()), (6000, success), (6100, error.clone()), (6300, error)];
        assert_eq!(written, expected);
        let notes = TargetNotes(HashMap::from([("hr/crm/success".to_owned(), b"7000".to_vec())]));
        let (last_success, last_error) = status.newest(&notes, target);
        assert_eq!(last_success, Some(7000), "another process was later");
        assert_eq!(last_error, Some(LastDeliveryError { at: 6300, error: "b".to_owned() }));
    }
}
