//! Stores of several servers: a Redis cluster, and a master with a sentinel.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use super::{Load, Replicas, shared_refresh_count, store_security};
use crate::{
    harness::{USER_GET, wait_for},
    process::{run, tool},
    redis_server::{RedisServer, STORE_KEY},
};

/// A cluster of three masters, and its `store` line for `[tokens]`.
async fn start_cluster(options: &[&str]) -> (Vec<RedisServer>, String) {
    let mut nodes = Vec::new();
    let cluster_options = ["--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf"];
    for _ in 0..3 {
        nodes.push(RedisServer::start_with(&[&cluster_options, options].concat()).await);
    }
    let addresses: Vec<_> = nodes.iter().map(|node| node.address().to_string()).collect();
    let mut command = Command::new(tool("redis-cli"));
    command.args(["--cluster", "create"]).args(&addresses).args(["--cluster-yes"]);
    let output = run(command).await;
    assert_eq!(output.status, 0, "{}{}", output.out, output.err);
    for node in &nodes {
        wait_for("the cluster", async || {
            node.command(&["CLUSTER", "INFO"]).await.contains("cluster_state:ok")
        })
        .await;
    }
    let urls: Vec<_> = addresses.iter().map(|address| format!("\"redis://{address}\"")).collect();
    (nodes, format!("store = {{ redis = [{}], cluster = true, key = \"{STORE_KEY}\" }}", urls.join(", ")))
}

#[tokio::test]
async fn redis_cluster_works_as_the_store() {
    let (_nodes, store) = start_cluster(&[]).await;
    let replicas = Replicas::start(3, &store).await;
    replicas.load(50).await;
    assert_eq!(replicas.upstream_counts(), (1, 150));
    replicas.assert_one_refresh(50).await;
}

