//! Files that are made, and files that cannot be used: they stay as they are.

use std::{collections::BTreeMap, fs, os::unix::fs::PermissionsExt};

use rusqlite::Connection;

use super::*;

/// The files of a directory with their bytes.
fn snapshot(directory: &TempDir) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(directory).expect("a directory").map(|entry| entry.expect("an entry"));
    let read = |entry: fs::DirEntry| {
        (entry.file_name().into_string().expect("a name"), fs::read(entry.path()).expect("readable"))
    };
    entries.map(read).collect()
}

/// Asserts that the state does not open, for this reason, and that all files are as before.
#[track_caller]
fn assert_refused(directory: &TempDir, key: &str, reason: &str) {
    let before = snapshot(directory);
    let Err(error) = try_open(directory, key) else { panic!("opened: {reason}") };
    let text = error.to_string();
    assert!(text.contains(reason) && text.contains(FILE), "{text}");
    let mut after = snapshot(directory);
    // Reading a log needs its index; it says nothing of its own.
    after.remove("state.db-shm");
    let names = |files: &BTreeMap<String, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&before), names(&after), "{reason}");
    assert!(before == after, "bytes have changed: {reason}");
}

fn pragma(directory: &TempDir, name: &str, value: i64) {
    let connection = Connection::open(directory.path().join(FILE)).expect("a database");
    connection.pragma_update(None, name, value).expect("set");
}

/// What a crash leaves: the file and its log.
async fn crashed_state() -> TempDir {
    let (running, crashed) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("one"));
    let (state, _) = open(&running);
    state.write(vec![agent("hr", "value")]).await.expect("written");
    for name in [FILE, "state.db-wal"] {
        fs::copy(running.path().join(name), crashed.path().join(name)).expect("copied");
    }
    crashed
}

