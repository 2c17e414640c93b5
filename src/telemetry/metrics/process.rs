//! What the system says of this process, where it says so under /proc.

use std::fs;

use super::text_encoder::TextEncoder;

/// The unit of processor time in /proc, which is the same on every Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// Writes the process's own metrics. What cannot be found out is left out.
pub fn write_process_metrics(text: &mut TextEncoder) {
    // The program's name may hold anything, and ends with the last parenthesis; the third field comes next.
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<_> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |nth: usize| {
        fields.get(nth - 3).and_then(|ticks| ticks.parse::<u64>().ok()).map(|ticks| ticks as f64)
    };
    if let (Some(user), Some(system)) = (ticks(14), ticks(15)) {
        let help = "Processor time, of the program and of the system for it.";
        text.write_single("process_cpu_seconds_total", "counter", help, (user + system) / TICKS_PER_SECOND);
    }
    if let Some(resident) = read_proc_number("/proc/self/status", "VmRSS:") {
        text.write_single(
            "process_resident_memory_bytes",
            "gauge",
            "Memory that is resident.",
            resident * 1024,
        );
    }
    if let Ok(open) = fs::read_dir("/proc/self/fd") {
        // One of them is open for this look alone.
        let open = open.count().saturating_sub(1);
        text.write_single("process_open_fds", "gauge", "File descriptors that are open.", open);
    }
    if let Some(most) = read_proc_number("/proc/self/limits", "Max open files") {
        text.write_single("process_max_fds", "gauge", "File descriptors that may be open.", most);
    }
    if let (Some(since_boot), Some(boot)) = (ticks(22), read_proc_number("/proc/stat", "btime")) {
        let began = boot as f64 + since_boot / TICKS_PER_SECOND;
        text.write_single(
            "process_start_time_seconds",
            "gauge",
            "When it began, in seconds since 1970.",
            began,
        );
    }
}

/// The first number on the line that begins so.
fn read_proc_number(path: &str, beginning: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    let rest = text.lines().find_map(|line| line.strip_prefix(beginning))?;
    rest.split_whitespace().next()?.parse().ok()
}
