//! Store outages: killed, hanging, full, wiped or corrupt. No request is refused for it, and the replicas share tokens
//! again afterwards.

use std::time::{Duration, Instant};

use http::Request;
use tokio::task::JoinSet;
use wecom_proxy::simulator::SimulatedAgent;

use super::{Replicas, last_renewal, store_security};
use crate::{
    harness::{
        CONFIG_WITH_CLIENTS, OPEN_CONFIG, TestClient, TestProxy, USER_GET, admin_get, agent_section,
        client_key, wait_for,
    },
    redis_server::RedisServer,
};

/// Asserts that each replica sends at most one gettoken, and that each call is executed once.
async fn assert_serves_without_store(replicas: &Replicas) {
    let gettokens = replicas.revoke_and_load(20).await;
    assert!((1..=3).contains(&gettokens), "{gettokens} gettokens");
}

/// Waits until all replicas are connected to the store, and asserts that they share tokens.
async fn assert_shares_again(replicas: &Replicas) {
    replicas.wait_for_store().await;
    // The store now has one of the tokens fetched during the outage; the next token is the first shared one.
    replicas.revoke_and_load(1).await;
    replicas.assert_one_refresh(20).await;
}

#[tokio::test]
async fn store_outage_is_reported_and_replicas_go_on() {
    let mut redis = RedisServer::start().await;
    let replicas = Replicas::start(3, &redis.store_config_line()).await;
    replicas.load(5).await;
    redis.kill().await;
    assert_serves_without_store(&replicas).await;
    replicas.wait_for_store_outage().await;
    assert_serves_without_store(&replicas).await;
    let store = admin_get(&replicas.first, "/readyz").await.json()["store"].clone();
    assert_eq!((&store["kind"], &store["ok"]), (&"redis".into(), &false.into()), "{store}");
    redis.restart().await;
    assert_shares_again(&replicas).await;
    assert_eq!(admin_get(&replicas.first, "/readyz").await.json()["store"]["ok"], true);
}

#[tokio::test]
async fn replica_started_without_the_store_joins_later() {
    let mut redis = RedisServer::start().await;
    redis.kill().await;
    let toml = format!("{OPEN_CONFIG}\n[tokens]\n{}\n", redis.store_config_line());
    let proxy = TestProxy::start_with_config(&toml).await;
    proxy.get(USER_GET).await.assert_ok();
    redis.restart().await;
    wait_for("the store", async || proxy.app.store_error().is_none()).await;
    // The token fetched without the store is published to it.
    wait_for("its record", async || redis.command(&["KEYS", "*:record"]).await.contains("record")).await;
    let other = TestProxy::start_with_upstream(proxy.wecom.api_addr(), &toml).await;
    wait_for("the store", async || other.app.store_error().is_none()).await;
    other.get(USER_GET).await.assert_ok();
    assert_eq!(proxy.wecom.gettoken_count("hr").expect("an agent"), 1);
}

#[tokio::test]
async fn hanging_or_read_only_store_is_bypassed() {
    let redis = RedisServer::start().await;
    let replicas = Replicas::start(3, &redis.store_config_line()).await;
    replicas.load(5).await;
    redis.signal("STOP");
    assert_serves_without_store(&replicas).await;
    replicas.wait_for_store_outage().await;
    redis.signal("CONT");
    assert_shares_again(&replicas).await;
    for (break_store, repair) in [
        (["REPLICAOF", "127.0.0.1", "1"], ["REPLICAOF", "NO", "ONE"]),
        (["CONFIG", "SET", "maxmemory 1"], ["CONFIG", "SET", "maxmemory 0"]),
    ] {
        let arguments = |command: [&'static str; 3]| {
            command.iter().flat_map(|argument| argument.split(' ')).collect::<Vec<_>>()
        };
        redis.command(&arguments(break_store)).await;
        assert_serves_without_store(&replicas).await;
        replicas.wait_for_store_outage().await;
        redis.command(&arguments(repair)).await;
        assert_shares_again(&replicas).await;
    }
}

