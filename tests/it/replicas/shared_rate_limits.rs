//! Replicas share rate limits, as exactly as possible without a store request per client request.

use http::Request;

use super::Replicas;
use crate::{
    harness::{CONFIG_WITH_CLIENTS, TestClient, TestProxy, TestResponse, USER_GET, client_key, wait_for},
    redis_server::RedisServer,
};

/// Limits `crm` to 20 requests an hour, so that hardly any capacity is refilled during the test.
fn config_with_limit() -> String {
    CONFIG_WITH_CLIENTS.replace("[clients.crm]", "[clients.crm]\nlimit = \"20/h\"")
}

async fn get_as_crm(proxy: &TestProxy) -> TestResponse {
    proxy.request(Request::get(format!("/hr{USER_GET}")).header("x-api-key", client_key("crm")), "").await
}

/// Sends `calls` requests; returns how many were allowed.
async fn count_allowed(proxy: &TestProxy, calls: usize) -> usize {
    let mut allowed = 0;
    for _ in 0..calls {
        let response = get_as_crm(proxy).await;
        if response.status == 429 {
            response.assert_proxy_error("rate-limited", 429, 45009);
        } else {
            response.assert_ok();
            allowed += 1;
        }
    }
    allowed
}

/// Waits until the stored state of the limit differs from `before`, and returns it.
async fn wait_for_store_change(redis: &RedisServer, before: &str) -> String {
    let mut current = String::new();
    wait_for("the published count", async || {
        current =
            redis.command(&["--raw", "GET", "wecom-proxy:{limits}:client:crm:20/h"]).await.trim().to_owned();
        current != before
    })
    .await;
    current
}

#[tokio::test]
async fn limit_is_shared_between_replicas() {
    let redis = RedisServer::start().await;
    let replicas = Replicas::with(&config_with_limit(), 2, &redis.store_config_line()).await;
    assert_eq!(count_allowed(&replicas.first, 12).await, 12);
    let published = wait_for_store_change(&redis, "").await;
    // The first request at the other replica triggers a store request; its reply brings the shared count.
    let other = &replicas.others[0];
    let mut allowed = count_allowed(other, 1).await;
    wait_for_store_change(&redis, &published).await;
    let mut client = TestClient::connect_http1(other.address()).await;
    wait_for("the refusal", async || {
        let request = Request::get(format!("/hr{USER_GET}")).header("x-api-key", client_key("crm"));
        let is_refused = client.request(request, "").await.status == 429;
        allowed += usize::from(!is_refused);
        is_refused
    })
    .await;
    assert!((8..=10).contains(&allowed), "{allowed} more, at 12 of 20 an hour");
    wait_for("the event", async || get_as_crm(&replicas.first).await.status == 429).await;
}

#[tokio::test]
async fn store_outage_gives_each_replica_the_full_limit() {
    let mut redis = RedisServer::start().await;
    let replicas = Replicas::with(&config_with_limit(), 2, &redis.store_config_line()).await;
    redis.kill().await;
    replicas.wait_for_store_outage().await;
    for proxy in replicas.all() {
        assert_eq!(count_allowed(proxy, 25).await, 20);
    }
    redis.restart().await;
    replicas.wait_for_store().await;
    // The requests allowed during the outage exceed the limit and are counted now; a new replica learns of them soon.
    for proxy in replicas.all() {
        assert_eq!(count_allowed(proxy, 1).await, 0);
    }
    wait_for_store_change(&redis, "").await;
    let toml = format!("{}\n[tokens]\n{}\n", config_with_limit(), redis.store_config_line());
    let new_replica = TestProxy::start_with_upstream(replicas.first.wecom.api_addr(), &toml).await;
    wait_for("the store", async || new_replica.app.store_error().is_none()).await;
    wait_for("the refusal", async || get_as_crm(&new_replica).await.status == 429).await;
}
