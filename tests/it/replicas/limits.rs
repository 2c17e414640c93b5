//! A limit is one for all replicas, as exactly as it can be without asking the store for each request.

use http::Request;

use super::Replicas;
use crate::{
    redis::Redis,
    stage::{Caller, KEYED, Reply, Stage, USER_GET, key, wait_for},
};

/// The client `crm` may call 20 times an hour, and so hardly anything is refilled while the story lasts.
fn limited() -> String {
    KEYED.replace("[clients.crm]", "[clients.crm]\nlimit = \"20/h\"")
}

async fn call(stage: &Stage) -> Reply {
    stage.call(Request::get(format!("/hr{USER_GET}")).header("x-api-key", key("crm")), "").await
}

/// How many of so many calls were let through.
async fn let_through(stage: &Stage, calls: usize) -> usize {
    let mut through = 0;
    for _ in 0..calls {
        let reply = call(stage).await;
        if reply.status == 429 {
            reply.is_own("rate-limited", 429, 45009);
        } else {
            reply.is_ok();
            through += 1;
        }
    }
    through
}

/// What the store has of the limit, once it is something else than this.
async fn changed(redis: &Redis, before: &str) -> String {
    let mut now = String::new();
    wait_for("what is told", async || {
        now = redis.ask(&["--raw", "GET", "wecom-proxy:{limits}:client:crm:20/h"]).await.trim().to_owned();
        now != before
    })
    .await;
    now
}

#[tokio::test]
async fn what_one_replica_lets_through_the_others_do_not() {
    let redis = Redis::start().await;
    let replicas = Replicas::with(&limited(), 2, &redis.store()).await;
    assert_eq!(let_through(&replicas.first, 12).await, 12);
    let told = changed(&redis, "").await;
    // The first call at the other replica has it ask; from the answer on it knows.
    let other = &replicas.others[0];
    let mut through = let_through(other, 1).await;
    changed(&redis, &told).await;
    let mut caller = Caller::http1(other.address()).await;
    wait_for("the refusal", async || {
        let request = Request::get(format!("/hr{USER_GET}")).header("x-api-key", key("crm"));
        let refused = caller.call(request, "").await.status == 429;
        through += usize::from(!refused);
        refused
    })
    .await;
    assert!((8..=10).contains(&through), "{through} more, at 12 of 20 an hour");
    wait_for("the news", async || call(&replicas.first).await.status == 429).await;
}

#[tokio::test]
async fn without_the_store_each_has_its_whole_limit_and_with_it_one_again() {
    let mut redis = Redis::start().await;
    let replicas = Replicas::with(&limited(), 2, &redis.store()).await;
    redis.kill().await;
    replicas.parted().await;
    for stage in replicas.all() {
        assert_eq!(let_through(stage, 25).await, 20);
    }
    redis.resume().await;
    replicas.joined().await;
    // What both took by themselves is beyond the limit, and is paid back; who comes anew knows of it soon.
    for stage in replicas.all() {
        assert_eq!(let_through(stage, 1).await, 0);
    }
    changed(&redis, "").await;
    let toml = format!("{}\n[tokens]\n{}\n", limited(), redis.store());
    let newcomer = Stage::facing(replicas.first.wecom.api_addr(), &toml).await;
    wait_for("the store", async || newcomer.proxy.store_trouble().is_none()).await;
    wait_for("the refusal", async || call(&newcomer).await.status == 429).await;
}
