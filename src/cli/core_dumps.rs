//! No core dumps: memory holds secrets, tokens and keys.

use rustix::process::{Resource, Rlimit, setrlimit};

/// Keeps this process and those it starts from leaving core dumps. Where the system does not allow it, all goes on without.
pub fn forbid_core_dumps() {
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
    // A program that core_pattern pipes to gets a dump whatever the limit is, but for a process that is not dumpable.
    #[cfg(target_os = "linux")]
    let _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
}
