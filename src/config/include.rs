//! `include`: more files with agents and clients.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use toml::de::DeTable;

use super::error::{Error, quote};
use super::loaded_files::{IncludePattern, list_matching, listed_directory};
use super::path_error;
use super::reader::{ConfigTable, ConfigValue, ParsedText};
use super::source_file::SourceFile;
use crate::text::Text;
use crate::{format_text, text};

pub(super) const KEYS: &[&str] = &["agents", "clients"];

const EXPECTED: Text = text!("a path like \"agents.d/*.toml\"", "\"agents.d/*.toml\" 这样的路径");

/// The files that `include` matched.
#[derive(Default)]
pub(super) struct Included<'a> {
    /// The files in order, without duplicates.
    pub(super) files: Vec<SourceFile<'a>>,
    /// How many files each pattern matched.
    pub(super) match_counts: BTreeMap<String, usize>,
}

/// Reads the files that `main` includes.
pub(super) fn read<'a>(root: &ConfigTable<'_>, main: &SourceFile<'a>) -> Included<'a> {
    let mut included = Included::default();
    // A pattern may match the main file itself.
    let mut seen: BTreeSet<PathBuf> = fs::canonicalize(main.path()).into_iter().collect();
    let items = root.read_optional("include", |item| {
        item.one_or_list(format_text!("{}, or a list of them", "{}，或路径列表", EXPECTED))
    });
    for item in items.into_iter().flatten() {
        if let Err(error) = read_pattern(&item, main, &mut seen, &mut included) {
            if let Some(inputs) = main.inputs() {
                inputs.mark_incomplete();
            }
            item.location.record(error);
        }
    }
    included
}

/// Reads the files of one pattern.
fn read_pattern<'a>(
    item: &ConfigValue<'_>,
    main: &SourceFile<'a>,
    seen: &mut BTreeSet<PathBuf>,
    included: &mut Included<'a>,
) -> Result<(), Error> {
    let paths = expand_paths(item)?;
    if paths.is_empty() {
        item.location.warn(text!("matches no file", "没有匹配任何文件"));
    }
    included.match_counts.insert(item.string(EXPECTED)?.to_owned(), paths.len());
    for path in paths {
        let real = fs::canonicalize(&path).unwrap_or_else(|_| path.clone());
        if seen.insert(real) {
            let Some(inputs) = main.inputs() else { continue };
            let file = SourceFile::read(&path, inputs);
            let file =
                file.map_err(|e| item.error(format_text!("{}: {}", "{}：{}", path.display(), e.message)))?;
            included.files.push(file);
        }
    }
    Ok(())
}

/// The root table of an included file.
pub(super) fn root_table<'a>(
    source: (&'a SourceFile<'a>, ParsedText<'a>),
    table: &'a DeTable<'a>,
) -> ConfigTable<'a> {
    let misplaced = text!(
        "belongs in the main file; an included file contains only [agents.*] and [clients.*]",
        "应写在主文件中；被包含的文件只能有 [agents.*] 和 [clients.*]"
    );
    ConfigTable::partial_root(source, table, KEYS, super::KEYS, misplaced)
}

fn expand_paths(item: &ConfigValue<'_>) -> Result<Vec<PathBuf>, Error> {
    let text = item.string(EXPECTED)?;
    let path = item.path()?;
    let (parent, last) = text.rsplit_once('/').unwrap_or(("", text));
    if parent.contains('*') || last.contains("**") || last.is_empty() {
        return Err(item.error(format_text!(
            "{} is not supported; only the file name may contain a *",
            "不支持 {}；只有文件名可以含 *",
            quote(text)
        )));
    }
    if last.contains('*') {
        return matching_files(item, path.parent().unwrap_or(Path::new("")), last);
    }
    item.location.source.record_file(&path);
    match path.try_exists() {
        Ok(false) => Err(item.error(format_text!(
            "there is no file {}",
            "没有文件 {}",
            quote(&path.to_string_lossy())
        ))),
        _ => Ok(vec![path]),
    }
}

/// The files in `directory` whose names match, sorted by name.
fn matching_files(item: &ConfigValue<'_>, directory: &Path, pattern: &str) -> Result<Vec<PathBuf>, Error> {
    let listed = listed_directory(directory);
    let listing = list_matching(directory, pattern).map_err(|e| {
        let advice = path_error::path_hint(listed, &e);
        item.error(format_text!(
            "{} cannot be listed: {}{}",
            "{} 无法列出：{}{}",
            quote(&listed.to_string_lossy()),
            e,
            advice
        ))
    });
    let (directory, name) = (directory.to_owned(), pattern.to_owned());
    let matches = listing.as_ref().cloned().unwrap_or_default();
    if let Some(inputs) = item.location.source.inputs() {
        inputs.record_pattern(IncludePattern { directory, name, matches });
    }
    listing
}
