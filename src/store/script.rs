//! The Lua scripts, and a call of one.

use redis::ToRedisArgs;

/// One of the store's scripts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Script {
    Claim,
    Read,
    Put,
    Forget,
    EndLease,
    ExtendLease,
    ConsumeLimits,
    StateWrite,
    StateRead,
    StateScan,
    StateScanSince,
    StateChanges,
    StateExpire,
    StateReseal,
    StateSummarize,
    CountQuotas,
}

/// The number of scripts.
pub(super) const SCRIPT_COUNT: usize = 16;

/// The scripts' texts, in the order of [`Script`].
pub(super) const SCRIPT_TEXTS: [&str; SCRIPT_COUNT] = [
    include_str!("scripts/claim.lua"),
    include_str!("scripts/read.lua"),
    include_str!("scripts/put.lua"),
    include_str!("scripts/forget.lua"),
    include_str!("scripts/end_lease.lua"),
    include_str!("scripts/extend_lease.lua"),
    include_str!("scripts/consume_limits.lua"),
    include_str!("scripts/state_write.lua"),
    include_str!("scripts/state_read.lua"),
    include_str!("scripts/state_scan.lua"),
    include_str!("scripts/state_scan_since.lua"),
    include_str!("scripts/state_changes.lua"),
    include_str!("scripts/state_expire.lua"),
    include_str!("scripts/state_reseal.lua"),
    include_str!("scripts/state_summarize.lua"),
    include_str!("scripts/count_quotas.lua"),
];

/// A script with its keys and arguments.
pub(super) struct ScriptCall {
    pub(super) script: Script,
    pub(super) keys: Vec<String>,
    pub(super) arguments: Vec<Vec<u8>>,
}

impl ScriptCall {
    pub(super) fn new(script: Script) -> Self {
        Self { script, keys: Vec::new(), arguments: Vec::new() }
    }

    pub(super) fn key(&mut self, key: String) -> &mut Self {
        self.keys.push(key);
        self
    }

    pub(super) fn arg(&mut self, argument: impl ToRedisArgs) -> &mut Self {
        self.arguments.extend(argument.to_redis_args());
        self
    }
}
