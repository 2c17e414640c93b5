//! Somebody who can write into the store, or speak on its channel, but has not the key: they can have a token fetched once
//! more, and that is all.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use wecom_proxy::simulator::Fault;

use super::{GETTOKEN, Replicas, agent_report};
use crate::{
    harness::{OPEN_CONFIG, TestProxy, USER_GET, wait_for},
    redis_server::RedisServer,
};

/// Where the agent whose record is the only one keeps its things.
async fn only_record_name(redis: &RedisServer) -> String {
    let keys = redis.command(&["--raw", "KEYS", "*:record"]).await;
    assert_eq!(keys.lines().count(), 1, "{keys}");
    keys.trim().trim_end_matches(":record").to_owned()
}

/// A replica that begins with nothing.
async fn start_new_replica(replicas: &Replicas, redis: &RedisServer) -> Arc<TestProxy> {
    let toml = format!("{OPEN_CONFIG}\n[tokens]\n{}\n", redis.store_config_line());
    let stage = TestProxy::start_with_upstream(replicas.first.wecom.api_addr(), &toml).await;
    wait_for("the store", async || stage.app.store_error().is_none()).await;
    Arc::new(stage)
}

/// Whose token the last call carried.
fn last_request_agent(replicas: &Replicas) -> Option<String> {
    replicas.first.last_request(super::USER).agent
}

#[tokio::test]
async fn corrupt_store_keys_block_no_replica() {
    let redis = RedisServer::start().await;
    let replicas = Replicas::start(2, &redis.store_config_line()).await;
    replicas.load(1).await;
    let name = only_record_name(&redis).await;
    let key = |what: &str| format!("{name}:{what}");
    let (record, lease, failure, counter) = (key("record"), key("lease"), key("failure"), key("counter"));
    let mut spoils: Vec<Vec<&str>> = vec![
        vec!["SET", &lease, "nonsense"],
        vec!["SET", &lease, "nonsense", "PX", "86400000"],
        vec!["SET", &failure, "nonsense", "PX", "1800000"],
        vec!["SET", &failure, "nonsense", "PX", "100000000"],
        vec!["HSET", &record, "value", ""],
        vec!["EVAL", "redis.call('HSET', KEYS[1], 'value', string.rep('x', 10000000))", "1", &record],
        vec!["EVAL", "redis.call('SETEX', KEYS[1], 1800, string.rep('x', 10000000))", "1", &failure],
    ];
    for number in [
        "inf",
        "-inf",
        "nan",
        "1e300",
        "-5",
        "0.5",
        "9223372036854775807",
        "9007199254740992",
        "9007199254740991",
    ] {
        spoils.push(vec!["HSET", &record, "fence", number]);
        spoils.push(vec!["SET", &counter, number]);
    }
    // Two replicas renew a token that often within a short time.
    for spoils in spoils.chunks(3) {
        let redis = RedisServer::start().await;
        let replicas = Replicas::start(2, &redis.store_config_line()).await;
        replicas.load(1).await;
        assert_recovers_from(&redis, &replicas, spoils).await;
    }
}

async fn assert_recovers_from(redis: &RedisServer, replicas: &Replicas, spoils: &[Vec<&str>]) {
    for spoil in spoils {
        replicas.revoke_and_load(1).await;
        redis.command(spoil).await;
        let began = Instant::now();
        let gettokens = replicas.revoke_and_load(1).await;
        let what = || spoil.iter().map(|word| &word[..word.len().min(60)]).collect::<Vec<_>>();
        assert!((1..=2).contains(&gettokens), "{:?}: {gettokens}", what());
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}: it took {:?}", what(), began.elapsed());
        for stage in replicas.all() {
            assert_eq!(stage.app.store_error(), None, "{:?}", what());
        }
        // And whoever comes anew shares what the others have.
        assert_eq!(replicas.revoke_and_load(1).await, 1, "{:?}", what());
        redis.command(&["FLUSHALL"]).await;
    }
}

