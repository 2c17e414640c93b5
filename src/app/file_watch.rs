//! `server.reload = "watch"`: polls the files that the configuration was read from and names, and reloads it once two
//! polls in a row find the same change.
//!
//! A look compares stamps (inode, size, ctime), and contents where a stamp has changed, with what the last load read,
//! whatever caused that load and whether or not it succeeded. So a file with a mistake is tried and logged once.

use std::{
    collections::BTreeMap,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use sha2::{Digest, Sha256};
use tokio::{sync::watch, time::sleep};
use zeroize::Zeroizing;

use super::reloader::{LoadRecord, Reloader};
use crate::{
    blocking,
    config::{self, FileStamp, LoadedFiles},
};

/// The time between two polls.
const POLL_INTERVAL: Duration = Duration::from_secs(5);

type ContentHash = [u8; 32];

/// What is known of the content that the last load read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Baseline {
    /// There was no readable file.
    Absent,
    Content(ContentHash),
    /// The file changed between the load and the first poll after it.
    Unknown,
}

/// A file that differs from what the last load read; `None`: `include` matches it no longer.
type Changes = BTreeMap<PathBuf, Option<ContentHash>>;

/// The state between polls.
#[derive(Default)]
struct FileWatch {
    /// The load that `baseline` is of.
    generation: Option<u64>,
    baseline: BTreeMap<PathBuf, Baseline>,
    /// The content of each file at the last poll, so that only files with a new stamp are read.
    contents: BTreeMap<PathBuf, (FileStamp, Option<ContentHash>)>,
    /// What the look before found.
    changes: Changes,
}

/// Watches the files from now on, if the configuration says so. `interval` is [`POLL_INTERVAL`] where it is `None`.
pub(super) fn start(reloader: &Arc<Reloader>, interval: Option<Duration>, stopping: &watch::Receiver<bool>) {
    if reloader.watches_files() {
        let interval = interval.unwrap_or(POLL_INTERVAL);
        tokio::spawn(watch_files(reloader.clone(), interval, stopping.clone()));
    }
}

/// Looks every `interval` until the proxy stops.
async fn watch_files(reloader: Arc<Reloader>, interval: Duration, mut stopping: watch::Receiver<bool>) {
    let mut file_watch = FileWatch::default();
    loop {
        let last_load = reloader.last_load();
        let looked = blocking::run_in_background(move || {
            let has_changed = file_watch.look(&last_load);
            (file_watch, has_changed)
        });
        let has_changed;
        (file_watch, has_changed) = looked.await.unwrap_or_else(|_| {
            tracing::error!("file watch panicked, starting it anew");
            Default::default()
        });
        if has_changed {
            let reloader = reloader.clone();
            // The reloader logs the result.
            let _ = blocking::spawn(move || drop(reloader.reload())).await;
        }
        tokio::select! {
            () = sleep(interval) => {}
            _ = stopping.wait_for(|stopping| *stopping) => return,
        }
    }
}

impl FileWatch {
    /// Polls the files; returns whether two polls in a row found the same change.
    fn look(&mut self, LoadRecord { generation, files: loaded }: &LoadRecord) -> bool {
        if self.generation != Some(*generation) {
            self.generation = Some(*generation);
            self.contents.retain(|path, _| loaded.files.contains_key(path));
            self.baseline = loaded
                .files
                .iter()
                .map(|(path, stamp)| (path.clone(), self.baseline_of(path, stamp)))
                .collect();
            self.changes.clear();
        }
        let changes = self.find_changes(loaded);
        let is_stable = !changes.is_empty() && changes == self.changes;
        self.changes = changes;
        is_stable
    }

    /// What a load has read that found this stamp.
    fn baseline_of(&mut self, path: &Path, stamp: &Option<FileStamp>) -> Baseline {
        match (stamp, FileStamp::of(path)) {
            (Some(read), Some(now)) if *read == now => {
                self.content(path).map_or(Baseline::Absent, Baseline::Content)
            }
            (None, _) => Baseline::Absent,
            (Some(_), _) => Baseline::Unknown,
        }
    }

    fn find_changes(&mut self, loaded: &LoadedFiles) -> Changes {
        let mut changes = Changes::new();
        for path in loaded.files.keys() {
            // A file that is away may be about to be replaced, so only its return is a change.
            let Some(content) = self.content(path) else { continue };
            if self.baseline.get(path) != Some(&Baseline::Content(content)) {
                changes.insert(path.clone(), Some(content));
            }
        }
        for pattern in &loaded.patterns {
            let matches = pattern.matching_files();
            let gone = pattern.matches.iter().filter(|path| matches.binary_search(path).is_err());
            changes.extend(gone.map(|path| (path.clone(), None)));
            for path in matches.iter().filter(|path| pattern.matches.binary_search(path).is_err()) {
                changes.insert(path.clone(), self.content(path));
            }
        }
        changes
    }

    /// The hash of the file's content, read only if its stamp is new; `None` if it cannot be read.
    fn content(&mut self, path: &Path) -> Option<ContentHash> {
        let Some(stamp) = FileStamp::of(path) else {
            self.contents.remove(path);
            return None;
        };
        if let Some((known, content)) = self.contents.get(path)
            && *known == stamp
        {
            return *content;
        }
        let content = hash_file(path).ok();
        self.contents.insert(path.to_owned(), (stamp, content));
        content
    }
}

