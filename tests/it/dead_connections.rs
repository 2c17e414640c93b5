//! Upstream connections that go dead without a word: how many requests they cost.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;
use wecom_proxy::simulator::{Fault, Settings, Simulator};

use crate::{
    harness::{OPEN_CONFIG, TestClient, TestProxy, USER_GET},
    leak_detector,
    relay::Relay,
    token_refresh_http2::{config_with_ca, http2_server_config},
};

/// A proxy with a relay between it and the simulator.
async fn start(settings: Settings, toml: &str) -> (Arc<TestProxy>, Relay, Simulator) {
    let wecom = leak_detector::start_simulator(settings).await;
    let relay = Relay::start(wecom.api_addr()).await;
    (Arc::new(TestProxy::start_with_upstream(relay.address, toml).await), relay, wecom)
}

/// Opens several upstream connections, which become idle at once.
async fn fill_pools(proxy: &Arc<TestProxy>, wecom: &Simulator, count: u64) {
    proxy.get(USER_GET).await.assert_ok();
    wecom.inject(Fault::hold().on_path("/cgi-bin/user/get").times(count)).expect("a fault");
    let calls: Vec<_> = (0..count)
        .map(|_| {
            let proxy = proxy.clone();
            tokio::spawn(async move { proxy.get(USER_GET).await.assert_ok().status })
        })
        .collect();
    wecom.wait_until(|observed| observed.in_flight() == count).await.expect("requests");
    wecom.release_held();
    for call in calls {
        assert_eq!(call.await.expect("no panic"), 200);
    }
}

#[tokio::test]
async fn dead_idle_connections_cost_one_request_together() {
    let toml = OPEN_CONFIG.replace("[admin]", "response_timeout = \"1s\"\n[admin]");
    let (proxy, relay, wecom) = start(Settings::default(), &toml).await;
    fill_pools(&proxy, &wecom, 8).await;
    relay.freeze();
    let mut failed = 0;
    // Each call is on a connection of its own, so that all workers serve some.
    for _ in 0..12 {
        failed += usize::from(proxy.post("/cgi-bin/message/send", "{}").await.status != 200);
    }
    assert!(failed <= 1, "{failed} of 12 calls failed");
}

#[tokio::test]
async fn dead_http2_connection_costs_one_request_per_worker() {
    let (server, dir) = http2_server_config();
    let toml = config_with_ca(&dir).replace("[admin]", "response_timeout = \"1s\"\n[admin]");
    let settings = Settings { tls: Some(server), ..Settings::default() };
    let (proxy, relay, _wecom) = start(settings, &toml).await;
    let mut client = TestClient::connect_http1(proxy.address()).await;
    client.get(USER_GET).await.assert_ok();
    relay.freeze();
    client.get(USER_GET).await.assert_proxy_error("upstream-timeout", 504, -1);
    let start = Instant::now();
    for _ in 0..4 {
        client.get(USER_GET).await.assert_ok();
    }
    assert!(start.elapsed() < Duration::from_secs(1));
}

#[tokio::test]
async fn silent_http2_connection_gets_no_new_stream_and_closes() {
    let (server, dir) = http2_server_config();
    let settings = Settings { tls: Some(server), ..Settings::default() };
    let (proxy, relay, _wecom) = start(settings, &config_with_ca(&dir)).await;
    let mut client = TestClient::connect_http1(proxy.address()).await;
    client.get(USER_GET).await.assert_ok();
    relay.freeze();
    // Well below response_timeout, which is 30 s: a PING without ACK decides.
    let start = Instant::now();
    let first = client.get(USER_GET).await;
    first.assert_ok();
    assert!(start.elapsed() < Duration::from_secs(26), "{:?}", start.elapsed());
    client.get(USER_GET).await.assert_ok();
}

#[tokio::test]
async fn slow_http2_response_keeps_its_connection() {
    let (server, dir) = http2_server_config();
    let settings = Settings { tls: Some(server), ..Settings::default() };
    let (proxy, relay, wecom) = start(settings, &config_with_ca(&dir)).await;
    let mut client = TestClient::connect_http1(proxy.address()).await;
    client.get(USER_GET).await.assert_ok();
    let connections = relay.connection_count();
    let bytes = async {
        wecom.wait_until(|observed| observed.in_flight() == 1).await.expect("a request");
        tokio::time::sleep(Duration::from_millis(500)).await;
        let bytes_before = relay.byte_count();
        tokio::time::sleep(Duration::from_secs(5)).await;
        relay.byte_count() - bytes_before
    };
    wecom
        .inject(Fault::delay(Duration::from_secs(6)).on_path("/cgi-bin/user/get").times(1))
        .expect("a fault");
    let (response, bytes) = tokio::join!(client.get(USER_GET), bytes);
    response.assert_ok();
    assert_eq!(bytes, 0, "an upstream may police PINGs");
    client.get(USER_GET).await.assert_ok();
    assert_eq!(relay.connection_count(), connections);
}

#[tokio::test]
async fn connection_is_replaced_at_its_longest_age() {
    let (server, dir) = http2_server_config();
    for (tls, toml) in [(None, OPEN_CONFIG.to_owned()), (Some(server), config_with_ca(&dir))] {
        let toml = toml.replace("[admin]", "max_age = \"500ms\"\n[admin]");
        let settings = Settings { tls, ..Settings::default() };
        let (proxy, relay, wecom) = start(settings, &toml).await;
        let mut client = TestClient::connect_http1(proxy.address()).await;
        client.get(USER_GET).await.assert_ok();
        let connections = relay.connection_count();
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(2) {
            client.get(USER_GET).await.assert_ok();
        }
        let replaced = relay.connection_count() - connections;
        assert!((2..=6).contains(&replaced), "{replaced} in 2 s");
        // A response that takes longer than that is not cut off.
        wecom
            .inject(Fault::delay(Duration::from_secs(1)).on_path("/cgi-bin/user/get").times(1))
            .expect("a fault");
        client.get(USER_GET).await.assert_ok();
    }
}
