//! `include`: more files with agents and clients.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use toml::de::DeTable;

use super::error::{Error, quote};
use super::path_error;
use super::pattern::matches_glob;
use super::reader::{ConfigTable, ConfigValue};
use super::source_file::SourceFile;

pub(super) const KEYS: &[&str] = &["agents", "clients"];

const EXPECTED: &str = "a path like \"agents.d/*.toml\"";

/// The files that `include` matched.
#[derive(Default)]
pub(super) struct Included<'a> {
    /// The files in order, without duplicates.
    pub(super) files: Vec<SourceFile<'a>>,
    /// How many files each pattern matched.
    pub(super) match_counts: BTreeMap<String, usize>,
}

/// Reads the files that `main` includes.
pub(super) fn read<'a>(root: &ConfigTable<'_>, main: &SourceFile<'a>) -> Result<Included<'a>, Error> {
    let mut included = Included::default();
    let Some(item) = root.find("include") else {
        return Ok(included);
    };
    // A pattern may match the main file itself.
    let mut seen: BTreeSet<PathBuf> = fs::canonicalize(main.path()).into_iter().collect();
    for item in item.one_or_list(&format!("{EXPECTED}, or a list of them"))? {
        let paths = expand_paths(&item)?;
        included.match_counts.insert(item.string(EXPECTED)?.to_owned(), paths.len());
        for path in paths {
            let real = fs::canonicalize(&path).unwrap_or_else(|_| path.clone());
            if seen.insert(real) {
                let file = SourceFile::read(&path, main.env_lookup());
                let file = file.map_err(|e| item.error(format!("{}: {}", path.display(), e.message)))?;
                included.files.push(file);
            }
        }
    }
    Ok(included)
}

/// The root table of an included file.
pub(super) fn root_table<'a>(
    source: &'a SourceFile<'a>,
    table: &'a DeTable<'a>,
) -> Result<ConfigTable<'a>, Error> {
    let misplaced = "belongs in the main file; an included file contains only [agents.*] and [clients.*]";
    if let Ok(main) = ConfigTable::root(source, table, super::KEYS)
        && let Some(key) = super::KEYS.iter().find(|key| !KEYS.contains(key) && main.find(key).is_some())
    {
        return Err(main.location_of(key).error(misplaced));
    }
    ConfigTable::root(source, table, KEYS)
}

fn expand_paths(item: &ConfigValue<'_>) -> Result<Vec<PathBuf>, Error> {
    let text = item.string(EXPECTED)?;
    let path = item.path()?;
    let (parent, last) = text.rsplit_once('/').unwrap_or(("", text));
    if parent.contains('*') || last.contains("**") || last.is_empty() {
        return Err(
            item.error(format!("{} is not supported; only the file name may contain a *", quote(text)))
        );
    }
    if last.contains('*') {
        return matching_files(item, path.parent().unwrap_or(Path::new("")), last);
    }
    match path.try_exists() {
        Ok(false) => Err(item.error(format!("there is no file {}", quote(&path.to_string_lossy())))),
        _ => Ok(vec![path]),
    }
}

/// The files in `directory` whose names match, sorted by name. As in a shell, `*` does not match a leading dot.
fn matching_files(item: &ConfigValue<'_>, directory: &Path, pattern: &str) -> Result<Vec<PathBuf>, Error> {
    let listed = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
    let refuse = |e| {
        let advice = path_error::path_hint(listed, &e);
        item.error(format!("{} cannot be listed: {e}{advice}", quote(&listed.to_string_lossy())))
    };
    let entries = match fs::read_dir(listed) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(refuse)?,
    };
    let mut paths = BTreeSet::new();
    for entry in entries {
        let name = entry.map_err(refuse)?.file_name();
        let text = name.to_string_lossy();
        let hidden = text.starts_with('.') && !pattern.starts_with('.');
        let path = directory.join(&name);
        if matches_glob(pattern, &text) && !hidden && !path.is_dir() {
            paths.insert(path);
        }
    }
    Ok(paths.into_iter().collect())
}
