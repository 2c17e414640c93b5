//! The threads of the lowest priority that a reload starts.

use std::{mem, path::Path, sync::Arc, thread, time::Duration};

use crate::{
    blocking,
    config::{self, AgentTexts, Config, LoadedFiles},
    directory::Directory,
    text::Text,
};

/// What a load has found, its warnings as texts, and the files.
pub(super) type Loaded = (Result<(Config, Vec<Text>), config::Error>, LoadedFiles);

/// Loads the file on a temporary thread, or in place if none can be had. Parsing takes far more memory than its result,
/// and the allocator returns a thread's memory to the system only when none of it is in use. It has the lowest priority:
/// no request waits for it. What follows a load has not, because it holds locks that the state needs.
pub(super) fn load_on_own_thread(path: &Path, known: &AgentTexts) -> Loaded {
    let load = || {
        blocking::lower_priority();
        load_file(path, known)
    };
    thread::scope(|scope| match thread::Builder::new().spawn_scoped(scope, load) {
        Ok(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
        Err(_) => load_file(path, known),
    })
}

fn load_file(path: &Path, known: &AgentTexts) -> Loaded {
    let (result, files) = config::load_recording(path, known);
    let summarized = result.map(|mut config| {
        // There may be one for each of very many agents.
        let warnings = mem::take(&mut config.warnings);
        let texts = config::summarize_warnings(&warnings);
        blocking::in_slices(warnings).for_each(drop);
        (config, texts)
    });
    (summarized, files)
}

/// Waits on a separate thread for the last request that uses a directory and frees it there, and what else was replaced:
/// freeing much would block a worker. Without a thread, the last request does that.
pub(super) fn drop_in_background(directory: Arc<Directory>, others: impl Send + 'static) {
    let drop_when_unused = move || {
        blocking::lower_priority();
        drop(others);
        let mut directory = directory;
        while let Err(in_use) = Arc::try_unwrap(directory) {
            directory = in_use;
            thread::sleep(Duration::from_millis(100));
        }
    };
    let _ = thread::Builder::new().name("drop-directory".to_owned()).spawn(drop_when_unused);
}
