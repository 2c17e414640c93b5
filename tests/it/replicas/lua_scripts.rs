//! The Lua scripts of the store, each alone on a real server.

use crate::redis_server::RedisServer;

const CLAIM: &str = include_str!("../../../src/store/scripts/claim.lua");
const COUNT: &str = include_str!("../../../src/store/scripts/consume_limits.lua");
const END: &str = include_str!("../../../src/store/scripts/end_lease.lua");
const EXTEND: &str = include_str!("../../../src/store/scripts/extend_lease.lua");
const PUT: &str = include_str!("../../../src/store/scripts/put.lua");
const READ: &str = include_str!("../../../src/store/scripts/read.lua");

/// Runs a script; returns its reply, one line per value.
async fn eval(redis: &RedisServer, script: &str, keys: &[&str], arguments: &[&str]) -> Vec<String> {
    let count = keys.len().to_string();
    let command = [&["--raw", "EVAL", script, &count], keys, arguments].concat();
    redis.command(&command).await.lines().map(str::to_owned).collect()
}

/// Claims the lease as `owner`, whose record has this fence.
async fn claim(redis: &RedisServer, fence: &str, owner: &str, force: &str) -> Vec<String> {
    eval(redis, CLAIM, &["record", "lease", "failure", "counter"], &[fence, owner, "3000", "60000", force])
        .await
}

/// Stores `value` as `owner`.
async fn put(redis: &RedisServer, fence: &str, value: &str, owner: &str) -> String {
    let arguments = [fence, value, "60000", owner, "news", "told", "1"];
    eval(redis, PUT, &["record", "lease", "failure"], &arguments).await.concat()
}

fn number(text: &str) -> u64 {
    text.parse().unwrap_or_else(|_| panic!("not a number: {text:?}"))
}

#[tokio::test]
async fn lease_is_exclusive_and_the_record_is_shared() {
    let redis = RedisServer::start().await;
    let first = claim(&redis, "0", "one", "0").await;
    assert_eq!((first[0].as_str(), first[1].as_str()), ("ours", ""));
    let taken = claim(&redis, "0", "two", "0").await;
    assert_eq!(taken[0], "taken");
    assert!((1..=3000).contains(&number(&taken[3])), "{taken:?}");
    assert_eq!(put(&redis, &first[2], "value", "one").await, "1");
    let record = claim(&redis, "0", "two", "0").await;
    assert_eq!(record[..3], ["record", "value", &first[2]]);
    assert_eq!((number(&record[3]) <= 60_000, record[4].as_str()), (true, "1"));
    // A claim with the current fence gets the lease for the next, higher fence.
    let next = claim(&redis, &first[2], "two", "0").await;
    assert_eq!(next[0], "ours");
    assert!(number(&next[2]) > number(&first[2]));
}

#[tokio::test]
async fn lease_is_extended_and_ended_by_its_holder_only() {
    let redis = RedisServer::start().await;
    claim(&redis, "0", "one", "0").await;
    redis.command(&["PEXPIRE", "lease", "1000000"]).await;
    assert_eq!(eval(&redis, EXTEND, &["lease"], &["two", "9000000"]).await, ["0"]);
    assert!(number(redis.command(&["PTTL", "lease"]).await.trim()) <= 1_000_000);
    assert_eq!(eval(&redis, EXTEND, &["lease"], &["one", "9000000"]).await, ["1"]);
    assert!(number(redis.command(&["PTTL", "lease"]).await.trim()) > 1_000_000);
    assert_eq!(
        eval(&redis, END, &["lease", "failure"], &["two", "news", "ended", "why", "1000"]).await,
        ["0"]
    );
    assert_eq!(redis.command(&["--raw", "EXISTS", "lease", "failure"]).await.trim(), "1");
    assert_eq!(eval(&redis, END, &["lease", "failure"], &["one", "news", "ended", "", "0"]).await, ["1"]);
    assert_eq!(redis.command(&["--raw", "EXISTS", "lease", "failure"]).await.trim(), "0");
}

#[tokio::test]
async fn put_with_an_older_fence_is_rejected() {
    let redis = RedisServer::start().await;
    assert_eq!(put(&redis, "20", "newer", "two").await, "1");
    for fence in ["19", "20"] {
        assert_eq!(put(&redis, fence, "older", "one").await, "0");
    }
    let record = eval(&redis, READ, &["record"], &[]).await;
    assert_eq!(record[..2], ["newer", "20"]);
    assert_eq!(put(&redis, "21", "newest", "one").await, "1");
    // Fences do not go back after the store was wiped.
    redis.command(&["FLUSHALL"]).await;
    let first = claim(&redis, "0", "one", "0").await;
    redis.command(&["FLUSHALL"]).await;
    assert!(number(&claim(&redis, "0", "one", "0").await[2]) > number(&first[2]));
}

#[tokio::test]
async fn failure_delays_others_and_is_remembered_longer() {
    let redis = RedisServer::start().await;
    claim(&redis, "0", "one", "0").await;
    eval(&redis, END, &["lease", "failure"], &["one", "news", "ended", "why", "70000"]).await;
    let failed = claim(&redis, "0", "two", "0").await;
    assert_eq!(failed[..2], ["failed", "why"]);
    assert!((1..=10_000).contains(&number(&failed[3])), "{failed:?}");
    let forced = claim(&redis, "0", "two", "1").await;
    assert_eq!(forced[..2], ["ours", "why"]);
    redis.command(&["DEL", "lease"]).await;
    redis.command(&["PEXPIRE", "failure", "60000"]).await;
    assert_eq!(claim(&redis, "0", "two", "0").await[..2], ["ours", "why"], "the backoff has expired");
    assert_eq!(put(&redis, "9007199254740000", "value", "two").await, "1");
    assert_eq!(redis.command(&["--raw", "EXISTS", "failure"]).await.trim(), "0");
}

