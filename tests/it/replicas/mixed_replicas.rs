//! Replicas that are not alike: another way to WeCom, another clock, another key, another secret.

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
    harness::{OPEN_CONFIG, TestClient, TestProxy, TestResponse, USER_GET, wait_for, write_config},
    process::Process,
    redis_server::{RedisServer, STORE_KEY, free_address},
};

fn config_with_store(address: SocketAddr, keys: &str) -> String {
    format!("{OPEN_CONFIG}\n[tokens]\nstore = {{ redis = \"redis://{address}\", {keys} }}\n")
}

async fn wait_for_store(stage: &TestProxy) {
    wait_for("the store", async || stage.app.store_error().is_none()).await;
}

#[tokio::test]
async fn replica_that_cannot_reach_wecom_does_not_block_others() {
    let redis = RedisServer::start().await;
    let replicas = Replicas::start(2, &redis.store_config_line()).await;
    let lost = TestProxy::start_with_upstream(
        free_address(),
        &config_with_store(redis.address(), &format!("key = \"{STORE_KEY}\"")),
    )
    .await;
    wait_for_store(&lost).await;
    lost.get(USER_GET).await.assert_proxy_error("token-unavailable", 502, -1);
    let began = Instant::now();
    replicas.load(1).await;
    assert!(began.elapsed() < Duration::from_secs(5));
    assert_eq!(replicas.upstream_counts(), (1, 2), "one of those who can has fetched it");
}

/// Two replicas, and one whose clock is that much off, which can be cut off from the store.
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
        let (way, dir) =
            (CuttableRelay::start(redis.address()).await, TempDir::new().expect("a temporary directory"));
        let toml = config_with_store(way.address, &format!("key = \"{STORE_KEY}\""));
        let path = write_config(&dir, replicas.first.wecom.api_addr(), &Settings::default(), &toml);
        let lonely = Process::serve_with_clock_offset(&path, offset).await;
        lonely.err.wait_for_line("redis connected").await;
        let apart = Self { redis, replicas, skewed: lonely, relay: way, _dir: dir };
        apart.replicas.load(1).await;
        apart.get_at_skewed().await.assert_ok();
        assert_eq!(apart.replicas.upstream_counts().0, 1);
        apart.relay.is_cut.send_replace(true);
        apart.skewed.err.wait_for_line("redis unavailable").await;
        apart
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

    /// Nobody has a token that is not the newest.
    async fn assert_all_have_the_newest(&self) {
        let (gettokens, _) = self.replicas.upstream_counts();
        assert_eq!(self.get_at_skewed().await.assert_ok().header("x-wecom-retried"), "");
        for stage in self.replicas.all() {
            assert_eq!(stage.get(USER_GET).await.assert_ok().header("x-wecom-retried"), "");
        }
        assert_eq!(self.replicas.upstream_counts().0, gettokens);
    }
}

#[tokio::test]
async fn skewed_clock_does_not_decide_the_newer_token() {
    // It seems to have got its token later than the others did.
    let apart = SkewedReplica::with_clock("+2h").await;
    let (admin, other) = (apart.skewed.admin_address().await, &apart.replicas.others[0]);
    apart.revoke_token();
    apart.get_at_skewed().await.assert_ok();
    apart.revoke_token();
    let (others, lonelys) =
        (shared_refresh_count(other.admin_address()).await, shared_refresh_count(admin).await);
    apart.replicas.first.get(USER_GET).await.assert_ok();
    wait_for("the news", async || shared_refresh_count(other.admin_address()).await > others).await;
    apart.reconnect().await;
    wait_for("what the others have", async || shared_refresh_count(admin).await > lonelys).await;
    apart.assert_all_have_the_newest().await;

    // It seems to have got its token before the others did.
    let apart = SkewedReplica::with_clock("-2h").await;
    let admins = apart.replicas.all().map(|stage| stage.admin_address()).collect::<Vec<_>>();
    let fence = async || apart.redis.command(&["--raw", "EVAL", FENCE_SCRIPT, "0"]).await;
    let (before, taken) =
        (fence().await, [shared_refresh_count(admins[0]).await, shared_refresh_count(admins[1]).await]);
    apart.revoke_token();
    apart.get_at_skewed().await.assert_ok();
    apart.reconnect().await;
    wait_for("what it has", async || fence().await != before).await;
    for (admin, taken) in admins.into_iter().zip(taken) {
        wait_for("the news", async || shared_refresh_count(admin).await > taken).await;
    }
    apart.assert_all_have_the_newest().await;
}

