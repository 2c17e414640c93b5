//! The store dies, hangs, fills up, forgets, or holds nonsense: no request is refused for it, and the replicas find
//! together again by themselves.

use std::time::{Duration, Instant};

use http::Request;
use tokio::task::JoinSet;
use wecom_proxy::simulator::SimulatedAgent;

use super::{Replicas, last_renewal, store_security};
use crate::{
    harness::{
        CONFIG_WITH_CLIENTS, OPEN_CONFIG, TestClient, TestProxy, USER_GET, agent_section, client_key,
        wait_for,
    },
    redis_server::RedisServer,
};

/// Whatever is wrong with the store, no replica asks more often than once, and each call is carried out once.
async fn assert_serves_without_store(replicas: &Replicas) {
    let gettokens = replicas.revoke_and_load(20).await;
    assert!((1..=3).contains(&gettokens), "{gettokens} gettokens");
}

/// The store is there for all, and they share what it holds.
async fn assert_shares_again(replicas: &Replicas) {
    replicas.wait_for_store().await;
    // What each got by itself is now in the store; the next is the first that all get from there.
    replicas.revoke_and_load(1).await;
    replicas.assert_one_refresh(20).await;
}

async fn readiness(stage: &TestProxy) -> serde_json::Value {
    TestClient::connect_http1(stage.admin_address())
        .await
        .request(http::Request::get("/readyz"), "")
        .await
        .json()
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
    let said = readiness(&replicas.first).await["store"].clone();
    assert_eq!((&said["kind"], &said["ok"]), (&"redis".into(), &false.into()), "{said}");
    redis.restart().await;
    assert_shares_again(&replicas).await;
    assert_eq!(readiness(&replicas.first).await["store"]["ok"], true);
}

