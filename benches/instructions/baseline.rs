//! What each part is known to cost, and what has become of it.

use std::{fmt::Write as _, fs, path::PathBuf};

use crate::callgrind::{Measurement, PROCESSOR};

/// How far a part may be from the baseline, in percent.
const MARGIN_PERCENT: u64 = 10;
/// What the line with valgrind's version begins with.
const VERSION_PREFIX: &str = "# Counted by ";

/// The command that writes the baseline anew.
pub const RENEW_COMMAND: &str = "cargo bench --locked --bench instructions -- renew";

/// The committed counts.
pub struct Baseline {
    version: String,
    parts: Vec<(String, u64)>,
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
        let told = |what: String| format!("{}: {what}; to write it: {RENEW_COMMAND}", path.display());
        let text = fs::read_to_string(&path).map_err(|error| told(error.to_string()))?;
        let version =
            text.lines().find_map(|line| line.strip_prefix(VERSION_PREFIX)).unwrap_or_default().to_owned();
        let part = |line: &str| {
            let (count, name) = line.trim_start().split_once("  ")?;
            Some((name.to_owned(), count.parse().ok()?))
        };
        let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        let parts = lines.map(|line| part(line).ok_or_else(|| told(format!("{line:?} is no count"))));
        Ok(Self { version, parts: parts.collect::<Result<_, _>>()? })
    }

    /// Puts what was counted in its place.
    pub fn write(counted: &Measurement, version: &str) -> Result<(), String> {
        let mut text = format!("# Instructions of each part, for one request.\n{VERSION_PREFIX}{version}\n");
        text.push_str(&format!("# Renewed by: {RENEW_COMMAND}\n\n"));
        for (name, count) in &counted.parts {
            let _ = writeln!(text, "{count:>8}  {name}");
        }
        fs::write(path(), text).map_err(|error| format!("{}: {error}", path().display()))
    }

    /// Prints each part beside its baseline. Fails where one costs more than it may, or has no baseline.
    pub fn compare(&self, counted: &Measurement, version: &str) -> Result<(), String> {
        println!("{:>10} {:>10} {:>8}  part", "baseline", "now", "change");
        let (mut worse, mut better) = (String::new(), String::new());
        for (name, now) in &counted.parts {
            let known = self.parts.iter().find(|(known, _)| known == name).map(|(_, count)| *count);
            let Some(known) = known else {
                println!("{:>10} {now:>10} {:>8}  {name}", "none", "");
                let _ = writeln!(worse, "  {name}: not in the baseline");
                continue;
            };
            let change = (*now as f64 / known as f64 - 1.0) * 100.0;
            println!("{known:>10} {now:>10} {change:>+7.1}%  {name}");
            let list = match compare_counts(known, *now) {
                Change::WithinMargin => continue,
                Change::Better => &mut better,
                Change::Worse => &mut worse,
            };
            let _ = writeln!(list, "  {name}: {known} before, {now} now ({change:+.1} %)");
        }
        for (name, _) in self.parts.iter().filter(|(name, _)| !counted.parts.iter().any(|(n, _)| n == name)) {
            let _ = writeln!(worse, "  {name}: in the baseline, but no longer counted");
        }
        if counted.processor != PROCESSOR {
            println!("The baseline is for {PROCESSOR}; here nothing is compared with it.");
            return Ok(());
        }
        if !better.is_empty() {
            println!(
                "Better by more than {MARGIN_PERCENT} %:\n{better}So that they stay so, renew the baseline: {RENEW_COMMAND}"
            );
        }
        if worse.is_empty() {
            return Ok(());
        }
        let elsewhere = match version == self.version {
            true => String::new(),
            false => format!("It was counted by {}, and now by {version}, which may be why.\n", self.version),
        };
        Err(format!(
            "worse than benches/baseline.txt allows, which is {MARGIN_PERCENT} %:\n{worse}{elsewhere}\
             If it is worth it, renew the baseline and commit it: {RENEW_COMMAND}"
        ))
    }
}

fn compare_counts(known: u64, now: u64) -> Change {
    if now * 100 > known * (100 + MARGIN_PERCENT) {
        Change::Worse
    } else if now * 100 < known * (100 - MARGIN_PERCENT) {
        Change::Better
    } else {
        Change::WithinMargin
    }
}
