//! A state that replicas share in Redis: each follows the others, and goes on without it.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use http::Request;
use tokio::runtime::Handle;
use wecom_proxy::{
    config,
    state::{
        Collection, OpenError, PageLimit, Precondition, Record, State, StateDelivery, Write, WriteError,
        maintenance,
    },
    store::{PreparedStore, Store},
    time::clock::unix_now,
};

use crate::{
    harness::{OPEN_CONFIG, TestProxy, USER_GET, admin_get, sha256, wait_for},
    process::run_wecom_proxy,
    redis_server::{RedisServer, STORE_KEY},
};

/// What the listener of a replica has been given, as `name value`; `-` for a deletion.
type Delivered = Arc<Mutex<Vec<String>>>;

fn config_text(redis: &RedisServer) -> String {
    format!("{OPEN_CONFIG}\n[tokens]\n{}\n[state]\nshared = true\n", redis.store_config_line())
}

fn state_config(store_line: &str) -> config::StateConfig {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("proxy.toml");
    let agent = "[agents.hr]\ncorpid = \"ww1\"\nsecret = \"hidden-0123\"\n";
    std::fs::write(&path, format!("[tokens]\n{store_line}\n[state]\nshared = true\n{agent}"))
        .expect("written");
    config::load(&path).unwrap_or_else(|error| panic!("{error}")).state.expect("a state")
}

fn try_open(store_line: &str) -> Result<(Arc<State>, Delivered), OpenError> {
    let delivered = Delivered::default();
    let sink = delivered.clone();
    let text = |record: &Record| {
        let value = record.value.as_ref().map_or("-", |value| std::str::from_utf8(value).expect("a text"));
        format!("{} {value}", record.name)
    };
    let listener = move |delivery: StateDelivery<'_>| {
        sink.lock().expect("no panic").extend(delivery.records.iter().map(text));
    };
    Ok((State::open(&state_config(store_line), Box::new(listener))?, delivered))
}

fn open(redis: &RedisServer) -> (Arc<State>, Delivered) {
    try_open(&redis.store_config_line()).unwrap_or_else(|error| panic!("{error}"))
}

fn agent(name: &str, value: &str) -> Write {
    Write::put(Collection::Agents, name, value)
}

async fn wait_until_delivered(delivered: &Delivered, text: &str) {
    wait_for(text, async || delivered.lock().expect("no panic").iter().any(|found| found == text)).await;
}

fn texts(delivered: &Delivered) -> Vec<String> {
    delivered.lock().expect("no panic").clone()
}

#[tokio::test]
async fn replicas_follow_each_other_in_order() {
    let redis = RedisServer::start().await;
    let (one, one_delivered) = open(&redis);
    let first = one.write(vec![agent("a", "1")]).await.expect("written");
    assert_eq!(texts(&one_delivered), ["a 1"], "delivered when the write has succeeded");
    let (two, two_delivered) = open(&redis);
    assert_eq!(texts(&two_delivered), ["a 1"], "delivered when the state is open");
    let started = Instant::now();
    let second = one.write(vec![agent("b", "2"), agent("c", "3")]).await.expect("written");
    wait_until_delivered(&two_delivered, "c 3").await;
    let delay = started.elapsed();
    let third = one.write(vec![Write::delete(Collection::Agents, "a")]).await.expect("deleted");
    wait_until_delivered(&two_delivered, "a -").await;
    assert!(first < second && second < third);
    assert_eq!(texts(&two_delivered), ["a 1", "b 2", "c 3", "a -"]);
    // Half of it is the interval; the rest is for a busy machine.
    assert!(delay < Duration::from_secs(5), "{delay:?}");
    let read = two.read(Collection::Agents, "a").await.expect("readable");
    assert_eq!(read, None);
    let recreated = two.write(vec![agent("a", "4").when(Precondition::Absent)]).await.expect("written");
    assert!(recreated > third);
}

