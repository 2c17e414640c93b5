//! A process that writes to the state is killed at random points: whatever it reported as written is there, and of each
//! transaction all or nothing.

use std::{collections::BTreeSet, env, io::Write as _, path::Path, process::Command, time::Duration};

use tempfile::TempDir;
use tokio::time::sleep;
use wecom_proxy::state::{Collection, State, Write, WriteError};

use crate::{
    process::Process,
    state::{state_config, state_directory},
};

/// In the environment: the directory of the state that the child writes.
const DIRECTORY: &str = "STATE_CRASH_DIRECTORY";
/// In the environment: how often the test kills; by default [`KILLS`].
const COUNT: &str = "STATE_CRASH_COUNT";
const KILLS: usize = 20;
/// Writers of the child at once.
const WRITERS: usize = 8;
/// Records of one transaction.
const RECORDS: usize = 3;
/// A writer that is not killed ends after this.
const MAX_TRANSACTIONS: usize = 20_000;

fn record_name(transaction: &str, nth: usize) -> String {
    format!("{transaction}/{nth}")
}

/// Writes transactions until it is killed or the state is full, and prints the name of each that was reported as written.
async fn write_all(directory: &Path, value_bytes: usize, transactions: usize) {
    let state = State::open(&state_config(directory), Box::new(|_| {})).expect("a state");
    let run = wecom_proxy::secret::random_u64();
    let writer = async |writer: usize| {
        for nth in 0..transactions / WRITERS {
            let transaction = format!("{run:016x}-{writer}-{nth}");
            let put = |record| {
                let collection = if record == 0 { Collection::Agents } else { Collection::Idempotency };
                Write::put(collection, record_name(&transaction, record), vec![b'x'; value_bytes])
            };
            match state.write((0..RECORDS).map(put).collect()).await {
                Ok(_) => println!("written {transaction}"),
                Err(WriteError::Full(_)) => return println!("full {transaction}"),
                Err(error) => panic!("{error}"),
            }
            std::io::stdout().flush().expect("printed");
        }
    };
    tokio::join!(writer(0), writer(1), writer(2), writer(3), writer(4), writer(5), writer(6), writer(7));
    assert!(state.scan(Collection::Agents, "", "", 1).await.is_ok(), "reads go on");
}

/// The child of the other tests; by itself, a small run.
#[tokio::test]
async fn writer_reports_what_it_has_written() {
    if let Some(directory) = env::var_os(DIRECTORY) {
        let value_bytes =
            env::var("STATE_CRASH_VALUE_BYTES").map_or(200, |text| text.parse().expect("a number"));
        return write_all(Path::new(&directory), value_bytes, MAX_TRANSACTIONS).await;
    }
    let directory = state_directory();
    write_all(directory.path(), 200, WRITERS).await;
    assert_eq!(transactions(directory.path()).await.len(), WRITERS);
}

/// The child, started through `sh` with these commands before it.
fn child(directory: &Path, shell: &str) -> Command {
    let mut command = Command::new("sh");
    command
        .args(["-c", &format!("{shell} exec \"$0\" \"$@\"")])
        .arg(env::current_exe().expect("this program"));
    command.args(["--exact", "state_crash::writer_reports_what_it_has_written", "--nocapture"]);
    command.env(DIRECTORY, directory);
    command
}

/// The transactions of which the state has something; panics if one is there in part.
async fn transactions(directory: &Path) -> BTreeSet<String> {
    let state = State::open(&state_config(directory), Box::new(|_| {})).expect("the state opens");
    let mut names = BTreeSet::new();
    for collection in [Collection::Agents, Collection::Idempotency] {
        let records =
            state.scan(collection, "", "", usize::MAX >> 1).await.expect("every record can be read");
        names.extend(records.into_iter().map(|record| record.name));
    }
    state.close().await;
    let transactions: BTreeSet<_> = names
        .iter()
        .filter_map(|name| name.split_once('/'))
        .map(|(transaction, _)| transaction.to_owned())
        .collect();
    for transaction in &transactions {
        let is_whole = (0..RECORDS).all(|nth| names.contains(&record_name(transaction, nth)));
        assert!(is_whole, "{transaction} is there in part");
    }
    transactions
}

/// The transactions that lines with this word name.
fn reported(output: &str, word: &str) -> BTreeSet<String> {
    // The first one follows the test runner's own text.
    let lines = output.lines().filter_map(|line| line.rsplit_once(word));
    lines.filter(|(_, rest)| !rest.contains(' ')).map(|(_, transaction)| transaction.to_owned()).collect()
}

/// Starts the child, kills it some time after its first report, and returns what it reported as written.
async fn run_and_kill(directory: &TempDir, delay: Duration) -> BTreeSet<String> {
    let child = Process::start(child(directory.path(), ""));
    child.out.wait_for_line("written ").await;
    sleep(delay).await;
    child.signal("KILL");
    let output = child.wait().await;
    assert_eq!(output.status, -1, "the child ended by itself: {}", output.err);
    reported(&output.out, "written ")
}

#[tokio::test]
async fn killed_process_loses_nothing_that_it_reported() {
    let count = env::var(COUNT).map_or(KILLS, |text| text.parse().expect("a number"));
    let directory = state_directory();
    let mut expected = BTreeSet::new();
    for kill in 0..count {
        let delay = Duration::from_micros(wecom_proxy::secret::random_u64() % 60_000);
        let written = run_and_kill(&directory, delay).await;
        assert!(!written.is_empty());
        expected.extend(written);
        let found = transactions(directory.path()).await;
        let lost: Vec<_> = expected.difference(&found).collect();
        assert!(lost.is_empty(), "kill {kill} after {delay:?} lost {lost:?}");
    }
    eprintln!("{count} kills, {} transactions reported, none lost", expected.len());
}

#[tokio::test]
async fn file_size_limit_fails_writes_and_keeps_what_was_written() {
    let directory = state_directory();
    // 512-byte blocks: 1 MiB.
    let mut command = child(directory.path(), "trap '' XFSZ; ulimit -f 2048;");
    command.env("STATE_CRASH_VALUE_BYTES", "5000");
    let output = Process::start(command).wait().await;
    assert_eq!(output.status, 0, "{}", output.err);
    let (written, full) = (reported(&output.out, "written "), reported(&output.out, "full "));
    assert!(written.len() > 10 && !full.is_empty(), "{}", output.out);
    assert_eq!(transactions(directory.path()).await, written);
}
