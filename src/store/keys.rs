//! Names in the store: keys, the notification channel, and the additional authenticated data (AAD) of sealed values.

/// The key of one value of a name. The braces are a hash tag: they keep all keys of a name in one slot of a cluster.
pub(super) fn store_key(prefix: &str, name: &str, kind: &str) -> String {
    format!("{prefix}{{{name}}}:{kind}")
}

/// The key of one shared limit. All limits are in one slot of a cluster, because one script call counts several.
pub(super) fn limit_key(prefix: &str, name: &str) -> String {
    format!("{prefix}{{limits}}:{name}")
}

pub(super) fn channel_name(prefix: &str) -> String {
    format!("{prefix}news")
}

/// Binds a sealed record to its name and fence: it can be moved to no other name, and be made no newer than it is.
pub(super) fn record_aad(name: &str, fence: u64) -> String {
    format!("{name}:record:{fence}")
}

pub(super) fn failure_aad(name: &str) -> String {
    format!("{name}:failure")
}
