//! Stores of several servers: a cluster, and a master that sentinels watch.

use std::process::Command;

use super::Replicas;
use crate::{
    process::{run, tool},
    redis::{KEY, Redis},
    stage::wait_for,
};

#[tokio::test]
async fn a_cluster_is_a_store() {
    let mut nodes = Vec::new();
    for _ in 0..3 {
        nodes.push(Redis::with(&["--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf"]).await);
    }
    let addresses: Vec<_> = nodes.iter().map(|node| node.address().to_string()).collect();
    let mut create = Command::new(tool("redis-cli"));
    create.args(["--cluster", "create"]).args(&addresses).args(["--cluster-yes"]);
    let created = run(create).await;
    assert_eq!(created.status, 0, "{}{}", created.out, created.err);
    for node in &nodes {
        wait_for("the cluster", async || node.ask(&["CLUSTER", "INFO"]).await.contains("cluster_state:ok"))
            .await;
    }
    let urls: Vec<_> = addresses.iter().map(|address| format!("\"redis://{address}\"")).collect();
    let store = format!("store = {{ redis = [{}], cluster = true, key = \"{KEY}\" }}", urls.join(", "));
    let replicas = Replicas::start(3, &store).await;
    replicas.crowd(50).await;
    assert_eq!(replicas.seen(), (1, 150));
    replicas.renew_once(50).await;
}

#[tokio::test]
async fn a_master_is_followed_through_a_failover() {
    let mut master = Redis::start().await;
    let port = master.address().port().to_string();
    let replica = Redis::with(&["--replicaof", "127.0.0.1", &port]).await;
    wait_for("replication", async || replica.ask(&["INFO", "replication"]).await.contains("link_status:up"))
        .await;
    let sentinel = Redis::sentinel(master.address()).await;
    let store = format!(
        "store = {{ redis = \"redis://{}\", sentinel = \"mymaster\", key = \"{KEY}\" }}",
        sentinel.address()
    );
    let replicas = Replicas::start(3, &store).await;
    replicas.crowd(20).await;
    replicas.renew_once(20).await;
    master.kill().await;
    let gettokens = replicas.voided(20).await;
    assert!((1..=3).contains(&gettokens), "{gettokens}");
    wait_for("the failover", async || replica.ask(&["ROLE"]).await.starts_with("master")).await;
    replicas.joined().await;
    replicas.voided(1).await;
    replicas.renew_once(20).await;
}
