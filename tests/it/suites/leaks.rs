//! The life of a suite with the real program: none of its secrets, tickets, permanent codes and tokens is in a response, in the
//! log, on a page or in a metric.

use std::path::Path;

use serde_json::{Value, json};
use wecom_proxy::simulator::{PushResponse, SimulatedCallback, Simulator, SuiteEvent};

use super::{PROVIDER_ID, SUITE_ID, SUITES, TEMPLATE_ID, settings};
use crate::{
    harness::{USER_GET, callback_target::CallbackTarget, client_key, sha256, wait_for, write_config},
    leak_detector,
    process::{Process, curl, curl_outcome, wecom_proxy},
};

const OPERATOR: &str = "the-key-of-the-operator-0123456789abc";
/// Everything in [`SUITES`] that must not be shown.
const CONFIGURED: [&str; 6] = [
    "not-a-secret-state-key-0123456789abcdef",
    "not-a-secret-acme-00000000000000000000000000",
    "not-a-secret-crm-000000000000000000000000000",
    "not-a-secret-custom-000000000000000000000000",
    "not-a-secret-token-of-crm",
    "jWmYm7qr5nMoAUwZRjGtBxmz3KA1tkAj3ykkR6q2B2C",
];

/// The running program, and all that it has shown.
struct Watched {
    base: String,
    admin: String,
    shown: String,
}

impl Watched {
    /// A call with a client's key; returns its body.
    async fn call(&mut self, path: &str, body: Option<Value>) -> Value {
        let key = format!("Authorization: Bearer {}", client_key("isv"));
        self.send(&["-H", &key, &format!("{}{path}", self.base)], body).await
    }

    /// A call as an SDK makes it, without a key.
    async fn call_keyless(&mut self, path: &str, body: Option<Value>) -> Value {
        self.send(&[&format!("{}{path}", self.base)], body).await
    }

    async fn send(&mut self, arguments: &[&str], body: Option<Value>) -> Value {
        let body = body.map(|body| body.to_string());
        let data = body.iter().flat_map(|body| ["--json", body]).collect::<Vec<_>>();
        let output = curl_outcome(&[&["-i"], arguments, &data[..]].concat()).await;
        self.shown.push_str(&output.out);
        let json = output.out.rsplit_once("\r\n\r\n").map_or("", |(_, body)| body);
        serde_json::from_str(json).unwrap_or_default()
    }

    async fn look_at_admin_pages(&mut self) {
        let key = format!("Authorization: Bearer {OPERATOR}");
        for path in [
            "/",
            "/metrics",
            "/readyz",
            "/api/suites",
            "/api/suites/crm/corps",
            "/api/suites/custom/corps",
            "/api/agents/crm:wpAlpha_1",
            "/api/agents",
            "/api/clients",
            "/api/callbacks",
            "/api/requests?limit=1000",
            "/api/overview",
        ] {
            self.shown.push_str(&curl(&["-i", "-H", &key, &format!("{}{path}", self.admin)]).await);
        }
        for path in [
            "/api/agents/crm/inspect?for=10m",
            "/api/agents/crm:wpAlpha_1/inspect?for=10m",
            "/api/agents/crm:wpAlpha_1/refresh",
        ] {
            self.send(&["-H", &key, "-X", "POST", &format!("{}{path}", self.admin)], None).await;
        }
    }
}

fn console(base: &str, suite: &str, id: &str) -> SimulatedCallback {
    SimulatedCallback {
        name: suite.to_owned(),
        url: format!("{base}/callbacks/{suite}"),
        token: format!("not-a-secret-token-of-{suite}"),
        aes_key: CONFIGURED[5].to_owned(),
        receive_id: id.to_owned(),
    }
}

async fn push(wecom: &Simulator, callback: &SimulatedCallback, event: SuiteEvent, corpid: Option<&str>) {
    let pushed: PushResponse = wecom.push_suite_event(event, callback, corpid).await.expect("a response");
    assert_eq!((pushed.status, pushed.body.as_str()), (200, "success"));
}

async fn start(path: &Path) -> (Process, Watched) {
    let mut command = wecom_proxy(&["--config", path.to_str().expect("UTF-8")]);
    command.env("RUST_LOG", "trace");
    let proxy = Process::start(command);
    let base = format!("http://{}", proxy.address().await);
    let admin = format!("http://{}", proxy.admin_address().await);
    (proxy, Watched { base, admin, shown: String::new() })
}

