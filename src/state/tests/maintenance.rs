//! Backup, check and change of the key, while the state is in use.

use std::{fs, os::unix::fs::PermissionsExt};

use super::*;
use crate::state::{MaintenanceError, RekeyReport, maintenance};

const NEW_KEY: &str = "a new state key of the tests, long enough";

#[tokio::test]
async fn backup_of_a_running_state_is_a_whole_state() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join(FILE);
    let (state, _) = open(&directory);
    state.write(vec![agent("hr", "one"), agent("ops", "two")]).await.expect("written");
    let target = directory.path().join("copy.db");
    maintenance::backup(&config(&path, "this key is not needed, and not the one", None), &target)
        .expect("a backup");
    state.write(vec![agent("hr", "later")]).await.expect("written");
    let mode = fs::metadata(&target).expect("a file").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let (copy, delivered) = try_open_with(&config(&target, KEY, None)).expect("a state");
    assert_eq!(texts(&delivered.lock()), ["hr 1 one", "ops 1 two"]);
    assert_eq!(copy.write(vec![agent("hr", "other")]).await, Ok(2));
}

#[tokio::test]
async fn backup_overwrites_nothing() {
    let directory = closed_state().await;
    let state = config(&directory.path().join(FILE), KEY, None);
    let target = directory.path().join("copy.db");
    fs::write(&target, "").expect("written");
    let error = maintenance::backup(&state, &target).expect_err("it exists");
    assert!(error.to_string().contains("exists and was not changed; name another file"), "{error}");
    let target = directory.path().join("missing").join("copy.db");
    assert!(matches!(maintenance::backup(&state, &target), Err(MaintenanceError::Target { .. })));
}

#[tokio::test]
async fn state_that_does_not_exist_yet_is_named() {
    let directory = tempfile::tempdir().expect("a directory");
    let state = config(&directory.path().join(FILE), KEY, None);
    let error = maintenance::check(&state).await.expect_err("there is none");
    assert!(error.is_configuration() && error.to_string().contains("at its first start"), "{error}");
    let elsewhere = config(&directory.path().join("missing").join(FILE), KEY, None);
    let error = maintenance::check(&elsewhere).await.expect_err("there is no directory");
    assert!(error.to_string().ends_with("make its directory first"), "{error}");
}

#[tokio::test]
async fn check_counts_and_names_what_is_unreadable() {
    let directory = closed_state().await;
    let path = directory.path().join(FILE);
    let (state, _) = open(&directory);
    let message = || Write::put(Collection::Idempotency, "a", "value");
    state.write(vec![message(), Write::put(Collection::Idempotency, "b", "value")]).await.expect("written");
    let report = maintenance::check(&config(&path, KEY, None)).await.expect("checked");
    let counts: Vec<_> = report.counts.iter().map(|(name, records)| (&**name, *records)).collect();
    assert_eq!(counts, [("agents", 40), ("idempotency", 2)]);
    assert!(report.unreadable.is_empty() && report.under_old_key == 0);
    state.close().await;
    let connection = rusqlite::Connection::open(&path).expect("a database");
    connection.execute("UPDATE records SET value = x'01' WHERE name = 'a'", []).expect("damaged");
    drop(connection);
    let report = maintenance::check(&config(&path, KEY, None)).await.expect("checked");
    assert_eq!(report.unreadable, ["idempotency:a"]);
    // Records that are read on demand keep no state from starting.
    let (state, _) = open(&directory);
    assert!(state.read(Collection::Idempotency, "a").await.is_err());
    assert_eq!(value_of(&state, Collection::Idempotency, "b").await.as_deref(), Some("b 2 value"));
    state.write(vec![message()]).await.expect("written again");
    assert_eq!(value_of(&state, Collection::Idempotency, "a").await.as_deref(), Some("a 3 value"));
}

#[tokio::test]
async fn rekey_while_the_state_runs_leaves_nothing_under_the_old_key() {
    let directory = closed_state().await;
    let path = directory.path().join(FILE);
    let both = config(&path, NEW_KEY, Some(KEY));
    let (state, delivered) = try_open_with(&both).expect("old_key opens it");
    let before = texts(&delivered.lock());
    state.write(vec![agent("hr", "written under the new key")]).await.expect("written");
    let report = maintenance::check(&both).await.expect("checked");
    assert_eq!(report.under_old_key, 40);
    let report = maintenance::rekey(&both).await.expect("changed");
    assert_eq!(report, RekeyReport { current: 1, resealed: 40, unreadable: Vec::new() });
    let last = state.write(vec![Write::delete(Collection::Agents, "hr")]).await;
    assert_eq!(last, Ok(3), "the versions go on");
    state.close().await;
    assert!(matches!(try_open(&directory, KEY), Err(OpenError::Key { .. })));
    let (_, delivered) = try_open(&directory, NEW_KEY).expect("the new key alone");
    assert_eq!(texts(&delivered.lock()), before);
    assert_eq!(maintenance::rekey(&both).await.expect("again").resealed, 0);
}