#[tokio::test]
async fn failed_precondition_writes_nothing() {
    let redis = RedisServer::start().await;
    let (state, delivered) = open(&redis);
    let version = state.write(vec![agent("hr", "one")]).await.expect("written");
    for (precondition, name, current) in [
        (Precondition::Absent, "hr", Some(version)),
        (Precondition::Version(version + 1), "hr", Some(version)),
        (Precondition::Present, "ops", None),
        (Precondition::Version(version), "ops", None),
    ] {
        let writes = vec![agent("new", "value"), agent(name, "value").when(precondition)];
        let conflict = Err(WriteError::Conflict { index: 1, current });
        assert_eq!(state.write(writes).await, conflict, "{precondition:?}");
    }
    assert_eq!(texts(&delivered), ["hr one"]);
    state.write(vec![agent("hr", "two").when(Precondition::Version(version))]).await.expect("written");
    let first = || state.write(vec![agent("once", "value").when(Precondition::Absent)]);
    let outcomes = tokio::join!(first(), first());
    assert!(outcomes.0.is_ok() != outcomes.1.is_ok(), "{outcomes:?}");
}

#[tokio::test]
async fn scan_and_expiry_are_as_in_a_file() {
    let redis = RedisServer::start().await;
    let (state, _) = open(&redis);
    let put = |name: &str| Write::put(Collection::Idempotency, name, "value");
    let names = ["b:2", "a:1", "b:10", "b", "c", "b:1", "b;", "b:\u{4f01}"];
    state.write(names.map(put).into()).await.expect("written");
    state
        .write(vec![put("b:0").expires_at(1), Write::delete(Collection::Idempotency, "b:2")])
        .await
        .expect("written");
    let scan = async |prefix: &str, after: &str, limit| {
        let found = state.scan(Collection::Idempotency, prefix, after, limit).await.expect("readable");
        found.into_iter().map(|record| record.name).collect::<Vec<_>>()
    };
    assert_eq!(scan("b:", "", 9).await, ["b:1", "b:10", "b:\u{4f01}"]);
    assert_eq!(scan("b:", "b:1", 1).await, ["b:10"]);
    assert_eq!(scan("", "b;", 9).await, ["c"]);
    assert_eq!(state.read(Collection::Idempotency, "b:0").await, Ok(None));
    state.write(vec![put("b:0").when(Precondition::Absent)]).await.expect("an expired record is absent");
}

#[tokio::test]
async fn scan_since_follows_the_order_of_versions_in_pages() {
    let redis = RedisServer::start().await;
    let (state, _) = open(&redis);
    let put = |name: &str| Write::put(Collection::CallbackPull, name, vec![b'x'; 1000]);
    // Later names first, another prefix between, one that is written again, one that is deleted, one that has expired.
    let names = ["a/b/5", "a/b/1", "a/bc/9", "a/b/3", "a/b/2", "a/b/5"];
    let mut versions = Vec::new();
    for name in names {
        versions.push(state.write(vec![put(name)]).await.expect("written"));
    }
    state.write(vec![Write::delete(Collection::CallbackPull, "a/b/3")]).await.expect("deleted");
    state.write(vec![put("a/b/0").expires_at(1)]).await.expect("written");
    let since = async |version, records, bytes| {
        let limit = PageLimit { records, bytes };
        let found = state.scan_since("a/b/", version, limit).await.expect("readable");
        found.into_iter().map(|record| record.name).collect::<Vec<_>>()
    };
    assert_eq!(since(0, 9, 1 << 20).await, ["a/b/1", "a/b/2", "a/b/5"]);
    assert_eq!(since(versions[1], 9, 1 << 20).await, ["a/b/2", "a/b/5"]);
    assert_eq!(since(0, 2, 1 << 20).await, ["a/b/1", "a/b/2"]);
    assert_eq!(since(0, 9, 1500).await, ["a/b/1", "a/b/2"]);
    assert_eq!(since(versions[5], 9, 1 << 20).await, [""; 0]);
    let page = async |after: &str, bytes| {
        let limit = PageLimit { records: 9, bytes };
        let page = state.scan_page(Collection::CallbackPull, ["a/b/", after], limit).await.expect("readable");
        (page.records.len(), page.after)
    };
    assert_eq!(page("", 1500).await, (2, Some("a/b/2".to_owned())));
    assert_eq!(page("a/b/2", 1 << 20).await, (1, None));
}

