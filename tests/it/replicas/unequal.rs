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
    parted::{FENCE, Way},
    taken_over,
};
use crate::{
    process::Process,
    redis::{KEY, Redis, free_address},
    stage::{Caller, OPEN, Reply, Stage, USER_GET, wait_for, write_config},
};

fn store(address: SocketAddr, keys: &str) -> String {
    format!("{OPEN}\n[tokens]\nstore = {{ redis = \"redis://{address}\", {keys} }}\n")
}

async fn joined(stage: &Stage) {
    wait_for("the store", async || stage.proxy.store_trouble().is_none()).await;
}

#[tokio::test]
async fn one_that_does_not_reach_wecom_takes_the_token_from_nobody() {
    let redis = Redis::start().await;
    let replicas = Replicas::start(2, &redis.store()).await;
    let lost = Stage::facing(free_address(), &store(redis.address(), &format!("key = \"{KEY}\""))).await;
    joined(&lost).await;
    lost.get(USER_GET).await.is_own("token-unavailable", 502, -1);
    let began = Instant::now();
    replicas.crowd(1).await;
    assert!(began.elapsed() < Duration::from_secs(5));
    assert_eq!(replicas.seen(), (1, 2), "one of those who can has fetched it");
}

/// Two replicas, and one whose clock is that much off, which can be cut off from the store.
struct Apart {
    redis: Redis,
    replicas: Replicas,
    lonely: Process,
    way: Way,
    _dir: TempDir,
}

impl Apart {
    async fn with_clock(offset: &str) -> Self {
        let redis = Redis::start().await;
        let replicas = Replicas::start(2, &redis.store()).await;
        let (way, dir) = (Way::to(redis.address()).await, TempDir::new().expect("a temporary directory"));
        let toml = store(way.address, &format!("key = \"{KEY}\""));
        let path = write_config(&dir, replicas.first.wecom.api_addr(), &Settings::default(), &toml);
        let lonely = Process::serve_at_another_time(&path, offset).await;
        lonely.err.line("the store is there").await;
        let apart = Self { redis, replicas, lonely, way, _dir: dir };
        apart.replicas.crowd(1).await;
        apart.lonely_asks().await.is_ok();
        assert_eq!(apart.replicas.seen().0, 1);
        apart.way.is_cut.send_replace(true);
        apart.lonely.err.line("the store is away").await;
        apart
    }

    async fn lonely_asks(&self) -> Reply {
        Caller::http1(self.lonely.address().await).await.get(USER_GET).await
    }

    fn void(&self) {
        self.replicas.first.wecom.revoke("hr").expect("an agent");
    }

    async fn come_together(&self) {
        self.way.is_cut.send_replace(false);
        self.lonely.err.nth_line("the store is there", 1).await;
    }

    /// Nobody has a token that is not the newest.
    async fn all_have_the_newest(&self) {
        let (gettokens, _) = self.replicas.seen();
        assert_eq!(self.lonely_asks().await.is_ok().header("x-wecom-retried"), "");
        for stage in self.replicas.all() {
            assert_eq!(stage.get(USER_GET).await.is_ok().header("x-wecom-retried"), "");
        }
        assert_eq!(self.replicas.seen().0, gettokens);
    }
}

#[tokio::test]
async fn a_clock_that_is_wrong_does_not_decide_which_token_is_the_newer() {
    // It seems to have got its token later than the others did.
    let apart = Apart::with_clock("+2h").await;
    let (admin, other) = (apart.lonely.admin().await, &apart.replicas.others[0]);
    apart.void();
    apart.lonely_asks().await.is_ok();
    apart.void();
    let (others, lonelys) = (taken_over(other.admin()).await, taken_over(admin).await);
    apart.replicas.first.get(USER_GET).await.is_ok();
    wait_for("the news", async || taken_over(other.admin()).await > others).await;
    apart.come_together().await;
    wait_for("what the others have", async || taken_over(admin).await > lonelys).await;
    apart.all_have_the_newest().await;

    // It seems to have got its token before the others did.
    let apart = Apart::with_clock("-2h").await;
    let admins = apart.replicas.all().map(|stage| stage.admin()).collect::<Vec<_>>();
    let fence = async || apart.redis.ask(&["--raw", "EVAL", FENCE, "0"]).await;
    let (before, taken) = (fence().await, [taken_over(admins[0]).await, taken_over(admins[1]).await]);
    apart.void();
    apart.lonely_asks().await.is_ok();
    apart.come_together().await;
    wait_for("what it has", async || fence().await != before).await;
    for (admin, taken) in admins.into_iter().zip(taken) {
        wait_for("the news", async || taken_over(admin).await > taken).await;
    }
    apart.all_have_the_newest().await;
}

