//! Agents and clients at run time: the admin API over a state.

mod access;
mod agents;
mod clients;
mod conditions;
mod corps;
mod document;
mod key_races;
mod keys;
mod many;
mod origins;

use std::collections::BTreeSet;

use bytes::Bytes;
use http::{Request, StatusCode};
use serde_json::{Value, json};
use wecom_proxy::simulator::SimulatedAgent;

use crate::harness::{TestClient, TestProxy, TestResponse, USER_GET, sha256};

const ADMIN_KEY: &str = "the-key-of-the-operator-0123456789";
const STATE_KEY: &str = "the-key-of-the-state-0123456789-abcdef";
const CORPID: &str = "ww1234567890abcdef";
const IT_SECRET: &str = "not-a-secret-it-0000000000000000000000000000";

/// A proxy with a state; `{files}` are the agents and clients of the file.
const CONFIG: &str = r#"
[server]
listen = "127.0.0.1:0"
[upstream]
url = "http://{api}"
[admin]
listen = "127.0.0.1:0"
key_sha256 = "{admin}"
[state]
path = "{dir}/state.db"
key = "{state}"
{files}
"#;

fn config(files: &str) -> String {
    CONFIG.replace("{admin}", &sha256(ADMIN_KEY)).replace("{state}", STATE_KEY).replace("{files}", files)
}

/// A proxy whose admin listener is called.
struct Api {
    proxy: TestProxy,
}

impl Api {
    /// A proxy with nothing in its file.
    async fn start() -> Self {
        Self::start_with_files("").await
    }

    async fn start_with_files(files: &str) -> Self {
        Self::of(TestProxy::start_with_config(&config(files)).await)
    }

    fn of(proxy: TestProxy) -> Self {
        proxy.wecom.add_agent(SimulatedAgent::new("it", IT_SECRET, 1_000_004));
        Self { proxy }
    }

    /// A request with the admin key, and with a body where it is not null.
    async fn call(&self, method: &str, path: &str, body: Value) -> TestResponse {
        self.call_with(method, path, &[], body).await
    }

    async fn call_with(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Value,
    ) -> TestResponse {
        let bearer = format!("Bearer {ADMIN_KEY}");
        let mut all = vec![("authorization", &*bearer)];
        let text = if body.is_null() { String::new() } else { body.to_string() };
        if !body.is_null() && !headers.iter().any(|(name, _)| *name == "content-type") {
            all.push(("content-type", "application/json"));
        }
        all.extend(headers);
        self.send(method, path, &all, text).await
    }

    /// A request with these headers alone.
    async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> TestResponse {
        let request = Request::builder().method(method).uri(path);
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        // A new connection for each, because the proxy closes one whose body it does not read.
        let mut client = TestClient::connect_http1(self.proxy.admin_address()).await;
        let response = client.request(request, body).await;
        document::check(method, path, &response);
        response
    }

    async fn put_agent(&self, name: &str, secret: &str) -> TestResponse {
        self.call("PUT", &format!("/api/agents/{name}"), agent(secret)).await
    }

    /// A call through an agent, with a client's key.
    async fn get_as(&self, agent: &str, key: &str) -> TestResponse {
        let request = Request::get(format!("/{agent}{USER_GET}"));
        let request = if key.is_empty() { request } else { request.header("x-api-key", key) };
        self.proxy.request(request, "").await
    }

    fn gettoken_count(&self) -> usize {
        self.proxy.wecom.observe(|observed| {
            observed.requests().filter(|request| request.path == "/cgi-bin/gettoken").count()
        })
    }
}

fn agent(secret: &str) -> Value {
    json!({ "corpid": CORPID, "secret": secret })
}

fn client(key: &str, agents: &[&str]) -> Value {
    json!({ "key_sha256": sha256(key), "agents": agents })
}

fn key_of(client: &str) -> String {
    format!("key-of-{client}-0123456789abcdef")
}

trait Assertions {
    fn assert_status(&self, status: u16) -> &Self;
}

impl Assertions for TestResponse {
    #[track_caller]
    fn assert_status(&self, status: u16) -> &Self {
        assert_eq!(self.status.as_u16(), status, "{}", self.text());
        if self.status.is_client_error() || self.status.is_server_error() {
            assert!(self.json()["error"].is_string(), "{}", self.text());
        }
        for secret in [ADMIN_KEY, STATE_KEY, IT_SECRET] {
            assert!(!self.text().contains(secret), "{}", self.text());
        }
        self
    }
}
