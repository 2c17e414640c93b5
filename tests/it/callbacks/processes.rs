//! Several processes on one state, and processes that are killed.

use std::{cell::Cell, collections::BTreeSet, path::PathBuf, time::Duration};

use http::{Request, StatusCode};
use tempfile::TempDir;
use tokio::time::sleep;
use wecom_proxy::simulator::{Settings, SimulatedCallback};

use super::{AES_KEY, CORPID, TOKEN, config, event, target};
use crate::harness::{TestClient, callback_target::CallbackTarget, process::Process, wait_for, write_config};

/// A configuration file in a directory; no request goes to WeCom.
fn file(dir: &TempDir, receiver: &CallbackTarget) -> PathBuf {
    let to = target("crm", format!("http://{}/", receiver.address), "");
    write_config(dir, crate::harness::closed_port(), &Settings::default(), &config(&to))
}

/// Pushes events to a process until it ends or all are sent; returns the numbers of those that were answered with 200.
async fn push_until_it_ends(
    process: &Process,
    numbers: std::ops::Range<usize>,
    count: &Cell<usize>,
) -> Vec<usize> {
    let address = process.address().await;
    let callback = SimulatedCallback {
        name: "hr".to_owned(),
        url: String::new(),
        token: TOKEN.to_owned(),
        aes_key: AES_KEY.to_owned(),
        receive_id: CORPID.to_owned(),
    };
    let mut accepted = Vec::new();
    let mut client = TestClient::connect_http1(address).await;
    for number in numbers {
        loop {
            let (query, body) = callback.encrypted_push(event("x", number).as_bytes(), false);
            let request = Request::post(format!("/callbacks/hr?{query}")).body(body.into_bytes().into());
            match client.send(request.expect("a request")).await {
                Ok(response) if response.status() == StatusCode::OK => {
                    accepted.push(number);
                    count.set(accepted.len());
                    break;
                }
                // A disk that is busy with other tests: as WeCom, the push is repeated.
                Ok(response) if response.status() == StatusCode::SERVICE_UNAVAILABLE => {}
                Ok(response) => panic!("{}", response.status()),
                Err(_) => return accepted,
            }
        }
    }
    accepted
}

/// The numbers of the delivered events, each as often as it came.
fn delivered(receiver: &CallbackTarget) -> Vec<usize> {
    let number = |text: &str| text.split("<CreateTime>").nth(1)?.split('<').next()?.parse().ok();
    let received = receiver.received();
    received.iter().map(|delivery| number(delivery.text()).expect("a number")).collect()
}

/// The messages in the state that wait.
fn pending(dir: &TempDir) -> u64 {
    let state = rusqlite::Connection::open(dir.path().join("state.db")).expect("the state");
    let query = "SELECT count(*) FROM records WHERE collection = 'callback_pending'";
    state.query_row(query, [], |row| row.get(0)).expect("a number")
}

#[tokio::test]
async fn accepted_messages_survive_kill_9() {
    let receiver = CallbackTarget::start().await;
    let dir = tempfile::tempdir().expect("a directory");
    let path = file(&dir, &receiver);
    let mut accepted = BTreeSet::new();
    let kills = std::env::var("CALLBACK_KILL_COUNT").ok().and_then(|count| count.parse().ok()).unwrap_or(5);
    for round in 0..kills {
        let process = Process::serve(&path).await;
        let numbers = round * 10_000..(round + 1) * 10_000;
        let count = Cell::new(0);
        let killed = async {
            wait_for("accepted messages", async || count.get() >= 20 + 7 * round).await;
            process.signal("KILL");
        };
        let (answered, ()) = tokio::join!(push_until_it_ends(&process, numbers, &count), killed);
        accepted.extend(answered);
        process.wait().await;
    }
    let _last = Process::serve(&path).await;
    let missing = || {
        let delivered: BTreeSet<_> = delivered(&receiver).into_iter().collect();
        accepted.difference(&delivered).count()
    };
    // The lease of the killed process must expire first.
    for _ in 0..2 {
        if missing() > 0 {
            let found = tokio::time::timeout(Duration::from_secs(20), async {
                while missing() > 0 {
                    sleep(Duration::from_millis(50)).await;
                }
            });
            let _ = found.await;
        }
    }
    println!("{kills} kills, {} answered with 200, {} not delivered", accepted.len(), missing());
    assert_eq!(missing(), 0, "of {}", accepted.len());
}

#[tokio::test]
async fn two_processes_deliver_each_message_once() {
    let receiver = CallbackTarget::start().await;
    let dir = tempfile::tempdir().expect("a directory");
    let path = file(&dir, &receiver);
    let (first, second) = (Process::serve(&path).await, Process::serve(&path).await);
    let count = Cell::new(0);
    let (one, other) =
        tokio::join!(push_until_it_ends(&first, 0..40, &count), push_until_it_ends(&second, 40..80, &count));
    assert_eq!((one.len(), other.len()), (40, 40));
    receiver.wait_for(80).await;
    // A delivery that was not noted down would be repeated.
    wait_for("an empty queue", async || pending(&dir) == 0).await;
    // The first one has the lease; what the second one accepts is delivered after it was killed.
    first.signal("KILL");
    first.wait().await;
    assert_eq!(push_until_it_ends(&second, 80..90, &count).await.len(), 10);
    let taken_over = async {
        while receiver.received().len() < 90 {
            sleep(Duration::from_millis(50)).await;
        }
    };
    let taken_over = tokio::time::timeout(Duration::from_secs(30), taken_over).await;
    assert!(taken_over.is_ok(), "the other process takes over within 30 s");
    let mut numbers = delivered(&receiver);
    numbers.sort_unstable();
    assert_eq!(numbers, (0..90).collect::<Vec<_>>(), "each once");
}
