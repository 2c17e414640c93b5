//! `include`: further files with agents and clients.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use toml::de::DeTable;

use super::error::{Error, quote};
use super::files;
use super::pattern::matches_glob;
use super::reader::{ConfigTable, ConfigValue};
use super::source_file::SourceFile;

pub(super) const KEYS: &[&str] = &["agents", "clients"];

const EXPECTED: &str = "a path like \"agents.d/*.toml\"";

/// What `include` led to.
#[derive(Default)]
pub(super) struct Included<'a> {
    /// The files in order, each once.
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
    // The main file may match its own pattern.
    let mut seen: BTreeSet<PathBuf> = fs::canonicalize(main.path()).into_iter().collect();
    for item in item.one_or_list(&format!("{EXPECTED}, or a list of them"))? {
        let paths = expand_paths(&item)?;
        included.match_counts.insert(item.string(EXPECTED)?.to_owned(), paths.len());
        for path in paths {
            let real = fs::canonicalize(&path).unwrap_or_else(|_| path.clone());
            if seen.insert(real) {
                let document = SourceFile::read(&path, main.env_lookup());
                let document =
                    document.map_err(|e| item.error(format!("{}: {}", path.display(), e.message)))?;
                included.files.push(document);
            }
        }
    }
    Ok(included)
}

/// The whole of an included file.
pub(super) fn root_table<'a>(
    document: &'a SourceFile<'a>,
    table: &'a DeTable<'a>,
) -> Result<ConfigTable<'a>, Error> {
    let elsewhere = "belongs in the main file; an included one holds only [agents.*] and [clients.*]";
    if let Ok(main) = ConfigTable::root(document, table, super::KEYS)
        && let Some(key) = super::KEYS.iter().find(|key| !KEYS.contains(key) && main.find(key).is_some())
    {
        return Err(main.location_of(key).error(elsewhere));
    }
    ConfigTable::root(document, table, KEYS)
}

fn expand_paths(item: &ConfigValue<'_>) -> Result<Vec<PathBuf>, Error> {
    let text = item.string(EXPECTED)?;
    let path = item.path()?;
    let (parent, last) = text.rsplit_once('/').unwrap_or(("", text));
    if parent.contains('*') || last.contains("**") || last.is_empty() {
        return Err(
            item.error(format!("{} cannot be followed; a * may stand in the file's name only", quote(text)))
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

/// The files in `directory` whose names match, by name. As in a shell, `*` does not stand for a leading dot.
fn matching_files(item: &ConfigValue<'_>, directory: &Path, pattern: &str) -> Result<Vec<PathBuf>, Error> {
    let shown = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
    let refuse = |e| {
        let advice = files::path_hint(shown, &e);
        item.error(format!("{} cannot be listed: {e}{advice}", quote(&shown.to_string_lossy())))
    };
    let entries = match fs::read_dir(shown) {
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
