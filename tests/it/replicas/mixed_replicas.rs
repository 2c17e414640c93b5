//! Replicas that differ: in their route to WeCom, clock, store key or secret.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use http::Request;
use tempfile::TempDir;
use wecom_proxy::simulator::{Settings, Simulator};

use super::{
    Replicas,
    network_partitions::{CuttableRelay, FENCE_SCRIPT},
    shared_refresh_count,
};
use crate::{
    harness::{
        OPEN_CONFIG, TestClient, TestProxy, TestResponse, USER_GET, wait_for, wait_for_store, write_config,
    },
    process::Process,
    redis_server::{RedisServer, STORE_KEY, free_address},
};

fn config_with_store(address: SocketAddr, keys: &str) -> String {
    format!("{OPEN_CONFIG}\n[tokens]\nstore = {{ redis = \"redis://{address}\", {keys} }}\n")
}

#[tokio::test]
async fn replica_that_cannot_reach_wecom_does_not_block_others() {
    let redis = RedisServer::start().await;
    let replicas = Replicas::start(2, &redis.store_config_line()).await;
    let isolated = TestProxy::start_with_upstream(
        free_address(),
        &config_with_store(redis.address(), &format!("key = \"{STORE_KEY}\"")),
    )
    .await;
    wait_for_store(&isolated).await;
    isolated.get(USER_GET).await.assert_proxy_error("token-unavailable", 502, -1);
    let started = Instant::now();
    replicas.load(1).await;
    assert!(started.elapsed() < Duration::from_secs(5));
    assert_eq!(replicas.upstream_counts(), (1, 2), "a replica that reaches WeCom has fetched the token");
}

/// Two replicas and a third with a skewed clock, which can be cut off from the store.
struct SkewedReplica {
    redis: RedisServer,
    replicas: Replicas,
    skewed: Process,
    relay: CuttableRelay,
    _dir: TempDir,
}

impl SkewedReplica {
    async fn with_clock(offset: &str) -> Self {
        let redis = RedisServer::start().await;
        let replicas = Replicas::start(2, &redis.store_config_line()).await;
        let (relay, dir) =
            (CuttableRelay::start(redis.address()).await, TempDir::new().expect("a temporary directory"));
        let toml = config_with_store(relay.address, &format!("key = \"{STORE_KEY}\""));
        let path = write_config(&dir, replicas.first.wecom.api_addr(), &Settings::default(), &toml);
        let skewed = Process::serve_with_clock_offset(&path, offset).await;
        skewed.err.wait_for_line("redis connected").await;
        let setup = Self { redis, replicas, skewed, relay, _dir: dir };
        setup.replicas.load(1).await;
        setup.get_at_skewed().await.assert_ok();
        assert_eq!(setup.replicas.upstream_counts().0, 1);
        setup.relay.is_cut.send_replace(true);
        setup.skewed.err.wait_for_line("redis unavailable").await;
        setup
    }

    async fn get_at_skewed(&self) -> TestResponse {
        TestClient::connect_http1(self.skewed.address().await).await.get(USER_GET).await
    }

    fn revoke_token(&self) {
        self.replicas.first.wecom.revoke_tokens("hr").expect("an agent");
    }

    async fn reconnect(&self) {
        self.relay.is_cut.send_replace(false);
        self.skewed.err.wait_for_nth_line("redis connected", 1).await;
    }

    /// Asserts that every replica has the newest token.
    async fn assert_all_have_the_newest(&self) {
        let (gettokens, _) = self.replicas.upstream_counts();
        assert_eq!(self.get_at_skewed().await.assert_ok().header("x-wecom-retried"), "");
        for proxy in self.replicas.all() {
            assert_eq!(proxy.get(USER_GET).await.assert_ok().header("x-wecom-retried"), "");
        }
        assert_eq!(self.replicas.upstream_counts().0, gettokens);
    }
}

