//! The records of the state, where replicas share it: a hash, and sorted sets by version, name and end. All keys are in
//! one slot of a cluster, so that a script can change them together.

use super::{
    Store, Unavailable,
    keys::store_key,
    script::{Script, ScriptCall},
};

/// Records of one reply, about.
const CHUNK_RECORDS: usize = 512;
/// Bytes of one reply, about.
const MAX_REPLY_BYTES: usize = 8 << 20;
/// What a write changes.
const WRITTEN_KEYS: [&str; 6] = ["records", "changes", "names", "ends", "version", "order"];

/// A record as the store has it, `collection:name` as its field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateRow {
    /// `collection:name`
    pub field: String,
    /// The version of the transaction that wrote it.
    pub version: u64,
    /// The end in seconds since 1970.
    pub expires_at: Option<u64>,
    /// The sealed value; empty: the record was deleted.
    pub sealed: Vec<u8>,
}

impl StateRow {
    /// `None` for what no replica writes.
    fn unpack(field: &[u8], packed: &[u8]) -> Option<Self> {
        let mut parts = packed.splitn(3, |byte| *byte == b':');
        let mut number = || std::str::from_utf8(parts.next()?).ok().filter(|text| !text.starts_with('+'));
        let (version, end) = (number()?.parse().ok()?, number()?);
        let expires_at = if end.is_empty() { None } else { Some(end.parse().ok()?) };
        let field = String::from_utf8(field.to_vec()).ok()?;
        Some(Self { field, version, expires_at, sealed: parts.next()?.to_vec() })
    }

    fn pack(&self) -> Vec<u8> {
        let end = self.expires_at.map(|end| end.to_string()).unwrap_or_default();
        [format!("{}:{end}:", self.version).as_bytes(), &self.sealed].concat()
    }
}

/// The write of one record.
pub struct StateWrite<'a> {
    /// `collection:name`
    pub field: String,
    /// By what it can be found.
    pub index: StateIndex,
    /// `none`, `absent`, `present`, a version, or `not-last:` and a version.
    pub precondition: String,
    /// The sealed value; empty: delete the record.
    pub sealed: &'a [u8],
    /// The end in seconds since 1970.
    pub expires_at: Option<u64>,
}

/// By what a record can be found, besides its field and its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StateIndex {
    /// By its name alone.
    Name = 0,
    /// By its version: the replicas follow its changes.
    Followed = 1,
    /// By version among the records whose fields are the same up to the last slash.
    PrefixAndVersion = 2,
}

/// The outcome of a transaction: its version, or the index of the write whose precondition does not hold, and the
/// version of that record.
pub(crate) type StateOutcome = Result<u64, (usize, Option<u64>)>;

/// Changes behind a version.
#[derive(Debug)]
pub enum StateChanges {
    /// The changes up to `version`, in order; there are more if `newest` is greater.
    Found {
        /// The records.
        rows: Vec<StateRow>,
        /// The version up to which all changes are among them.
        version: u64,
        /// The version of the newest transaction.
        newest: u64,
    },
    /// The store has lost writes that this replica has seen.
    Lost,
}

