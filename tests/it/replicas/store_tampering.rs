//! Tampering with the store without its key: writing to it or publishing on its channel causes at most one more gettoken.

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

/// The key prefix of the only agent with a record.
async fn only_record_name(redis: &RedisServer) -> String {
    let keys = redis.command(&["--raw", "KEYS", "*:record"]).await;
    assert_eq!(keys.lines().count(), 1, "{keys}");
    keys.trim().trim_end_matches(":record").to_owned()
}

/// Starts a replica without any cached token.
async fn start_new_replica(replicas: &Replicas, redis: &RedisServer) -> Arc<TestProxy> {
    let toml = format!("{OPEN_CONFIG}\n[tokens]\n{}\n", redis.store_config_line());
    let proxy = TestProxy::start_with_upstream(replicas.first.wecom.api_addr(), &toml).await;
    wait_for("the store", async || proxy.app.store_error().is_none()).await;
    Arc::new(proxy)
}

/// The agent whose token the last request carried.
fn last_request_agent(replicas: &Replicas) -> Option<String> {
    replicas.first.last_request(super::USER).agent
}

#[tokio::test]
async fn corrupt_store_keys_block_no_replica() {
    let redis = RedisServer::start().await;
    let replicas = Replicas::start(2, &redis.store_config_line()).await;
    replicas.load(1).await;
    let name = only_record_name(&redis).await;
    let key = |suffix: &str| format!("{name}:{suffix}");
    let (record, lease, failure, counter) = (key("record"), key("lease"), key("failure"), key("counter"));
    let mut corruptions: Vec<Vec<&str>> = vec![
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
        corruptions.push(vec!["HSET", &record, "fence", number]);
        corruptions.push(vec!["SET", &counter, number]);
    }
    // The refresh limits allow two replicas this many refreshes within a short time.
    for corruptions in corruptions.chunks(3) {
        let redis = RedisServer::start().await;
        let replicas = Replicas::start(2, &redis.store_config_line()).await;
        replicas.load(1).await;
        assert_recovers_from(&redis, &replicas, corruptions).await;
    }
}

