//! An entry that outlives its request, for the recent exchanges and the traces.

use super::{AccessLogEntry, QueryText};

/// Maximum bytes kept of a method, a path and an error message. The other texts are short.
const MAX_METHOD_BYTES: usize = 32;
const MAX_PATH_BYTES: usize = 1024;
/// Longer than any end of a path that a cut at a character boundary leaves out.
const MAX_CHAR_BYTES: usize = 4;
const MAX_REASON_BYTES: usize = 512;
/// Maximum bytes kept of the names in a query.
const MAX_QUERY_BYTES: usize = 256;
/// Stands for a part of a query without a name: it may be a secret.
const NAMELESS: &str = "?";

/// An entry with its texts in one allocation, which is reused when the entry is overwritten. Without upstream and hint;
/// of its query only the names, joined by `&`.
#[derive(Debug, Clone, Default)]
pub struct OwnedEntry {
    /// All fields but the texts.
    entry: AccessLogEntry<'static>,
    text: String,
    /// End offset of each text.
    text_ends: [usize; 9],
}

impl OwnedEntry {
    /// The entry. An absent text and an empty one are the same.
    pub fn entry(&self) -> AccessLogEntry<'_> {
        let optional = |nth| Some(self.nth_text(nth)).filter(|text| !text.is_empty());
        AccessLogEntry {
            request_id: self.nth_text(0),
            method: self.nth_text(1),
            path: self.nth_text(2),
            agent: optional(3),
            client: optional(4),
            reason: optional(5),
            error: optional(6),
            trace_id: optional(7),
            query: QueryText(self.nth_text(8)),
            ..self.entry
        }
    }

    fn nth_text(&self, nth: usize) -> &str {
        let begin = nth.checked_sub(1).map_or(0, |before| self.text_ends[before]);
        &self.text[begin..self.text_ends[nth]]
    }

    /// Overwrites this entry with a copy of another one.
    pub fn overwrite(&mut self, entry: &AccessLogEntry<'_>) {
        self.text.clear();
        let texts = [
            entry.request_id,
            truncate(entry.method, MAX_METHOD_BYTES),
            truncate(entry.path, MAX_PATH_BYTES),
            entry.agent.unwrap_or_default(),
            entry.client.unwrap_or_default(),
            truncate(entry.reason.unwrap_or_default(), MAX_REASON_BYTES),
            entry.error.unwrap_or_default(),
            entry.trace_id.unwrap_or_default(),
        ];
        for (text, end) in texts.into_iter().zip(&mut self.text_ends) {
            if !text.is_empty() {
                self.text.push_str(text);
            }
            *end = self.text.len();
        }
        if !entry.query.0.is_empty() {
            self.push_names(entry.query.0);
        }
        self.text_ends[8] = self.text.len();
        // Field by field: the texts stay empty, and nothing else is written twice.
        let kept = &mut self.entry;
        kept.level = entry.level;
        kept.ended_at = entry.ended_at;
        kept.peer = entry.peer;
        kept.status = entry.status;
        kept.errcode = entry.errcode;
        kept.is_wecom_errcode = entry.is_wecom_errcode;
        kept.untrusted_address = entry.untrusted_address;
        kept.retried = entry.retried;
        kept.first_attempt = entry.first_attempt;
        kept.request_bytes = entry.request_bytes;
        kept.response_bytes = entry.response_bytes;
        kept.complete = entry.complete;
        kept.token_time = entry.token_time;
        kept.upstream_time = entry.upstream_time;
        kept.total_time = entry.total_time;
    }

    fn push_names(&mut self, query: &str) {
        let start = self.text.len();
        for part in query.split('&').filter(|part| !part.is_empty()) {
            let name =
                part.as_bytes().iter().position(|byte| *byte == b'=').map_or(NAMELESS, |end| &part[..end]);
            if self.text.len() - start + name.len() >= MAX_QUERY_BYTES {
                break;
            }
            if self.text.len() > start {
                self.text.push('&');
            }
            self.text.push_str(name);
        }
    }

    /// Whether the path may have been longer than what is kept of it.
    pub fn may_have_cut_path(&self) -> bool {
        self.nth_text(2).len() > MAX_PATH_BYTES - MAX_CHAR_BYTES
    }

    /// Bytes of its texts.
    pub fn text_bytes(&self) -> usize {
        self.text.len()
    }
}

/// Truncates a text at a character boundary.
pub(in crate::telemetry) fn truncate(text: &str, max_bytes: usize) -> &str {
    &text[..text.floor_char_boundary(max_bytes)]
}
