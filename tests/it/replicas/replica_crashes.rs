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
    harness::{OPEN_CONFIG, TestClient, TestResponse, USER_GET, with_timeout, write_config},
    process::Process,
    redis_server::RedisServer,
};

/// A replica as a process of its own.
struct ReplicaProcess {
    process: Process,
    _dir: TempDir,
}

impl ReplicaProcess {
    async fn start(wecom: &Simulator, redis: &RedisServer) -> Self {
        let dir = TempDir::new().expect("a temporary directory");
        let toml = format!("{OPEN_CONFIG}\n[tokens]\n{}\n", redis.store_config_line());
        let path = write_config(&dir, wecom.api_addr(), &Settings::default(), &toml);
        let process = Process::serve(&path).await;
        process.err.wait_for_line("redis connected").await;
        Self { process, _dir: dir }
    }

    async fn get(&self) -> TestResponse {
        let address = self.process.address().await;
        TestClient::connect_http1(address).await.get(USER_GET).await
    }

    /// A request whose gettoken has reached WeCom and hangs there.
    async fn start_held_gettoken(&self, wecom: &Simulator, gettokens: usize) -> tokio::task::JoinHandle<()> {
        wecom.inject(Fault::hold().on_path(GETTOKEN).times(1)).expect("a fault");
        let address = self.process.address().await;
        let asking = tokio::spawn(async move {
            let mut caller = TestClient::connect_http1(address).await;
            let request = http::Request::get(USER_GET).header("x-wecom-agent", "hr");
            let request = request.body(bytes::Bytes::new().into()).expect("a request");
            let _ = caller.send(request).await;
        });
        with_timeout(wecom.wait_until(move |seen| seen.received_count(GETTOKEN) == gettokens))
            .await
            .expect("gettoken");
        asking
    }
}

async fn start_two_replicas() -> (Simulator, RedisServer, ReplicaProcess, ReplicaProcess) {
    let wecom = Simulator::start_local(Settings::default()).await.expect("a simulator");
    let redis = RedisServer::start().await;
    let (one, other) =
        tokio::join!(ReplicaProcess::start(&wecom, &redis), ReplicaProcess::start(&wecom, &redis));
    (wecom, redis, one, other)
}

#[tokio::test]
async fn replica_killed_in_gettoken_is_replaced_within_the_lease() {
    let (wecom, _redis, one, other) = start_two_replicas().await;
    let asking = one.start_held_gettoken(&wecom, 1).await;
    one.process.signal("KILL");
    let killed = Instant::now();
    with_timeout(other.get()).await.assert_ok();
    eprintln!("the next replica had a token {:?} after the kill", killed.elapsed());
    // Its lease is for three seconds; without it the other would wait for 45.
    assert!(killed.elapsed() < Duration::from_secs(20));
    assert_eq!(wecom.observe(|seen| (seen.received_count(GETTOKEN), seen.executed_count(USER))), (2, 1));
    let _ = asking.await;
}

#[tokio::test]
async fn kill_of_the_fetching_replica_loses_no_request() {
    let (wecom, redis, one, other) = start_two_replicas().await;
    let (second, third) =
        tokio::join!(ReplicaProcess::start(&wecom, &redis), ReplicaProcess::start(&wecom, &redis));
    let others = [other, second, third, ReplicaProcess::start(&wecom, &redis).await];
    let asking = one.start_held_gettoken(&wecom, 1).await;
    let mut callers = JoinSet::new();
    for replica in &others {
        let address = replica.process.address().await;
        for _ in 0..25 {
            // Twenty calls on each of these connections.
            let TestClient::Http2(connection) = TestClient::connect_http2(address).await else {
                unreachable!("it is HTTP/2")
            };
            for _ in 0..20 {
                let mut caller = TestClient::Http2(connection.clone());
                callers.spawn(async move { caller.get(USER_GET).await });
            }
        }
    }
    one.process.signal("KILL");
    let replies = with_timeout(callers.join_all()).await;
    assert!(replies.iter().all(|reply| reply.assert_ok().status == 200));
    assert_eq!(wecom.observe(|seen| (seen.received_count(GETTOKEN), seen.executed_count(USER))), (2, 2000));
    let _ = asking.await;
}

#[tokio::test]
async fn replica_paused_past_its_lease_overwrites_nothing_newer() {
    let (wecom, redis, one, other) = start_two_replicas().await;
    let asking = one.start_held_gettoken(&wecom, 1).await;
    one.process.signal("STOP");
    with_timeout(other.get()).await.assert_ok();
    // The sleeper's answer was made before that, and comes now.
    let record = redis.command(&["KEYS", "*:record"]).await;
    let fence = redis.command(&["HGET", record.trim(), "fence"]).await;
    wecom.release_held();
    one.process.signal("CONT");
    let _ = with_timeout(asking).await;
    with_timeout(one.get()).await.assert_ok();
    assert_eq!(redis.command(&["HGET", record.trim(), "fence"]).await, fence, "the newer record stays");
    with_timeout(other.get()).await.assert_ok();
    assert_eq!(wecom.observe(|seen| seen.received_count(GETTOKEN)), 2);
    drop((one, other));
}