#[tokio::test]
async fn a_key_is_changed_step_by_step_without_a_gettoken() {
    const NEW: &str = "another-store-key-of-the-stories-012345";
    let redis = Redis::start().await;
    let wecom = Simulator::local(Settings::default()).await.expect("a simulator");
    let steps = [
        format!("key = \"{KEY}\""),
        format!("key = \"{KEY}\", old_key = \"{NEW}\""),
        format!("key = \"{NEW}\", old_key = \"{KEY}\""),
    ];
    let mut replicas: Vec<Stage> = Vec::new();
    let gettokens = |wecom: &Simulator| wecom.gettoken_count("hr").expect("an agent");
    for (nth, step) in steps.iter().enumerate() {
        for place in 0..3 {
            let next = Stage::facing(wecom.api_addr(), &store(redis.address(), step)).await;
            joined(&next).await;
            match replicas.get_mut(place) {
                Some(before) => *before = next,
                None => replicas.push(next),
            }
            // Each has what the others have, and hears of what they refuse, in the middle of the change as well.
            for stage in &replicas {
                stage.get(USER_GET).await.is_ok();
            }
            let before = gettokens(&wecom);
            wecom.revoke("hr").expect("an agent");
            for stage in &replicas {
                stage.get(USER_GET).await.is_ok();
            }
            assert_eq!(gettokens(&wecom), before + 1, "step {nth}, replica {place}");
        }
    }
    assert_eq!(gettokens(&wecom), 1 + 9);
}

#[tokio::test]
async fn replicas_with_different_keys_each_go_on_and_do_not_fight() {
    let redis = Redis::start().await;
    let replicas = Replicas::start(1, &redis.store()).await;
    let toml = store(redis.address(), "key = \"another-store-key-of-the-stories-012345\"");
    let other = Stage::facing(replicas.first.wecom.api_addr(), &toml).await;
    joined(&other).await;
    for _ in 0..3 {
        let (before, _) = replicas.seen();
        replicas.first.wecom.revoke("hr").expect("an agent");
        for _ in 0..5 {
            replicas.first.get(USER_GET).await.is_ok();
            other.get(USER_GET).await.is_ok();
        }
        assert!(replicas.seen().0 - before <= 2);
    }
    // A failure that cannot be read is none: nobody waits for it to pass.
    let fault = wecom_proxy::simulator::Fault::errcode(40013).on(super::GETTOKEN).times(1);
    replicas.first.wecom.inject(fault).expect("a fault");
    replicas.first.wecom.revoke("hr").expect("an agent");
    replicas.first.get(USER_GET).await;
    let began = Instant::now();
    other.get(USER_GET).await.is_ok();
    assert!(began.elapsed() < Duration::from_secs(2), "it took {:?}", began.elapsed());
}

