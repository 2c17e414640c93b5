//! Many replicas share one store: one of them asks for a token, all of them use it; and without the store each goes on.

mod attacked;
mod away;
mod fleets;
mod killed;
mod limits;
mod parted;
mod scripts;
mod secured;
mod tickets;
mod unequal;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use http::Request;
use tokio::task::JoinSet;
use wecom_proxy::simulator::{Fault, Settings};

use crate::{
    confidant,
    redis::Redis,
    stage::{Caller, OPEN, Stage, USER_GET, all_at_once, wait_for},
};

const GETTOKEN: &str = "/cgi-bin/gettoken";
const USER: &str = "/cgi-bin/user/get";

/// Replicas of one proxy before one WeCom; the first is on the stage with it.
struct Replicas {
    first: Arc<Stage>,
    others: Vec<Arc<Stage>>,
}

impl Replicas {
    /// So many, once the store is there for each.
    async fn start(count: usize, store: &str) -> Self {
        Self::with(OPEN, count, store).await
    }

    /// The same with another configuration.
    async fn with(toml: &str, count: usize, store: &str) -> Self {
        let toml = format!("{toml}\n[tokens]\n{store}\n");
        // A store that answers late, for its answers wait behind thousands of the simulator's, is away.
        let first = Arc::new(Stage::beside(&toml).await);
        let mut others = Vec::new();
        for _ in 1..count {
            others.push(Arc::new(Stage::facing(first.wecom.api_addr(), &toml).await));
        }
        let replicas = Self { first, others };
        replicas.joined().await;
        replicas
    }

    fn all(&self) -> impl Iterator<Item = &Arc<Stage>> {
        [&self.first].into_iter().chain(&self.others)
    }

    /// The store is there for each of them.
    async fn joined(&self) {
        for stage in self.all() {
            wait_for("the store", async || stage.proxy.store_trouble().is_none()).await;
        }
    }

    /// Each of them has noticed that the store is away.
    async fn parted(&self) {
        for stage in self.all() {
            wait_for("the loss of the store", async || stage.proxy.store_trouble().is_some()).await;
        }
    }

    /// How often gettoken reached WeCom, and how many calls of `user/get` it carried out.
    fn seen(&self) -> (usize, u64) {
        self.first.wecom.look(|seen| (seen.received(GETTOKEN), seen.executed(USER)))
    }

    /// So many callers at each replica, all at once; each must be answered well.
    async fn crowd(&self, each: usize) {
        let mut crowds = JoinSet::new();
        for stage in self.all() {
            let stage = stage.clone();
            crowds.spawn(async move { all_at_once(&stage, each, USER_GET).await });
        }
        for reply in crowds.join_all().await.iter().flatten() {
            reply.is_ok();
        }
    }

    /// Asserts that a voided token costs one gettoken, where every replica is used at once. On a machine that stands still the
    /// store may not answer for a second: it is away then, and replicas rightly ask by themselves. That proves nothing, and
    /// it is tried again.
    async fn renew_once(&self, each: usize) {
        for _ in 0..5 {
            let before = confidant::told();
            let gettokens = self.voided(each).await;
            if gettokens == 1 || !confidant::was_told_since(before, "the store is away") {
                assert_eq!(gettokens, 1, "the token is shared");
                return;
            }
            self.joined().await;
        }
        panic!("the store was away each time");
    }

    /// Voids the token and has every replica used at once; returns how many gettokens that took.
    async fn voided(&self, each: usize) -> usize {
        let (gettokens, executed) = self.seen();
        self.first.wecom.revoke("hr").expect("an agent");
        self.crowd(each).await;
        let (now, executed_now) = self.seen();
        assert_eq!(executed_now - executed, (each * (1 + self.others.len())) as u64, "each once, none lost");
        now - gettokens
    }
}

/// Callers that go on calling until they are told to stop.
struct Load {
    stop: Arc<AtomicBool>,
    callers: JoinSet<u64>,
    executed: u64,
}

impl Load {
    /// Ten at each replica.
    fn on(replicas: &Replicas) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut callers = JoinSet::new();
        for stage in replicas.all() {
            for _ in 0..10 {
                let (stage, stop) = (stage.clone(), stop.clone());
                callers.spawn(async move {
                    let (mut caller, mut calls) = (Caller::http1(stage.address()).await, 0);
                    while !stop.load(Ordering::Relaxed) {
                        caller.get(USER_GET).await.is_ok();
                        calls += 1;
                    }
                    calls
                });
            }
        }
        Self { stop, callers, executed: replicas.seen().1 }
    }

    /// Each call was answered well and carried out once.
    async fn end(self, replicas: &Replicas) {
        self.stop.store(true, Ordering::Relaxed);
        let calls: u64 = self.callers.join_all().await.into_iter().sum();
        assert_eq!(replicas.seen().1 - self.executed, calls, "each once, none lost");
        assert!(calls > 100, "only {calls} calls");
    }
}

