//! Metrics of this process from /proc.

use std::fs;

use super::text_encoder::TextEncoder;

/// The unit of CPU time in /proc (`USER_HZ`), which is the same on every Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// Writes the metrics of the process. Unavailable ones are omitted.
pub fn write_process_metrics(text: &mut TextEncoder) {
    // The second field is the program's name in parentheses, which may contain any character; the third field follows
    // the last parenthesis.
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<_> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |nth: usize| {
        fields.get(nth - 3).and_then(|ticks| ticks.parse::<u64>().ok()).map(|ticks| ticks as f64)
    };
    if let (Some(user), Some(system)) = (ticks(14), ticks(15)) {
        let help = "User and system CPU time.";
        text.write_single("process_cpu_seconds_total", "counter", help, (user + system) / TICKS_PER_SECOND);
    }
    if let Some(resident) = read_proc_number("/proc/self/status", "VmRSS:") {
        text.write_single("process_resident_memory_bytes", "gauge", "Resident memory.", resident * 1024);
    }
    if let Ok(open) = fs::read_dir("/proc/self/fd") {
        // One of them is the directory that is being read.
        let open = open.count().saturating_sub(1);
        text.write_single("process_open_fds", "gauge", "Open file descriptors.", open);
    }
    if let Some(limit) = read_proc_number("/proc/self/limits", "Max open files") {
        text.write_single("process_max_fds", "gauge", "Limit of open file descriptors.", limit);
    }
    if let (Some(since_boot), Some(boot)) = (ticks(22), read_proc_number("/proc/stat", "btime")) {
        let started = boot as f64 + since_boot / TICKS_PER_SECOND;
        text.write_single(
            "process_start_time_seconds",
            "gauge",
            "Start time of the process, in seconds since 1970.",
            started,
        );
    }
}

/// The first number on the line that starts with `prefix`.
fn read_proc_number(path: &str, prefix: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    let rest = text.lines().find_map(|line| line.strip_prefix(prefix))?;
    rest.split_whitespace().next()?.parse().ok()
}
