//! The state through its interface, with real files.

mod files;
mod follow;
mod maintenance;
mod worker;
mod writes;

use std::{path::Path, sync::Arc};

use parking_lot::Mutex;
use tempfile::TempDir;

use super::{
    Collection, OpenError, PageLimit, Precondition, Record, State, StateDelivery, Write, WriteError,
};
use crate::{
    config::{StateConfig, StateFileConfig},
    secret::Masked,
};

const FILE: &str = "state.db";
const KEY: &str = "a state key of the tests, long enough";

/// What a listener has been given.
type Delivered = Arc<Mutex<Vec<Record>>>;

fn config(path: &Path, key: &str, old_key: Option<&str>) -> StateConfig {
    let (key, old_key) = (Masked::new(key), old_key.map(Masked::new));
    StateConfig::File(StateFileConfig { path: path.to_owned(), key, old_key })
}

/// Opens `state.db` in the directory.
fn try_open(directory: &TempDir, key: &str) -> Result<(Arc<State>, Delivered), OpenError> {
    try_open_with(&config(&directory.path().join(FILE), key, None))
}

fn try_open_with(config: &StateConfig) -> Result<(Arc<State>, Delivered), OpenError> {
    let delivered = Delivered::default();
    let sink = delivered.clone();
    let listener =
        Box::new(move |delivery: StateDelivery<'_>| sink.lock().extend_from_slice(delivery.records));
    Ok((State::open(config, listener)?, delivered))
}

/// A directory with a closed state of some records.
async fn closed_state() -> TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    let (state, _) = open(&directory);
    let writes = (0..40).map(|nth| agent(&format!("agent-{nth:03}"), &"x".repeat(600))).collect();
    state.write(writes).await.expect("written");
    state.close().await;
    directory
}

fn open(directory: &TempDir) -> (Arc<State>, Delivered) {
    try_open(directory, KEY).unwrap_or_else(|error| panic!("{error}"))
}

fn agent(name: &str, value: &str) -> Write {
    Write::put(Collection::Agents, name, value)
}

/// Names, versions and values, as `hr 3 value`; `-` for a deletion.
fn texts(records: &[Record]) -> Vec<String> {
    let text = |record: &Record| {
        let value = record.value.as_ref().map_or("-", |value| std::str::from_utf8(value).expect("a text"));
        format!("{} {} {value}", record.name, record.version)
    };
    records.iter().map(text).collect()
}

async fn value_of(state: &State, collection: Collection, name: &str) -> Option<String> {
    let record = state.read(collection, name).await.expect("readable")?;
    Some(texts(&[record]).remove(0))
}
