//! Many replicas share one store: one of them asks for a token, all of them use it.

use std::{sync::Arc, time::Duration};

use tokio::task::JoinSet;
use wecom_proxy::simulator::Fault;

use crate::{
    redis::Redis,
    stage::{OPEN, Stage, USER_GET, all_at_once, wait_for},
};

const GETTOKEN: &str = "/cgi-bin/gettoken";
const USER: &str = "/cgi-bin/user/get";

/// Replicas of one proxy before one WeCom; the first is on the stage with it.
struct Replicas {
    first: Arc<Stage>,
    others: Vec<Arc<Stage>>,
}

impl Replicas {
    async fn start(count: usize, store: &str) -> Self {
        let toml = format!("{OPEN}\n[tokens]\n{store}\n");
        let first = Arc::new(Stage::with(&toml).await);
        let mut others = Vec::new();
        for _ in 1..count {
            others.push(Arc::new(Stage::facing(first.wecom.api_addr(), &toml).await));
        }
        let replicas = Self { first, others };
        for stage in replicas.all() {
            wait_for("the store", async || stage.proxy.store_trouble().is_none()).await;
        }
        replicas
    }

    fn all(&self) -> impl Iterator<Item = &Arc<Stage>> {
        [&self.first].into_iter().chain(&self.others)
    }

    /// How often gettoken reached WeCom, and how many calls of `user/get` it carried out.
    fn seen(&self) -> (usize, u64) {
        self.first.wecom.look(|seen| (seen.received(GETTOKEN), seen.executed(USER)))
    }

    /// So many callers at each replica, all at once; each must be answered well.
    async fn crowd(&self, each: usize) {
        let mut crowds = JoinSet::new();
        for stage in self.all().cloned() {
            crowds.spawn(async move { all_at_once(&stage, each, USER_GET).await });
        }
        for reply in crowds.join_all().await.iter().flatten() {
            reply.is_ok();
        }
    }
}

#[tokio::test]
async fn five_replicas_fetch_one_token_and_renew_it_once() {
    let redis = Redis::start().await;
    let replicas = Replicas::start(5, &redis.store()).await;
    replicas.first.wecom.inject(Fault::delay(Duration::from_millis(200)).on(GETTOKEN)).expect("a fault");
    replicas.crowd(400).await;
    assert_eq!(replicas.seen(), (1, 2000), "a cold start");
    replicas.first.wecom.revoke("hr").expect("an agent");
    replicas.crowd(400).await;
    assert_eq!(replicas.seen(), (2, 4000), "a voided token");
}
