//! Two replicas that share their state in Redis.

use http::StatusCode;

use super::{admin_get, config, event, operators::listed_target, pull::EventStream, push, target};
use crate::{
    harness::{TestProxy, callback_target::CallbackTarget, wait_for},
    redis_server::RedisServer,
};

/// The configuration of a replica; the state is in Redis in place of a file.
fn shared_config(redis: &RedisServer, to: &str) -> String {
    let file = "[state]\npath = \"{dir}/state.db\"\nkey = \"key-of-the-state-0123456789-0123456789\"\n";
    let shared = format!("[tokens]\n{}\n[state]\nshared = true\n", redis.store_config_line());
    let toml = config(to);
    assert!(toml.contains(file), "{toml}");
    toml.replace(file, &shared)
}

#[tokio::test]
async fn replicas_deliver_each_message_once_and_clients_read_all() {
    let (redis, receiver) = (RedisServer::start().await, CallbackTarget::start().await);
    let to = target("crm", format!("http://{}/", receiver.address), "")
        + "[[callbacks.hr.to]]\nname = \"desktop\"\npull = true\nclients = [\"desktop\"]\n";
    let toml = shared_config(&redis, &to);
    let first = TestProxy::start_with_config(&toml).await;
    let second = TestProxy::start_with_config(&toml).await;
    wait_for("the state", async || push(&first, &event("x", 0)).await.status == StatusCode::OK).await;
    let mut stream = EventStream::open(&second, None).await;
    let oldest = stream.next().await;
    assert_eq!(oldest.1, event("x", 0));
    for number in 1..20 {
        let proxy = if number % 2 == 0 { &first } else { &second };
        assert_eq!(push(proxy, &event("x", number)).await.status, StatusCode::OK);
        // What one replica has accepted, the other one recognises.
        let other = if number % 2 == 0 { &second } else { &first };
        assert_eq!(push(other, &event("x", number)).await.status, StatusCode::OK);
        assert_eq!(stream.next().await.1, event("x", number), "read at the other replica, in order");
    }
    receiver.wait_for(20).await;
    let delivers = async |proxy| admin_get(proxy, "/api/callbacks").await.json()["delivers"].clone();
    assert_ne!(delivers(&first).await, delivers(&second).await, "one of them delivers");
    for proxy in [&first, &second] {
        let shown = listed_target(proxy, 0).await;
        assert!(shown["last_success"].as_f64().is_some_and(|at| at > 1.7e9), "at each replica: {shown}");
    }
    wait_for("an empty queue", async || listed_target(&second, 0).await["pending"] == 0).await;
    let mut received: Vec<_> =
        receiver.received().iter().map(|delivery| delivery.text().to_owned()).collect();
    received.sort();
    let mut expected: Vec<_> = (0..20).map(|number| event("x", number)).collect();
    expected.sort();
    assert_eq!(received, expected);
    let mut resumed = EventStream::open(&first, Some(&oldest.0)).await;
    assert_eq!(resumed.next().await.1, event("x", 1));
}

#[tokio::test]
async fn store_that_is_away_accepts_nothing() {
    let (mut redis, receiver) = (RedisServer::start().await, CallbackTarget::start().await);
    let toml = shared_config(&redis, &target("crm", format!("http://{}/", receiver.address), ""));
    let proxy = TestProxy::start_with_config(&toml).await;
    wait_for("the state", async || push(&proxy, &event("x", 0)).await.status == StatusCode::OK).await;
    redis.kill().await;
    push(&proxy, &event("x", 1)).await.assert_proxy_error("overloaded", 503, -1);
    redis.restart().await;
    wait_for("the state", async || push(&proxy, &event("x", 1)).await.status == StatusCode::OK).await;
    wait_for("the delivery", async || {
        receiver.received().iter().any(|delivery| delivery.text() == event("x", 1))
    })
    .await;
}