#[tokio::test]
async fn minimal_acl_is_enough_for_cluster_and_sentinel() {
    let user =
        |rules: &str| format!("wecom on >{} {} {rules}", store_security::PASSWORD, store_security::ACL_RULES);
    let credentials = format!("user = \"wecom\", password = \"{}\", key =", store_security::PASSWORD);
    let options = |user: &str| {
        let arguments = ["--user"].into_iter().chain(user.split_whitespace()).map(str::to_owned);
        arguments.collect::<Vec<_>>()
    };
    let cluster_options = options(&user("+cluster"));
    let (_nodes, store) =
        start_cluster(&cluster_options.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let replicas = Replicas::start(2, &store.replace("key =", &credentials)).await;
    replicas.load(5).await;
    replicas.assert_one_refresh(5).await;
    for proxy in replicas.all() {
        assert_eq!(proxy.app.store_error(), None);
    }

    let sentinel_options = options(&user("+role"));
    let master =
        RedisServer::start_with(&sentinel_options.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let _replica = RedisServer::start_replica(master.address()).await;
    let sentinel = RedisServer::start_sentinel(master.address()).await;
    let store = format!(
        "store = {{ redis = \"redis://{}\", sentinel = \"mymaster\", {credentials} \"{STORE_KEY}\" }}",
        sentinel.address()
    );
    let replicas = Replicas::start(2, &store).await;
    replicas.load(5).await;
    replicas.assert_one_refresh(5).await;
}

/// The index of the node that owns the agent's record, and the hash slot of the record.
async fn record_owner(nodes: &[RedisServer]) -> (usize, String) {
    for (nth, node) in nodes.iter().enumerate() {
        let keys = node.command(&["--raw", "KEYS", "*:record"]).await;
        if let Some(key) = keys.lines().next() {
            return (nth, node.command(&["--raw", "CLUSTER", "KEYSLOT", key]).await.trim().to_owned());
        }
    }
    panic!("no record");
}

#[tokio::test]
async fn cluster_slot_migration_is_followed() {
    let (nodes, store) = start_cluster(&[]).await;
    let replicas = Replicas::start(3, &store).await;
    replicas.load(5).await;
    let (from, slot) = record_owner(&nodes).await;
    let to = (from + 1) % 3;
    let (from, to) = (&nodes[from], &nodes[to]);
    let [from_id, to_id] =
        [from.command(&["--raw", "CLUSTER", "MYID"]).await, to.command(&["--raw", "CLUSTER", "MYID"]).await];
    let (from_id, to_id) = (from_id.trim(), to_id.trim());
    to.command(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", from_id]).await;
    from.command(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", to_id]).await;
    // A node redirects requests for a migrated key to the other node (`-ASK`).
    let gettokens = replicas.revoke_and_load(5).await;
    assert!((1..=3).contains(&gettokens), "{gettokens} while the slot is migrating");
    let keys = from.command(&["--raw", "CLUSTER", "GETKEYSINSLOT", &slot, "100"]).await;
    for (nth, key) in keys.lines().enumerate() {
        let port = to.address().port().to_string();
        from.command(&["MIGRATE", "127.0.0.1", &port, key, "0", "1000"]).await;
        let gettokens = replicas.revoke_and_load(5).await;
        assert!((1..=3).contains(&gettokens), "{gettokens} after {} keys moved", nth + 1);
    }
    for node in [to, from] {
        node.command(&["CLUSTER", "SETSLOT", &slot, "NODE", to_id]).await;
    }
    replicas.revoke_and_load(1).await;
    replicas.wait_for_store().await;
    replicas.revoke_and_load(1).await;
    replicas.assert_one_refresh(20).await;
}

#[tokio::test]
async fn hanging_cluster_node_blocks_no_replica() {
    let (nodes, store) = start_cluster(&["--cluster-node-timeout", "60000"]).await;
    let replicas = Replicas::start(3, &store).await;
    replicas.load(1).await;
    for node in &nodes {
        node.signal("STOP");
        let started = Instant::now();
        let gettokens = replicas.revoke_and_load(5).await;
        assert!((1..=3).contains(&gettokens), "{gettokens}");
        // Generous for a loaded machine; waiting for a claim would take three times as long.
        assert!(started.elapsed() < Duration::from_secs(15), "took {:?}", started.elapsed());
        node.signal("CONT");
        replicas.wait_for_store().await;
    }
    replicas.revoke_and_load(1).await;
    replicas.assert_one_refresh(5).await;
}

#[tokio::test]
async fn events_continue_after_their_node_dies() {
    let (mut nodes, store) = start_cluster(&["--cluster-require-full-coverage", "no"]).await;
    // The third node has the slot of the event channel, and no other key of the store.
    let mut prefixes = (0..).map(|nth| format!("p{nth}:"));
    let prefix = loop {
        let prefix = prefixes.next().expect("an infinite iterator");
        let slot = nodes[0].command(&["--raw", "CLUSTER", "KEYSLOT", &format!("{prefix}news")]).await;
        if slot.trim().parse::<u16>().expect("a slot") > 10_922 {
            break prefix;
        }
    };
    let store = store.replace("key =", &format!("prefix = \"{prefix}\", key ="));
    let replicas = Replicas::start(3, &store).await;
    replicas.load(1).await;
    assert_ne!(record_owner(&nodes).await.0, 2, "the record is on another node");
    let subscribed = async |node: &RedisServer| {
        let subscribers = node.command(&["--raw", "PUBSUB", "NUMSUB", &format!("{prefix}news")]).await;
        subscribers.lines().last().expect("a number").to_owned()
    };
    assert_eq!(subscribed(&nodes[2]).await, "3");
    nodes[2].kill().await;
    let gettokens = replicas.revoke_and_load(5).await;
    assert!((1..=3).contains(&gettokens), "{gettokens}");
    nodes[2].restart().await;
    wait_for("the subscribers", async || subscribed(&nodes[2]).await == "3").await;
    replicas.wait_for_store().await;
    let before = [
        shared_refresh_count(replicas.others[0].admin_address()).await,
        shared_refresh_count(replicas.others[1].admin_address()).await,
    ];
    // The cluster bus forwards messages between nodes with a delay.
    wait_for("the event", async || {
        replicas.first.wecom.revoke_tokens("hr").expect("an agent");
        replicas.first.get(USER_GET).await.assert_ok();
        let others = replicas.others.iter().map(|proxy| proxy.admin_address()).zip(before);
        let mut all_updated = true;
        for (admin, before) in others {
            all_updated &= shared_refresh_count(admin).await > before;
        }
        all_updated
    })
    .await;
}

#[tokio::test]
async fn silent_sentinel_does_not_hide_the_master() {
    let master = RedisServer::start().await;
    let _replica = RedisServer::start_replica(master.address()).await;
    let sentinel = RedisServer::start_sentinel(master.address()).await;
    // A sentinel that accepts connections and never replies.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let store = format!(
        "store = {{ redis = [\"redis://{}\", \"redis://{}\"], sentinel = \"mymaster\", key = \"{STORE_KEY}\" }}",
        silent.local_addr().expect("an address"),
        sentinel.address()
    );
    let replicas = Replicas::start(2, &store).await;
    replicas.load(5).await;
    assert_eq!(replicas.upstream_counts().0, 1);
}

#[tokio::test]
async fn sentinel_failover_is_followed() {
    let mut master = RedisServer::start().await;
    let replica = RedisServer::start_replica(master.address()).await;
    let sentinel = RedisServer::start_sentinel(master.address()).await;
    let store = format!(
        "store = {{ redis = \"redis://{}\", sentinel = \"mymaster\", key = \"{STORE_KEY}\" }}",
        sentinel.address()
    );
    let replicas = Replicas::start(3, &store).await;
    replicas.load(20).await;
    replicas.assert_one_refresh(20).await;
    // Clients send requests throughout the failover, and the token is revoked in the middle of it.
    let load = Load::start(&replicas);
    master.kill().await;
    let gettokens = replicas.gettoken_count();
    replicas.first.wecom.revoke_tokens("hr").expect("an agent");
    wait_for("a token", async || replicas.gettoken_count() > gettokens).await;
    wait_for("the failover", async || replica.command(&["ROLE"]).await.starts_with("master")).await;
    replicas.wait_for_store().await;
    load.stop(&replicas).await;
    replicas.revoke_and_load(1).await;
    replicas.assert_one_refresh(20).await;
}