impl Store {
    /// Carries out transactions. `now` and `mark_end` are seconds since 1970: a deletion of a followed record is kept
    /// until `mark_end`.
    pub async fn write_state(
        &self,
        transactions: &[Vec<StateWrite<'_>>],
        [now, mark_end]: [u64; 2],
    ) -> Result<Vec<StateOutcome>, Unavailable> {
        let mut write = ScriptCall::new(Script::StateWrite);
        self.state_keys(&mut write, &WRITTEN_KEYS);
        write.arg(now).arg(mark_end);
        for writes in transactions {
            write.arg(writes.len());
            for StateWrite { field, index, precondition, sealed, expires_at } in writes {
                let end = expires_at.map(|end| end.to_string()).unwrap_or_default();
                write.arg(field).arg(*index as u8).arg(precondition).arg(*sealed).arg(end);
            }
        }
        let outcomes = self.call::<Vec<(String, usize, String)>>(write).await?;
        let outcomes = outcomes.into_iter().map(|(version, index, current)| match version.parse() {
            Ok(version) => Ok(version),
            Err(_) => Err((index, current.parse().ok())),
        });
        Ok(outcomes.collect())
    }

    /// One record, also a deleted or expired one.
    pub async fn read_state(&self, field: &str) -> Result<Option<StateRow>, Unavailable> {
        let mut read = ScriptCall::new(Script::StateRead);
        self.state_keys(&mut read, &["records"]);
        read.arg(field);
        let packed = self.call::<Option<Vec<u8>>>(read).await?;
        Ok(packed.and_then(|packed| StateRow::unpack(field.as_bytes(), &packed)))
    }

    /// At most `max_records` and about `max_bytes` of records whose fields begin with `prefix`, behind the field `after`,
    /// in the order of fields; and the field behind which there may be more.
    pub async fn scan_state(
        &self,
        prefix: &str,
        after: &str,
        [max_records, max_bytes]: [usize; 2],
        now: u64,
    ) -> Result<(Vec<StateRow>, Option<String>), Unavailable> {
        let mut scan = ScriptCall::new(Script::StateScan);
        self.state_keys(&mut scan, &["records", "names"]);
        let first = if after >= prefix { format!("({after}") } else { format!("[{prefix}") };
        // No text in UTF-8 has this byte.
        let last = [b"[", prefix.as_bytes(), b"\xff"].concat();
        scan.arg(now).arg(first).arg(last).arg(max_records.max(1)).arg(max_bytes.min(MAX_REPLY_BYTES));
        let reply = self.call::<Vec<Vec<u8>>>(scan).await?;
        let (after, rows) = reply.split_first().ok_or(Unavailable)?;
        let after = String::from_utf8(after.clone()).ok().filter(|after| !after.is_empty());
        Ok((unpack_all(rows), after))
    }

    /// At most `max_records` and about `max_bytes` of records of [`StateIndex::PrefixAndVersion`] whose fields are
    /// `prefix` up to the last slash, written after `version`, in the order of versions.
    pub async fn scan_state_since(
        &self,
        prefix: &str,
        version: u64,
        [max_records, max_bytes]: [usize; 2],
        now: u64,
    ) -> Result<Vec<StateRow>, Unavailable> {
        let mut scan = ScriptCall::new(Script::StateScanSince);
        self.state_keys(&mut scan, &["records", "order"]);
        scan.arg(now).arg(prefix).arg(version).arg(max_records.max(1)).arg(max_bytes.min(MAX_REPLY_BYTES));
        self.call::<Vec<Vec<u8>>>(scan).await.map(|reply| unpack_all(&reply))
    }

    /// How many records have fields that begin with `prefix`, and the smallest of the last `suffix_bytes` bytes of the
    /// first 1,000 fields.
    pub async fn summarize_state(
        &self,
        prefix: &str,
        suffix_bytes: usize,
    ) -> Result<(u64, Option<String>), Unavailable> {
        let mut summarize = ScriptCall::new(Script::StateSummarize);
        self.state_keys(&mut summarize, &["names"]);
        let last = [b"[", prefix.as_bytes(), b"\xff"].concat();
        summarize.arg(format!("[{prefix}")).arg(last).arg(suffix_bytes);
        let (count, suffix) = self.call::<(u64, String)>(summarize).await?;
        Ok((count, Some(suffix).filter(|suffix| !suffix.is_empty())))
    }

    /// The changes of followed records behind the version `since`, in the order of versions.
    pub async fn state_changes(&self, since: u64) -> Result<StateChanges, Unavailable> {
        let mut changes = ScriptCall::new(Script::StateChanges);
        self.state_keys(&mut changes, &["records", "changes", "version"]);
        changes.arg(since).arg(CHUNK_RECORDS);
        let reply = self.call::<Vec<Vec<u8>>>(changes).await?;
        let number = |at: usize| std::str::from_utf8(reply.get(at)?).ok()?.parse().ok();
        match (reply.first().map(Vec::as_slice), number(1), number(2)) {
            (Some(b"ok"), Some(version), Some(newest)) => {
                Ok(StateChanges::Found { rows: unpack_all(&reply[3..]), version, newest })
            }
            (Some(b"lost"), ..) => Ok(StateChanges::Lost),
            _ => Err(Unavailable),
        }
    }

    /// Deletes some expired records. Returns whether there may be more.
    pub async fn delete_expired_state(&self, [now, mark_end]: [u64; 2]) -> Result<bool, Unavailable> {
        let mut expire = ScriptCall::new(Script::StateExpire);
        self.state_keys(&mut expire, &WRITTEN_KEYS);
        expire.arg(now).arg(mark_end).arg(CHUNK_RECORDS);
        self.call::<usize>(expire).await.map(|deleted| deleted == CHUNK_RECORDS)
    }

    /// Replaces the sealed value of a record that is still as in `row`. False where it has changed.
    pub async fn reseal_state(&self, row: &StateRow, sealed: Vec<u8>) -> Result<bool, Unavailable> {
        let mut reseal = ScriptCall::new(Script::StateReseal);
        self.state_keys(&mut reseal, &["records"]);
        let resealed = StateRow { sealed, ..row.clone() };
        reseal.arg(&row.field).arg(row.pack()).arg(resealed.pack());
        self.call::<u8>(reseal).await.map(|done| done == 1)
    }

    fn state_keys(&self, call: &mut ScriptCall, kinds: &[&str]) {
        for kind in kinds {
            call.key(store_key(&self.key_prefix, "state", kind));
        }
    }
}

fn unpack_all(reply: &[Vec<u8>]) -> Vec<StateRow> {
    let (pairs, _) = reply.as_chunks::<2>();
    pairs.iter().filter_map(|[field, packed]| StateRow::unpack(field, packed)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn packed_row_then_unpacked_is_unchanged(
            field in "[a-z]{1,9}:.{0,20}",
            version in any::<u64>(),
            expires_at in any::<Option<u64>>(),
            sealed in any::<Vec<u8>>(),
        ) {
            let row = StateRow { field, version, expires_at, sealed };
            prop_assert_eq!(StateRow::unpack(row.field.as_bytes(), &row.pack()), Some(row));
        }

        #[test]
        fn unpack_accepts_any_bytes(field in any::<Vec<u8>>(), packed in any::<Vec<u8>>()) {
            let _ = StateRow::unpack(&field, &packed);
        }
    }
}
