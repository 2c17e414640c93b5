//! The store dies, hangs, fills up, forgets, or holds nonsense: no request is refused for it, and the replicas find
//! together again by themselves.

use std::time::{Duration, Instant};

use http::Request;
use tokio::task::JoinSet;
use wecom_proxy::simulator::Agent;

use super::{Replicas, last_renewal, secured};
use crate::{
    redis::Redis,
    stage::{Caller, KEYED, OPEN, Stage, USER_GET, agent_section, key, wait_for},
};

/// Whatever is wrong with the store, no replica asks more often than once, and each call is carried out once.
async fn goes_on(replicas: &Replicas) {
    let gettokens = replicas.voided(20).await;
    assert!((1..=3).contains(&gettokens), "{gettokens} gettokens");
}

/// The store is there for all, and they share what it holds.
async fn is_shared(replicas: &Replicas) {
    replicas.joined().await;
    // What each got by itself is now in the store; the next is the first that all get from there.
    replicas.voided(1).await;
    replicas.renew_once(20).await;
}

async fn readiness(stage: &Stage) -> serde_json::Value {
    Caller::http1(stage.admin()).await.call(http::Request::get("/readyz"), "").await.json()
}

#[tokio::test]
async fn without_the_store_each_replica_goes_on_and_says_so() {
    let mut redis = Redis::start().await;
    let replicas = Replicas::start(3, &redis.store()).await;
    replicas.crowd(5).await;
    redis.kill().await;
    goes_on(&replicas).await;
    replicas.parted().await;
    goes_on(&replicas).await;
    let said = readiness(&replicas.first).await["store"].clone();
    assert_eq!((&said["kind"], &said["ok"]), (&"redis".into(), &false.into()), "{said}");
    redis.resume().await;
    is_shared(&replicas).await;
    assert_eq!(readiness(&replicas.first).await["store"]["ok"], true);
}

#[tokio::test]
async fn a_replica_that_starts_without_the_store_joins_it_later() {
    let mut redis = Redis::start().await;
    redis.kill().await;
    let toml = format!("{OPEN}\n[tokens]\n{}\n", redis.store());
    let stage = Stage::with(&toml).await;
    stage.get(USER_GET).await.is_ok();
    redis.resume().await;
    wait_for("the store", async || stage.proxy.store_trouble().is_none()).await;
    // What it got by itself is there for others.
    wait_for("its record", async || redis.ask(&["KEYS", "*:record"]).await.contains("record")).await;
    let other = Stage::facing(stage.wecom.api_addr(), &toml).await;
    wait_for("the store", async || other.proxy.store_trouble().is_none()).await;
    other.get(USER_GET).await.is_ok();
    assert_eq!(stage.wecom.gettoken_count("hr").expect("an agent"), 1);
}

