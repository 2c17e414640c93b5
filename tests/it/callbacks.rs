//! §17: callbacks, from the receiver URL to the targets.

mod delivery;
mod doctor;
mod operators;
mod processes;
mod pull;
mod real_receivers;
mod receiver;
mod receiver_http2;
mod reply;
mod shared_state;
mod signature_snippets;

use http::Request;
use wecom_proxy::simulator::SimulatedCallback;

use crate::harness::{TestClient, TestProxy, TestResponse};

/// The corpid of the simulator's agents.
pub const CORPID: &str = "ww1234567890abcdef";
pub const TOKEN: &str = "token-of-callbacks";
pub const AES_KEY: &str = "jWmYm7qr5nMoAUwZRjGtBxmz3KA1tkAj3ykkR6q2B2C";
/// The admin key whose hash is in the configuration.
pub const ADMIN_KEY: &str = "admin-key-of-callbacks-000";

/// A configuration with a callback `hr`, to which lines and targets are added.
pub fn config(more: &str) -> String {
    format!(
        r#"
[server]
listen = "127.0.0.1:0"
[upstream]
url = "http://{{api}}"
[admin]
listen = "127.0.0.1:0"
key_sha256 = "{}"
[state]
path = "{{dir}}/state.db"
key = "key-of-the-state-0123456789-0123456789"
{{agents}}
[clients.desktop]
key = "key-of-desktop-0000000000"
agents = ["hr"]
[clients.other]
key = "key-of-other-0000000000"
agents = ["hr"]
[callbacks.hr]
agent = "hr"
token = "{TOKEN}"
aes_key = "{AES_KEY}"
{more}
"#,
        crate::harness::sha256(ADMIN_KEY)
    )
}

/// The section of a target that is pushed to.
pub fn target(name: &str, url: impl std::fmt::Display, more: &str) -> String {
    format!("[[callbacks.hr.to]]\nname = \"{name}\"\nurl = \"{url}\"\n{more}\n")
}

/// The callback `hr` as it would be set in WeCom's console.
pub fn console(proxy: &TestProxy) -> SimulatedCallback {
    SimulatedCallback {
        name: "hr".to_owned(),
        url: format!("http://{}/callbacks/hr", proxy.address()),
        token: TOKEN.to_owned(),
        aes_key: AES_KEY.to_owned(),
        receive_id: CORPID.to_owned(),
    }
}

/// Pushes a message once; returns the response.
pub async fn push(proxy: &TestProxy, message: &str) -> TestResponse {
    let (query, body) = console(proxy).encrypted_push(message.as_bytes(), false);
    push_raw(proxy, &query, body).await
}

/// Pushes a body with a query.
pub async fn push_raw(proxy: &TestProxy, query: &str, body: impl Into<bytes::Bytes>) -> TestResponse {
    let request = Request::post(format!("/callbacks/hr?{query}")).header("content-type", "text/xml");
    proxy.request(request, body).await
}

/// An event with a number, by which it differs from others.
pub fn event(name: &str, number: usize) -> String {
    format!(
        "<xml><ToUserName><![CDATA[{CORPID}]]></ToUserName><FromUserName><![CDATA[sys]]></FromUserName><CreateTime>{number}</CreateTime><MsgType><![CDATA[event]]></MsgType><Event><![CDATA[{name}]]></Event></xml>"
    )
}

/// A GET at the admin listener with its key.
pub async fn admin_get(proxy: &TestProxy, path: &str) -> TestResponse {
    let request = Request::get(path).header("authorization", format!("Bearer {ADMIN_KEY}"));
    TestClient::connect_http1(proxy.admin_address()).await.request(request, "").await
}

/// The value of a sample of `/metrics`; 0 if there is none.
pub async fn metric(proxy: &TestProxy, sample: &str) -> u64 {
    let metrics = admin_get(proxy, "/metrics").await;
    let value = metrics.text().lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
    value.map_or(0, |value| value.parse().expect("a number"))
}