#[tokio::test]
async fn record_moved_to_another_key_is_rejected() {
    let redis = RedisServer::start().await;
    let replicas = Replicas::start(1, &redis.store_config_line()).await;
    replicas.load(1).await;
    let hr = only_record_name(&redis).await;
    replicas.first.request(http::Request::get(format!("/ops{USER_GET}")), "").await.assert_ok();
    let keys = redis.command(&["--raw", "KEYS", "*:record"]).await;
    let ops = keys.lines().map(|key| key.trim_end_matches(":record")).find(|name| *name != hr);
    let ops = ops.expect("another agent").to_owned();
    // The other agent's, in the place of this one's.
    let swap = "local value = redis.call('HGET', KEYS[1], 'value') \
                redis.call('HSET', KEYS[1], 'value', redis.call('HGET', KEYS[2], 'value')) \
                redis.call('HSET', KEYS[2], 'value', value)";
    redis.command(&["EVAL", swap, "2", &format!("{hr}:record"), &format!("{ops}:record")]).await;
    let new = start_new_replica(&replicas, &redis).await;
    for agent in ["hr", "ops"] {
        let reply = new.request(http::Request::get(format!("/{agent}{USER_GET}")), "").await;
        assert_eq!(reply.assert_ok().header("x-wecom-retried"), "");
        assert_eq!(last_request_agent(&replicas).as_deref(), Some(agent));
    }
    // An older one of the same agent, said to be newer than the newest.
    let old = "return redis.call('COPY', KEYS[1], KEYS[2])";
    redis.command(&["EVAL", old, "2", &format!("{hr}:record"), "kept"]).await;
    replicas.revoke_and_load(1).await;
    let replay = "local fence = redis.call('HGET', KEYS[1], 'fence') \
                  redis.call('HSET', KEYS[1], 'value', redis.call('HGET', KEYS[2], 'value')) \
                  redis.call('HSET', KEYS[1], 'fence', string.format('%.0f', fence + 1))";
    redis.command(&["EVAL", replay, "2", &format!("{hr}:record"), "kept"]).await;
    let new = start_new_replica(&replicas, &redis).await;
    assert_eq!(new.get(USER_GET).await.assert_ok().header("x-wecom-retried"), "", "an old token came back");
    // A failure, in the place of a token.
    let told = "the words of a failure";
    let body = format!(r#"{{"errcode":40013,"errmsg":"{told}"}}"#);
    let fault = Fault::response(200, "application/json", body).on_path(GETTOKEN).times(1);
    replicas.first.wecom.inject(fault).expect("a fault");
    replicas.first.wecom.revoke_tokens("hr").expect("an agent");
    replicas.first.get(USER_GET).await;
    let moved = "redis.call('HSET', KEYS[1], 'value', redis.call('GET', KEYS[2])) \
                 redis.call('HSET', KEYS[1], 'fence', string.format('%.0f', redis.call('HGET', KEYS[1], 'fence') + 1)) \
                 return redis.call('DEL', KEYS[2])";
    let done = redis.command(&["EVAL", moved, "2", &format!("{hr}:record"), &format!("{hr}:failure")]).await;
    assert!(done.contains('1'), "{done}");
    let new = start_new_replica(&replicas, &redis).await;
    assert_eq!(
        new.get(USER_GET).await.assert_ok().header("x-wecom-retried"),
        "",
        "a failure served as a token"
    );
}

#[tokio::test]
async fn unauthenticated_store_messages_are_ignored() {
    let redis = RedisServer::start().await;
    let replicas = Replicas::start(2, &redis.store_config_line()).await;
    replicas.load(1).await;
    let name = only_record_name(&redis).await;
    let fence = redis.command(&["--raw", "HGET", &format!("{name}:record"), "fence"]).await.trim().to_owned();
    let bare = name.trim_start_matches("wecom-proxy:{").trim_end_matches('}');
    let before = redis.command(&["--raw", "INFO", "commandstats"]).await;
    for word in ["refused", "renewed", "same", "known", "ended"] {
        for fence in [&fence[..], "18446744073709551615"] {
            for more in ["", " 00", " 0123456789abcdef0123456789abcdef"] {
                let news = format!("{word} {fence} {bare}{more}");
                assert!(redis.command(&["--raw", "PUBLISH", "wecom-proxy:news", &news]).await.contains('2'));
            }
        }
    }
    redis
        .command(&["EVAL", "redis.call('PUBLISH', 'wecom-proxy:news', string.rep('x', 10000000))", "0"])
        .await;
    // News come in their order, so that what was said before this one was heard by then.
    replicas.first.request(http::Request::get(format!("/ops{USER_GET}")), "").await.assert_ok();
    replicas.others[0].request(http::Request::get(format!("/ops{USER_GET}")), "").await.assert_ok();
    replicas.first.wecom.revoke_tokens("ops").expect("an agent");
    replicas.first.request(http::Request::get(format!("/ops{USER_GET}")), "").await.assert_ok();
    let other = &replicas.others[0];
    wait_for("the news", async || agent_report(other, "ops").await["last_renewal"]["reason"] == "shared")
        .await;
    for stage in replicas.all() {
        let hr = agent_report(stage, "hr").await;
        assert_eq!(hr["token"]["state"], "valid", "{hr}");
    }
    let reads = |stats: &str| {
        let line =
            stats.lines().find(|line| line.starts_with("cmdstat_evalsha:")).unwrap_or_default().to_owned();
        let calls = line.split("calls=").nth(1).and_then(|rest| rest.split(',').next()?.parse::<u64>().ok());
        calls.unwrap_or_default()
    };
    let after = redis.command(&["--raw", "INFO", "commandstats"]).await;
    let asked = reads(&after) - reads(&before);
    assert!(asked < 20, "{asked} questions to the store");
}
