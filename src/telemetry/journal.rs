//! Priorities of lines for systemd's journal, which reads `<N>` at the start of a line (sd-daemon(3)).

use std::os::unix::fs::MetadataExt;

use tracing::Level;

/// Whether stderr is the stream that systemd has connected to the journal: it names its device and inode.
pub(super) fn is_stderr_journal() -> bool {
    let Some(named) = std::env::var_os("JOURNAL_STREAM") else { return false };
    let stderr = std::fs::metadata("/proc/self/fd/2");
    stderr.is_ok_and(|stderr| named.to_str() == Some(&format!("{}:{}", stderr.dev(), stderr.ino())))
}

/// The prefix of a line of this level.
pub(super) fn prefix(level: Level) -> &'static [u8] {
    match level {
        Level::ERROR => b"<3>",
        Level::WARN => b"<4>",
        Level::INFO => b"<6>",
        Level::DEBUG | Level::TRACE => b"<7>",
    }
}
