//! Two processes with one file: each has the changes of the other, in order.

use std::time::Duration;

use super::*;

/// Waits until the listener has had a record with this text.
async fn wait_for(delivered: &Delivered, text: &str) {
    let arrives = async {
        while !texts(&delivered.lock()).iter().any(|found| found == text) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), arrives).await.expect("the change is delivered");
}

#[tokio::test]
async fn changes_of_another_handle_are_delivered_in_order() {
    let directory = tempfile::tempdir().expect("a directory");
    let (one, one_delivered) = open(&directory);
    one.write(vec![agent("a", "1")]).await.expect("written");
    let (two, two_delivered) = open(&directory);
    assert_eq!(texts(&two_delivered.lock()), ["a 1 1"]);
    two.write(vec![agent("b", "2")]).await.expect("written");
    // What another handle wrote before comes before the own write.
    one.write(vec![agent("c", "3")]).await.expect("written");
    assert_eq!(texts(&one_delivered.lock()), ["a 1 1", "b 2 2", "c 3 3"]);
    one.write(vec![Write::delete(Collection::Agents, "a")]).await.expect("deleted");
    wait_for(&two_delivered, "a 4 -").await;
    assert_eq!(texts(&two_delivered.lock()), ["a 1 1", "b 2 2", "c 3 3", "a 4 -"]);
    assert_eq!(value_of(&two, Collection::Agents, "c").await.as_deref(), Some("c 3 3"));
}

#[tokio::test]
async fn record_under_a_key_that_is_not_known_is_reported_until_it_is_readable() {
    let directory = tempfile::tempdir().expect("a directory");
    let (old, delivered) = open(&directory);
    old.write(vec![agent("hr", "before")]).await.expect("written");
    let path = directory.path().join(FILE);
    let new_key = config(&path, "a new state key of the tests, long enough", Some(KEY));
    let (new, _) = try_open_with(&new_key).expect("old_key opens it");
    new.write(vec![agent("hr", "after"), agent("ops", "new")]).await.expect("written");
    let wait_for_count = async |count: usize| {
        let counted = async {
            while old.unreadable_records() != count {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), counted).await.expect("counted");
    };
    wait_for_count(2).await;
    assert_eq!(texts(&delivered.lock()), ["hr 1 before"], "what was before stays");
    assert_eq!(new.unreadable_records(), 0);
    new.write(vec![Write::delete(Collection::Agents, "ops")]).await.expect("deleted");
    wait_for_count(1).await;
    old.write(vec![agent("hr", "by the old one")]).await.expect("written");
    wait_for_count(0).await;
}

#[tokio::test]
async fn handles_that_write_at_once_agree() {
    let directory = tempfile::tempdir().expect("a directory");
    let (one, one_delivered) = open(&directory);
    let (two, two_delivered) = open(&directory);
    let write_all = async |state: &State, prefix: &str| {
        for nth in 0..50 {
            state.write(vec![agent(&format!("{prefix}{nth}"), "value")]).await.expect("written");
        }
    };
    tokio::join!(write_all(&one, "one"), write_all(&two, "two"));
    let last = one.write(vec![agent("last", "value")]).await.expect("written");
    assert_eq!(last, 101);
    wait_for(&two_delivered, "last 101 value").await;
    assert_eq!(texts(&one_delivered.lock()), texts(&two_delivered.lock()));
    let versions: Vec<_> = one_delivered.lock().iter().map(|record| record.version).collect();
    assert_eq!(versions, (1..=101).collect::<Vec<_>>());
}