#[tokio::test]
async fn paused_or_busy_store_is_bypassed() {
    let redis = RedisServer::start().await;
    redis.command(&["CONFIG", "SET", "busy-reply-threshold", "50"]).await;
    let replicas = Replicas::start(3, &redis.store_config_line()).await;
    replicas.load(5).await;
    // It replies to no command.
    redis.command(&["CLIENT", "PAUSE", "3000", "ALL"]).await;
    assert_serves_without_store(&replicas).await;
    assert_shares_again(&replicas).await;
    // It delays writes and replies to other commands.
    redis.command(&["CLIENT", "PAUSE", "3000", "WRITE"]).await;
    assert_serves_without_store(&replicas).await;
    assert_shares_again(&replicas).await;
    // Another user's script never ends.
    let script = redis.start_command(&["EVAL", "while true do end", "0"]);
    wait_for("the script", async || redis.command(&["PING"]).await.contains("BUSY")).await;
    assert_serves_without_store(&replicas).await;
    replicas.wait_for_store_outage().await;
    redis.command(&["SCRIPT", "KILL"]).await;
    script.wait().await;
    assert_shares_again(&replicas).await;
}

#[tokio::test]
async fn flushed_scripts_and_closed_connections_are_recovered() {
    let redis = RedisServer::start().await;
    let replicas = Replicas::start(3, &redis.store_config_line()).await;
    replicas.load(5).await;
    for _ in 0..3 {
        redis.command(&["SCRIPT", "FLUSH"]).await;
        replicas.assert_one_refresh(20).await;
    }
    for kind in ["pubsub", "normal"] {
        redis.command(&["CLIENT", "KILL", "TYPE", kind]).await;
        assert_serves_without_store(&replicas).await;
        assert_shares_again(&replicas).await;
    }
}

#[tokio::test]
async fn store_denying_a_command_is_unavailable_and_names_it() {
    let user = format!("wecom on >{} {}", store_security::PASSWORD, store_security::ACL_RULES);
    let mut options = vec!["--user"];
    options.extend(user.split_whitespace());
    let redis = RedisServer::start_with(&options).await;
    let store = format!(
        "store = {{ redis = \"redis://{}\", user = \"wecom\", password = \"{}\", key = \"{}\" }}",
        redis.address(),
        store_security::PASSWORD,
        crate::redis_server::STORE_KEY
    );
    let rules = store_security::ACL_RULES.split_whitespace().filter_map(|rule| rule.strip_prefix('+'));
    // The other rules are needed in some deployments only.
    let rules = rules.filter(|rule| !["hello", "auth", "ping", "select", "unsubscribe"].contains(rule));
    // The refresh limits allow one replica this many refreshes within a short time.
    for rules in rules.collect::<Vec<_>>().chunks(8) {
        let replicas = Replicas::start(1, &store).await;
        replicas.load(1).await;
        assert_outage_without(&redis, &replicas, rules).await;
        assert_shares_again(&replicas).await;
    }
}

