//! Commits a second of the state, with one and with 64 writers that wait, beside a bare SQLite loop on the same disk; and how
//! long a state of 100,000 records takes to open. `cargo bench --bench state -- [DIRECTORY]`; by default the directory is
//! the build's own, since a temporary one is often in memory.

use std::{
    error::Error,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rusqlite::{Connection, params};
use tempfile::TempDir;
use wecom_proxy::{
    config::{StateConfig, StateFileConfig},
    secret::Masked,
    state::{Collection, State, Write},
};

/// How long each way of writing is measured, in turns.
const TURN_TIME: Duration = Duration::from_secs(2);
const TURNS: usize = 3;
/// Size of a value: about that of an agent.
const VALUE_BYTES: usize = 300;
/// Records of the state that is opened.
const RECORDS: usize = 100_000;

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> Outcome<()> {
    // `cargo bench` adds an option of its own.
    let directory = std::env::args().skip(1).find(|argument| !argument.starts_with("--"));
    let parent = directory.map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
    let directory = tempfile::tempdir_in(parent)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let [mut bare, mut one, mut many] = [const { Vec::new() }; 3];
    // In turns, so that what else the disk does meets all of them.
    for _ in 0..TURNS {
        bare.push(bare_commits(&directory)?);
        one.push(runtime.block_on(state_commits(&directory, 1))?);
        many.push(runtime.block_on(state_commits(&directory, 64))?);
    }
    let labels = ["bare SQLite, one commit after another", "state, 1 writer", "state, 64 writers"];
    for (label, mut rates) in labels.into_iter().zip([bare, one, many]) {
        rates.sort_by(f64::total_cmp);
        println!(
            "{label}: {:.0} commits/s (from {:.0} to {:.0})",
            rates[TURNS / 2],
            rates[0],
            rates[TURNS - 1]
        );
    }
    runtime.block_on(measure_open(&directory))
}

/// Commits a second of a table with the same settings, without anything around it.
fn bare_commits(directory: &TempDir) -> Outcome<f64> {
    let connection = Connection::open(directory.path().join("bare.db"))?;
    connection.pragma_update(None, "journal_mode", "wal")?;
    connection.pragma_update(None, "synchronous", "full")?;
    connection
        .execute_batch("CREATE TABLE IF NOT EXISTS records (name TEXT PRIMARY KEY, value BLOB) STRICT")?;
    let mut put =
        connection.prepare("INSERT INTO records VALUES (?1, ?2) ON CONFLICT DO UPDATE SET value = ?2")?;
    let value = vec![b'x'; VALUE_BYTES];
    let (started, mut commits) = (Instant::now(), 0_u32);
    while started.elapsed() < TURN_TIME {
        put.execute(params![format!("name-{}", commits % 1000), value])?;
        commits += 1;
    }
    Ok(f64::from(commits) / started.elapsed().as_secs_f64())
}

async fn state_commits(directory: &TempDir, writers: usize) -> Outcome<f64> {
    let state = open(&directory.path().join("state.db"))?;
    let started = Instant::now();
    let write = async |writer: usize| {
        let mut commits = 0_u32;
        while started.elapsed() < TURN_TIME {
            let name = format!("name-{}", (writer + commits as usize * writers) % 1000);
            state.write(vec![Write::put(Collection::Agents, name, vec![b'x'; VALUE_BYTES])]).await?;
            commits += 1;
        }
        Ok::<_, Box<dyn Error>>(commits)
    };
    let mut all: Vec<_> = (0..writers).map(|writer| Box::pin(write(writer))).collect();
    let mut commits = 0;
    for outcome in join_all(&mut all).await {
        commits += outcome?;
    }
    let rate = f64::from(commits) / started.elapsed().as_secs_f64();
    state.close().await;
    Ok(rate)
}

/// Polls all futures until each has ended.
async fn join_all<F: Future + Unpin>(futures: &mut [F]) -> Vec<F::Output> {
    let mut outputs: Vec<Option<F::Output>> = futures.iter().map(|_| None).collect();
    std::future::poll_fn(|context| {
        for (future, output) in futures.iter_mut().zip(&mut outputs) {
            if output.is_none()
                && let std::task::Poll::Ready(ready) = std::pin::Pin::new(future).poll(context)
            {
                *output = Some(ready);
            }
        }
        match outputs.iter().all(Option::is_some) {
            true => std::task::Poll::Ready(()),
            false => std::task::Poll::Pending,
        }
    })
    .await;
    outputs.into_iter().flatten().collect()
}

async fn measure_open(directory: &TempDir) -> Outcome<()> {
    let path = directory.path().join("large.db");
    let state = open(&path)?;
    for first in (0..RECORDS).step_by(1000) {
        let put = |nth| Write::put(Collection::Agents, format!("agent-{nth}"), vec![b'x'; VALUE_BYTES]);
        state.write((first..first + 1000).map(put).collect()).await?;
    }
    state.close().await;
    let bytes = std::fs::metadata(&path)?.len();
    let started = Instant::now();
    let state = open(&path)?;
    let elapsed = started.elapsed();
    state.close().await;
    println!(
        "{RECORDS} records, {} MiB: checked and loaded in {:.0} ms",
        bytes >> 20,
        elapsed.as_secs_f64() * 1000.0
    );
    Ok(())
}

fn open(path: &Path) -> Outcome<std::sync::Arc<State>> {
    let key = Masked::new("a state key of the benchmark, long enough");
    let config = StateConfig::File(StateFileConfig { path: path.to_owned(), key, old_key: None });
    Ok(State::open(&config, Box::new(|_| {}))?)
}