#[tokio::test]
async fn missing_file_is_made_private() {
    let directory = tempfile::tempdir().expect("a directory");
    let (state, _) = open(&directory);
    state.write(vec![agent("hr", "value")]).await.expect("written");
    let names = [FILE, "state.db-shm", "state.db-wal"];
    assert_eq!(snapshot(&directory).keys().collect::<Vec<_>>(), names);
    for name in names {
        let mode = fs::metadata(directory.path().join(name)).expect("a file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    state.close().await;
    assert_eq!(snapshot(&directory).keys().collect::<Vec<_>>(), [FILE], "the log is moved into the file");
}

#[test]
fn missing_directory_is_explained() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("missing").join(FILE);
    let Err(error) = try_open_with(&config(&path, KEY, None)) else { panic!("opened") };
    assert!(error.to_string().ends_with("make its directory first"), "{error}");
}

#[tokio::test]
async fn unusable_file_is_named_and_unchanged() {
    type Damage = fn(&mut Vec<u8>);
    let damages: [(Damage, &str); 5] = [
        (|bytes| bytes.clear(), "is damaged: it is empty"),
        (|bytes| bytes.truncate(10), "is damaged: it is no SQLite file"),
        (|bytes| bytes.truncate(bytes.len() / 2), "is damaged: database disk image is malformed"),
        (|bytes| bytes[..16].copy_from_slice(b"something else.."), "is damaged: it is no SQLite file"),
        (|bytes| bytes[18..].fill(0), "is damaged: "),
    ];
    for (damage, reason) in damages {
        let directory = closed_state().await;
        let path = directory.path().join(FILE);
        let mut bytes = fs::read(&path).expect("readable");
        damage(&mut bytes);
        fs::write(&path, bytes).expect("written");
        assert_refused(&directory, KEY, reason);
    }
    let directory = closed_state().await;
    pragma(&directory, "user_version", 99);
    assert_refused(&directory, KEY, "has schema version 99, this program knows");
    pragma(&directory, "user_version", 1);
    pragma(&directory, "application_id", 7);
    assert_refused(&directory, KEY, "it is the SQLite file of another program");
}

#[tokio::test]
async fn other_key_is_refused_with_and_without_a_log() {
    let other = "another state key of the tests, long";
    let link = crashed_state().await;
    fs::create_dir(link.path().join("real")).expect("made");
    for name in [FILE, "state.db-wal"] {
        fs::rename(link.path().join(name), link.path().join("real").join(name)).expect("moved");
    }
    std::os::unix::fs::symlink("real/state.db", link.path().join(FILE)).expect("linked");
    let (_, delivered) = open(&link);
    assert_eq!(texts(&delivered.lock()), ["hr 1 value"], "the log beside the real file is read");
    for directory in [closed_state().await, crashed_state().await] {
        assert_refused(&directory, other, "was written under another key");
        let path = directory.path().join(FILE);
        let (_, delivered) = try_open_with(&config(&path, other, Some(KEY))).expect("old_key opens it");
        assert!(!delivered.lock().is_empty());
    }
}

#[tokio::test]
async fn state_after_a_crash_is_complete() {
    let directory = crashed_state().await;
    let (state, delivered) = open(&directory);
    assert_eq!(texts(&delivered.lock()), ["hr 1 value"]);
    assert_eq!(state.write(vec![agent("hr", "next")]).await, Ok(2));
}

#[tokio::test]
async fn torn_page_is_found_wherever_it_is() {
    const PAGE: usize = 4096;
    let directory = closed_state().await;
    let path = directory.path().join(FILE);
    let whole = fs::read(&path).expect("readable");
    let pages = whole.len() / PAGE;
    assert!(pages > 8, "{pages} pages");
    for page in 0..pages {
        // The first half was written, the second was not.
        let mut torn = whole.clone();
        let second_half = &mut torn[page * PAGE + PAGE / 2..(page + 1) * PAGE];
        if second_half.iter().all(|byte| *byte == 0) {
            continue;
        }
        second_half.fill(0);
        fs::write(&path, torn).expect("written");
        assert_refused(&directory, KEY, "is damaged: ");
        let error = try_open(&directory, KEY).expect_err("refused").to_string();
        assert!(!error.contains("***"), "{error}");
    }
    fs::write(&path, whole).expect("written");
    open(&directory);
}

#[tokio::test]
async fn damaged_log_is_refused_and_not_cut_off() {
    let running = tempfile::tempdir().expect("a directory");
    let (state, _) = open(&running);
    for name in ["a", "b", "c", "d"] {
        state.write(vec![agent(name, "value")]).await.expect("written");
    }
    let copy_with = |damage: fn(&mut Vec<u8>)| {
        let directory = tempfile::tempdir().expect("a directory");
        fs::copy(running.path().join(FILE), directory.path().join(FILE)).expect("copied");
        let mut log = fs::read(running.path().join("state.db-wal")).expect("readable");
        damage(&mut log);
        fs::write(directory.path().join("state.db-wal"), log).expect("written");
        directory
    };
    // One bit of the first page; SQLite alone would begin with what stands before it.
    let directory = copy_with(|log| log[32 + 24 + 100] ^= 1);
    assert_refused(&directory, KEY, "is damaged: its log ");
    let check = crate::state::maintenance::check(&config(&directory.path().join(FILE), KEY, None)).await;
    assert!(check.is_err_and(|error| error.to_string().contains("its log ")));
    // What a crash leaves of the last transaction is dropped.
    let directory = copy_with(|log| log.truncate(log.len() - 100));
    let (_, delivered) = open(&directory);
    let names: Vec<_> = delivered.lock().iter().map(|record| record.name.clone()).collect();
    assert_eq!(names, ["a", "b", "c"]);
}

#[tokio::test]
async fn record_moved_to_another_name_is_found() {
    let directory = closed_state().await;
    let connection = Connection::open(directory.path().join(FILE)).expect("a database");
    let moved = "UPDATE records SET value = (SELECT value FROM records WHERE name = 'agent-001') WHERE name = 'agent-002'";
    assert_eq!(connection.execute(moved, []), Ok(1));
    drop(connection);
    assert_refused(&directory, KEY, "is damaged: the record agents:agent-002 cannot be decrypted");
}

#[tokio::test]
async fn unreadable_record_hides_no_others_from_a_scan() {
    let directory = tempfile::tempdir().expect("a directory");
    let (state, _) = open(&directory);
    let put = |name: &str| Write::put(Collection::CallbackPull, format!("app/{name}"), name.to_owned());
    state.write(["a", "b", "c"].map(put).into()).await.expect("written");
    let connection = Connection::open(directory.path().join(FILE)).expect("a database");
    let damage = "UPDATE records SET value = x'00' WHERE name = 'app/b'";
    assert_eq!(connection.execute(damage, []), Ok(1));
    // The limit counts what is returned, so that a page is full while there is more.
    let found = state.scan(Collection::CallbackPull, "app/", "", 2).await.expect("readable");
    assert_eq!(texts(&found), ["app/a 1 a", "app/c 1 c"]);
    let found = state.scan_since("app/", 0, PageLimit { records: 2, bytes: 1000 }).await.expect("readable");
    assert_eq!(found.len(), 2);
    assert!(state.read(Collection::CallbackPull, "app/b").await.is_err());
}

#[tokio::test]
async fn log_is_moved_into_the_file_beside_the_commits() {
    let directory = tempfile::tempdir().expect("a directory");
    let (state, _) = open(&directory);
    let size = || fs::metadata(directory.path().join(FILE)).expect("a file").len();
    let before = size();
    // Far less than the log from which on a commit itself does it.
    for nth in 0..80 {
        state.write(vec![agent(&format!("agent-{nth}"), &"x".repeat(2000))]).await.expect("written");
    }
    let moved = async {
        while size() < before + 64 * 2000 {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(10), moved).await.expect("in the file");
    state.close().await;
    assert!(!directory.path().join("state.db-wal").exists(), "the last connection was the writer's");
}
