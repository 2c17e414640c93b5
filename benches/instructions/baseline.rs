//! The committed instruction counts, and the comparison with new counts.

use std::{fmt::Write as _, fs, path::PathBuf};

use crate::callgrind::{Measurement, PROCESSOR};

/// Allowed difference from the baseline, in percent.
const MARGIN_PERCENT: u64 = 10;
/// Prefix of the line with valgrind's version.
const VERSION_PREFIX: &str = "# Counted by ";

/// The command that rewrites the baseline.
pub const RENEW_COMMAND: &str = "cargo bench --locked --bench instructions -- renew";

/// The committed counts.
pub struct Baseline {
    version: String,
    cases: Vec<(String, u64)>,
}

/// Whether a count stays within the margin.
#[derive(PartialEq, Eq)]
enum Change {
    WithinMargin,
    Better,
    Worse,
}

fn path() -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "benches", "baseline.txt"].iter().collect()
}

impl Baseline {
    /// Reads the file.
    pub fn read() -> Result<Self, String> {
        let path = path();
        let with_context =
            |message: String| format!("{}: {message}; to write it: {RENEW_COMMAND}", path.display());
        let text = fs::read_to_string(&path).map_err(|error| with_context(error.to_string()))?;
        let version =
            text.lines().find_map(|line| line.strip_prefix(VERSION_PREFIX)).unwrap_or_default().to_owned();
        let parse_case = |line: &str| {
            let (count, name) = line.trim_start().split_once("  ")?;
            Some((name.to_owned(), count.parse().ok()?))
        };
        let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        let cases =
            lines.map(|line| parse_case(line).ok_or_else(|| with_context(format!("invalid line {line:?}"))));
        Ok(Self { version, cases: cases.collect::<Result<_, _>>()? })
    }

    /// Replaces the baseline.
    pub fn write(counted: &Measurement, version: &str) -> Result<(), String> {
        let mut text = format!("# Instructions per case, for one request.\n{VERSION_PREFIX}{version}\n");
        text.push_str(&format!("# Renewed by: {RENEW_COMMAND}\n\n"));
        for (name, count) in &counted.cases {
            let _ = writeln!(text, "{count:>8}  {name}");
        }
        fs::write(path(), text).map_err(|error| format!("{}: {error}", path().display()))
    }

    /// Prints each case beside its baseline. Fails if a case is worse by more than the margin or has no baseline.
    pub fn compare(&self, counted: &Measurement, version: &str) -> Result<(), String> {
        println!("{:>10} {:>10} {:>8}  case", "baseline", "now", "change");
        let (mut worse, mut better) = (String::new(), String::new());
        for (name, now) in &counted.cases {
            let expected = self.cases.iter().find(|(expected, _)| expected == name).map(|(_, count)| *count);
            let Some(expected) = expected else {
                println!("{:>10} {now:>10} {:>8}  {name}", "none", "");
                let _ = writeln!(worse, "  {name}: not in the baseline");
                continue;
            };
            let change = (*now as f64 / expected as f64 - 1.0) * 100.0;
            println!("{expected:>10} {now:>10} {change:>+7.1}%  {name}");
            let list = match compare_counts(expected, *now) {
                Change::WithinMargin => continue,
                Change::Better => &mut better,
                Change::Worse => &mut worse,
            };
            let _ = writeln!(list, "  {name}: {expected} before, {now} now ({change:+.1} %)");
        }
        for (name, _) in self.cases.iter().filter(|(name, _)| !counted.cases.iter().any(|(n, _)| n == name)) {
            let _ = writeln!(worse, "  {name}: in the baseline, but no longer counted");
        }
        if counted.processor != PROCESSOR {
            println!("The baseline is for {PROCESSOR}, so it is not compared on this processor.");
            return Ok(());
        }
        if !better.is_empty() {
            println!(
                "Better by more than {MARGIN_PERCENT} %:\n{better}To keep the improvement, renew the baseline: {RENEW_COMMAND}"
            );
        }
        if worse.is_empty() {
            return Ok(());
        }
        let version_note = match version == self.version {
            true => String::new(),
            false => format!(
                "The baseline was counted by {}, this run by {version}, which may be the reason.\n",
                self.version
            ),
        };
        Err(format!(
            "worse than benches/baseline.txt by more than {MARGIN_PERCENT} %:\n{worse}{version_note}\
             If the change is worth it, renew the baseline and commit it: {RENEW_COMMAND}"
        ))
    }
}

fn compare_counts(expected: u64, now: u64) -> Change {
    if now * 100 > expected * (100 + MARGIN_PERCENT) {
        Change::Worse
    } else if now * 100 < expected * (100 - MARGIN_PERCENT) {
        Change::Better
    } else {
        Change::WithinMargin
    }
}