#[tokio::test]
async fn skewed_clock_does_not_decide_the_newer_token() {
    // By its clock, the skewed replica fetched its token after the others did.
    let setup = SkewedReplica::with_clock("+2h").await;
    let (skewed_admin, other) = (setup.skewed.admin_address().await, &setup.replicas.others[0]);
    setup.revoke_token();
    setup.get_at_skewed().await.assert_ok();
    setup.revoke_token();
    let (other_before, skewed_before) =
        (shared_refresh_count(other.admin_address()).await, shared_refresh_count(skewed_admin).await);
    setup.replicas.first.get(USER_GET).await.assert_ok();
    wait_for("the event", async || shared_refresh_count(other.admin_address()).await > other_before).await;
    setup.reconnect().await;
    wait_for("the token of the others", async || shared_refresh_count(skewed_admin).await > skewed_before)
        .await;
    setup.assert_all_have_the_newest().await;

    // By its clock, the skewed replica fetched its token before the others did.
    let setup = SkewedReplica::with_clock("-2h").await;
    let admins = setup.replicas.all().map(|proxy| proxy.admin_address()).collect::<Vec<_>>();
    let fence = async || setup.redis.command(&["--raw", "EVAL", FENCE_SCRIPT, "0"]).await;
    let (fence_before, before) =
        (fence().await, [shared_refresh_count(admins[0]).await, shared_refresh_count(admins[1]).await]);
    setup.revoke_token();
    setup.get_at_skewed().await.assert_ok();
    setup.reconnect().await;
    wait_for("its token in the store", async || fence().await != fence_before).await;
    for (admin, before) in admins.into_iter().zip(before) {
        wait_for("the event", async || shared_refresh_count(admin).await > before).await;
    }
    setup.assert_all_have_the_newest().await;
}

#[tokio::test]
async fn store_key_rotation_costs_no_gettoken() {
    const NEW_KEY: &str = "another-store-key-of-the-tests-01234567";
    let redis = RedisServer::start().await;
    let wecom = Simulator::start_local(Settings::default()).await.expect("a simulator");
    let rotation = [
        format!("key = \"{STORE_KEY}\""),
        format!("key = \"{STORE_KEY}\", old_key = \"{NEW_KEY}\""),
        format!("key = \"{NEW_KEY}\", old_key = \"{STORE_KEY}\""),
    ];
    let mut replicas: Vec<TestProxy> = Vec::new();
    let gettoken_count = |wecom: &Simulator| wecom.gettoken_count("hr").expect("an agent");
    for (step, store_keys) in rotation.iter().enumerate() {
        for index in 0..3 {
            let replica = TestProxy::start_with_upstream(
                wecom.api_addr(),
                &config_with_store(redis.address(), store_keys),
            )
            .await;
            wait_for_store(&replica).await;
            match replicas.get_mut(index) {
                Some(old) => *old = replica,
                None => replicas.push(replica),
            }
            // In every step of the rotation the replicas share tokens and events.
            for proxy in &replicas {
                proxy.get(USER_GET).await.assert_ok();
            }
            let before = gettoken_count(&wecom);
            wecom.revoke_tokens("hr").expect("an agent");
            for proxy in &replicas {
                proxy.get(USER_GET).await.assert_ok();
            }
            assert_eq!(gettoken_count(&wecom), before + 1, "step {step}, replica {index}");
        }
    }
    assert_eq!(gettoken_count(&wecom), 1 + 9);
}

#[tokio::test]
async fn replicas_with_different_keys_work_independently() {
    let redis = RedisServer::start().await;
    let replicas = Replicas::start(1, &redis.store_config_line()).await;
    let toml = config_with_store(redis.address(), "key = \"another-store-key-of-the-tests-01234567\"");
    let other = TestProxy::start_with_upstream(replicas.first.wecom.api_addr(), &toml).await;
    wait_for_store(&other).await;
    for _ in 0..3 {
        let (before, _) = replicas.upstream_counts();
        replicas.first.wecom.revoke_tokens("hr").expect("an agent");
        for _ in 0..5 {
            replicas.first.get(USER_GET).await.assert_ok();
            other.get(USER_GET).await.assert_ok();
        }
        assert!(replicas.upstream_counts().0 - before <= 2);
    }
    // A failure record under another key is unreadable, so it delays no replica.
    let fault = wecom_proxy::simulator::Fault::errcode(40013).on_path(super::GETTOKEN).times(1);
    replicas.first.wecom.inject(fault).expect("a fault");
    replicas.first.wecom.revoke_tokens("hr").expect("an agent");
    replicas.first.get(USER_GET).await;
    let started = Instant::now();
    other.get(USER_GET).await.assert_ok();
    assert!(started.elapsed() < Duration::from_secs(2), "took {:?}", started.elapsed());
}

