//! The files that a load of the configuration reads, for `server.reload = "watch"`.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::glob::matches_glob;

/// What a load reads from: the environment, and files, which it records.
pub(super) struct Inputs<'a> {
    env: &'a dyn Fn(&str) -> Option<String>,
    secrets: SecretMode,
    files: RefCell<LoadedFiles>,
    /// The keys whose values are wrong.
    broken: RefCell<BTreeSet<String>>,
    /// Whether a file could not be read, so that it is not known which agents and clients there are.
    is_incomplete: Cell<bool>,
}

/// What becomes of secrets in the environment and in files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SecretMode {
    /// One that cannot be read is an error.
    Required,
    /// One that cannot be read is replaced by a placeholder.
    Optional,
    /// All are replaced by placeholders, and files of certificates need not exist.
    Unread,
}

/// The files that a load has read or tried to read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadedFiles {
    /// Each file with its stamp right before it was read; `None`: there was none.
    pub files: BTreeMap<PathBuf, Option<FileStamp>>,
    /// The patterns of `include`.
    pub patterns: Vec<IncludePattern>,
}

/// A pattern of `include`, and the files that it matched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IncludePattern {
    pub(super) directory: PathBuf,
    pub(super) name: String,
    /// The files that it matched.
    pub matches: Vec<PathBuf>,
}

impl IncludePattern {
    /// The files that it matches now, sorted by name; none if the directory cannot be listed.
    pub fn matching_files(&self) -> Vec<PathBuf> {
        list_matching(&self.directory, &self.name).unwrap_or_default()
    }
}

/// Changes whenever a file is written, replaced, or reached through another symbolic link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileStamp {
    device: u64,
    inode: u64,
    size: u64,
    /// Seconds and nanoseconds.
    ctime: (i64, i64),
}

impl FileStamp {
    /// The stamp of the regular file at `path`, through symbolic links.
    pub fn of(path: &Path) -> Option<Self> {
        let file = fs::metadata(path).ok().filter(fs::Metadata::is_file)?;
        let ctime = (file.ctime(), file.ctime_nsec());
        Some(Self { device: file.dev(), inode: file.ino(), size: file.size(), ctime })
    }
}

impl<'a> Inputs<'a> {
    pub(super) fn new(env: &'a dyn Fn(&str) -> Option<String>, secrets: SecretMode) -> Self {
        Self {
            env,
            secrets,
            files: RefCell::default(),
            broken: RefCell::default(),
            is_incomplete: Cell::default(),
        }
    }

    /// Forgets which values are wrong: all files are read again in another way.
    pub(super) fn restart(&self) {
        self.broken.take();
        self.is_incomplete.set(false);
        self.files.borrow_mut().patterns.clear();
    }

    pub(super) fn secrets(&self) -> SecretMode {
        self.secrets
    }

    pub(super) fn mark_broken(&self, key: &str) {
        self.broken.borrow_mut().insert(key.to_owned());
    }

    /// Notes that a file with agents or clients could not be read.
    pub(super) fn mark_incomplete(&self) {
        self.is_incomplete.set(true);
    }

    pub(super) fn is_broken(&self, key: &str) -> bool {
        let table = key.split('.').next().unwrap_or(key);
        (self.is_incomplete.get() && matches!(table, "agents" | "clients"))
            || self.broken.borrow().contains(key)
    }

    /// The value of an environment variable.
    pub(super) fn env(&self, name: &str) -> Option<String> {
        (self.env)(name)
    }

    /// Records a file; to be called before it is read, so that a change during the read is seen later.
    pub(super) fn record_file(&self, path: &Path) {
        self.files.borrow_mut().files.entry(path.to_owned()).or_insert_with(|| FileStamp::of(path));
    }

    pub(super) fn record_pattern(&self, pattern: IncludePattern) {
        self.files.borrow_mut().patterns.push(pattern);
    }

    pub(super) fn into_files(self) -> LoadedFiles {
        self.files.into_inner()
    }
}

/// The files in `directory` whose names match, sorted by name; none without that directory. As in a shell, `*` does not
/// match a leading dot.
pub(super) fn list_matching(directory: &Path, pattern: &str) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(listed_directory(directory)) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut paths = BTreeSet::new();
    for entry in entries {
        let name = entry?.file_name();
        let text = name.to_string_lossy();
        let hidden = text.starts_with('.') && !pattern.starts_with('.');
        let path = directory.join(&name);
        if matches_glob(pattern, &text) && !hidden && !path.is_dir() {
            paths.insert(path);
        }
    }
    Ok(paths.into_iter().collect())
}

/// The directory as the system takes it: an empty path is the current one.
pub(super) fn listed_directory(directory: &Path) -> &Path {
    if directory.as_os_str().is_empty() { Path::new(".") } else { directory }
}
