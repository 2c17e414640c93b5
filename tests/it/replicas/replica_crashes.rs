//! Replicas are killed, paused and replaced, at the worst moments.

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

/// A replica in its own process.
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

    /// Starts a request whose gettoken has reached WeCom and hangs there.
    async fn start_held_gettoken(&self, wecom: &Simulator, gettokens: usize) -> tokio::task::JoinHandle<()> {
        wecom.inject(Fault::hold().on_path(GETTOKEN).times(1)).expect("a fault");
        let address = self.process.address().await;
        let pending = tokio::spawn(async move {
            let mut client = TestClient::connect_http1(address).await;
            let request = http::Request::get(USER_GET).header("x-wecom-agent", "hr");
            let request = request.body(bytes::Bytes::new().into()).expect("a request");
            let _ = client.send(request).await;
        });
        with_timeout(wecom.wait_until(move |observed| observed.received_count(GETTOKEN) == gettokens))
            .await
            .expect("gettoken");
        pending
    }
}

async fn start_two_replicas() -> (Simulator, RedisServer, ReplicaProcess, ReplicaProcess) {
    let wecom = Simulator::start_local(Settings::default()).await.expect("a simulator");
    let redis = RedisServer::start().await;
    let (first, second) =
        tokio::join!(ReplicaProcess::start(&wecom, &redis), ReplicaProcess::start(&wecom, &redis));
    (wecom, redis, first, second)
}

#[tokio::test]
async fn replica_killed_in_gettoken_is_replaced_within_the_lease() {
    let (wecom, _redis, first, second) = start_two_replicas().await;
    let pending = first.start_held_gettoken(&wecom, 1).await;
    first.process.signal("KILL");
    let killed_at = Instant::now();
    with_timeout(second.get()).await.assert_ok();
    eprintln!("the next replica had a token {:?} after the kill", killed_at.elapsed());
    // The lease lasts 3 s; without it the other replica would wait 45 s.
    assert!(killed_at.elapsed() < Duration::from_secs(20));
    assert_eq!(
        wecom.observe(|observed| (observed.received_count(GETTOKEN), observed.executed_count(USER))),
        (2, 1)
    );
    let _ = pending.await;
}

#[tokio::test]
async fn kill_of_the_fetching_replica_loses_no_request() {
    let (wecom, redis, first, second) = start_two_replicas().await;
    let (third, fourth) =
        tokio::join!(ReplicaProcess::start(&wecom, &redis), ReplicaProcess::start(&wecom, &redis));
    let others = [second, third, fourth, ReplicaProcess::start(&wecom, &redis).await];
    let pending = first.start_held_gettoken(&wecom, 1).await;
    let mut calls = JoinSet::new();
    for replica in &others {
        let address = replica.process.address().await;
        for _ in 0..25 {
            // 20 requests on each connection.
            let TestClient::Http2(connection) = TestClient::connect_http2(address).await else {
                unreachable!("it is HTTP/2")
            };
            for _ in 0..20 {
                let mut client = TestClient::Http2(connection.clone());
                calls.spawn(async move { client.get(USER_GET).await });
            }
        }
    }
    first.process.signal("KILL");
    let responses = with_timeout(calls.join_all()).await;
    assert!(responses.iter().all(|response| response.assert_ok().status == 200));
    assert_eq!(
        wecom.observe(|observed| (observed.received_count(GETTOKEN), observed.executed_count(USER))),
        (2, 2000)
    );
    let _ = pending.await;
}

#[tokio::test]
async fn replica_paused_past_its_lease_overwrites_nothing_newer() {
    let (wecom, redis, first, second) = start_two_replicas().await;
    let pending = first.start_held_gettoken(&wecom, 1).await;
    first.process.signal("STOP");
    with_timeout(second.get()).await.assert_ok();
    // The response for the paused replica is older than that, and arrives now.
    let record = redis.command(&["KEYS", "*:record"]).await;
    let fence = redis.command(&["HGET", record.trim(), "fence"]).await;
    wecom.release_held();
    first.process.signal("CONT");
    let _ = with_timeout(pending).await;
    with_timeout(first.get()).await.assert_ok();
    assert_eq!(redis.command(&["HGET", record.trim(), "fence"]).await, fence, "the newer record stays");
    with_timeout(second.get()).await.assert_ok();
    assert_eq!(wecom.observe(|observed| observed.received_count(GETTOKEN)), 2);
    drop((first, second));
}

