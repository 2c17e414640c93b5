//! Two processes that share a state: of two clients with one key, one is made.

use std::{collections::BTreeSet, net::SocketAddr};

use wecom_proxy::{
    app::{App, PreparedConfig},
    config,
};

use super::*;
use crate::{harness::wait_for_store, redis_server::RedisServer};

const ROUNDS: usize = 40;

async fn call(address: SocketAddr, method: &str, path: &str, body: &Value) -> u16 {
    let request = Request::builder().method(method).uri(path);
    let request = request.header("authorization", format!("Bearer {ADMIN_KEY}"));
    let request = request.header("content-type", "application/json");
    let body = if body.is_null() { String::new() } else { body.to_string() };
    TestClient::connect_http1(address).await.request(request, body).await.status.as_u16()
}

/// Puts a client with the same key at both, many times.
async fn race(proxy: &TestProxy) {
    let config = config::load(&proxy.dir.path().join("proxy.toml")).expect("a configuration");
    let second = App::start(PreparedConfig::new(config).expect("usable files")).expect("a proxy");
    let other = match &second.admin_addresses()[0] {
        config::Address::Tcp(address) => *address,
        config::Address::Unix(_) => unreachable!("the configuration has TCP listeners"),
    };
    let (one, keeper) = (proxy.admin_address(), client(&key_of("keeper"), &["*"]));
    assert_eq!(call(one, "PUT", "/api/clients/keeper", &keeper).await, 201);
    for round in 0..ROUNDS {
        let body = client(&key_of(&format!("round-{round}")), &["*"]);
        let (first, last) = (format!("/api/clients/a{round}"), format!("/api/clients/b{round}"));
        let (at_one, at_other) =
            tokio::join!(call(one, "PUT", &first, &body), call(other, "PUT", &last, &body));
        assert_eq!(BTreeSet::from([at_one, at_other]), BTreeSet::from([201, 422]), "round {round}");
        // The key of a client that is gone is free, and so is one that a client has given back.
        let (address, winner, loser) =
            if at_one == 201 { (one, &first, &last) } else { (other, &last, &first) };
        let changed = client(&key_of(&format!("later-{round}")), &["*"]);
        match round % 2 {
            0 => assert_eq!(call(address, "DELETE", winner, &Value::Null).await, 204),
            _ => assert_eq!(call(address, "PUT", winner, &changed).await, 200),
        }
        assert_eq!(call(address, "PUT", loser, &body).await, 201, "round {round}");
    }
    second.shutdown().await;
}

#[tokio::test]
async fn two_processes_with_one_file_give_a_key_to_one_client() {
    let api = Api::start().await;
    race(&api.proxy).await;
}

#[tokio::test]
async fn two_replicas_give_a_key_to_one_client() {
    let redis = RedisServer::start().await;
    let file = format!("[state]\npath = \"{{dir}}/state.db\"\nkey = \"{STATE_KEY}\"\n");
    let shared = format!("[tokens]\n{}\n[state]\nshared = true\n", redis.store_config_line());
    let config = config("");
    assert!(config.contains(&file));
    let proxy = TestProxy::start_with_config(&config.replace(&file, &shared)).await;
    wait_for_store(&proxy).await;
    race(&proxy).await;
}
