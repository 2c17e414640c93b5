//! Replicas die, sleep and are replaced at the worst moments.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tempfile::TempDir;
use tokio::{net::TcpStream, task::JoinSet};
use wecom_proxy::simulator::{Fault, Settings, Simulator};

use super::{GETTOKEN, USER};
use crate::{
    process::Process,
    redis::Redis,
    stage::{Caller, OPEN, Reply, USER_GET, soon, write_config},
};

/// A replica as a process of its own.
struct Replica {
    process: Process,
    _dir: TempDir,
}

impl Replica {
    async fn start(wecom: &Simulator, redis: &Redis) -> Self {
        let dir = TempDir::new().expect("a temporary directory");
        let toml = format!("{OPEN}\n[tokens]\n{}\n", redis.store());
        let path = write_config(&dir, wecom.api_addr(), &Settings::default(), &toml);
        let process = Process::serve(&path).await;
        process.err.line("the store is there").await;
        Self { process, _dir: dir }
    }

    async fn get(&self) -> Reply {
        let address = self.process.address().await;
        Caller::http1(address).await.get(USER_GET).await
    }

    /// A request whose gettoken has reached WeCom and hangs there.
    async fn ask_in_vain(&self, wecom: &Simulator, gettokens: usize) -> tokio::task::JoinHandle<()> {
        wecom.inject(Fault::hold().on(GETTOKEN).times(1)).expect("a fault");
        let address = self.process.address().await;
        let asking = tokio::spawn(async move {
            let mut caller = Caller::http1(address).await;
            let request = http::Request::get(USER_GET).header("x-wecom-agent", "hr");
            let request = request.body(bytes::Bytes::new().into()).expect("a request");
            let _ = caller.send(request).await;
        });
        soon(wecom.wait_until(move |seen| seen.received(GETTOKEN) == gettokens)).await.expect("gettoken");
        asking
    }
}

async fn two_replicas() -> (Simulator, Redis, Replica, Replica) {
    let wecom = Simulator::local(Settings::default()).await.expect("a simulator");
    let redis = Redis::start().await;
    let (one, other) = tokio::join!(Replica::start(&wecom, &redis), Replica::start(&wecom, &redis));
    (wecom, redis, one, other)
}

#[tokio::test]
async fn a_replica_killed_in_its_gettoken_is_replaced_within_its_lease() {
    let (wecom, _redis, one, other) = two_replicas().await;
    let asking = one.ask_in_vain(&wecom, 1).await;
    one.process.signal("KILL");
    let killed = Instant::now();
    soon(other.get()).await.is_ok();
    eprintln!("the next replica had a token {:?} after the kill", killed.elapsed());
    // Its lease is for three seconds; without it the other would wait for 45.
    assert!(killed.elapsed() < Duration::from_secs(20));
    assert_eq!(wecom.look(|seen| (seen.received(GETTOKEN), seen.executed(USER))), (2, 1));
    let _ = asking.await;
}

#[tokio::test]
async fn two_thousand_callers_lose_nothing_when_the_replica_that_asks_for_all_is_killed() {
    let (wecom, redis, one, other) = two_replicas().await;
    let (second, third) = tokio::join!(Replica::start(&wecom, &redis), Replica::start(&wecom, &redis));
    let others = [other, second, third, Replica::start(&wecom, &redis).await];
    let asking = one.ask_in_vain(&wecom, 1).await;
    let mut callers = JoinSet::new();
    for replica in &others {
        let address = replica.process.address().await;
        for _ in 0..25 {
            // Twenty calls on each of these connections.
            let Caller::Http2(connection) = Caller::http2(address).await else {
                unreachable!("it is HTTP/2")
            };
            for _ in 0..20 {
                let mut caller = Caller::Http2(connection.clone());
                callers.spawn(async move { caller.get(USER_GET).await });
            }
        }
    }
    one.process.signal("KILL");
    let replies = soon(callers.join_all()).await;
    assert!(replies.iter().all(|reply| reply.is_ok().status == 200));
    assert_eq!(wecom.look(|seen| (seen.received(GETTOKEN), seen.executed(USER))), (2, 2000));
    let _ = asking.await;
}

