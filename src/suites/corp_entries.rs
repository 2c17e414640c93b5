//! Authorised corps as the admin API reads and writes them, and the end of their authorisation.

use super::{
    Suites,
    records::{CancellationRecord, CorpRecord, corp_record_name, encode},
};
use crate::{
    config::CorpConfig,
    directory::{StoredEntry, Suite},
    state::{Collection, Precondition, ReadError, Write, WriteError},
};

/// A corp in the state.
pub struct StoredCorp {
    /// The version that wrote it.
    pub version: u64,
    /// Its table, with the permanent code.
    pub entry: StoredEntry,
    record: CorpRecord,
}

impl Suites {
    /// The newest record of a corp, also if another process wrote it.
    pub async fn read_corp(&self, suite: &Suite, corpid: &str) -> Result<Option<StoredCorp>, ReadError> {
        let name = corp_record_name(&suite.config.suite_id, corpid);
        let Some(record) = self.read(Collection::Corps, &name).await? else { return Ok(None) };
        let corp = record.value.and_then(|value| CorpRecord::parse(&value, record.version));
        Ok(corp.map(|record| StoredCorp { version: record.version, entry: record.to_entry(), record }))
    }

    /// Writes what an operator says of a corp in place of `current`, if that is still so. What its passes are made under
    /// stays. Returns the new version.
    pub async fn put_corp(
        &self,
        suite: &Suite,
        (corp, entry): (&CorpConfig, &StoredEntry),
        current: Option<StoredCorp>,
    ) -> Result<u64, WriteError> {
        let precondition =
            current.as_ref().map_or(Precondition::Absent, |current| Precondition::Version(current.version));
        let before = match current {
            Some(current) => current.record,
            None => CorpRecord::create(corp.permanent_code.clone(), None)
                .map_err(|error| WriteError::Unavailable(error.to_string()))?,
        };
        let name = corp_record_name(&suite.config.suite_id, &corp.corpid);
        let write = Write::put(Collection::Corps, name, encode(&before.with_entry(entry, corp)));
        self.write(vec![write.when(precondition)]).await
    }

    /// Forgets a corp that withdrew its authorisation, with its permanent code and all stand-ins for it.
    pub async fn cancel(&self, suite: &Suite, corpid: &str) -> Result<(), WriteError> {
        self.delete_corp(suite, corpid, Precondition::None).await
    }

    /// The same, if the precondition holds for the corp's record.
    pub async fn delete_corp(
        &self,
        suite: &Suite,
        corpid: &str,
        precondition: Precondition,
    ) -> Result<(), WriteError> {
        let suite_id = &suite.config.suite_id;
        let name = corp_record_name(suite_id, corpid);
        let mut writes = vec![Write::delete(Collection::Corps, name.clone()).when(precondition)];
        writes.extend(self.corp_deletions(suite, corpid).await);
        match suite.named_code(corpid).filter(|_| suite.is_file_corp(corpid)) {
            Some((file_code, _)) => {
                let record = encode(&CancellationRecord::new(&file_code));
                writes.push(Write::put(Collection::CancelledCorps, name, record));
                tracing::warn!(
                    agent = suite.name(),
                    corpid,
                    "corp withdrew its authorisation, though the file names it; it is gone until it authorises again, or until the \
                     file has another permanent_code"
                );
            }
            None => {
                let name = suite.name_in_state(corpid);
                writes.extend(name.map(|name| Write::delete(Collection::Agents, name)));
            }
        }
        self.write(writes).await.map(drop)
    }

    /// The writes that delete what there is of a corp beside its record: stand-ins, and what was returned for its
    /// auth_codes.
    async fn corp_deletions(&self, suite: &Suite, corpid: &str) -> Vec<Write> {
        let suite_id = &suite.config.suite_id;
        let stand_ins = self.stand_ins.iter();
        let stand_ins = stand_ins.filter(|known| known.suite_id == *suite_id && known.corpid == corpid);
        let mut writes = self.redeemed_deletions(suite, corpid).await;
        writes.extend(stand_ins.map(|known| Write::delete(Collection::StandIns, known.key().clone())));
        writes
    }

    /// The writes that delete all of a corp that stands in the state under a name of its own, but that agent.
    pub async fn named_corp_deletions(&self, suite: &Suite, corpid: &str) -> Vec<Write> {
        let mut writes = self.corp_deletions(suite, corpid).await;
        writes.push(Write::delete(Collection::Corps, corp_record_name(&suite.config.suite_id, corpid)));
        writes
    }
}