#[tokio::test]
async fn a_store_that_hangs_or_takes_nothing_is_done_without() {
    let redis = Redis::start().await;
    let replicas = Replicas::start(3, &redis.store()).await;
    replicas.crowd(5).await;
    redis.signal("STOP");
    goes_on(&replicas).await;
    replicas.parted().await;
    redis.signal("CONT");
    is_shared(&replicas).await;
    for (spoil, mend) in [
        (["REPLICAOF", "127.0.0.1", "1"], ["REPLICAOF", "NO", "ONE"]),
        (["CONFIG", "SET", "maxmemory 1"], ["CONFIG", "SET", "maxmemory 0"]),
    ] {
        let words =
            |line: [&'static str; 3]| line.iter().flat_map(|words| words.split(' ')).collect::<Vec<_>>();
        redis.ask(&words(spoil)).await;
        goes_on(&replicas).await;
        replicas.parted().await;
        redis.ask(&words(mend)).await;
        is_shared(&replicas).await;
    }
}

#[tokio::test]
async fn a_store_that_pauses_or_is_busy_is_done_without() {
    let redis = Redis::start().await;
    redis.ask(&["CONFIG", "SET", "busy-reply-threshold", "50"]).await;
    let replicas = Replicas::start(3, &redis.store()).await;
    replicas.crowd(5).await;
    // Until it is told otherwise it answers nothing.
    redis.ask(&["CLIENT", "PAUSE", "3000", "ALL"]).await;
    goes_on(&replicas).await;
    is_shared(&replicas).await;
    // It takes no writes, and answers the rest.
    redis.ask(&["CLIENT", "PAUSE", "3000", "WRITE"]).await;
    goes_on(&replicas).await;
    is_shared(&replicas).await;
    // Somebody's script does not end.
    let busy = redis.asking(&["EVAL", "while true do end", "0"]);
    wait_for("the script", async || redis.ask(&["PING"]).await.contains("BUSY")).await;
    goes_on(&replicas).await;
    replicas.parted().await;
    redis.ask(&["SCRIPT", "KILL"]).await;
    busy.ended().await;
    is_shared(&replicas).await;
}

#[tokio::test]
async fn scripts_that_were_forgotten_and_connections_that_were_closed_cost_nothing() {
    let redis = Redis::start().await;
    let replicas = Replicas::start(3, &redis.store()).await;
    replicas.crowd(5).await;
    for _ in 0..3 {
        redis.ask(&["SCRIPT", "FLUSH"]).await;
        replicas.renew_once(20).await;
    }
    for kind in ["pubsub", "normal"] {
        redis.ask(&["CLIENT", "KILL", "TYPE", kind]).await;
        goes_on(&replicas).await;
        is_shared(&replicas).await;
    }
}

#[tokio::test]
async fn a_store_that_forbids_what_it_takes_is_away_and_says_what_it_forbids() {
    let user = format!("wecom on >{} {}", secured::PASSWORD, secured::RIGHTS);
    let mut options = vec!["--user"];
    options.extend(user.split_whitespace());
    let redis = Redis::with(&options).await;
    let store = format!(
        "store = {{ redis = \"redis://{}\", user = \"wecom\", password = \"{}\", key = \"{}\" }}",
        redis.address(),
        secured::PASSWORD,
        crate::redis::KEY
    );
    let needed = secured::RIGHTS.split_whitespace().filter_map(|right| right.strip_prefix('+'));
    // The others are needed in some surroundings only.
    let needed = needed.filter(|right| !["hello", "auth", "ping", "select", "unsubscribe"].contains(right));
    // One replica renews a token that often within a short time.
    for needed in needed.collect::<Vec<_>>().chunks(8) {
        let replicas = Replicas::start(1, &store).await;
        replicas.crowd(1).await;
        without(&redis, &replicas, needed).await;
        is_shared(&replicas).await;
    }
}

async fn without(redis: &Redis, replicas: &Replicas, rights: &[&str]) {
    for right in rights {
        redis.ask(&["ACL", "SETUSER", "wecom", &format!("-{right}")]).await;
        redis.ask(&["SCRIPT", "FLUSH"]).await;
        redis.ask(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
        let command = right.split('|').next().expect("a command");
        let trouble = || replicas.first.proxy.store_trouble().unwrap_or_default();
        wait_for(right, async || trouble().contains(&format!("'{command}"))).await;
        // It stays so: a store that is there and away in turns is asked again and again.
        let began = Instant::now();
        while began.elapsed() < Duration::from_millis(400) {
            assert!(trouble().contains(command), "{right}: {:?}", trouble());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        replicas.voided(1).await;
        redis.ask(&["ACL", "SETUSER", "wecom", &format!("+{right}")]).await;
        replicas.joined().await;
    }
}

#[tokio::test]
async fn who_has_a_token_does_not_wait_for_a_store_that_hangs() {
    let redis = Redis::start().await;
    // What is taken of the limit is told to the store all the time.
    let toml = KEYED.replace("[clients.crm]", "[clients.crm]\nlimit = \"1000000/h\"");
    let replicas = Replicas::with(&toml, 1, &redis.store()).await;
    let mut caller = Caller::http1(replicas.first.address()).await;
    let mut take = async || {
        let mut taken = Vec::new();
        let began = Instant::now();
        // Longer than it takes to notice, and to try again.
        while began.elapsed() < Duration::from_secs(3) {
            let asked = Instant::now();
            let request = Request::get(format!("/hr{USER_GET}")).header("x-api-key", key("crm"));
            caller.call(request, "").await.is_ok();
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
    assert!(replicas.first.proxy.store_trouble().is_some());
    redis.signal("CONT");
    replicas.joined().await;
}

#[tokio::test]
async fn a_store_that_was_wiped_or_holds_nonsense_is_filled_anew() {
    let redis = Redis::start().await;
    let replicas = Replicas::start(3, &redis.store()).await;
    replicas.crowd(5).await;
    let keys = redis.ask(&["--raw", "KEYS", "*:record"]).await;
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
        redis.ask(nonsense).await;
        let gettokens = replicas.voided(20).await;
        assert!((1..=3).contains(&gettokens), "{nonsense:?}: {gettokens}");
        redis.ask(&["FLUSHALL"]).await;
    }
    is_shared(&replicas).await;
    assert!(replicas.others.len() == 2 && !last_renewal(&replicas.first).await.is_empty());
}

/// A call of each of these agents, on one connection.
async fn call_each(stage: &Stage, agents: &[Agent]) {
    let Caller::Http2(connection) = Caller::http2(stage.address()).await else {
        unreachable!("it is HTTP/2")
    };
    // A few at a time, as many as go on one connection.
    for some in agents.chunks(100) {
        let calls = some.iter().map(|agent| {
            let (mut caller, target) =
                (Caller::Http2(connection.clone()), format!("/{}{USER_GET}", agent.name));
            async move { caller.call(Request::get(target), "").await }
        });
        let replies = calls.collect::<JoinSet<_>>().join_all().await;
        for reply in replies {
            reply.is_ok();
        }
    }
}

#[tokio::test]
async fn very_many_agents_come_back_to_a_store_that_lost_everything() {
    let agent =
        |nth: u64| Agent::new(&format!("agent-{nth}"), &format!("not-a-secret-of-agent-{nth}"), nth + 1);
    let agents: Vec<_> = (0..2_000).map(agent).collect();
    let sections: String = agents.iter().map(|agent| agent_section(agent, "")).collect();
    let mut redis = Redis::start().await;
    let replicas = Replicas::with(&format!("{OPEN}{sections}"), 3, &redis.store()).await;
    agents.iter().for_each(|agent| replicas.first.wecom.add_agent(agent.clone()));
    for stage in replicas.all() {
        call_each(stage, &agents).await;
    }
    // On a machine with other work the store may seem slow once, and then each is on its own for a moment.
    let (gettokens, _) = replicas.seen();
    assert!((agents.len()..agents.len() + agents.len() / 10).contains(&gettokens), "{gettokens}");
    redis.kill().await;
    replicas.parted().await;
    redis.resume().await;
    replicas.joined().await;
    let records = async || redis.ask(&["--raw", "EVAL", "return #redis.call('KEYS', '*:record')", "0"]).await;
    wait_for("all records", async || records().await.trim() == agents.len().to_string()).await;
    let toml = format!("{OPEN}{sections}\n[tokens]\n{}\n", redis.store());
    let newcomer = Stage::facing(replicas.first.wecom.api_addr(), &toml).await;
    wait_for("the store", async || newcomer.proxy.store_trouble().is_none()).await;
    call_each(&newcomer, &agents).await;
    let more = replicas.seen().0 - gettokens;
    assert!(more < agents.len() / 10, "nothing was lost that a newcomer needs: {more}");
}