#[tokio::test]
async fn new_secret_on_one_replica_does_not_affect_the_others() {
    let redis = RedisServer::start().await;
    let replicas = Replicas::start(2, &redis.store_config_line()).await;
    replicas.load(1).await;
    let wecom = &replicas.first.wecom;
    let other = &replicas.others[0];
    let secret = "the-next-secret-of-hr-0123456789";
    let before = Settings::default().agents[0].secret.clone();
    wecom.reset_secret("hr", secret).expect("an agent");
    let toml = format!("{OPEN_CONFIG}\n[tokens]\n{}\n", redis.store_config_line());
    let mut settings = Settings::default();
    settings.agents[0].secret = secret.to_owned();
    let path = write_config(&replicas.first.dir, wecom.api_addr(), &settings, &toml);
    assert!(std::fs::read_to_string(path).expect("the file").contains(secret) && *secret != *before);
    let mut admin = TestClient::connect_http1(replicas.first.admin_address()).await;
    let reloaded = admin.request(Request::post("/api/reload").header("x-requested-with", "a test"), "").await;
    assert_eq!(reloaded.status, 200, "{}", reloaded.text());
    replicas.first.get(USER_GET).await.assert_ok();
    // The replica with the former secret fails, and its failure is not shared.
    assert_ne!(other.get(USER_GET).await.errcode(), 0);
    for _ in 0..3 {
        replicas.first.get(USER_GET).await.assert_ok();
    }
    assert_eq!(wecom.observe(|observed| observed.received_count(super::GETTOKEN)), 3);
}

#[tokio::test]
async fn manual_refresh_at_one_replica_is_shared() {
    let redis = RedisServer::start().await;
    let replicas = Replicas::start(3, &redis.store_config_line()).await;
    replicas.load(1).await;
    let before = [
        shared_refresh_count(replicas.others[0].admin_address()).await,
        shared_refresh_count(replicas.others[1].admin_address()).await,
    ];
    replicas.first.wecom.revoke_tokens("hr").expect("an agent");
    let mut admin = TestClient::connect_http1(replicas.first.admin_address()).await;
    let response =
        admin.request(Request::post("/api/agents/hr/refresh").header("x-requested-with", "a test"), "").await;
    assert_eq!(response.status, 200, "{}", response.text());
    for (proxy, before) in replicas.others.iter().zip(before) {
        wait_for("the event", async || shared_refresh_count(proxy.admin_address()).await > before).await;
        assert_eq!(proxy.get(USER_GET).await.assert_ok().header("x-wecom-retried"), "");
    }
    assert_eq!(replicas.upstream_counts().0, 2);
}

/// Only the replica processes have a skewed clock, not the test.
#[tokio::test]
async fn replicas_with_skewed_clocks_share_tokens() {
    let redis = RedisServer::start().await;
    let wecom = Simulator::start_local(Settings::default()).await.expect("a simulator");
    let toml = config_with_store(redis.address(), &format!("key = \"{STORE_KEY}\""));
    let mut replicas = Vec::new();
    for offset in ["+3h", "-3h", "+0h"] {
        let dir = TempDir::new().expect("a temporary directory");
        let path = write_config(&dir, wecom.api_addr(), &Settings::default(), &toml);
        let process = Process::serve_with_clock_offset(&path, offset).await;
        process.err.wait_for_line("redis connected").await;
        replicas.push((process, dir));
    }
    for round in 1..=3 {
        for (process, _) in &replicas {
            let address = process.address().await;
            TestClient::connect_http1(address).await.get(USER_GET).await.assert_ok();
        }
        assert_eq!(wecom.gettoken_count("hr").expect("an agent"), round);
        wecom.revoke_tokens("hr").expect("an agent");
    }
}

#[tokio::test]
async fn two_agent_names_of_one_app_share_events() {
    let redis = RedisServer::start().await;
    let section = crate::harness::agent_section(&Settings::default().agents[0], "");
    let toml = format!("{OPEN_CONFIG}{}", section.replace("[agents.hr]", "[agents.staff]"));
    let replicas = Replicas::with(&toml, 2, &redis.store_config_line()).await;
    let other = &replicas.others[0];
    let get = async |proxy: &TestProxy, agent: &str| {
        proxy.request(Request::get(format!("/{agent}{USER_GET}")), "").await
    };
    for agent in ["hr", "staff"] {
        get(&replicas.first, agent).await.assert_ok();
        get(other, agent).await.assert_ok();
    }
    assert_eq!(replicas.upstream_counts().0, 1);
    let before = shared_refresh_count(other.admin_address()).await;
    replicas.first.wecom.revoke_tokens("hr").expect("an agent");
    replicas.first.get(USER_GET).await.assert_ok();
    wait_for("the event", async || shared_refresh_count(other.admin_address()).await > before).await;
    for agent in ["hr", "staff"] {
        assert_eq!(get(other, agent).await.assert_ok().header("x-wecom-retried"), "", "{agent}");
    }
    assert_eq!(replicas.upstream_counts().0, 2);
}