#[tokio::test]
async fn keys_of_another_redis_type_are_replaced() {
    let redis = RedisServer::start().await;
    for key in ["record", "lease", "failure", "counter"] {
        redis.command(&["RPUSH", key, "nonsense"]).await;
    }
    assert_eq!(eval(&redis, READ, &["record"], &[]).await[1], "0");
    let claimed = claim(&redis, "0", "one", "0").await;
    assert_eq!(claimed[0], "ours");
    redis.command(&["SET", "record", "nonsense"]).await;
    assert_eq!(put(&redis, &claimed[2], "value", "one").await, "1");
    redis.command(&["SADD", "bucket", "nonsense"]).await;
    assert_eq!(eval(&redis, COUNT, &["bucket"], &["0", "1000"]).await.len(), 1);
}

#[tokio::test]
async fn bucket_counts_add_up_and_unused_buckets_leave_no_key() {
    let redis = RedisServer::start().await;
    let time_to_full = async |taken: &str| {
        let reply = eval(&redis, COUNT, &["bucket", "other"], &["0", taken, "0"]).await;
        (number(&reply[0]), number(&reply[1]))
    };
    let (first, _) = time_to_full("60000000").await;
    assert_eq!(first, 60_000_000);
    let (second, other) = time_to_full("60000000").await;
    assert!((60_000_001..=120_000_000).contains(&second), "{second}");
    assert_eq!(other, 0);
    assert_eq!(redis.command(&["--raw", "EXISTS", "bucket", "other"]).await.trim(), "1");
}

#[tokio::test]
async fn corrupt_or_skewed_bucket_is_reset() {
    let redis = RedisServer::start().await;
    let time_to_full = async |text: &str| {
        redis.command(&["SET", "bucket", text]).await;
        let reply = eval(&redis, COUNT, &["bucket"], &["200000", "10000000"]).await;
        reply[0].parse::<i64>().unwrap_or_else(|_| panic!("{text}: {reply:?}"))
    };
    let time = redis.command(&["--raw", "TIME"]).await;
    let now = number(time.lines().next().expect("seconds")) * 1_000_000;
    for corrupt in [
        "",
        "nonsense",
        "inf",
        "nan@nan",
        "-5@7",
        "9007199254740992",
        "9223372036854775807@0",
        &format!("{}@{now}", "9".repeat(400)),
        &format!("{now}@{}", "9".repeat(400)),
        "9000000000000000@1000000000000000",
    ] {
        assert_eq!(time_to_full(corrupt).await, 9_800_000, "{corrupt}");
        assert!(redis.command(&["GET", "bucket"]).await.contains('@'), "{corrupt} is replaced");
    }
    // Full in a minute when written, by a clock that is hours ahead of this one.
    let (skewed, hour) = (now + 5 * 3_600_000_000, 3_600_000_000);
    assert_eq!(time_to_full(&format!("{}@{skewed}", skewed + 60_000_000)).await, 70_000_000);
    // The same by a clock that is behind: the bucket is full by now.
    assert_eq!(time_to_full(&format!("{}@{}", now - hour + 60_000_000, now - hour)).await, 9_800_000);
}

#[tokio::test]
async fn invalid_fence_values_are_ignored() {
    let redis = RedisServer::start().await;
    let now = number(&claim(&redis, "0", "one", "0").await[2]);
    redis.command(&["FLUSHALL"]).await;
    let far_future = format!("{}", now + 365 * 86_400_000_000);
    for invalid in
        ["inf", "nan", "-1", "0.5", "1e300", "9007199254740992", "9223372036854775807", &far_future]
    {
        redis.command(&["HSET", "record", "value", "nonsense", "fence", invalid]).await;
        redis.command(&["PEXPIRE", "record", "60000"]).await;
        redis.command(&["SET", "counter", invalid]).await;
        assert_eq!(eval(&redis, READ, &["record"], &[]).await[1], "0", "{invalid}");
        let claimed = claim(&redis, invalid, "one", "0").await;
        assert_eq!(claimed[0], "ours", "{invalid}");
        assert!((now..now + 3_600_000_000).contains(&number(&claimed[2])), "{invalid}: {claimed:?}");
        assert_eq!(put(&redis, &claimed[2], "value", "one").await, "1", "{invalid}");
        assert_eq!(claim(&redis, "0", "two", "0").await[..2], ["record", "value"], "{invalid}");
    }
    // The next fence exceeds the caller's, even if the clock went back since.
    redis.command(&["FLUSHALL"]).await;
    let current = now + 3_600_000_000;
    assert_eq!(number(&claim(&redis, &current.to_string(), "one", "0").await[2]), current + 1);
}

#[tokio::test]
async fn lease_or_failure_without_a_ttl_is_ignored() {
    let redis = RedisServer::start().await;
    for lease in [&["SET", "lease", "one"][..], &["SET", "lease", "one", "PX", "7000"]] {
        redis.command(lease).await;
        assert_eq!(claim(&redis, "0", "two", "0").await[0], "ours", "{lease:?}");
        redis.command(&["FLUSHALL"]).await;
    }
    for failure in [&["SET", "failure", "why"][..], &["SET", "failure", "why", "PX", "1000000"]] {
        redis.command(failure).await;
        assert_eq!(claim(&redis, "0", "two", "0").await[0], "ours", "{failure:?}");
        redis.command(&["FLUSHALL"]).await;
    }
}