async fn assert_recovers_from(redis: &RedisServer, replicas: &Replicas, corruptions: &[Vec<&str>]) {
    for corruption in corruptions {
        replicas.revoke_and_load(1).await;
        redis.command(corruption).await;
        let started = Instant::now();
        let gettokens = replicas.revoke_and_load(1).await;
        let summary =
            || corruption.iter().map(|argument| &argument[..argument.len().min(60)]).collect::<Vec<_>>();
        assert!((1..=2).contains(&gettokens), "{:?}: {gettokens}", summary());
        assert!(started.elapsed() < Duration::from_secs(5), "{:?}: took {:?}", summary(), started.elapsed());
        for proxy in replicas.all() {
            assert_eq!(proxy.app.store_error(), None, "{:?}", summary());
        }
        // Afterwards the replicas share tokens again.
        assert_eq!(replicas.revoke_and_load(1).await, 1, "{:?}", summary());
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
    // The value of another agent's record.
    let swap = "local value = redis.call('HGET', KEYS[1], 'value') \
                redis.call('HSET', KEYS[1], 'value', redis.call('HGET', KEYS[2], 'value')) \
                redis.call('HSET', KEYS[2], 'value', value)";
    redis.command(&["EVAL", swap, "2", &format!("{hr}:record"), &format!("{ops}:record")]).await;
    let new = start_new_replica(&replicas, &redis).await;
    for agent in ["hr", "ops"] {
        let response = new.request(http::Request::get(format!("/{agent}{USER_GET}")), "").await;
        assert_eq!(response.assert_ok().header("x-wecom-retried"), "");
        assert_eq!(last_request_agent(&replicas).as_deref(), Some(agent));
    }
    // An older value of the same agent, with a higher fence.
    let copy = "return redis.call('COPY', KEYS[1], KEYS[2])";
    redis.command(&["EVAL", copy, "2", &format!("{hr}:record"), "kept"]).await;
    replicas.revoke_and_load(1).await;
    let replay = "local fence = redis.call('HGET', KEYS[1], 'fence') \
                  redis.call('HSET', KEYS[1], 'value', redis.call('HGET', KEYS[2], 'value')) \
                  redis.call('HSET', KEYS[1], 'fence', string.format('%.0f', fence + 1))";
    redis.command(&["EVAL", replay, "2", &format!("{hr}:record"), "kept"]).await;
    let new = start_new_replica(&replicas, &redis).await;
    assert_eq!(new.get(USER_GET).await.assert_ok().header("x-wecom-retried"), "", "an old token is used");
    // A failure in place of a token.
    let message = "a failure message";
    let body = format!(r#"{{"errcode":40013,"errmsg":"{message}"}}"#);
    let fault = Fault::response(200, "application/json", body).on_path(GETTOKEN).times(1);
    replicas.first.wecom.inject(fault).expect("a fault");
    replicas.first.wecom.revoke_tokens("hr").expect("an agent");
    replicas.first.get(USER_GET).await;
    let move_failure = "redis.call('HSET', KEYS[1], 'value', redis.call('GET', KEYS[2])) \
                 redis.call('HSET', KEYS[1], 'fence', string.format('%.0f', redis.call('HGET', KEYS[1], 'fence') + 1)) \
                 return redis.call('DEL', KEYS[2])";
    let output =
        redis.command(&["EVAL", move_failure, "2", &format!("{hr}:record"), &format!("{hr}:failure")]).await;
    assert!(output.contains('1'), "{output}");
    let new = start_new_replica(&replicas, &redis).await;
    assert_eq!(
        new.get(USER_GET).await.assert_ok().header("x-wecom-retried"),
        "",
        "a failure is used as a token"
    );
}

#[tokio::test]
async fn unauthenticated_store_messages_are_ignored() {
    let redis = RedisServer::start().await;
    let replicas = Replicas::start(2, &redis.store_config_line()).await;
    replicas.load(1).await;
    let name = only_record_name(&redis).await;
    let fence = redis.command(&["--raw", "HGET", &format!("{name}:record"), "fence"]).await.trim().to_owned();
    let name_part = name.trim_start_matches("wecom-proxy:{").trim_end_matches('}');
    let before = redis.command(&["--raw", "INFO", "commandstats"]).await;
    for kind in ["refused", "renewed", "same", "known", "ended"] {
        for fence in [&fence[..], "18446744073709551615"] {
            for suffix in ["", " 00", " 0123456789abcdef0123456789abcdef"] {
                let message = format!("{kind} {fence} {name_part}{suffix}");
                assert!(
                    redis.command(&["--raw", "PUBLISH", "wecom-proxy:news", &message]).await.contains('2')
                );
            }
        }
    }
    redis
        .command(&["EVAL", "redis.call('PUBLISH', 'wecom-proxy:news', string.rep('x', 10000000))", "0"])
        .await;
    // Messages arrive in order, so all earlier ones were processed when this one is.
    replicas.first.request(http::Request::get(format!("/ops{USER_GET}")), "").await.assert_ok();
    replicas.others[0].request(http::Request::get(format!("/ops{USER_GET}")), "").await.assert_ok();
    replicas.first.wecom.revoke_tokens("ops").expect("an agent");
    replicas.first.request(http::Request::get(format!("/ops{USER_GET}")), "").await.assert_ok();
    let other = &replicas.others[0];
    wait_for("the event", async || agent_report(other, "ops").await["last_renewal"]["reason"] == "shared")
        .await;
    for proxy in replicas.all() {
        let hr = agent_report(proxy, "hr").await;
        assert_eq!(hr["token"]["state"], "valid", "{hr}");
    }
    let script_calls = |stats: &str| {
        let line =
            stats.lines().find(|line| line.starts_with("cmdstat_evalsha:")).unwrap_or_default().to_owned();
        let calls = line.split("calls=").nth(1).and_then(|rest| rest.split(',').next()?.parse::<u64>().ok());
        calls.unwrap_or_default()
    };
    let after = redis.command(&["--raw", "INFO", "commandstats"]).await;
    let new_calls = script_calls(&after) - script_calls(&before);
    assert!(new_calls < 20, "{new_calls} script calls");
}
