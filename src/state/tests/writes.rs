//! Transactions, preconditions, versions, expiry and reading.

use super::*;
use crate::time::clock;

#[tokio::test]
async fn written_records_are_read_delivered_and_survive() {
    let directory = tempfile::tempdir().expect("a directory");
    let (state, delivered) = open(&directory);
    assert_eq!(state.write(vec![agent("hr", "one")]).await, Ok(1));
    assert_eq!(state.write(vec![agent("hr", "two"), agent("ops", "three")]).await, Ok(2));
    let kept = Write::put(Collection::Idempotency, "key", "kept");
    assert_eq!(state.write(vec![kept]).await, Ok(3));
    assert_eq!(texts(&delivered.lock()), ["hr 1 one", "hr 2 two", "ops 2 three"]);
    assert_eq!(value_of(&state, Collection::Agents, "hr").await.as_deref(), Some("hr 2 two"));
    assert_eq!(value_of(&state, Collection::Clients, "hr").await, None);
    state.close().await;
    assert!(matches!(state.write(vec![agent("hr", "late")]).await, Err(WriteError::Unavailable(_))));
    let (state, delivered) = open(&directory);
    assert_eq!(texts(&delivered.lock()), ["hr 2 two", "ops 2 three"]);
    assert_eq!(value_of(&state, Collection::Idempotency, "key").await.as_deref(), Some("key 3 kept"));
}

#[tokio::test]
async fn recreated_name_gets_a_larger_version() {
    let directory = tempfile::tempdir().expect("a directory");
    for collection in [Collection::Agents, Collection::Idempotency] {
        let (state, _) = open(&directory);
        let put = || Write::put(collection, "a", "value");
        let first = state.write(vec![put()]).await.expect("written");
        state.write(vec![Write::delete(collection, "a")]).await.expect("deleted");
        assert_eq!(value_of(&state, collection, "a").await, None);
        state.close().await;
        let (state, delivered) = open(&directory);
        assert!(delivered.lock().iter().all(|record| record.value.is_some()), "no deletion at the start");
        let second = state.write(vec![put().when(Precondition::Absent)]).await.expect("written");
        assert_eq!(second, first + 2);
        state.close().await;
    }
}

#[tokio::test]
async fn failed_precondition_writes_nothing() {
    let directory = tempfile::tempdir().expect("a directory");
    let (state, delivered) = open(&directory);
    state.write(vec![agent("hr", "one")]).await.expect("written");
    let conflict = |index, current| Err(WriteError::Conflict { index, current });
    for (precondition, name, current) in [
        (Precondition::Absent, "hr", Some(1)),
        (Precondition::Version(2), "hr", Some(1)),
        (Precondition::Version(1), "ops", None),
        (Precondition::Present, "ops", None),
    ] {
        let writes = vec![agent("new", "value"), agent(name, "value").when(precondition)];
        assert_eq!(state.write(writes).await, conflict(1, current), "{precondition:?}");
    }
    assert_eq!(value_of(&state, Collection::Agents, "new").await, None);
    assert_eq!(delivered.lock().len(), 1);
    for (precondition, name, version) in [
        (Precondition::Version(1), "hr", 2),
        (Precondition::Present, "hr", 3),
        (Precondition::Absent, "ops", 4),
        (Precondition::None, "ops", 5),
    ] {
        assert_eq!(state.write(vec![agent(name, "value").when(precondition)]).await, Ok(version));
    }
}

#[tokio::test]
async fn last_record_of_a_collection_is_kept_where_the_write_says_so() {
    let directory = tempfile::tempdir().expect("a directory");
    let (one, _) = open(&directory);
    let (two, _) = open(&directory);
    let put = |name: &str| Write::put(Collection::Clients, name, "value");
    one.write(vec![put("a"), put("b"), agent("hr", "of another collection")]).await.expect("written");
    let delete =
        |name: &str, version| Write::delete(Collection::Clients, name).when(Precondition::NotLast(version));
    assert_eq!(
        one.write(vec![delete("a", 7)]).await,
        Err(WriteError::Conflict { index: 0, current: Some(1) })
    );
    let (first, second) = tokio::join!(one.write(vec![delete("a", 1)]), two.write(vec![delete("b", 1)]));
    let last = Err(WriteError::Conflict { index: 0, current: Some(1) });
    assert!((first == last) != (second == last), "{first:?} {second:?}");
    assert_eq!(one.scan(Collection::Clients, "", "", 9).await.expect("readable").len(), 1);
    // Also within one transaction of the file.
    one.write(vec![put("a"), put("b")]).await.expect("written");
    let outcomes = tokio::join!(one.write(vec![delete("a", 3)]), one.write(vec![delete("b", 3)]));
    assert!(outcomes.0.is_ok() != outcomes.1.is_ok(), "{outcomes:?}");
}