#[tokio::test]
async fn outage_fails_writes_and_is_caught_up_with() {
    let options = ["--appendonly", "yes", "--appendfsync", "always"];
    let mut redis = RedisServer::start_with(&options).await;
    let proxy = TestProxy::start_with_config(&config_text(&redis)).await;
    let (one, one_delivered) = open(&redis);
    let (two, two_delivered) = open(&redis);
    one.write(vec![agent("before", "1")]).await.expect("written");
    redis.kill().await;
    let failed = one.write(vec![agent("during", "2")]).await;
    assert!(matches!(failed, Err(WriteError::Unavailable(_) | WriteError::Unknown(_))), "{failed:?}");
    assert!(one.read(Collection::Agents, "before").await.is_err() && one.last_error().is_some());
    proxy.get(USER_GET).await.assert_ok();
    let state_is_ok = async |expected: bool| {
        let response = admin_get(&proxy, "/readyz").await;
        assert_eq!(response.status, 200);
        let body: serde_json::Value = serde_json::from_slice(&response.body).expect("JSON");
        body["state"]["ok"] == expected
    };
    wait_for("the report of the outage", async || state_is_ok(false).await).await;
    redis.restart().await;
    wait_for("a write", async || one.write(vec![agent("after", "3")]).await.is_ok()).await;
    wait_until_delivered(&two_delivered, "after 3").await;
    wait_for("the report of the recovery", async || state_is_ok(true).await).await;
    for delivered in [one_delivered, two_delivered] {
        let texts = texts(&delivered);
        assert_eq!(
            (&*texts[0], texts.last().map(String::as_str)),
            ("before 1", Some("after 3")),
            "{texts:?}"
        );
    }
    let read = two.read(Collection::Agents, "before").await.expect("readable");
    assert!(read.is_some(), "what was written before survives the server");
}

#[tokio::test]
async fn many_records_are_loaded_completely_and_once() {
    let redis = RedisServer::start().await;
    let (one, _) = open(&redis);
    // Two of them are larger than what is read at once.
    for (batch, count) in [700, 1, 1300].into_iter().enumerate() {
        let writes = (0..count).map(|nth| agent(&format!("{batch}-{nth}"), "v")).collect();
        one.write(writes).await.expect("written");
    }
    let (_two, delivered) = open(&redis);
    let mut names = texts(&delivered);
    assert_eq!(names.len(), 2001);
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 2001);
}

#[tokio::test]
async fn values_are_sealed_and_rekeyed_while_replicas_run() {
    let redis = RedisServer::start().await;
    let (state, _) = open(&redis);
    state.write(vec![agent("hr", "plain-text-of-a-secret")]).await.expect("written");
    let dump = redis.command(&["HGETALL", "wecom-proxy:{state}:records"]).await;
    assert!(dump.contains("agents:hr") && !dump.contains("plain-text"), "{dump}");
    let line = |keys: &str| redis.store_config_line().replace(&format!("key = \"{STORE_KEY}\""), keys);
    let new = "key = \"a-new-store-key-of-the-tests-0123456789\"";
    assert!(matches!(try_open(&line(new)), Err(OpenError::SharedKey)));
    let both = state_config(&line(&format!("{new}, old_key = \"{STORE_KEY}\"")));
    assert_eq!(maintenance::check(&both).await.expect("checked").under_old_key, 1);
    assert_eq!(maintenance::rekey(&both).await.expect("changed").resealed, 1);
    let (_, delivered) = try_open(&line(new)).expect("the new key alone");
    assert_eq!(texts(&delivered), ["hr plain-text-of-a-secret"]);
}

#[tokio::test]
async fn state_opens_without_the_store_and_loads_later() {
    let mut redis = RedisServer::start_with(&["--appendonly", "yes", "--appendfsync", "always"]).await;
    let (one, _) = open(&redis);
    one.write(vec![agent("hr", "value")]).await.expect("written");
    redis.kill().await;
    let (_two, delivered) = open(&redis);
    assert_eq!(texts(&delivered), [""; 0]);
    redis.restart().await;
    wait_until_delivered(&delivered, "hr value").await;
}