#[tokio::test]
async fn store_key_rotation_costs_no_gettoken() {
    const NEW: &str = "another-store-key-of-the-stories-012345";
    let redis = RedisServer::start().await;
    let wecom = Simulator::start_local(Settings::default()).await.expect("a simulator");
    let steps = [
        format!("key = \"{STORE_KEY}\""),
        format!("key = \"{STORE_KEY}\", old_key = \"{NEW}\""),
        format!("key = \"{NEW}\", old_key = \"{STORE_KEY}\""),
    ];
    let mut replicas: Vec<TestProxy> = Vec::new();
    let gettokens = |wecom: &Simulator| wecom.gettoken_count("hr").expect("an agent");
    for (nth, step) in steps.iter().enumerate() {
        for place in 0..3 {
            let next =
                TestProxy::start_with_upstream(wecom.api_addr(), &config_with_store(redis.address(), step))
                    .await;
            wait_for_store(&next).await;
            match replicas.get_mut(place) {
                Some(before) => *before = next,
                None => replicas.push(next),
            }
            // Each has what the others have, and hears of what they refuse, in the middle of the change as well.
            for stage in &replicas {
                stage.get(USER_GET).await.assert_ok();
            }
            let before = gettokens(&wecom);
            wecom.revoke_tokens("hr").expect("an agent");
            for stage in &replicas {
                stage.get(USER_GET).await.assert_ok();
            }
            assert_eq!(gettokens(&wecom), before + 1, "step {nth}, replica {place}");
        }
    }
    assert_eq!(gettokens(&wecom), 1 + 9);
}

#[tokio::test]
async fn replicas_with_different_keys_work_independently() {
    let redis = RedisServer::start().await;
    let replicas = Replicas::start(1, &redis.store_config_line()).await;
    let toml = config_with_store(redis.address(), "key = \"another-store-key-of-the-stories-012345\"");
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
    // A failure that cannot be read is none: nobody waits for it to pass.
    let fault = wecom_proxy::simulator::Fault::errcode(40013).on_path(super::GETTOKEN).times(1);
    replicas.first.wecom.inject(fault).expect("a fault");
    replicas.first.wecom.revoke_tokens("hr").expect("an agent");
    replicas.first.get(USER_GET).await;
    let began = Instant::now();
    other.get(USER_GET).await.assert_ok();
    assert!(began.elapsed() < Duration::from_secs(2), "it took {:?}", began.elapsed());
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
    let reloaded =
        admin.request(Request::post("/api/reload").header("x-requested-with", "a story"), "").await;
    assert_eq!(reloaded.status, 200, "{}", reloaded.text());
    replicas.first.get(USER_GET).await.assert_ok();
    // The one with the former secret fails by itself, and its failure is not the other's.
    assert_ne!(other.get(USER_GET).await.errcode(), 0);
    for _ in 0..3 {
        replicas.first.get(USER_GET).await.assert_ok();
    }
    assert_eq!(wecom.observe(|seen| seen.received_count(super::GETTOKEN)), 3);
}

#[tokio::test]
async fn manual_refresh_at_one_replica_is_shared() {
    let redis = RedisServer::start().await;
    let replicas = Replicas::start(3, &redis.store_config_line()).await;
    replicas.load(1).await;
    let taken = [
        shared_refresh_count(replicas.others[0].admin_address()).await,
        shared_refresh_count(replicas.others[1].admin_address()).await,
    ];
    replicas.first.wecom.revoke_tokens("hr").expect("an agent");
    let mut admin = TestClient::connect_http1(replicas.first.admin_address()).await;
    let reply = admin
        .request(Request::post("/api/agents/hr/refresh").header("x-requested-with", "a story"), "")
        .await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    for (stage, taken) in replicas.others.iter().zip(taken) {
        wait_for("the news", async || shared_refresh_count(stage.admin_address()).await > taken).await;
        assert_eq!(stage.get(USER_GET).await.assert_ok().header("x-wecom-retried"), "");
    }
    assert_eq!(replicas.upstream_counts().0, 2);
}

/// Nobody but the process under test has this clock.
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
    let app = crate::harness::agent_section(&Settings::default().agents[0], "");
    let toml = format!("{OPEN_CONFIG}{}", app.replace("[agents.hr]", "[agents.staff]"));
    let replicas = Replicas::with(&toml, 2, &redis.store_config_line()).await;
    let other = &replicas.others[0];
    let call = async |stage: &TestProxy, agent: &str| {
        stage.request(Request::get(format!("/{agent}{USER_GET}")), "").await
    };
    for agent in ["hr", "staff"] {
        call(&replicas.first, agent).await.assert_ok();
        call(other, agent).await.assert_ok();
    }
    assert_eq!(replicas.upstream_counts().0, 1);
    let taken = shared_refresh_count(other.admin_address()).await;
    replicas.first.wecom.revoke_tokens("hr").expect("an agent");
    replicas.first.get(USER_GET).await.assert_ok();
    wait_for("the news", async || shared_refresh_count(other.admin_address()).await > taken).await;
    for agent in ["hr", "staff"] {
        assert_eq!(call(other, agent).await.assert_ok().header("x-wecom-retried"), "", "{agent}");
    }
    assert_eq!(replicas.upstream_counts().0, 2);
}
