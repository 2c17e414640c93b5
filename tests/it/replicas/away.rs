//! The store dies, hangs, fills up, forgets, or holds nonsense: no request is refused for it, and the replicas find
//! together again by themselves.

use super::{Replicas, last_renewal};
use crate::{
    redis::Redis,
    stage::{Caller, Stage, USER_GET, wait_for},
};

/// Whatever is wrong with the store, no replica asks more often than once, and each call is carried out once.
async fn goes_on(replicas: &Replicas) {
    let gettokens = replicas.voided(20).await;
    assert!((1..=3).contains(&gettokens), "{gettokens} gettokens");
}

/// The store is there for all, and they share what it holds.
async fn is_shared(replicas: &Replicas) {
    replicas.joined().await;
    // What each got by itself is now in the store; the next is the first that all get from there.
    replicas.voided(1).await;
    replicas.renew_once(20).await;
}

async fn readiness(stage: &Stage) -> serde_json::Value {
    Caller::http1(stage.admin()).await.call(http::Request::get("/readyz"), "").await.json()
}

#[tokio::test]
async fn without_the_store_each_replica_goes_on_and_says_so() {
    let mut redis = Redis::start().await;
    let replicas = Replicas::start(3, &redis.store()).await;
    replicas.crowd(5).await;
    redis.kill().await;
    goes_on(&replicas).await;
    replicas.parted().await;
    goes_on(&replicas).await;
    let said = readiness(&replicas.first).await["store"].clone();
    assert_eq!((&said["kind"], &said["ok"]), (&"redis".into(), &false.into()), "{said}");
    redis.resume().await;
    is_shared(&replicas).await;
    assert_eq!(readiness(&replicas.first).await["store"]["ok"], true);
}

#[tokio::test]
async fn a_replica_that_starts_without_the_store_joins_it_later() {
    let mut redis = Redis::start().await;
    redis.kill().await;
    let toml = format!("{}\n[tokens]\n{}\n", crate::stage::OPEN, redis.store());
    let stage = Stage::with(&toml).await;
    stage.get(USER_GET).await.is_ok();
    redis.resume().await;
    wait_for("the store", async || stage.proxy.store_trouble().is_none()).await;
    // What it got by itself is there for others.
    wait_for("its record", async || redis.ask(&["KEYS", "*:record"]).await.contains("record")).await;
    let other = Stage::facing(stage.wecom.api_addr(), &toml).await;
    wait_for("the store", async || other.proxy.store_trouble().is_none()).await;
    other.get(USER_GET).await.is_ok();
    assert_eq!(stage.wecom.gettoken_count("hr").expect("an agent"), 1);
}

#[tokio::test]
async fn a_store_that_hangs_or_takes_nothing_is_done_without() {
    let redis = Redis::start().await;
    let replicas = Replicas::start(3, &redis.store()).await;
    replicas.crowd(5).await;
    redis.signal("STOP");
    goes_on(&replicas).await;
    replicas.parted().await;
    redis.signal("CONT");
    is_shared(&replicas).await;
    for (spoil, mend) in [
        (["REPLICAOF", "127.0.0.1", "1"], ["REPLICAOF", "NO", "ONE"]),
        (["CONFIG", "SET", "maxmemory 1"], ["CONFIG", "SET", "maxmemory 0"]),
    ] {
        let words =
            |line: [&'static str; 3]| line.iter().flat_map(|words| words.split(' ')).collect::<Vec<_>>();
        redis.ask(&words(spoil)).await;
        goes_on(&replicas).await;
        replicas.parted().await;
        redis.ask(&words(mend)).await;
        is_shared(&replicas).await;
    }
}

#[tokio::test]
async fn a_store_that_was_wiped_or_holds_nonsense_is_filled_anew() {
    let redis = Redis::start().await;
    let replicas = Replicas::start(3, &redis.store()).await;
    replicas.crowd(5).await;
    let keys = redis.ask(&["--raw", "KEYS", "*:record"]).await;
    let record = keys.lines().next().expect("a record").to_owned();
    let name = record.trim_end_matches(":record").to_owned();
    for nonsense in [
        &["FLUSHALL"][..],
        &["SET", &record, "nonsense"],
        &["HSET", &record, "value", "nonsense", "fence", "9007199254740000"],
        &["HSET", &record, "value", "", "fence", "nonsense"],
        &["DEL", &record],
        &["SADD", &format!("{name}:lease"), "nonsense"],
        &["SET", &format!("{name}:failure"), "nonsense", "PX", "910000"],
        &["LPUSH", &format!("{name}:counter"), "nonsense"],
    ] {
        redis.ask(nonsense).await;
        let gettokens = replicas.voided(20).await;
        assert!((1..=3).contains(&gettokens), "{nonsense:?}: {gettokens}");
        redis.ask(&["FLUSHALL"]).await;
    }
    is_shared(&replicas).await;
    assert!(replicas.others.len() == 2 && !last_renewal(&replicas.first).await.is_empty());
}
