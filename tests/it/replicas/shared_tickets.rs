//! Replicas share tickets as they share tokens: one fetch for all.

use std::{collections::HashSet, time::Duration};

use tokio::task::JoinSet;
use wecom_proxy::simulator::Fault;

use super::Replicas;
use crate::{
    harness::{OPEN_CONFIG, TestProxy, TestResponse, get_concurrently, wait_for},
    redis_server::RedisServer,
    tickets::TicketUpstream,
};

const JSAPI: &str = "/cgi-bin/get_jsapi_ticket";
const AGENT_CONFIG: &str = "/cgi-bin/ticket/get?type=agent_config";

/// Sends `clients_per_replica` concurrent requests to each replica.
async fn get_everywhere(
    replicas: &Replicas,
    clients_per_replica: usize,
    target: &'static str,
) -> Vec<TestResponse> {
    let mut calls = JoinSet::new();
    for proxy in replicas.all() {
        let proxy = proxy.clone();
        calls.spawn(async move { get_concurrently(&proxy, clients_per_replica, target).await });
    }
    calls.join_all().await.into_iter().flatten().collect()
}

fn ticket_set(responses: &[TestResponse]) -> HashSet<String> {
    let ticket = |response: &TestResponse| {
        response.assert_ok().json()["ticket"].as_str().expect("a ticket").to_owned()
    };
    responses.iter().map(ticket).collect()
}

fn fetch_count(replicas: &Replicas, target: &str) -> usize {
    let path = target.split('?').next().expect("a path").to_owned();
    replicas.first.wecom.observe(|observed| observed.received_count(&path))
}

#[tokio::test]
async fn five_replicas_fetch_each_ticket_once() {
    let redis = RedisServer::start().await;
    let replicas = Replicas::start(5, &redis.store_config_line()).await;
    for target in [JSAPI, AGENT_CONFIG] {
        let delay =
            Fault::delay(Duration::from_millis(200)).on_path(target.split('?').next().expect("a path"));
        replicas.first.wecom.inject(delay).expect("a fault");
        assert_eq!(ticket_set(&get_everywhere(&replicas, 100, target).await).len(), 1);
        assert_eq!(fetch_count(&replicas, target), 1, "{target}");
    }
    assert_eq!(replicas.upstream_counts().0, 1, "and one token");
    let remaining = replicas.others[3].get(JSAPI).await.json()["expires_in"].as_u64().expect("a number");
    assert!((7180..=7200).contains(&remaining), "the remaining lifetime is shared: {remaining}");
}

#[tokio::test]
async fn repeated_ticket_is_fetched_once_for_all_replicas() {
    let redis = RedisServer::start().await;
    let upstream = TicketUpstream::new("TICKET-OF-ALL-REPLICAS", 2).await;
    let toml = format!("{OPEN_CONFIG}\n[tokens]\n{}\n", redis.store_config_line());
    let start_replica = async || {
        let proxy = TestProxy::start_with_upstream(upstream.address, &toml).await;
        wait_for("the store", async || proxy.app.store_error().is_none()).await;
        proxy
    };
    let (first, second) = (start_replica().await, start_replica().await);
    let start = tokio::time::Instant::now();
    for proxy in [&first, &second] {
        assert_eq!(proxy.get(JSAPI).await.assert_ok().header("cache-control"), "");
    }
    assert_eq!(upstream.fetches(), 1);
    tokio::time::sleep_until(start + Duration::from_millis(2050)).await;
    // It has no ticket in memory, and knows from the store that this one was returned before.
    let third = start_replica().await;
    for proxy in [&third, &first, &second, &third] {
        let response = proxy.get(JSAPI).await;
        assert_eq!(response.assert_ok().header("cache-control"), "no-store");
        assert_eq!(upstream.fetches(), 2);
    }
}

#[tokio::test]
async fn ticket_refusal_is_shared_with_waiters_of_other_replicas() {
    let redis = RedisServer::start().await;
    let replicas = Replicas::start(3, &redis.store_config_line()).await;
    replicas.load(1).await;
    replicas.first.wecom.inject(Fault::errcode(45009).on_path(JSAPI).times(100)).expect("a fault");
    replicas.first.wecom.inject(Fault::delay(Duration::from_millis(200)).on_path(JSAPI)).expect("a fault");
    let responses = get_everywhere(&replicas, 20, JSAPI).await;
    assert!(responses.iter().all(|response| response.status == 200 && response.errcode() == 45009));
    assert_eq!(fetch_count(&replicas, JSAPI), 1);
}

#[tokio::test]
async fn store_outage_makes_each_replica_fetch_its_ticket() {
    let mut redis = RedisServer::start().await;
    let replicas = Replicas::start(3, &redis.store_config_line()).await;
    replicas.load(1).await;
    redis.kill().await;
    replicas.wait_for_store_outage().await;
    ticket_set(&get_everywhere(&replicas, 30, JSAPI).await);
    assert_eq!(fetch_count(&replicas, JSAPI), 3);
}

#[tokio::test]
async fn store_content_shows_no_ticket() {
    let redis = RedisServer::start().await;
    let replicas = Replicas::start(1, &redis.store_config_line()).await;
    let ticket = ticket_set(&get_everywhere(&replicas, 1, JSAPI).await).into_iter().next().expect("a ticket");
    let keys = redis.command(&["--raw", "KEYS", "*:record"]).await;
    assert_eq!(keys.lines().count(), 2, "a token and a ticket: {keys}");
    for key in keys.lines() {
        let dump = redis.command(&["--raw", "DUMP", key]).await;
        assert!(!dump.contains(&ticket) && !keys.contains(&ticket), "{key}");
    }
}
