//! `include`: further files with agents and clients.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use toml::de::DeTable;

use super::document::Document;
use super::error::{Error, quoted};
use super::files;
use super::pattern::glob;
use super::section::{Item, Section};

pub(super) const KEYS: &[&str] = &["agents", "clients"];

const EXPECTED: &str = "a path like \"agents.d/*.toml\"";

/// What `include` led to.
#[derive(Default)]
pub(super) struct Included<'a> {
    /// The files in order, each once.
    pub(super) documents: Vec<Document<'a>>,
    /// How many files each pattern matched.
    pub(super) matched: BTreeMap<String, usize>,
}

/// Reads the files that `main` includes.
pub(super) fn read<'a>(root: &Section<'_>, main: &Document<'a>) -> Result<Included<'a>, Error> {
    let mut included = Included::default();
    let Some(item) = root.find("include") else {
        return Ok(included);
    };
    // The main file may match its own pattern.
    let mut seen: BTreeSet<PathBuf> = fs::canonicalize(main.path()).into_iter().collect();
    for item in item.one_or_list(&format!("{EXPECTED}, or a list of them"))? {
        let paths = expand(&item)?;
        included.matched.insert(item.text(EXPECTED)?.to_owned(), paths.len());
        for path in paths {
            let real = fs::canonicalize(&path).unwrap_or_else(|_| path.clone());
            if seen.insert(real) {
                let document = Document::read(&path, main.lookup());
                let document = document.map_err(|e| item.error(format!("{}: {}", path.display(), e.what)))?;
                included.documents.push(document);
            }
        }
    }
    Ok(included)
}

/// The whole of an included file.
pub(super) fn section<'a>(document: &'a Document<'a>, table: &'a DeTable<'a>) -> Result<Section<'a>, Error> {
    let elsewhere = "belongs in the main file; an included one holds only [agents.*] and [clients.*]";
    if let Ok(main) = Section::root(document, table, super::KEYS)
        && let Some(key) = super::KEYS.iter().find(|key| !KEYS.contains(key) && main.find(key).is_some())
    {
        return Err(main.place(key).error(elsewhere));
    }
    Section::root(document, table, KEYS)
}

fn expand(item: &Item<'_>) -> Result<Vec<PathBuf>, Error> {
    let text = item.text(EXPECTED)?;
    let path = item.path()?;
    let (parent, last) = text.rsplit_once('/').unwrap_or(("", text));
    if parent.contains('*') || last.contains("**") || last.is_empty() {
        return Err(
            item.error(format!("{} cannot be followed; a * may stand in the file's name only", quoted(text)))
        );
    }
    if last.contains('*') {
        return matching(item, path.parent().unwrap_or(Path::new("")), last);
    }
    match path.try_exists() {
        Ok(false) => Err(item.error(format!("there is no file {}", quoted(&path.to_string_lossy())))),
        _ => Ok(vec![path]),
    }
}

/// The files in `directory` whose names match, by name. As in a shell, `*` does not stand for a leading dot.
fn matching(item: &Item<'_>, directory: &Path, pattern: &str) -> Result<Vec<PathBuf>, Error> {
    let shown = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
    let refuse = |e| {
        let advice = files::advice(shown, &e);
        item.error(format!("{} cannot be listed: {e}{advice}", quoted(&shown.to_string_lossy())))
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
        if glob(pattern, &text) && !hidden && !path.is_dir() {
            paths.insert(path);
        }
    }
    Ok(paths.into_iter().collect())
}