#[tokio::test]
async fn a_secret_that_only_one_replica_knows_by_now_disturbs_nobody() {
    let redis = Redis::start().await;
    let replicas = Replicas::start(2, &redis.store()).await;
    replicas.crowd(1).await;
    let wecom = &replicas.first.wecom;
    let other = &replicas.others[0];
    let secret = "the-next-secret-of-hr-0123456789";
    let before = Settings::default().agents[0].secret.clone();
    wecom.reset_secret("hr", secret).expect("an agent");
    let toml = format!("{OPEN}\n[tokens]\n{}\n", redis.store());
    let mut settings = Settings::default();
    settings.agents[0].secret = secret.to_owned();
    let path = write_config(&replicas.first.dir, wecom.api_addr(), &settings, &toml);
    assert!(std::fs::read_to_string(path).expect("the file").contains(secret) && *secret != *before);
    let mut admin = Caller::http1(replicas.first.admin()).await;
    let reloaded = admin.call(Request::post("/api/reload").header("x-requested-with", "a story"), "").await;
    assert_eq!(reloaded.status, 200, "{}", reloaded.text());
    replicas.first.get(USER_GET).await.is_ok();
    // The one with the former secret fails by itself, and its failure is not the other's.
    assert_ne!(other.get(USER_GET).await.errcode(), 0);
    for _ in 0..3 {
        replicas.first.get(USER_GET).await.is_ok();
    }
    assert_eq!(wecom.look(|seen| seen.received(super::GETTOKEN)), 3);
}

#[tokio::test]
async fn what_an_operator_has_fetched_at_one_replica_is_there_for_all() {
    let redis = Redis::start().await;
    let replicas = Replicas::start(3, &redis.store()).await;
    replicas.crowd(1).await;
    let taken = [taken_over(replicas.others[0].admin()).await, taken_over(replicas.others[1].admin()).await];
    replicas.first.wecom.revoke("hr").expect("an agent");
    let mut admin = Caller::http1(replicas.first.admin()).await;
    let reply =
        admin.call(Request::post("/api/agents/hr/refresh").header("x-requested-with", "a story"), "").await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    for (stage, taken) in replicas.others.iter().zip(taken) {
        wait_for("the news", async || taken_over(stage.admin()).await > taken).await;
        assert_eq!(stage.get(USER_GET).await.is_ok().header("x-wecom-retried"), "");
    }
    assert_eq!(replicas.seen().0, 2);
}

/// Nobody but the process under test has this clock.
#[tokio::test]
async fn a_replica_with_a_clock_of_its_own_shares_all_the_same() {
    let redis = Redis::start().await;
    let wecom = Simulator::local(Settings::default()).await.expect("a simulator");
    let toml = store(redis.address(), &format!("key = \"{KEY}\""));
    let mut replicas = Vec::new();
    for offset in ["+3h", "-3h", "+0h"] {
        let dir = TempDir::new().expect("a temporary directory");
        let path = write_config(&dir, wecom.api_addr(), &Settings::default(), &toml);
        let process = Process::serve_at_another_time(&path, offset).await;
        process.err.line("the store is there").await;
        replicas.push((process, dir));
    }
    for round in 1..=3 {
        for (process, _) in &replicas {
            let address = process.address().await;
            Caller::http1(address).await.get(USER_GET).await.is_ok();
        }
        assert_eq!(wecom.gettoken_count("hr").expect("an agent"), round);
        wecom.revoke("hr").expect("an agent");
    }
}

#[tokio::test]
async fn two_names_of_one_app_hear_the_same_news() {
    let redis = Redis::start().await;
    let app = crate::stage::agent_section(&Settings::default().agents[0], "");
    let toml = format!("{OPEN}{}", app.replace("[agents.hr]", "[agents.staff]"));
    let replicas = Replicas::with(&toml, 2, &redis.store()).await;
    let other = &replicas.others[0];
    let call =
        async |stage: &Stage, agent: &str| stage.call(Request::get(format!("/{agent}{USER_GET}")), "").await;
    for agent in ["hr", "staff"] {
        call(&replicas.first, agent).await.is_ok();
        call(other, agent).await.is_ok();
    }
    assert_eq!(replicas.seen().0, 1);
    let taken = taken_over(other.admin()).await;
    replicas.first.wecom.revoke("hr").expect("an agent");
    replicas.first.get(USER_GET).await.is_ok();
    wait_for("the news", async || taken_over(other.admin()).await > taken).await;
    for agent in ["hr", "staff"] {
        assert_eq!(call(other, agent).await.is_ok().header("x-wecom-retried"), "", "{agent}");
    }
    assert_eq!(replicas.seen().0, 2);
}
