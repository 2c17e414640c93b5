//! Runs this program again under callgrind and reads its counts.

use std::{
    env, fs, io,
    path::Path,
    process::{Command, Stdio},
};

use crate::counter::{COUNTED, TOGGLES};

/// The argument that selects the counted run.
pub const CHILD_ARGUMENT: &str = "--inside";
/// The processor of the baseline, as the counted run reports it.
pub const PROCESSOR: &str = "x86-64 with AVX2";

/// The counts of one run.
pub struct Measurement {
    /// The processor that the counted run detected.
    pub processor: String,
    /// Each case's name and its instructions per round.
    pub cases: Vec<(String, u64)>,
}

/// The processor as the counted run detects it. Libraries select code by it at run time. Callgrind emulates a processor
/// that is the same wherever the real one has AVX2, and supports neither AVX-512 nor the SHA instructions.
pub fn processor() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        return PROCESSOR;
    }
    "another processor"
}

/// The version that `valgrind --version` prints.
pub fn valgrind_version() -> Result<String, String> {
    let output = Command::new("valgrind").arg("--version").output();
    let output =
        output.map_err(|error| format!("valgrind cannot be run ({error}); tests/run.sh installs it"))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Counts every case.
pub fn run() -> Result<Measurement, String> {
    let dir = tempfile::tempdir().map_err(|error| format!("no temporary directory: {error}"))?;
    let program = env::current_exe().map_err(|error| format!("no path of this program: {error}"))?;
    // The environment is on the stack: its size would shift the stack and so change the alignment of data.
    let output = Command::new("valgrind")
        .env_clear()
        .envs(["PATH", "TMPDIR"].iter().filter_map(|name| Some((name, env::var_os(name)?))))
        .arg("--tool=callgrind")
        .arg(format!("--callgrind-out-file={}", dir.path().join("out").display()))
        .arg(format!("--toggle-collect={TOGGLES}"))
        .arg(format!("--dump-after={COUNTED}"))
        .arg(program)
        .arg(CHILD_ARGUMENT)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("valgrind cannot be run ({error}); tests/run.sh installs it"))?;
    let stdout = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        return Err(format!(
            "under callgrind: {}\n{stdout}{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        ));
    }
    let mut lines = stdout.lines();
    let processor = lines.next().unwrap_or_default().to_owned();
    let parse_case = |(index, line): (usize, &str)| {
        let (rounds, name) = line.split_once(' ')?;
        // Each case has two dumps: the warm-up rounds, then the counted rounds.
        let total = dump_total(dir.path(), 2 * (index + 1)).ok()??;
        Some((name.to_owned(), total / rounds.parse::<u64>().ok()?))
    };
    let cases = lines.enumerate().map(parse_case).collect::<Option<Vec<_>>>();
    let cases =
        cases.ok_or("callgrind wrote no count for a case; its toggle functions may be inlined or renamed")?;
    Ok(Measurement { processor, cases })
}

/// The total of the dump with this number.
fn dump_total(dir: &Path, number: usize) -> io::Result<Option<u64>> {
    let dump = fs::read_to_string(dir.join(format!("out.{number}")))?;
    let total = dump.lines().find_map(|line| line.strip_prefix("totals: "));
    Ok(total.and_then(|total| total.trim().parse().ok()))
}