#[tokio::test]
async fn a_replica_that_slept_through_its_lease_puts_nothing_over_what_is_newer() {
    let (wecom, redis, one, other) = two_replicas().await;
    let asking = one.ask_in_vain(&wecom, 1).await;
    one.process.signal("STOP");
    soon(other.get()).await.is_ok();
    // The sleeper's answer was made before that, and comes now.
    let record = redis.ask(&["KEYS", "*:record"]).await;
    let fence = redis.ask(&["HGET", record.trim(), "fence"]).await;
    wecom.release();
    one.process.signal("CONT");
    let _ = soon(asking).await;
    soon(one.get()).await.is_ok();
    assert_eq!(redis.ask(&["HGET", record.trim(), "fence"]).await, fence, "the newer record stays");
    soon(other.get()).await.is_ok();
    assert_eq!(wecom.look(|seen| seen.received(GETTOKEN)), 2);
    drop((one, other));
}

#[tokio::test]
async fn a_rolling_restart_costs_no_gettoken_and_loses_nothing() {
    let wecom = Simulator::local(Settings::default()).await.expect("a simulator");
    let redis = Redis::start().await;
    let mut replicas = Vec::new();
    for _ in 0..3 {
        replicas.push(Replica::start(&wecom, &redis).await);
    }
    let mut asked = 0;
    for round in 0..3 {
        for replica in &replicas {
            for _ in 0..5 {
                replica.get().await.is_ok();
                asked += 1;
            }
        }
        let next = Replica::start(&wecom, &redis).await;
        let before = std::mem::replace(&mut replicas[round], next);
        assert_eq!(before.process.stop().await.status, 0);
    }
    assert_eq!(wecom.look(|seen| (seen.received(GETTOKEN), seen.executed(USER))), (1, asked));
}

/// A call at whichever replica takes it. One that was not answered at all is made anew at the next, as a balancer does.
async fn call_at_any(addresses: &Mutex<Vec<SocketAddr>>, nth: &mut usize) {
    loop {
        *nth += 1;
        let address = {
            let addresses = addresses.lock().expect("no panic");
            addresses[*nth % addresses.len()]
        };
        let Ok(stream) = TcpStream::connect(address).await else { continue };
        let request = http::Request::get(format!("/hr{USER_GET}")).body(bytes::Bytes::new().into());
        if let Ok(reply) = Caller::http1_over(stream).await.send(request.expect("a request")).await {
            Reply::take(reply).await.is_ok();
            return;
        }
    }
}

#[tokio::test]
async fn a_rolling_restart_under_load_loses_nothing_and_does_nothing_twice() {
    let wecom = Simulator::local(Settings::default()).await.expect("a simulator");
    let redis = Redis::start().await;
    let (mut replicas, addresses) = (Vec::new(), Arc::new(Mutex::new(Vec::new())));
    for _ in 0..3 {
        let replica = Replica::start(&wecom, &redis).await;
        let address = replica.process.address().await;
        addresses.lock().expect("no panic").push(address);
        replicas.push(replica);
    }
    // So that there is always something under way where a replica is told to stop.
    wecom.inject(Fault::delay(Duration::from_millis(20)).on(USER)).expect("a fault");
    let stop = Arc::new(AtomicBool::new(false));
    let mut callers = JoinSet::new();
    for first in 0..30 {
        let (addresses, stop) = (addresses.clone(), stop.clone());
        callers.spawn(async move {
            let (mut nth, mut calls) = (first, 0);
            while !stop.load(Ordering::Relaxed) {
                call_at_any(&addresses, &mut nth).await;
                calls += 1;
            }
            calls
        });
    }
    for (place, replica) in replicas.iter_mut().enumerate() {
        let next = Replica::start(&wecom, &redis).await;
        let address = next.process.address().await;
        addresses.lock().expect("no panic")[place] = address;
        let before = std::mem::replace(replica, next);
        assert_eq!(before.process.stop().await.status, 0);
        wecom.revoke("hr").expect("an agent");
        let executed = wecom.look(|seen| seen.executed(USER));
        soon(wecom.wait_until(move |seen| seen.executed(USER) > executed + 100)).await.expect("calls");
    }
    stop.store(true, Ordering::Relaxed);
    let calls: u64 = soon(callers.join_all()).await.into_iter().sum();
    assert_eq!(wecom.look(|seen| (seen.received(GETTOKEN), seen.executed(USER))), (4, calls));
}

#[tokio::test]
async fn a_store_that_was_never_reached_is_said() {
    let mut redis = Redis::start().await;
    redis.kill().await;
    let wecom = Simulator::local(Settings::default()).await.expect("a simulator");
    let dir = TempDir::new().expect("a temporary directory");
    let toml = format!("{OPEN}\n[tokens]\n{}\n", redis.store());
    let path = write_config(&dir, wecom.api_addr(), &Settings::default(), &toml);
    let process = Process::serve(&path).await;
    process.err.line("the store is away").await;
    assert_eq!(process.stop().await.status, 0);
}
