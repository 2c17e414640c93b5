//! Service providers (contract §18): which token a call gets, corps that authorise, and ISV programs unchanged.

mod calls;
mod cold_start;
mod corps;
mod exchanges;
mod file_corps;
mod late_ticket;
mod leaks;
mod onboarding;
mod operators;
mod programs;
mod replicas;

use http::{Request, StatusCode};
use serde_json::{Value, json};
use wecom_proxy::{
    directory::Agent,
    secret::Masked,
    simulator::{Settings, SimulatedCallback, SimulatedProvider, SimulatedSuite},
};

use crate::harness::{TestProxy, TestResponse, client_key, leak_detector};

/// The suite_id of the suite `crm`.
pub const SUITE_ID: &str = "ww5u1te00000000001";
/// The suite_id of the template of customized apps `custom`.
pub const TEMPLATE_ID: &str = "dk7emp1ate00000001";
/// The corpid of the provider `acme`.
pub const PROVIDER_ID: &str = "ww9r0v1der00000001";

/// Two suites of one provider, and clients.
pub const SUITES: &str = r#"
[server]
listen = "127.0.0.1:0"
[upstream]
url = "http://{api}"
[admin]
listen = "127.0.0.1:0"
[state]
path = "{dir}/state.db"
key = "not-a-secret-state-key-0123456789abcdef"
{agents}
[providers.acme]
corpid = "ww9r0v1der00000001"
secret = "not-a-secret-acme-00000000000000000000000000"
[suites.crm]
suite_id = "ww5u1te00000000001"
secret = "not-a-secret-crm-000000000000000000000000000"
provider = "acme"
token = "not-a-secret-token-of-crm"
aes_key = "jWmYm7qr5nMoAUwZRjGtBxmz3KA1tkAj3ykkR6q2B2C"
[suites.custom]
suite_id = "dk7emp1ate00000001"
secret = "not-a-secret-custom-000000000000000000000000"
token = "not-a-secret-token-of-custom"
aes_key = "jWmYm7qr5nMoAUwZRjGtBxmz3KA1tkAj3ykkR6q2B2C"
[clients.isv]
key = "key-of-isv-0000000000"
agents = ["crm", "custom", "acme"]
[clients.corps]
key = "key-of-corps-0000000000"
agents = ["crm:*"]
[clients.one]
key = "key-of-one-0000000000"
agents = ["crm:wpAlpha_1"]
[clients.all]
key = "key-of-all-0000000000"
agents = ["*"]
[clients.suite]
key = "key-of-suite-0000000000"
agents = ["*", "crm"]
"#;

/// The simulator's settings for [`SUITES`].
pub fn settings() -> Settings {
    let suite = |name: &str, suite_id: &str, secret: &str| SimulatedSuite {
        name: name.to_owned(),
        suite_id: suite_id.to_owned(),
        secret: secret.to_owned(),
    };
    Settings {
        providers: vec![SimulatedProvider {
            name: "acme".to_owned(),
            corpid: PROVIDER_ID.to_owned(),
            secret: "not-a-secret-acme-00000000000000000000000000".to_owned(),
        }],
        suites: vec![
            suite("crm", SUITE_ID, "not-a-secret-crm-000000000000000000000000000"),
            suite("custom", TEMPLATE_ID, "not-a-secret-custom-000000000000000000000000"),
        ],
        ..Settings::default()
    }
}

/// A proxy with [`SUITES`] whose suites have tickets.
pub async fn start() -> TestProxy {
    let proxy = start_without_ticket(SUITES).await;
    for suite in ["crm", "custom"] {
        receive_ticket(&proxy, suite).await;
    }
    proxy
}

pub async fn start_without_ticket(config: &str) -> TestProxy {
    TestProxy::start_with_settings(settings(), config).await
}

/// A URL of the suite `crm` as it would be set in WeCom's console.
pub fn console(proxy: &TestProxy, path: &str, receive_id: &str) -> SimulatedCallback {
    SimulatedCallback {
        name: "crm".to_owned(),
        url: format!("http://{}{path}", proxy.address()),
        token: "not-a-secret-token-of-crm".to_owned(),
        aes_key: "jWmYm7qr5nMoAUwZRjGtBxmz3KA1tkAj3ykkR6q2B2C".to_owned(),
        receive_id: receive_id.to_owned(),
    }
}

/// Pushes a message to a URL of the suite `crm`.
pub async fn push_to(proxy: &TestProxy, path: &str, receive_id: &str, message: &str) -> TestResponse {
    let (query, body) = console(proxy, path, receive_id).encrypted_push(message.as_bytes(), false);
    proxy.request(Request::post(format!("{path}?{query}")), body).await
}

