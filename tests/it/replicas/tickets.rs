//! Tickets are shared as tokens are: one fetch for all replicas.

use std::{collections::HashSet, time::Duration};

use tokio::task::JoinSet;
use wecom_proxy::simulator::Fault;

use super::Replicas;
use crate::{
    redis::Redis,
    stage::{Reply, all_at_once},
};

const JSAPI: &str = "/cgi-bin/get_jsapi_ticket";
const AGENT_CONFIG: &str = "/cgi-bin/ticket/get?type=agent_config";

/// So many callers at each replica, all at once.
async fn crowd(replicas: &Replicas, each: usize, target: &'static str) -> Vec<Reply> {
    let mut crowds = JoinSet::new();
    for stage in replicas.all() {
        let stage = stage.clone();
        crowds.spawn(async move { all_at_once(&stage, each, target).await });
    }
    crowds.join_all().await.into_iter().flatten().collect()
}

fn tickets(replies: &[Reply]) -> HashSet<String> {
    let ticket = |reply: &Reply| reply.is_ok().json()["ticket"].as_str().expect("a ticket").to_owned();
    replies.iter().map(ticket).collect()
}

fn fetched(replicas: &Replicas, target: &str) -> usize {
    let path = target.split('?').next().expect("a path").to_owned();
    replicas.first.wecom.look(|seen| seen.received(&path))
}

#[tokio::test]
async fn five_replicas_fetch_each_ticket_once() {
    let redis = Redis::start().await;
    let replicas = Replicas::start(5, &redis.store()).await;
    for target in [JSAPI, AGENT_CONFIG] {
        let slow = Fault::delay(Duration::from_millis(200)).on(target.split('?').next().expect("a path"));
        replicas.first.wecom.inject(slow).expect("a fault");
        assert_eq!(tickets(&crowd(&replicas, 100, target).await).len(), 1);
        assert_eq!(fetched(&replicas, target), 1, "{target}");
    }
    assert_eq!(replicas.seen().0, 1, "and one token");
    let left = replicas.others[3].get(JSAPI).await.json()["expires_in"].as_u64().expect("a number");
    assert!((7180..=7200).contains(&left), "{left}: what is left of its life is known to all");
}

#[tokio::test]
async fn a_refused_ticket_is_told_to_those_who_wait_at_other_replicas() {
    let redis = Redis::start().await;
    let replicas = Replicas::start(3, &redis.store()).await;
    replicas.crowd(1).await;
    replicas.first.wecom.inject(Fault::errcode(45009).on(JSAPI).times(100)).expect("a fault");
    replicas.first.wecom.inject(Fault::delay(Duration::from_millis(200)).on(JSAPI)).expect("a fault");
    let replies = crowd(&replicas, 20, JSAPI).await;
    assert!(replies.iter().all(|reply| reply.status == 200 && reply.errcode() == 45009));
    assert_eq!(fetched(&replicas, JSAPI), 1);
}

#[tokio::test]
async fn without_the_store_each_replica_fetches_its_ticket() {
    let mut redis = Redis::start().await;
    let replicas = Replicas::start(3, &redis.store()).await;
    replicas.crowd(1).await;
    redis.kill().await;
    replicas.parted().await;
    tickets(&crowd(&replicas, 30, JSAPI).await);
    assert_eq!(fetched(&replicas, JSAPI), 3);
}

#[tokio::test]
async fn nothing_in_the_store_shows_a_ticket() {
    let redis = Redis::start().await;
    let replicas = Replicas::start(1, &redis.store()).await;
    let ticket = tickets(&crowd(&replicas, 1, JSAPI).await).into_iter().next().expect("a ticket");
    let keys = redis.ask(&["--raw", "KEYS", "*:record"]).await;
    assert_eq!(keys.lines().count(), 2, "a token and a ticket: {keys}");
    for key in keys.lines() {
        let dump = redis.ask(&["--raw", "DUMP", key]).await;
        assert!(!dump.contains(&ticket) && !keys.contains(&ticket), "{key}");
    }
}