/// Passes and stand-ins from start to end, as an ISV program uses them, and a corp's end.
async fn live(wecom: &Simulator, watched: &mut Watched) {
    let crm = console(&watched.base, "crm", SUITE_ID);
    push(wecom, &crm, SuiteEvent::Ticket, None).await;
    push(wecom, &console(&watched.base, "custom", TEMPLATE_ID), SuiteEvent::Ticket, None).await;
    push(wecom, &crm, SuiteEvent::CreateAuth, Some("wpBeta_2")).await;
    let key = client_key("isv");
    let provider = json!({ "corpid": PROVIDER_ID, "provider_secret": key });
    let provider = watched.call_keyless("/cgi-bin/service/get_provider_token", Some(provider)).await;
    let suite = json!({ "suite_id": SUITE_ID, "suite_secret": key, "suite_ticket": "any" });
    let suite = watched.call_keyless("/cgi-bin/service/get_suite_token", Some(suite)).await;
    let suite = suite["suite_access_token"].as_str().expect("a pass").to_owned();
    for (name, version) in [("crm", "/v2"), ("custom", ""), ("crm", "")] {
        let code = wecom.authorize_corp(name, "wpAlpha_1").expect("a suite");
        let path = format!("/{name}/cgi-bin/service{version}/get_permanent_code");
        let redeemed = watched.call(&path, Some(json!({ "auth_code": code }))).await;
        let stand_in = redeemed["permanent_code"].as_str().expect("a stand-in").to_owned();
        let body = json!({ "auth_corpid": "wpAlpha_1", "permanent_code": stand_in });
        let path = format!("/{name}/cgi-bin/service/get_auth_info");
        assert_eq!(watched.call(&path, Some(body.clone())).await["errcode"], 0);
        let path = format!("/cgi-bin/service/get_corp_token?suite_access_token={suite}");
        watched.call_keyless(&path, Some(body)).await;
        watched
            .call_keyless(&format!("/cgi-bin/gettoken?corpid=wpAlpha_1&corpsecret={stand_in}"), None)
            .await;
        assert_eq!(watched.call(&format!("/{name}:wpAlpha_1{USER_GET}"), None).await["errcode"], 0);
    }
    let pass = provider["provider_access_token"].as_str().expect("a pass");
    watched.call_keyless(&format!("/cgi-bin/license/list_order?provider_access_token={pass}"), None).await;
    for (agent, path) in [
        ("crm", "/crm/cgi-bin/service/get_pre_auth_code"),
        ("acme", "/acme/cgi-bin/license/list_order"),
        ("crm:wpAlpha_1", &format!("/crm:wpAlpha_1{USER_GET}")),
    ] {
        wecom.revoke_tokens(agent).expect("an agent");
        assert_eq!(watched.call(path, None).await["errcode"], 0, "{path}");
    }
    watched.look_at_admin_pages().await;
    // Failures: a wrong code, a corp that withdrew, a ticket that is too old.
    watched
        .call(
            "/crm/cgi-bin/service/v2/get_permanent_code",
            Some(json!({ "auth_code": "no-such-code-of-wecom" })),
        )
        .await;
    wecom.cancel_corp("crm", "wpBeta_2").expect("a corp");
    watched.call(&format!("/crm:wpBeta_2{USER_GET}"), None).await;
    wecom.expire_tickets("crm").expect("a suite");
    wecom.revoke_tokens("crm").expect("a suite");
    watched.call("/crm/cgi-bin/service/get_pre_auth_code", None).await;
    push(wecom, &crm, SuiteEvent::Ticket, None).await;
    push(wecom, &crm, SuiteEvent::CancelAuth, Some("wpAlpha_1")).await;
    watched.call(&format!("/crm:wpAlpha_1{USER_GET}"), None).await;
    watched.look_at_admin_pages().await;
}

#[tokio::test]
async fn life_of_a_suite_shows_no_secret() {
    let receiver = CallbackTarget::start().await;
    let settings = settings();
    let wecom = leak_detector::start_simulator(settings.clone()).await;
    let dir = tempfile::TempDir::new().expect("a directory");
    let admin = format!("[admin]\nlisten = \"127.0.0.1:0\"\nkey_sha256 = \"{}\"\n", sha256(OPERATOR));
    let config = SUITES.replace("[admin]\nlisten = \"127.0.0.1:0\"\n", &admin)
        + &format!(
            "[log]\nlevel = \"trace\"\n[[suites.crm.to]]\nname = \"app\"\nurl = \"http://{}/\"\n",
            receiver.address
        );
    let path = write_config(&dir, wecom.api_addr(), &settings, &config);
    let (proxy, mut watched) = start(&path).await;
    live(&wecom, &mut watched).await;
    wait_for("the deliveries", async || {
        receiver.received().iter().any(|delivery| delivery.text().contains("cancel_auth"))
    })
    .await;
    let delivered: String = receiver.received().iter().map(|delivery| delivery.text().to_owned()).collect();
    let output = proxy.stop().await;
    assert_eq!(output.status, 0, "{}", output.err);

    // Tokens, tickets and permanent codes; and the key, which no response repeats.
    let issued = wecom.issued_tokens().since(0);
    assert!(issued.len() > 12, "{}", issued.len());
    let secrets: Vec<_> = issued.iter().map(String::as_str).chain(CONFIGURED).collect();
    for (source, text) in [
        ("stdout", &output.out),
        ("the log", &output.err),
        ("a response or page", &watched.shown),
        ("a delivery", &delivered),
    ] {
        assert!(!text.is_empty() || source == "stdout", "{source}");
        let found = leak_detector::find_secret(text, &secrets);
        assert!(found.is_none(), "{source} contains {}", found.unwrap_or_default());
    }
    for marker in ["corp authorised the suite", "token refreshed", "40084", "40085"] {
        assert!(output.err.contains(marker), "no {marker} in the log");
    }
    assert!(
        watched.shown.contains("wps1-") && watched.shown.contains("wp1-"),
        "stand-ins and passes were given"
    );
    let own = leak_detector::find_secret(&output.err, &[&client_key("isv"), OPERATOR]);
    assert!(own.is_none(), "the log contains {}", own.unwrap_or_default());
}