async fn assert_outage_without(redis: &RedisServer, replicas: &Replicas, rules: &[&str]) {
    for rule in rules {
        redis.command(&["ACL", "SETUSER", "wecom", &format!("-{rule}")]).await;
        redis.command(&["SCRIPT", "FLUSH"]).await;
        redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
        let command = rule.split('|').next().expect("a command");
        let store_error = || replicas.first.app.store_error().unwrap_or_default();
        wait_for(rule, async || store_error().contains(&format!("'{command}"))).await;
        // The error persists: a flapping store would be retried again and again.
        let started = Instant::now();
        while started.elapsed() < Duration::from_millis(400) {
            assert!(store_error().contains(command), "{rule}: {:?}", store_error());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        replicas.revoke_and_load(1).await;
        redis.command(&["ACL", "SETUSER", "wecom", &format!("+{rule}")]).await;
        replicas.wait_for_store().await;
    }
}

#[tokio::test]
async fn request_with_a_token_does_not_wait_for_a_hanging_store() {
    let redis = RedisServer::start().await;
    // The rate limit's count is published to the store continuously.
    let toml = CONFIG_WITH_CLIENTS.replace("[clients.crm]", "[clients.crm]\nlimit = \"1000000/h\"");
    let replicas = Replicas::with(&toml, 1, &redis.store_config_line()).await;
    let mut client = TestClient::connect_http1(replicas.first.address()).await;
    let mut measure = async || {
        let mut latencies = Vec::new();
        let started = Instant::now();
        // Longer than detecting the outage and retrying takes.
        while started.elapsed() < Duration::from_secs(3) {
            let sent = Instant::now();
            let request = Request::get(format!("/hr{USER_GET}")).header("x-api-key", client_key("crm"));
            client.request(request, "").await.assert_ok();
            latencies.push(sent.elapsed());
        }
        latencies.sort();
        (latencies[latencies.len() / 2], latencies[latencies.len() - 1], latencies.len())
    };
    // A busy machine may hold up one measurement; waiting for the store would show in each.
    for last in [false, false, true] {
        let before = measure().await;
        redis.signal("STOP");
        let hanging = measure().await;
        assert!(replicas.first.app.store_error().is_some());
        redis.signal("CONT");
        replicas.wait_for_store().await;
        let unaffected = hanging.0 < 3 * before.0 + Duration::from_millis(2)
            && hanging.1 < Duration::from_millis(500).max(2 * before.1);
        if unaffected {
            return;
        }
        assert!(!last, "median, longest, calls: {before:?} with the store, {hanging:?} while it hangs");
    }
}

#[tokio::test]
async fn wiped_or_corrupt_store_is_refilled() {
    let redis = RedisServer::start().await;
    let replicas = Replicas::start(3, &redis.store_config_line()).await;
    replicas.load(5).await;
    let keys = redis.command(&["--raw", "KEYS", "*:record"]).await;
    let record = keys.lines().next().expect("a record").to_owned();
    let name = record.trim_end_matches(":record").to_owned();
    for corruption in [
        &["FLUSHALL"][..],
        &["SET", &record, "nonsense"],
        &["HSET", &record, "value", "nonsense", "fence", "9007199254740000"],
        &["HSET", &record, "value", "", "fence", "nonsense"],
        &["DEL", &record],
        &["SADD", &format!("{name}:lease"), "nonsense"],
        &["SET", &format!("{name}:failure"), "nonsense", "PX", "910000"],
        &["LPUSH", &format!("{name}:counter"), "nonsense"],
    ] {
        redis.command(corruption).await;
        let gettokens = replicas.revoke_and_load(20).await;
        assert!((1..=3).contains(&gettokens), "{corruption:?}: {gettokens}");
        redis.command(&["FLUSHALL"]).await;
    }
    assert_shares_again(&replicas).await;
    assert!(replicas.others.len() == 2 && !last_renewal(&replicas.first).await.is_empty());
}

/// Sends one request per agent, on one connection.
async fn call_each_agent(proxy: &TestProxy, agents: &[SimulatedAgent]) {
    let TestClient::Http2(connection) = TestClient::connect_http2(proxy.address()).await else {
        unreachable!("it is HTTP/2")
    };
    // In batches, within the concurrent streams of one connection.
    for batch in agents.chunks(100) {
        let calls = batch.iter().map(|agent| {
            let (mut client, target) =
                (TestClient::Http2(connection.clone()), format!("/{}{USER_GET}", agent.name));
            async move { client.request(Request::get(target), "").await }
        });
        let responses = calls.collect::<JoinSet<_>>().join_all().await;
        for response in responses {
            response.assert_ok();
        }
    }
}

#[tokio::test]
async fn thousands_of_agents_refill_a_wiped_store() {
    let agent = |nth: u64| {
        SimulatedAgent::new(&format!("agent-{nth}"), &format!("not-a-secret-of-agent-{nth}"), nth + 1)
    };
    let agents: Vec<_> = (0..2_000).map(agent).collect();
    let sections: String = agents.iter().map(|agent| agent_section(agent, "")).collect();
    let mut redis = RedisServer::start().await;
    let replicas = Replicas::with(&format!("{OPEN_CONFIG}{sections}"), 3, &redis.store_config_line()).await;
    agents.iter().for_each(|agent| replicas.first.wecom.add_agent(agent.clone()));
    for proxy in replicas.all() {
        call_each_agent(proxy, &agents).await;
    }
    // On a loaded machine the store may time out once, and each replica then fetches its own tokens for a moment.
    let (gettokens, _) = replicas.upstream_counts();
    assert!((agents.len()..agents.len() + agents.len() / 10).contains(&gettokens), "{gettokens}");
    redis.kill().await;
    replicas.wait_for_store_outage().await;
    redis.restart().await;
    replicas.wait_for_store().await;
    let records =
        async || redis.command(&["--raw", "EVAL", "return #redis.call('KEYS', '*:record')", "0"]).await;
    wait_for("all records", async || records().await.trim() == agents.len().to_string()).await;
    let toml = format!("{OPEN_CONFIG}{sections}\n[tokens]\n{}\n", redis.store_config_line());
    let new_replica = TestProxy::start_with_upstream(replicas.first.wecom.api_addr(), &toml).await;
    wait_for("the store", async || new_replica.app.store_error().is_none()).await;
    call_each_agent(&new_replica, &agents).await;
    let extra = replicas.upstream_counts().0 - gettokens;
    assert!(extra < agents.len() / 10, "a new replica finds all tokens in the store: {extra}");
}