#[tokio::test]
async fn store_that_lost_writes_never_repeats_a_version() {
    let redis = RedisServer::start().await;
    let (state, delivered) = open(&redis);
    let before = state.write(vec![agent("hr", "value")]).await.expect("written");
    redis.command(&["FLUSHALL"]).await;
    let after = state.write(vec![agent("ops", "value")]).await.expect("written");
    assert!(after > before);
    wait_until_delivered(&delivered, "ops value").await;
}

/// What a user of a shared state may do in Redis, besides the rules for tokens; docs/scale.md lists the same.
const ACL_RULES: &str = "+hdel +hexists +incr +zadd +zlexcount +zrem +zscore +zrangebyscore +zrangebylex";

#[tokio::test]
async fn documented_permissions_are_enough() {
    for page in [include_str!("../../docs/scale.md"), include_str!("../../docs/scale.zh-CN.md")] {
        assert!(page.contains(ACL_RULES));
    }
    let page = include_str!("../../docs/scale.md");
    let rules =
        page.lines().find_map(|line| line.strip_prefix("user wecom on >PASSWORD ")).expect("the rules");
    let redis = RedisServer::start().await;
    let mut command = vec!["ACL", "SETUSER", "wecom", "on", ">password-of-the-tests-00"];
    command.extend(rules.split(' ').chain(ACL_RULES.split(' ')));
    assert_eq!(redis.command(&command).await, "OK\n");
    let login = "user = \"wecom\", password = \"password-of-the-tests-00\", key =";
    let (state, delivered) = try_open(&redis.store_config_line().replace("key =", login)).expect("a state");
    let expiring = agent("short", "value").expires_at(1);
    state.write(vec![agent("hr", "value"), expiring]).await.expect("written");
    state.write(vec![Write::delete(Collection::Agents, "hr")]).await.expect("deleted");
    state.write(vec![Write::put(Collection::Idempotency, "a", "value")]).await.expect("written");
    state.write(vec![Write::delete(Collection::Idempotency, "a")]).await.expect("deleted");
    assert_eq!(state.scan(Collection::Agents, "", "", 9).await, Ok(Vec::new()));
    assert_eq!(state.read(Collection::Agents, "hr").await, Ok(None));
    assert_eq!(state.summarize(Collection::Agents, "", 1).await.expect("readable").count, 1);
    wait_until_delivered(&delivered, "hr -").await;
    let config::StateConfig::Shared(redis_config) =
        state_config(&redis.store_config_line().replace("key =", login))
    else {
        panic!("not shared")
    };
    let prepared = PreparedStore::new(&redis_config).expect("a store");
    let (store, _events) = Store::open(prepared, &Handle::current());
    wait_for("the store", async || store.last_error().is_none()).await;
    // Now the record, later the marks of both deletions.
    let records = async || redis.command(&["HLEN", "wecom-proxy:{state}:records"]).await;
    let now = unix_now();
    assert_eq!(store.delete_expired_state([now, now + 1000]).await, Ok(false));
    assert_eq!(records().await, "2\n");
    assert_eq!(store.delete_expired_state([now + (1 << 30), now + (1 << 31)]).await, Ok(false));
    assert_eq!(records().await, "0\n");
}

#[tokio::test]
async fn full_store_refuses_writes_as_full() {
    let redis = RedisServer::start().await;
    let (state, _) = open(&redis);
    redis.command(&["CONFIG", "SET", "maxmemory", "1"]).await;
    let failed = state.write(vec![agent("hr", "value")]).await;
    assert!(matches!(failed, Err(WriteError::Full(_) | WriteError::Unavailable(_))), "{failed:?}");
    redis.command(&["CONFIG", "SET", "maxmemory", "0"]).await;
    wait_for("a write", async || state.write(vec![agent("hr", "value")]).await.is_ok()).await;
}