#[tokio::test]
async fn five_replicas_fetch_one_token_and_renew_it_once() {
    let redis = Redis::start().await;
    let replicas = Replicas::start(5, &redis.store()).await;
    replicas.first.wecom.inject(Fault::delay(Duration::from_millis(200)).on(GETTOKEN)).expect("a fault");
    replicas.crowd(400).await;
    assert_eq!(replicas.seen(), (1, 2000), "a cold start");
    replicas.renew_once(400).await;
}

#[tokio::test]
async fn a_renewal_is_known_to_the_others_before_they_are_refused() {
    let redis = Redis::start().await;
    let replicas = Replicas::start(3, &redis.store()).await;
    replicas.crowd(1).await;
    let mut fastest = Duration::MAX;
    for round in 1..=5 {
        let taken =
            [taken_over(replicas.others[0].admin()).await, taken_over(replicas.others[1].admin()).await];
        replicas.first.wecom.revoke("hr").expect("an agent");
        let reply = replicas.first.get(USER_GET).await;
        assert_eq!(reply.is_ok().header("x-wecom-retried"), "40014");
        let told = Instant::now();
        for (stage, taken) in replicas.others.iter().zip(taken) {
            wait_for("the news", async || taken_over(stage.admin()).await > taken).await;
        }
        fastest = fastest.min(told.elapsed());
        for stage in &replicas.others {
            assert_eq!(stage.get(USER_GET).await.is_ok().header("x-wecom-retried"), "");
        }
        assert_eq!(replicas.seen().0, 1 + round);
    }
    eprintln!("all others know of a renewal after {fastest:?}");
    // The machine has other work: the best of a few.
    assert!(fastest < Duration::from_millis(100), "{fastest:?}");
}

/// What the admin listener says of an agent.
async fn agent_report(stage: &Stage, agent: &str) -> serde_json::Value {
    let mut caller = Caller::http1(stage.admin()).await;
    let agents = caller.call(Request::get("/api/agents"), "").await.json();
    let agents = agents["agents"].as_array().expect("a list").clone();
    agents.into_iter().find(|one| one["name"] == agent).expect("the agent")
}

/// Why the agent's token was last renewed, by the admin listener.
async fn last_renewal(stage: &Stage) -> String {
    agent_report(stage, "hr").await["last_renewal"]["reason"].as_str().unwrap_or_default().to_owned()
}

/// How many tokens of `hr` it took over from others by now.
async fn taken_over(admin: SocketAddr) -> u64 {
    let metrics = Caller::http1(admin).await.call(Request::get("/metrics"), "").await;
    let name = r#"wecom_proxy_token_refreshes_total{agent="hr",reason="shared",result="ok"} "#;
    let count = metrics.text().lines().find_map(|line| line.strip_prefix(name));
    count.map_or(0, |count| count.parse().expect("a number"))
}

#[tokio::test]
async fn a_wrong_secret_is_tried_by_one_replica_only() {
    let redis = Redis::start().await;
    let replicas = Replicas::start(3, &redis.store()).await;
    replicas.first.wecom.inject(Fault::errcode(40001).on(GETTOKEN).times(100)).expect("a fault");
    for stage in replicas.all() {
        for _ in 0..3 {
            let reply = stage.get(USER_GET).await;
            reply.is_own("token-unavailable", 502, 40001);
        }
    }
    assert_eq!(replicas.seen().0, 1, "a repeated wrong secret bans the address of all");
}

#[tokio::test]
async fn the_refused_token_again_costs_one_gettoken_for_all() {
    let redis = Redis::start().await;
    let replicas = Replicas::start(3, &redis.store()).await;
    replicas.crowd(1).await;
    replicas.first.wecom.inject(Fault::errcode(40014).on(USER).times(1000)).expect("a fault");
    let reply = replicas.first.get(USER_GET).await;
    assert_eq!(reply.errcode(), 40014);
    for stage in &replicas.others {
        wait_for("the news", async || last_renewal(stage).await == "shared").await;
        assert_eq!(stage.get(USER_GET).await.errcode(), 40014);
    }
    assert_eq!(replicas.seen().0, 2);
}

#[tokio::test]
async fn nothing_in_the_store_shows_a_secret_or_a_token() {
    let redis = Redis::start().await;
    let replicas = Replicas::start(2, &redis.store()).await;
    replicas.crowd(2).await;
    let agent = &Settings::default().agents[0];
    // Asked again, WeCom says the token that is valid.
    let target = format!("{GETTOKEN}?corpid={}&corpsecret={}", agent.corpid, agent.secret);
    let token =
        Caller::http1(replicas.first.wecom.api_addr()).await.call(Request::get(target), "").await.json();
    let token = token["access_token"].as_str().expect("a token");
    let keys = redis.ask(&["--raw", "KEYS", "*"]).await;
    assert!(keys.lines().any(|key| key.starts_with("wecom-proxy:{") && key.ends_with(":record")), "{keys}");
    for key in keys.lines() {
        let dump = redis.ask(&["--raw", "DUMP", key]).await;
        for text in [&keys, &dump] {
            assert!(
                !text.contains(token) && !text.contains(&*agent.secret) && !text.contains(crate::redis::KEY)
            );
        }
    }
}