#[tokio::test]
async fn rolling_restart_costs_no_gettoken() {
    let wecom = Simulator::start_local(Settings::default()).await.expect("a simulator");
    let redis = RedisServer::start().await;
    let mut replicas = Vec::new();
    for _ in 0..3 {
        replicas.push(ReplicaProcess::start(&wecom, &redis).await);
    }
    let mut requests = 0;
    for round in 0..3 {
        for replica in &replicas {
            for _ in 0..5 {
                replica.get().await.assert_ok();
                requests += 1;
            }
        }
        let new = ReplicaProcess::start(&wecom, &redis).await;
        let old = std::mem::replace(&mut replicas[round], new);
        assert_eq!(old.process.stop().await.status, 0);
    }
    assert_eq!(
        wecom.observe(|observed| (observed.received_count(GETTOKEN), observed.executed_count(USER))),
        (1, requests)
    );
}

/// Sends a request to the replicas in turn until one of them responds, as a load balancer does.
async fn call_any_replica(addresses: &Mutex<Vec<SocketAddr>>, attempt: &mut usize) {
    loop {
        *attempt += 1;
        let address = {
            let addresses = addresses.lock().expect("no panic");
            addresses[*attempt % addresses.len()]
        };
        let Ok(stream) = TcpStream::connect(address).await else { continue };
        let request = http::Request::get(format!("/hr{USER_GET}")).body(bytes::Bytes::new().into());
        if let Ok(response) = TestClient::http1_over(stream).await.send(request.expect("a request")).await {
            TestResponse::read(response).await.assert_ok();
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
    // Keeps requests in flight while a replica stops.
    wecom.inject(Fault::delay(Duration::from_millis(20)).on_path(USER)).expect("a fault");
    let stop = Arc::new(AtomicBool::new(false));
    let mut clients = JoinSet::new();
    for first in 0..30 {
        let (addresses, stop) = (addresses.clone(), stop.clone());
        clients.spawn(async move {
            let (mut attempt, mut calls) = (first, 0);
            while !stop.load(Ordering::Relaxed) {
                call_any_replica(&addresses, &mut attempt).await;
                calls += 1;
            }
            calls
        });
    }
    for (index, replica) in replicas.iter_mut().enumerate() {
        let new = ReplicaProcess::start(&wecom, &redis).await;
        let address = new.process.address().await;
        addresses.lock().expect("no panic")[index] = address;
        let old = std::mem::replace(replica, new);
        assert_eq!(old.process.stop().await.status, 0);
        wecom.revoke_tokens("hr").expect("an agent");
        let executed = wecom.observe(|observed| observed.executed_count(USER));
        with_timeout(wecom.wait_until(move |observed| observed.executed_count(USER) > executed + 100))
            .await
            .expect("calls");
    }
    stop.store(true, Ordering::Relaxed);
    let calls: u64 = with_timeout(clients.join_all()).await.into_iter().sum();
    assert_eq!(
        wecom.observe(|observed| (observed.received_count(GETTOKEN), observed.executed_count(USER))),
        (4, calls)
    );
}

#[tokio::test]
async fn unreachable_store_at_start_is_logged() {
    let mut redis = RedisServer::start().await;
    redis.kill().await;
    let toml = format!("{OPEN_CONFIG}\n[tokens]\n{}\n", redis.store_config_line());
    let (_wecom, _dir, process) = Process::serve_with_simulator(&toml).await;
    process.err.wait_for_line("redis unavailable").await;
    assert_eq!(process.stop().await.status, 0);
}