#[tokio::test]
async fn replica_started_without_the_store_joins_later() {
    let mut redis = RedisServer::start().await;
    redis.kill().await;
    let toml = format!("{OPEN_CONFIG}\n[tokens]\n{}\n", redis.store_config_line());
    let stage = TestProxy::start_with_config(&toml).await;
    stage.get(USER_GET).await.assert_ok();
    redis.restart().await;
    wait_for("the store", async || stage.app.store_error().is_none()).await;
    // What it got by itself is there for others.
    wait_for("its record", async || redis.command(&["KEYS", "*:record"]).await.contains("record")).await;
    let other = TestProxy::start_with_upstream(stage.wecom.api_addr(), &toml).await;
    wait_for("the store", async || other.app.store_error().is_none()).await;
    other.get(USER_GET).await.assert_ok();
    assert_eq!(stage.wecom.gettoken_count("hr").expect("an agent"), 1);
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
    for (spoil, mend) in [
        (["REPLICAOF", "127.0.0.1", "1"], ["REPLICAOF", "NO", "ONE"]),
        (["CONFIG", "SET", "maxmemory 1"], ["CONFIG", "SET", "maxmemory 0"]),
    ] {
        let words =
            |line: [&'static str; 3]| line.iter().flat_map(|words| words.split(' ')).collect::<Vec<_>>();
        redis.command(&words(spoil)).await;
        assert_serves_without_store(&replicas).await;
        replicas.wait_for_store_outage().await;
        redis.command(&words(mend)).await;
        assert_shares_again(&replicas).await;
    }
}

#[tokio::test]
async fn paused_or_busy_store_is_bypassed() {
    let redis = RedisServer::start().await;
    redis.command(&["CONFIG", "SET", "busy-reply-threshold", "50"]).await;
    let replicas = Replicas::start(3, &redis.store_config_line()).await;
    replicas.load(5).await;
    // Until it is told otherwise it answers nothing.
    redis.command(&["CLIENT", "PAUSE", "3000", "ALL"]).await;
    assert_serves_without_store(&replicas).await;
    assert_shares_again(&replicas).await;
    // It takes no writes, and answers the rest.
    redis.command(&["CLIENT", "PAUSE", "3000", "WRITE"]).await;
    assert_serves_without_store(&replicas).await;
    assert_shares_again(&replicas).await;
    // Somebody's script does not end.
    let busy = redis.start_command(&["EVAL", "while true do end", "0"]);
    wait_for("the script", async || redis.command(&["PING"]).await.contains("BUSY")).await;
    assert_serves_without_store(&replicas).await;
    replicas.wait_for_store_outage().await;
    redis.command(&["SCRIPT", "KILL"]).await;
    busy.wait().await;
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
    let needed = store_security::ACL_RULES.split_whitespace().filter_map(|right| right.strip_prefix('+'));
    // The others are needed in some surroundings only.
    let needed = needed.filter(|right| !["hello", "auth", "ping", "select", "unsubscribe"].contains(right));
    // One replica renews a token that often within a short time.
    for needed in needed.collect::<Vec<_>>().chunks(8) {
        let replicas = Replicas::start(1, &store).await;
        replicas.load(1).await;
        assert_outage_without(&redis, &replicas, needed).await;
        assert_shares_again(&replicas).await;
    }
}

async fn assert_outage_without(redis: &RedisServer, replicas: &Replicas, rights: &[&str]) {
    for right in rights {
        redis.command(&["ACL", "SETUSER", "wecom", &format!("-{right}")]).await;
        redis.command(&["SCRIPT", "FLUSH"]).await;
        redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
        let command = right.split('|').next().expect("a command");
        let trouble = || replicas.first.app.store_error().unwrap_or_default();
        wait_for(right, async || trouble().contains(&format!("'{command}"))).await;
        // It stays so: a store that is there and away in turns is asked again and again.
        let began = Instant::now();
        while began.elapsed() < Duration::from_millis(400) {
            assert!(trouble().contains(command), "{right}: {:?}", trouble());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        replicas.revoke_and_load(1).await;
        redis.command(&["ACL", "SETUSER", "wecom", &format!("+{right}")]).await;
        replicas.wait_for_store().await;
    }
}

#[tokio::test]
async fn request_with_a_token_does_not_wait_for_a_hanging_store() {
    let redis = RedisServer::start().await;
    // What is taken of the limit is told to the store all the time.
    let toml = CONFIG_WITH_CLIENTS.replace("[clients.crm]", "[clients.crm]\nlimit = \"1000000/h\"");
    let replicas = Replicas::with(&toml, 1, &redis.store_config_line()).await;
    let mut caller = TestClient::connect_http1(replicas.first.address()).await;
    let mut take = async || {
        let mut taken = Vec::new();
        let began = Instant::now();
        // Longer than it takes to notice, and to try again.
        while began.elapsed() < Duration::from_secs(3) {
            let asked = Instant::now();
            let request = Request::get(format!("/hr{USER_GET}")).header("x-api-key", client_key("crm"));
            caller.request(request, "").await.assert_ok();
            taken.push(asked.elapsed());
        }
        taken.sort();
        (taken[taken.len() / 2], taken[taken.len() - 1], taken.len())
    };
    let before = take().await;
    redis.signal("STOP");
    let hanging = take().await;
    eprintln!("median, longest, calls: {before:?} with the store, {hanging:?} while it hangs");
    assert!(hanging.0 < 3 * before.0 + Duration::from_millis(2), "{hanging:?} instead of {before:?}");
    assert!(hanging.1 < Duration::from_millis(500), "somebody waited: {hanging:?}");
    assert!(replicas.first.app.store_error().is_some());
    redis.signal("CONT");
    replicas.wait_for_store().await;
}

#[tokio::test]
async fn wiped_or_corrupt_store_is_refilled() {
    let redis = RedisServer::start().await;
    let replicas = Replicas::start(3, &redis.store_config_line()).await;
    replicas.load(5).await;
    let keys = redis.command(&["--raw", "KEYS", "*:record"]).await;
    let record = keys.lines().next().expect("a record").to_owned();
    let name = record.trim_end_matches(":record").to_owned();
    for nonsense in [
        &["FLUSHALL"][..],
        &["SET", &record, "nonsense"],
        &["HSET", &record, "value", "nonsense", "fence", "9007199254740000"],
        &["HSET", &record, "value", "", "fence", "nonsense"],
        &["DEL", &record],
        &["SADD", &format!("{name}:lease"), "nonsense"],
        &["SET", &format!("{name}:failure"), "nonsense", "PX", "910000"],
        &["LPUSH", &format!("{name}:counter"), "nonsense"],
    ] {
        redis.command(nonsense).await;
        let gettokens = replicas.revoke_and_load(20).await;
        assert!((1..=3).contains(&gettokens), "{nonsense:?}: {gettokens}");
        redis.command(&["FLUSHALL"]).await;
    }
    assert_shares_again(&replicas).await;
    assert!(replicas.others.len() == 2 && !last_renewal(&replicas.first).await.is_empty());
}

/// A call of each of these agents, on one connection.
async fn call_each_agent(stage: &TestProxy, agents: &[SimulatedAgent]) {
    let TestClient::Http2(connection) = TestClient::connect_http2(stage.address()).await else {
        unreachable!("it is HTTP/2")
    };
    // A few at a time, as many as go on one connection.
    for some in agents.chunks(100) {
        let calls = some.iter().map(|agent| {
            let (mut caller, target) =
                (TestClient::Http2(connection.clone()), format!("/{}{USER_GET}", agent.name));
            async move { caller.request(Request::get(target), "").await }
        });
        let replies = calls.collect::<JoinSet<_>>().join_all().await;
        for reply in replies {
            reply.assert_ok();
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
    for stage in replicas.all() {
        call_each_agent(stage, &agents).await;
    }
    // On a machine with other work the store may seem slow once, and then each is on its own for a moment.
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
    let newcomer = TestProxy::start_with_upstream(replicas.first.wecom.api_addr(), &toml).await;
    wait_for("the store", async || newcomer.app.store_error().is_none()).await;
    call_each_agent(&newcomer, &agents).await;
    let more = replicas.upstream_counts().0 - gettokens;
    assert!(more < agents.len() / 10, "nothing was lost that a newcomer needs: {more}");
}
