//! The priority of the calling thread.

use super::slices::allow_yields;
#[cfg(target_os = "linux")]
use thread_priority::{
    ThreadPriority,
    unix::{
        NormalThreadSchedulePolicy, ThreadSchedulePolicy, set_thread_priority_and_policy, thread_native_id,
    },
};

/// Lets this thread run only while no other one wants its CPU. A niceness alone would not do: since Linux 6.6, a thread
/// that wakes up may wait for a nice one until the next tick, for some milliseconds. Where the system refuses, the
/// priority stays as it is. Threads that this one starts inherit it.
pub(crate) fn lower() {
    allow_yields();
    #[cfg(target_os = "linux")]
    {
        let policy = ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Idle);
        let _ = set_thread_priority_and_policy(thread_native_id(), ThreadPriority::Min, policy);
        let _ = rustix::process::setpriority_process(None, 19);
    }
}
