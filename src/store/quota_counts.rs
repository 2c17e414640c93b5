//! Usage of WeCom's quotas, shared among replicas.

use super::{
    Store, Unavailable,
    keys::limit_key,
    script::{Script, ScriptCall},
};

/// Calls against one quota.
#[derive(Debug, Clone)]
pub struct QuotaCount {
    /// Its name among all replicas.
    pub name: String,
    /// Milliseconds of the buckets of time in which calls are counted.
    pub bucket_ms: u64,
    /// How many buckets after its own a call counts.
    pub lifetime: u64,
    /// By how many milliseconds buckets begin before the epoch.
    pub offset_ms: u64,
    /// Calls to add.
    pub calls: u32,
}

impl Store {
    /// Adds calls to what all replicas count. Returns for each quota the calls that count.
    pub async fn count_quotas(&self, counts: &[&QuotaCount]) -> Result<Vec<i64>, Unavailable> {
        let mut call = ScriptCall::new(Script::CountQuotas);
        for count in counts {
            call.key(limit_key(&self.key_prefix, &format!("quota:{}", count.name)));
            call.arg(count.bucket_ms).arg(count.lifetime).arg(count.offset_ms).arg(count.calls);
        }
        self.call(call).await
    }
}