/// Hashes a file, which may contain a secret.
fn hash_file(path: &Path) -> io::Result<ContentHash> {
    let (mut file, _) =
        config::open_regular(path).map_err(|reason| io::Error::other(reason.english().to_owned()))?;
    let mut hash = Sha256::new();
    let mut chunk = Zeroizing::new([0; 8192]);
    loop {
        match file.read(&mut *chunk)? {
            0 => return Ok(hash.finalize().into()),
            length => hash.update(&chunk[..length]),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use tempfile::TempDir;

    use super::*;
    use crate::config::AgentTexts;

    const MAIN: &str = "include = [\"agents.d/*.toml\"]\n[server]\nreload = \"watch\"\n";

    /// A directory with a configuration: an included agent with its secret in a file, as Kubernetes mounts them.
    struct Mounted {
        dir: TempDir,
        watch: FileWatch,
        generation: u64,
        last_load: LoadRecord,
    }

    impl Mounted {
        fn new() -> Self {
            let dir = TempDir::new().expect("a directory");
            let mut mounted =
                Self { dir, watch: FileWatch::default(), generation: 0, last_load: LoadRecord::default() };
            mounted.write("proxy.toml", MAIN);
            mounted.write("v1/secret", "the-first-secret\n");
            mounted.link("v1");
            symlink("..data/secret", mounted.dir.path().join("secret")).expect("a link");
            mounted.write_agent("hr");
            mounted.load();
            mounted
        }

        fn write(&self, name: &str, text: &str) {
            let path = self.dir.path().join(name);
            fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
            fs::write(path, text).expect("written");
        }

        fn write_agent(&self, name: &str) {
            let text = format!("[agents.{name}]\ncorpid = \"ww1\"\nsecret = {{ file = \"../secret\" }}\n");
            self.write(&format!("agents.d/{name}.toml"), &text);
        }

        /// Points `..data` at this version, in one step.
        fn link(&self, version: &str) {
            let (new, data) = (self.dir.path().join("..data_tmp"), self.dir.path().join("..data"));
            symlink(version, &new).expect("a link");
            fs::rename(new, data).expect("replaced");
        }

        fn remove(&self, name: &str) {
            fs::remove_file(self.dir.path().join(name)).expect("removed");
        }

        /// Loads the configuration, as a reload does; returns whether it is valid.
        fn load(&mut self) -> bool {
            let (result, files) =
                config::load_recording(&self.dir.path().join("proxy.toml"), &AgentTexts::default());
            self.generation += 1;
            self.last_load = LoadRecord { generation: self.generation, files: Arc::new(files) };
            result.is_ok()
        }

        fn look(&mut self) -> bool {
            self.watch.look(&self.last_load)
        }

        /// Whether three polls find nothing to reload.
        fn is_quiet(&mut self) -> bool {
            (0..3).all(|_| !self.look())
        }

        /// Whether the change is due at the second poll, and done after a load of this outcome.
        fn is_taken_up(&mut self, is_valid: bool) -> bool {
            !self.look() && self.look() && self.load() == is_valid && self.is_quiet()
        }
    }

    #[test]
    fn change_is_due_when_two_polls_find_the_same() {
        let mut mounted = Mounted::new();
        assert!(mounted.is_quiet());
        mounted.write("proxy.toml", &format!("{MAIN}# 1\n"));
        assert!(!mounted.look());
        mounted.write("proxy.toml", &format!("{MAIN}# 2\n"));
        assert!(!mounted.look(), "it is being written");
        assert!(mounted.look() && mounted.load() && mounted.is_quiet());
    }

    #[test]
    fn same_content_is_no_change() {
        let mut mounted = Mounted::new();
        assert!(mounted.is_quiet());
        mounted.write("proxy.toml", MAIN);
        mounted.write("v2/secret", "the-first-secret\n");
        mounted.link("v2");
        assert!(mounted.is_quiet());
    }

    #[test]
    fn swapped_symbolic_link_is_followed() {
        let mut mounted = Mounted::new();
        mounted.write("v2/secret", "the-second-secret\n");
        mounted.link("v2");
        assert!(mounted.is_taken_up(true));
    }

    #[test]
    fn change_between_load_and_first_look_is_found() {
        let mut mounted = Mounted::new();
        mounted.write("proxy.toml", &format!("{MAIN}# changed\n"));
        assert!(mounted.is_taken_up(true));
    }

    #[test]
    fn file_with_a_mistake_is_tried_once_for_each_content() {
        let mut mounted = Mounted::new();
        for mistake in ["oops", "[[", "oops"] {
            mounted.write("proxy.toml", mistake);
            assert!(mounted.is_taken_up(false), "{mistake}");
        }
        mounted.write("proxy.toml", MAIN);
        assert!(mounted.is_taken_up(true));
        // The mistake is in a file that the load reads late.
        mounted.write("v2/secret", "changeme\n");
        mounted.link("v2");
        assert!(mounted.is_taken_up(false));
        mounted.link("v1");
        assert!(mounted.is_taken_up(true));
    }

    #[test]
    fn vanished_file_is_no_change_until_it_is_back() {
        let mut mounted = Mounted::new();
        assert!(mounted.is_quiet());
        mounted.remove("..data");
        assert!(mounted.is_quiet());
        mounted.link("v1");
        assert!(mounted.is_quiet(), "it is what it was");
        mounted.remove("..data");
        assert!(mounted.is_quiet());
        mounted.write("v2/secret", "the-second-secret\n");
        mounted.link("v2");
        assert!(mounted.is_taken_up(true));
    }

    #[test]
    fn files_that_include_matches_come_and_go() {
        let mut mounted = Mounted::new();
        assert!(mounted.is_quiet());
        mounted.write_agent("it");
        assert!(mounted.is_taken_up(true));
        mounted.remove("agents.d/it.toml");
        assert!(mounted.is_taken_up(true));
        mounted.write("agents.d/notes.txt", "no configuration");
        assert!(mounted.is_quiet());
    }
}
