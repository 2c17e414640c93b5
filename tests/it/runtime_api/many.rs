//! Very many agents: a change costs what it costs with few.

use std::time::{Duration, Instant};

use super::*;

const AGENTS: usize = 3_000;
const CONNECTIONS: usize = 4;

#[tokio::test]
async fn very_many_agents_are_put_over_four_connections() {
    let api = Api::start().await;
    let address = api.proxy.admin_address();
    let writers = (0..CONNECTIONS).map(|writer| {
        tokio::spawn(async move {
            let mut client = TestClient::connect_http1(address).await;
            for nth in (writer..AGENTS).step_by(CONNECTIONS) {
                let request = Request::put(format!("/api/agents/a{nth:05}"))
                    .header("authorization", format!("Bearer {ADMIN_KEY}"))
                    .header("content-type", "application/json");
                let body = json!({ "corpid": format!("ww{nth}"), "secret": format!("secret-of-{nth}") });
                let response = client.request(request, body.to_string()).await;
                assert_eq!(response.status, StatusCode::CREATED, "{}", response.text());
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.expect("no panic");
    }
    let listed = api.call("GET", "/api/agents?after=a02998&limit=1000", Value::Null).await.json();
    assert_eq!((&listed["agents"][0]["name"], &listed["next"]), (&json!("a02999"), &Value::Null));
    api.put_agent("it", IT_SECRET).await.assert_status(201);
    api.get_as("it", "").await.assert_ok();
    let begin = Instant::now();
    api.reload_all().await;
    assert!(begin.elapsed() < Duration::from_secs(30), "{:?}", begin.elapsed());
    api.get_as("it", "").await.assert_ok();
    let total = api.call("GET", "/readyz", Value::Null).await.json()["agents"]["total"].clone();
    assert_eq!(total, AGENTS + 1);
}

impl Api {
    async fn reload_all(&self) {
        let reloaded =
            self.call_with("POST", "/api/reload", &[("content-type", "application/json")], Value::Null).await;
        assert_eq!(reloaded.assert_status(200).json()["agents"], AGENTS + 1);
    }
}
