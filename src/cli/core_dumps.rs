//! Disables core dumps, because memory contains secrets, tokens and keys.

use rustix::process::{Resource, Rlimit, setrlimit};

/// Disables core dumps of this process and its children. A failure is ignored.
pub fn forbid_core_dumps() {
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
    // A core_pattern that pipes to a program ignores the limit, but not the dumpable flag.
    #[cfg(target_os = "linux")]
    let _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
}