#[tokio::test]
async fn backup_of_a_shared_state_names_redis() {
    let redis = RedisServer::start().await;
    let proxy = TestProxy::start_with_config(&config_text(&redis)).await;
    let config = proxy.dir.path().join("proxy.toml");
    let arguments = ["state", "backup", "copy.db", "--config", config.to_str().expect("UTF-8")];
    let output = run_wecom_proxy(&arguments).await;
    assert_eq!(output.status, 2);
    assert!(output.err.contains("this state is in Redis"), "{output:?}");
}

/// A proxy whose store does not respond while it starts, with a client in the state alone.
async fn start_without_store(redis: &RedisServer, toml: &str) -> TestProxy {
    redis.signal("STOP");
    TestProxy::start_with_config(toml).await
}

#[tokio::test]
async fn store_that_is_silent_at_the_start_opens_nothing() {
    let redis = RedisServer::start().await;
    let (state, _) = open(&redis);
    let key = "key-of-billing-0123456789";
    let record = serde_json::json!({
        "generation": "00000000000000ff",
        "table": { "agents": ["hr"] },
        "keys": [{ "id": "a1", "created": 1, "sha256": sha256(key) }],
    });
    let client = Write::put(Collection::Clients, "billing", record.to_string());
    state.write(vec![client]).await.expect("written");
    state.close().await;
    for listen in ["127.0.0.1:0", "0.0.0.0:0"] {
        let toml = config_text(&redis).replacen("127.0.0.1:0", listen, 1);
        let proxy = start_without_store(&redis, &toml).await;
        let get = |key: &str| {
            let request = Request::get(USER_GET);
            proxy.request(if key.is_empty() { request } else { request.header("x-api-key", key) }, "")
        };
        for key in ["", key, "no-key-of-any-client-0123"] {
            let response = get(key).await;
            response.assert_proxy_error("overloaded", 503, -1);
            assert_eq!(response.header("retry-after"), "1");
        }
        let gettoken =
            proxy.get(&format!("/cgi-bin/gettoken?corpid=ww1234567890abcdef&corpsecret={key}")).await;
        gettoken.assert_proxy_error("overloaded", 503, -1);
        proxy.app.reload().expect("a reload");
        get("").await.assert_proxy_error("overloaded", 503, -1);
        redis.signal("CONT");
        wait_for("the clients of the state", async || get("").await.status == 401).await;
        get(key).await.assert_ok();
        proxy.app.shutdown().await;
    }
}

#[tokio::test]
async fn state_without_clients_opens_the_proxy_on_loopback_only() {
    let redis = RedisServer::start().await;
    let proxy = start_without_store(&redis, &config_text(&redis)).await;
    proxy.get(USER_GET).await.assert_proxy_error("overloaded", 503, -1);
    redis.signal("CONT");
    wait_for("an open proxy", async || proxy.get(USER_GET).await.status == 200).await;
    proxy.app.shutdown().await;
    let toml = config_text(&redis).replacen("127.0.0.1:0", "0.0.0.0:0", 1);
    let proxy = start_without_store(&redis, &toml).await;
    redis.signal("CONT");
    wait_for("the state", async || proxy.get(USER_GET).await.status == 401).await;
    proxy.app.shutdown().await;
}

#[tokio::test]
async fn last_record_of_a_collection_is_kept_by_replicas() {
    let redis = RedisServer::start().await;
    let ((one, _), (two, _)) = (open(&redis), open(&redis));
    let put = |name: &str| Write::put(Collection::Clients, name, "value");
    let version = one.write(vec![put("a"), put("b"), agent("hr", "value")]).await.expect("written");
    let delete = |name: &str| Write::delete(Collection::Clients, name).when(Precondition::NotLast(version));
    let (first, second) = tokio::join!(one.write(vec![delete("a")]), two.write(vec![delete("b")]));
    let last = Err(WriteError::Conflict { index: 0, current: Some(version) });
    assert!((first == last) != (second == last), "{first:?} {second:?}");
    assert_eq!(one.scan(Collection::Clients, "", "", 9).await.expect("readable").len(), 1);
}
