//! Runs this program once more, under callgrind, and reads what it counted.

use std::{
    env, fs, io,
    path::Path,
    process::{Command, Stdio},
};

use crate::counter::{COUNTED, TOGGLES};

/// What tells the program that it is the one that is counted.
pub const CHILD_ARGUMENT: &str = "--inside";
/// What the counted program calls itself where it finds the processor that the baseline is for.
pub const PROCESSOR: &str = "x86-64 with AVX2";

/// What one run counted.
pub struct Measurement {
    /// Which processor the parts took this one for.
    pub processor: String,
    /// Each part's name and its instructions for one round.
    pub parts: Vec<(String, u64)>,
}

/// What the counted program says of its processor. Libraries choose their code by it when they run. Callgrind shows a
/// processor of its own, which is the same wherever the real one has AVX2, and knows neither AVX-512 nor the
/// instructions for SHA.
pub fn processor() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        return PROCESSOR;
    }
    "another processor"
}

/// The version of valgrind, as it says it itself.
pub fn valgrind_version() -> Result<String, String> {
    let said = Command::new("valgrind").arg("--version").output();
    let said = said.map_err(|error| format!("valgrind cannot be run ({error}); tests/run.sh installs it"))?;
    Ok(String::from_utf8_lossy(&said.stdout).trim().to_owned())
}

/// Counts every part.
pub fn run() -> Result<Measurement, String> {
    let dir = tempfile::tempdir().map_err(|error| format!("no temporary directory: {error}"))?;
    let own = env::current_exe().map_err(|error| format!("no path of its own: {error}"))?;
    // The environment lies on the stack, whose place decides what of the data is aligned.
    let ran = Command::new("valgrind")
        .env_clear()
        .envs(["PATH", "TMPDIR"].iter().filter_map(|name| Some((name, env::var_os(name)?))))
        .arg("--tool=callgrind")
        .arg(format!("--callgrind-out-file={}", dir.path().join("out").display()))
        .arg(format!("--toggle-collect={TOGGLES}"))
        .arg(format!("--dump-after={COUNTED}"))
        .arg(own)
        .arg(CHILD_ARGUMENT)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("valgrind cannot be run ({error}); tests/run.sh installs it"))?;
    let said = String::from_utf8_lossy(&ran.stdout);
    if !ran.status.success() {
        return Err(format!(
            "under callgrind: {}\n{said}{}",
            ran.status,
            String::from_utf8_lossy(&ran.stderr)
        ));
    }
    let mut lines = said.lines();
    let processor = lines.next().unwrap_or_default().to_owned();
    let part = |(nth, line): (usize, &str)| {
        let (rounds, name) = line.split_once(' ')?;
        // The dump before it is of the rounds that warm it up.
        let all = dump_total(dir.path(), 2 * (nth + 1)).ok()??;
        Some((name.to_owned(), all / rounds.parse::<u64>().ok()?))
    };
    let parts = lines.enumerate().map(part).collect::<Option<Vec<_>>>();
    let parts =
        parts.ok_or("callgrind left no count for a part; the functions that it is told of may be inlined, or have other names")?;
    Ok(Measurement { processor, parts })
}

/// The instructions in the nth dump.
fn dump_total(dir: &Path, nth: usize) -> io::Result<Option<u64>> {
    let dump = fs::read_to_string(dir.join(format!("out.{nth}")))?;
    let total = dump.lines().find_map(|line| line.strip_prefix("totals: "));
    Ok(total.and_then(|total| total.trim().parse().ok()))
}