/// Pushes a command to the suite `crm`; returns the response, which must be the one that WeCom wants.
pub async fn push_command(proxy: &TestProxy, members: &str) {
    let message =
        format!("<xml><SuiteId><![CDATA[{SUITE_ID}]]></SuiteId><TimeStamp>1</TimeStamp>{members}</xml>");
    let response = push_to(proxy, "/callbacks/crm", SUITE_ID, &message).await;
    assert_eq!((response.status, response.text()), (StatusCode::OK, "success"));
}

/// Pushes a new ticket to the suite `crm`, and returns it.
pub async fn push_ticket(proxy: &TestProxy) -> String {
    let ticket = proxy.wecom.issue_ticket("crm").expect("a suite");
    let info = "<InfoType><![CDATA[suite_ticket]]></InfoType>";
    push_command(proxy, &format!("{info}<SuiteTicket><![CDATA[{ticket}]]></SuiteTicket>")).await;
    ticket
}

/// Pushes an event with an auth_code to the suite `crm`.
pub async fn push_auth_code(proxy: &TestProxy, info_type: &str, code: &str) {
    let info = format!("<InfoType><![CDATA[{info_type}]]></InfoType>");
    push_command(proxy, &format!("{info}<AuthCode><![CDATA[{code}]]></AuthCode>")).await;
}

/// The agent of this name.
pub fn agent(proxy: &TestProxy, name: &str) -> std::sync::Arc<Agent> {
    proxy.app.directory().find_agent(name).expect("an agent")
}

/// Pushes a new ticket of a suite.
pub async fn receive_ticket(proxy: &TestProxy, suite: &str) {
    let ticket = proxy.wecom.issue_ticket(suite).expect("a suite");
    let agent = agent(proxy, suite);
    let received = proxy.app.suites().receive_ticket(agent.suite().expect("a suite"), Masked::new(ticket));
    received.await.expect("a durable ticket");
}

/// A corp authorises a suite, and a client fetches the permanent code: returns the response.
pub async fn authorize(proxy: &TestProxy, client: &str, suite: &str, corpid: &str) -> TestResponse {
    let code = proxy.wecom.authorize_corp(suite, corpid).expect("a suite");
    let path = format!("/{suite}/cgi-bin/service/v2/get_permanent_code");
    let response = post(proxy, client, &path, json!({ "auth_code": code })).await;
    if let Some(real) = proxy.wecom.permanent_code(suite, corpid) {
        leak_detector::add_secret(&real);
        assert!(!response.text().contains(&real), "the permanent code was shown");
    }
    response
}

/// A call with a client's key.
pub async fn get(proxy: &TestProxy, client: &str, path: &str) -> TestResponse {
    let request = Request::get(path).header("authorization", format!("Bearer {}", client_key(client)));
    proxy.request(request, "").await
}

/// A POST with a client's key.
pub async fn post(proxy: &TestProxy, client: &str, path: &str, body: Value) -> TestResponse {
    let request = Request::post(path).header("authorization", format!("Bearer {}", client_key(client)));
    proxy.request(request, body.to_string()).await
}

/// A POST without a key in a header.
pub async fn post_keyless(proxy: &TestProxy, path: &str, body: Value) -> TestResponse {
    proxy.request(Request::post(path), body.to_string()).await
}

/// The JSON of a response.
#[track_caller]
pub fn json_of(response: &TestResponse) -> Value {
    serde_json::from_str(response.text()).unwrap_or_else(|error| panic!("{error}: {}", response.text()))
}

/// The errcode of a response; 0 without one.
#[track_caller]
pub fn errcode_of(response: &TestResponse) -> i64 {
    json_of(response)["errcode"].as_i64().unwrap_or_default()
}

/// A GET without a key in a header.
pub async fn get_keyless(proxy: &TestProxy, path: &str) -> TestResponse {
    proxy.request(Request::get(path), "").await
}

/// A pass of a corp, as an ISV program gets it.
pub async fn corp_pass(proxy: &TestProxy, suite: &str, corpid: &str) -> String {
    let body = json!({ "auth_corpid": corpid, "permanent_code": "any" });
    let response = post(proxy, "isv", &format!("/{suite}/cgi-bin/service/get_corp_token"), body).await;
    json_of(&response)["access_token"].as_str().unwrap_or_else(|| panic!("{}", response.text())).to_owned()
}