#[tokio::test]
async fn concurrent_writes_of_one_version_succeed_once() {
    let directory = tempfile::tempdir().expect("a directory");
    let (state, delivered) = open(&directory);
    let first = || state.write(vec![agent("hr", "value").when(Precondition::Absent)]);
    let outcomes = tokio::join!(first(), first(), first());
    let outcomes = [outcomes.0, outcomes.1, outcomes.2];
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1, "{outcomes:?}");
    assert_eq!(delivered.lock().len(), 1);
}

#[tokio::test]
async fn pages_are_bounded_by_bytes_and_say_where_they_end() {
    let directory = tempfile::tempdir().expect("a directory");
    let (state, _) = open(&directory);
    let put = |nth: usize| Write::put(Collection::CallbackPull, format!("a/b/{nth}"), vec![b'x'; 1000]);
    for nth in 0..5 {
        state.write(vec![put(nth)]).await.expect("written");
    }
    let page = async |after: &str, records, bytes| {
        let limit = PageLimit { records, bytes };
        let page = state.scan_page(Collection::CallbackPull, ["a/b/", after], limit).await.expect("readable");
        (page.records.len(), page.after)
    };
    assert_eq!(page("", 9, 1 << 20).await, (5, None));
    assert_eq!(page("", 9, 1500).await, (2, Some("a/b/1".to_owned())));
    assert_eq!(page("a/b/1", 1, 1 << 20).await, (1, Some("a/b/2".to_owned())));
    let since = async |version, bytes| {
        let found =
            state.scan_since("a/b/", version, PageLimit { records: 9, bytes }).await.expect("readable");
        found.into_iter().map(|record| record.version).collect::<Vec<_>>()
    };
    assert_eq!(since(1, 1 << 20).await, [2, 3, 4, 5]);
    assert_eq!(since(1, 1500).await, [2, 3]);
}

#[tokio::test]
async fn scan_returns_a_prefix_in_the_order_of_names() {
    let directory = tempfile::tempdir().expect("a directory");
    let (state, _) = open(&directory);
    let names = ["b:2", "a:1", "b:10", "b", "c", "b:1", "b;", "b:\u{4f01}"];
    let writes = names.map(|name| Write::put(Collection::StandIns, name, "value")).into();
    state.write(writes).await.expect("written");
    state.write(vec![Write::delete(Collection::StandIns, "b:2")]).await.expect("deleted");
    let scan = async |prefix: &str, after: &str, limit| {
        let found = state.scan(Collection::StandIns, prefix, after, limit).await.expect("readable");
        found.into_iter().map(|record| record.name).collect::<Vec<_>>()
    };
    assert_eq!(scan("b:", "", 9).await, ["b:1", "b:10", "b:\u{4f01}"]);
    assert_eq!(scan("b:", "b:1", 1).await, ["b:10"]);
    assert_eq!(scan("", "b;", 9).await, ["c"]);
    assert_eq!(scan("d", "", 9).await, [""; 0]);
}

#[tokio::test]
async fn expired_record_counts_as_absent() {
    let directory = tempfile::tempdir().expect("a directory");
    let (state, _) = open(&directory);
    let now = clock::unix_now();
    let put = |end| Write::put(Collection::Idempotency, "a", "value").expires_at(end);
    state.write(vec![put(now - 1)]).await.expect("written");
    assert_eq!(value_of(&state, Collection::Idempotency, "a").await, None);
    assert_eq!(state.scan(Collection::Idempotency, "", "", 9).await, Ok(Vec::new()));
    state.write(vec![put(now + 1000).when(Precondition::Absent)]).await.expect("written");
    assert_eq!(value_of(&state, Collection::Idempotency, "a").await.as_deref(), Some("a 2 value"));
}

#[tokio::test]
async fn file_contains_no_value_in_plain_text() {
    let directory = tempfile::tempdir().expect("a directory");
    let (state, _) = open(&directory);
    state.write(vec![agent("hr", "plain-text-of-a-secret")]).await.expect("written");
    for entry in std::fs::read_dir(&directory).expect("a directory") {
        let bytes = std::fs::read(entry.expect("an entry").path()).expect("readable");
        assert!(!bytes.windows(10).any(|part| part == b"plain-text"));
    }
    let record = state.read(Collection::Agents, "hr").await.expect("readable").expect("a record");
    assert!(!format!("{record:?}").contains("plain"));
}