#[tokio::test]
async fn rolling_restart_costs_no_gettoken() {
    let wecom = Simulator::start_local(Settings::default()).await.expect("a simulator");
    let redis = RedisServer::start().await;
    let mut replicas = Vec::new();
    for _ in 0..3 {
        replicas.push(ReplicaProcess::start(&wecom, &redis).await);
    }
    let mut asked = 0;
    for round in 0..3 {
        for replica in &replicas {
            for _ in 0..5 {
                replica.get().await.assert_ok();
                asked += 1;
            }
        }
        let next = ReplicaProcess::start(&wecom, &redis).await;
        let before = std::mem::replace(&mut replicas[round], next);
        assert_eq!(before.process.stop().await.status, 0);
    }
    assert_eq!(wecom.observe(|seen| (seen.received_count(GETTOKEN), seen.executed_count(USER))), (1, asked));
}

/// A call at whichever replica takes it. One that was not answered at all is made anew at the next, as a balancer does.
async fn call_any_replica(addresses: &Mutex<Vec<SocketAddr>>, nth: &mut usize) {
    loop {
        *nth += 1;
        let address = {
            let addresses = addresses.lock().expect("no panic");
            addresses[*nth % addresses.len()]
        };
        let Ok(stream) = TcpStream::connect(address).await else { continue };
        let request = http::Request::get(format!("/hr{USER_GET}")).body(bytes::Bytes::new().into());
        if let Ok(reply) = TestClient::http1_over(stream).await.send(request.expect("a request")).await {
            TestResponse::read(reply).await.assert_ok();
            return;
        }
    }
}

#[tokio::test]
async fn rolling_restart_under_load_executes_each_request_once() {
    let wecom = Simulator::start_local(Settings::default()).await.expect("a simulator");
    let redis = RedisServer::start().await;
    let (mut replicas, addresses) = (Vec::new(), Arc::new(Mutex::new(Vec::new())));
    for _ in 0..3 {
        let replica = ReplicaProcess::start(&wecom, &redis).await;
        let address = replica.process.address().await;
        addresses.lock().expect("no panic").push(address);
        replicas.push(replica);
    }
    // So that there is always something under way where a replica is told to stop.
    wecom.inject(Fault::delay(Duration::from_millis(20)).on_path(USER)).expect("a fault");
    let stop = Arc::new(AtomicBool::new(false));
    let mut callers = JoinSet::new();
    for first in 0..30 {
        let (addresses, stop) = (addresses.clone(), stop.clone());
        callers.spawn(async move {
            let (mut nth, mut calls) = (first, 0);
            while !stop.load(Ordering::Relaxed) {
                call_any_replica(&addresses, &mut nth).await;
                calls += 1;
            }
            calls
        });
    }
    for (place, replica) in replicas.iter_mut().enumerate() {
        let next = ReplicaProcess::start(&wecom, &redis).await;
        let address = next.process.address().await;
        addresses.lock().expect("no panic")[place] = address;
        let before = std::mem::replace(replica, next);
        assert_eq!(before.process.stop().await.status, 0);
        wecom.revoke_tokens("hr").expect("an agent");
        let executed = wecom.observe(|seen| seen.executed_count(USER));
        with_timeout(wecom.wait_until(move |seen| seen.executed_count(USER) > executed + 100))
            .await
            .expect("calls");
    }
    stop.store(true, Ordering::Relaxed);
    let calls: u64 = with_timeout(callers.join_all()).await.into_iter().sum();
    assert_eq!(wecom.observe(|seen| (seen.received_count(GETTOKEN), seen.executed_count(USER))), (4, calls));
}

#[tokio::test]
async fn unreachable_store_at_start_is_logged() {
    let mut redis = RedisServer::start().await;
    redis.kill().await;
    let wecom = Simulator::start_local(Settings::default()).await.expect("a simulator");
    let dir = TempDir::new().expect("a temporary directory");
    let toml = format!("{OPEN_CONFIG}\n[tokens]\n{}\n", redis.store_config_line());
    let path = write_config(&dir, wecom.api_addr(), &Settings::default(), &toml);
    let process = Process::serve(&path).await;
    process.err.wait_for_line("redis unavailable").await;
    assert_eq!(process.stop().await.status, 0);
}
