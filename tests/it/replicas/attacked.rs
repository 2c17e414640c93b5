//! Somebody who can write into the store, or speak on its channel, but has not the key: they can have a token fetched once
//! more, and that is all.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use wecom_proxy::simulator::Fault;

use super::{GETTOKEN, Replicas, agent_report};
use crate::{
    redis::Redis,
    stage::{OPEN, Stage, USER_GET, wait_for},
};

/// Where the agent whose record is the only one keeps its things.
async fn only_name(redis: &Redis) -> String {
    let keys = redis.ask(&["--raw", "KEYS", "*:record"]).await;
    assert_eq!(keys.lines().count(), 1, "{keys}");
    keys.trim().trim_end_matches(":record").to_owned()
}

/// A replica that begins with nothing.
async fn newcomer(replicas: &Replicas, redis: &Redis) -> Arc<Stage> {
    let toml = format!("{OPEN}\n[tokens]\n{}\n", redis.store());
    let stage = Stage::facing(replicas.first.wecom.api_addr(), &toml).await;
    wait_for("the store", async || stage.proxy.store_trouble().is_none()).await;
    Arc::new(stage)
}

/// Whose token the last call carried.
fn last_user(replicas: &Replicas) -> Option<String> {
    replicas.first.last_seen(super::USER).agent
}

#[tokio::test]
async fn whatever_stands_at_a_name_holds_nobody_up() {
    let redis = Redis::start().await;
    let replicas = Replicas::start(2, &redis.store()).await;
    replicas.crowd(1).await;
    let name = only_name(&redis).await;
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
        let redis = Redis::start().await;
        let replicas = Replicas::start(2, &redis.store()).await;
        replicas.crowd(1).await;
        spoiled(&redis, &replicas, spoils).await;
    }
}

async fn spoiled(redis: &Redis, replicas: &Replicas, spoils: &[Vec<&str>]) {
    for spoil in spoils {
        replicas.voided(1).await;
        redis.ask(spoil).await;
        let began = Instant::now();
        let gettokens = replicas.voided(1).await;
        let what = || spoil.iter().map(|word| &word[..word.len().min(60)]).collect::<Vec<_>>();
        assert!((1..=2).contains(&gettokens), "{:?}: {gettokens}", what());
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}: it took {:?}", what(), began.elapsed());
        for stage in replicas.all() {
            assert_eq!(stage.proxy.store_trouble(), None, "{:?}", what());
        }
        // And whoever comes anew shares what the others have.
        assert_eq!(replicas.voided(1).await, 1, "{:?}", what());
        redis.ask(&["FLUSHALL"]).await;
    }
}

#[tokio::test]
async fn what_is_moved_to_another_name_or_place_is_no_token() {
    let redis = Redis::start().await;
    let replicas = Replicas::start(1, &redis.store()).await;
    replicas.crowd(1).await;
    let hr = only_name(&redis).await;
    replicas.first.call(http::Request::get(format!("/ops{USER_GET}")), "").await.is_ok();
    let keys = redis.ask(&["--raw", "KEYS", "*:record"]).await;
    let ops = keys.lines().map(|key| key.trim_end_matches(":record")).find(|name| *name != hr);
    let ops = ops.expect("another agent").to_owned();
    // The other agent's, in the place of this one's.
    let swap = "local value = redis.call('HGET', KEYS[1], 'value') \
                redis.call('HSET', KEYS[1], 'value', redis.call('HGET', KEYS[2], 'value')) \
                redis.call('HSET', KEYS[2], 'value', value)";
    redis.ask(&["EVAL", swap, "2", &format!("{hr}:record"), &format!("{ops}:record")]).await;
    let new = newcomer(&replicas, &redis).await;
    for agent in ["hr", "ops"] {
        let reply = new.call(http::Request::get(format!("/{agent}{USER_GET}")), "").await;
        assert_eq!(reply.is_ok().header("x-wecom-retried"), "");
        assert_eq!(last_user(&replicas).as_deref(), Some(agent));
    }
    // An older one of the same agent, said to be newer than the newest.
    let old = "return redis.call('COPY', KEYS[1], KEYS[2])";
    redis.ask(&["EVAL", old, "2", &format!("{hr}:record"), "kept"]).await;
    replicas.voided(1).await;
    let replay = "local fence = redis.call('HGET', KEYS[1], 'fence') \
                  redis.call('HSET', KEYS[1], 'value', redis.call('HGET', KEYS[2], 'value')) \
                  redis.call('HSET', KEYS[1], 'fence', string.format('%.0f', fence + 1))";
    redis.ask(&["EVAL", replay, "2", &format!("{hr}:record"), "kept"]).await;
    let new = newcomer(&replicas, &redis).await;
    assert_eq!(new.get(USER_GET).await.is_ok().header("x-wecom-retried"), "", "an old token came back");
    // A failure, in the place of a token.
    let told = "the words of a failure";
    let body = format!(r#"{{"errcode":40013,"errmsg":"{told}"}}"#);
    let fault = Fault::answer(200, "application/json", body).on(GETTOKEN).times(1);
    replicas.first.wecom.inject(fault).expect("a fault");
    replicas.first.wecom.revoke("hr").expect("an agent");
    replicas.first.get(USER_GET).await;
    let moved = "redis.call('HSET', KEYS[1], 'value', redis.call('GET', KEYS[2])) \
                 redis.call('HSET', KEYS[1], 'fence', string.format('%.0f', redis.call('HGET', KEYS[1], 'fence') + 1)) \
                 return redis.call('DEL', KEYS[2])";
    let done = redis.ask(&["EVAL", moved, "2", &format!("{hr}:record"), &format!("{hr}:failure")]).await;
    assert!(done.contains('1'), "{done}");
    let new = newcomer(&replicas, &redis).await;
    assert_eq!(new.get(USER_GET).await.is_ok().header("x-wecom-retried"), "", "a failure served as a token");
}

#[tokio::test]
async fn who_speaks_on_the_channel_without_the_key_is_not_heard() {
    let redis = Redis::start().await;
    let replicas = Replicas::start(2, &redis.store()).await;
    replicas.crowd(1).await;
    let name = only_name(&redis).await;
    let fence = redis.ask(&["--raw", "HGET", &format!("{name}:record"), "fence"]).await.trim().to_owned();
    let bare = name.trim_start_matches("wecom-proxy:{").trim_end_matches('}');
    let before = redis.ask(&["--raw", "INFO", "commandstats"]).await;
    for word in ["refused", "renewed", "same", "known", "ended"] {
        for fence in [&fence[..], "18446744073709551615"] {
            for more in ["", " 00", " 0123456789abcdef0123456789abcdef"] {
                let news = format!("{word} {fence} {bare}{more}");
                assert!(redis.ask(&["--raw", "PUBLISH", "wecom-proxy:news", &news]).await.contains('2'));
            }
        }
    }
    redis.ask(&["EVAL", "redis.call('PUBLISH', 'wecom-proxy:news', string.rep('x', 10000000))", "0"]).await;
    // News come in their order, so that what was said before this one was heard by then.
    replicas.first.call(http::Request::get(format!("/ops{USER_GET}")), "").await.is_ok();
    replicas.others[0].call(http::Request::get(format!("/ops{USER_GET}")), "").await.is_ok();
    replicas.first.wecom.revoke("ops").expect("an agent");
    replicas.first.call(http::Request::get(format!("/ops{USER_GET}")), "").await.is_ok();
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
    let after = redis.ask(&["--raw", "INFO", "commandstats"]).await;
    let asked = reads(&after) - reads(&before);
    assert!(asked < 20, "{asked} questions to the store");
}
