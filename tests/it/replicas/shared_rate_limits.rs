//! A limit is one for all replicas, as exactly as it can be without asking the store for each request.

use http::Request;

use super::Replicas;
use crate::{
    harness::{CONFIG_WITH_CLIENTS, TestClient, TestProxy, TestResponse, USER_GET, client_key, wait_for},
    redis_server::RedisServer,
};

/// The client `crm` may call 20 times an hour, and so hardly anything is refilled while the story lasts.
fn config_with_limit() -> String {
    CONFIG_WITH_CLIENTS.replace("[clients.crm]", "[clients.crm]\nlimit = \"20/h\"")
}

async fn get_as_crm(stage: &TestProxy) -> TestResponse {
    stage.request(Request::get(format!("/hr{USER_GET}")).header("x-api-key", client_key("crm")), "").await
}

/// How many of so many calls were let through.
async fn count_allowed(stage: &TestProxy, calls: usize) -> usize {
    let mut through = 0;
    for _ in 0..calls {
        let reply = get_as_crm(stage).await;
        if reply.status == 429 {
            reply.assert_proxy_error("rate-limited", 429, 45009);
        } else {
            reply.assert_ok();
            through += 1;
        }
    }
    through
}

/// What the store has of the limit, once it is something else than this.
async fn wait_for_store_change(redis: &RedisServer, before: &str) -> String {
    let mut now = String::new();
    wait_for("what is told", async || {
        now =
            redis.command(&["--raw", "GET", "wecom-proxy:{limits}:client:crm:20/h"]).await.trim().to_owned();
        now != before
    })
    .await;
    now
}

#[tokio::test]
async fn limit_is_shared_between_replicas() {
    let redis = RedisServer::start().await;
    let replicas = Replicas::with(&config_with_limit(), 2, &redis.store_config_line()).await;
    assert_eq!(count_allowed(&replicas.first, 12).await, 12);
    let told = wait_for_store_change(&redis, "").await;
    // The first call at the other replica has it ask; from the answer on it knows.
    let other = &replicas.others[0];
    let mut through = count_allowed(other, 1).await;
    wait_for_store_change(&redis, &told).await;
    let mut caller = TestClient::connect_http1(other.address()).await;
    wait_for("the refusal", async || {
        let request = Request::get(format!("/hr{USER_GET}")).header("x-api-key", client_key("crm"));
        let refused = caller.request(request, "").await.status == 429;
        through += usize::from(!refused);
        refused
    })
    .await;
    assert!((8..=10).contains(&through), "{through} more, at 12 of 20 an hour");
    wait_for("the news", async || get_as_crm(&replicas.first).await.status == 429).await;
}

#[tokio::test]
async fn store_outage_gives_each_replica_the_full_limit() {
    let mut redis = RedisServer::start().await;
    let replicas = Replicas::with(&config_with_limit(), 2, &redis.store_config_line()).await;
    redis.kill().await;
    replicas.wait_for_store_outage().await;
    for stage in replicas.all() {
        assert_eq!(count_allowed(stage, 25).await, 20);
    }
    redis.restart().await;
    replicas.wait_for_store().await;
    // What both took by themselves is beyond the limit, and is paid back; who comes anew knows of it soon.
    for stage in replicas.all() {
        assert_eq!(count_allowed(stage, 1).await, 0);
    }
    wait_for_store_change(&redis, "").await;
    let toml = format!("{}\n[tokens]\n{}\n", config_with_limit(), redis.store_config_line());
    let newcomer = TestProxy::start_with_upstream(replicas.first.wecom.api_addr(), &toml).await;
    wait_for("the store", async || newcomer.app.store_error().is_none()).await;
    wait_for("the refusal", async || get_as_crm(&newcomer).await.status == 429).await;
}
