//! Stores of several servers: a cluster, and a master that sentinels watch.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use super::{GETTOKEN, Load, Replicas, secured, taken_over};
use crate::{
    process::{run, tool},
    redis::{KEY, Redis},
    stage::{USER_GET, wait_for},
};

/// A cluster of three masters, and the line for `[tokens]`.
async fn cluster(options: &[&str]) -> (Vec<Redis>, String) {
    let mut nodes = Vec::new();
    let always = ["--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf"];
    for _ in 0..3 {
        nodes.push(Redis::with(&[&always, options].concat()).await);
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
    (nodes, format!("store = {{ redis = [{}], cluster = true, key = \"{KEY}\" }}", urls.join(", ")))
}

#[tokio::test]
async fn a_cluster_is_a_store() {
    let (_nodes, store) = cluster(&[]).await;
    let replicas = Replicas::start(3, &store).await;
    replicas.crowd(50).await;
    assert_eq!(replicas.seen(), (1, 150));
    replicas.renew_once(50).await;
}

#[tokio::test]
async fn a_user_of_few_rights_is_enough_in_a_cluster_and_with_a_sentinel() {
    let user = |more: &str| format!("wecom on >{} {} {more}", secured::PASSWORD, secured::RIGHTS);
    let known = format!("user = \"wecom\", password = \"{}\", key =", secured::PASSWORD);
    let options = |user: &str| {
        let words = ["--user"].into_iter().chain(user.split_whitespace()).map(str::to_owned);
        words.collect::<Vec<_>>()
    };
    let in_cluster = options(&user("+cluster"));
    let (_nodes, store) = cluster(&in_cluster.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let replicas = Replicas::start(2, &store.replace("key =", &known)).await;
    replicas.crowd(5).await;
    replicas.renew_once(5).await;
    for stage in replicas.all() {
        assert_eq!(stage.proxy.store_trouble(), None);
    }

    let with_sentinel = options(&user("+role"));
    let master = Redis::with(&with_sentinel.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let replica = Redis::with(&["--replicaof", "127.0.0.1", &master.address().port().to_string()]).await;
    wait_for("replication", async || replica.ask(&["INFO", "replication"]).await.contains("link_status:up"))
        .await;
    let sentinel = Redis::sentinel(master.address()).await;
    let store = format!(
        "store = {{ redis = \"redis://{}\", sentinel = \"mymaster\", {known} \"{KEY}\" }}",
        sentinel.address()
    );
    let replicas = Replicas::start(2, &store).await;
    replicas.crowd(5).await;
    replicas.renew_once(5).await;
}

/// In which place the node is that answers for the agent's name, and the number of its slot.
async fn owner(nodes: &[Redis]) -> (usize, String) {
    for (nth, node) in nodes.iter().enumerate() {
        let keys = node.ask(&["--raw", "KEYS", "*:record"]).await;
        if let Some(key) = keys.lines().next() {
            return (nth, node.ask(&["--raw", "CLUSTER", "KEYSLOT", key]).await.trim().to_owned());
        }
    }
    panic!("no record");
}

#[tokio::test]
async fn a_slot_moves_to_another_node_under_the_replicas_hands() {
    let (nodes, store) = cluster(&[]).await;
    let replicas = Replicas::start(3, &store).await;
    replicas.crowd(5).await;
    let (from, slot) = owner(&nodes).await;
    let to = (from + 1) % 3;
    let (from, to) = (&nodes[from], &nodes[to]);
    let [from_id, to_id] =
        [from.ask(&["--raw", "CLUSTER", "MYID"]).await, to.ask(&["--raw", "CLUSTER", "MYID"]).await];
    let (from_id, to_id) = (from_id.trim(), to_id.trim());
    to.ask(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", from_id]).await;
    from.ask(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", to_id]).await;
    // Asked for what is not there any more, a node sends whoever asks to the other one.
    let gettokens = replicas.voided(5).await;
    assert!((1..=3).contains(&gettokens), "{gettokens} while the slot is about to move");
    let keys = from.ask(&["--raw", "CLUSTER", "GETKEYSINSLOT", &slot, "100"]).await;
    for (nth, key) in keys.lines().enumerate() {
        let port = to.address().port().to_string();
        from.ask(&["MIGRATE", "127.0.0.1", &port, key, "0", "1000"]).await;
        let gettokens = replicas.voided(5).await;
        assert!((1..=3).contains(&gettokens), "{gettokens} after {} of the keys moved", nth + 1);
    }
    for node in [to, from] {
        node.ask(&["CLUSTER", "SETSLOT", &slot, "NODE", to_id]).await;
    }
    replicas.voided(1).await;
    replicas.joined().await;
    replicas.voided(1).await;
    replicas.renew_once(20).await;
}

#[tokio::test]
async fn a_node_that_hangs_holds_nobody_up() {
    let (nodes, store) = cluster(&["--cluster-node-timeout", "60000"]).await;
    let replicas = Replicas::start(3, &store).await;
    replicas.crowd(1).await;
    for node in &nodes {
        node.signal("STOP");
        let began = Instant::now();
        let gettokens = replicas.voided(5).await;
        assert!((1..=3).contains(&gettokens), "{gettokens}");
        // On a machine that has other work too; a claim that is waited for would take three times as long.
        assert!(began.elapsed() < Duration::from_secs(15), "it took {:?}", began.elapsed());
        node.signal("CONT");
        replicas.joined().await;
    }
    replicas.voided(1).await;
    replicas.renew_once(5).await;
}

#[tokio::test]
async fn news_go_on_when_the_node_dies_through_which_they_came() {
    let (mut nodes, store) = cluster(&["--cluster-require-full-coverage", "no"]).await;
    // The last of the three has the channel's slot, and nothing else that is ever asked for.
    let mut prefixes = (0..).map(|nth| format!("p{nth}:"));
    let prefix = loop {
        let prefix = prefixes.next().expect("there are many");
        let slot = nodes[0].ask(&["--raw", "CLUSTER", "KEYSLOT", &format!("{prefix}news")]).await;
        if slot.trim().parse::<u16>().expect("a slot") > 10_922 {
            break prefix;
        }
    };
    let store = store.replace("key =", &format!("prefix = \"{prefix}\", key ="));
    let replicas = Replicas::start(3, &store).await;
    replicas.crowd(1).await;
    assert_ne!(owner(&nodes).await.0, 2, "the agent's name is elsewhere");
    let subscribed = async |node: &Redis| {
        let said = node.ask(&["--raw", "PUBSUB", "NUMSUB", &format!("{prefix}news")]).await;
        said.lines().last().expect("a number").to_owned()
    };
    assert_eq!(subscribed(&nodes[2]).await, "3");
    nodes[2].kill().await;
    let gettokens = replicas.voided(5).await;
    assert!((1..=3).contains(&gettokens), "{gettokens}");
    nodes[2].resume().await;
    wait_for("those who listen", async || subscribed(&nodes[2]).await == "3").await;
    replicas.joined().await;
    let taken = [taken_over(replicas.others[0].admin()).await, taken_over(replicas.others[1].admin()).await];
    // Between the nodes it takes a while until what one is told comes to the other.
    wait_for("the news", async || {
        replicas.first.wecom.revoke("hr").expect("an agent");
        replicas.first.get(USER_GET).await.is_ok();
        let others = replicas.others.iter().map(|stage| stage.admin()).zip(taken);
        let mut all = true;
        for (admin, taken) in others {
            all &= taken_over(admin).await > taken;
        }
        all
    })
    .await;
}

#[tokio::test]
async fn a_sentinel_that_says_nothing_hides_no_master() {
    let master = Redis::start().await;
    let replica = Redis::with(&["--replicaof", "127.0.0.1", &master.address().port().to_string()]).await;
    wait_for("replication", async || replica.ask(&["INFO", "replication"]).await.contains("link_status:up"))
        .await;
    let sentinel = Redis::sentinel(master.address()).await;
    // It takes connections, and that is all it does.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let store = format!(
        "store = {{ redis = [\"redis://{}\", \"redis://{}\"], sentinel = \"mymaster\", key = \"{KEY}\" }}",
        silent.local_addr().expect("an address"),
        sentinel.address()
    );
    let replicas = Replicas::start(2, &store).await;
    replicas.crowd(5).await;
    assert_eq!(replicas.seen().0, 1);
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
    // All the while somebody calls, and now and then the token is voided.
    let load = Load::on(&replicas);
    master.kill().await;
    let gettokens = replicas.first.wecom.look(|seen| seen.received(GETTOKEN));
    replicas.first.wecom.revoke("hr").expect("an agent");
    wait_for("a token", async || replicas.seen().0 > gettokens).await;
    wait_for("the failover", async || replica.ask(&["ROLE"]).await.starts_with("master")).await;
    replicas.joined().await;
    load.end(&replicas).await;
    replicas.voided(1).await;
    replicas.renew_once(20).await;
}
