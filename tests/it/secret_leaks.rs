//! No secret, key or token in the program's output, at any log level.

use std::{collections::BTreeMap, fs, path::Path};

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::json;
use tempfile::TempDir;
use wecom_proxy::{
    config,
    simulator::{Fault, Settings, Simulator},
};

use crate::{
    certificates::Authority,
    harness::sha256,
    leak_detector,
    process::{Process, curl, curl_outcome, wecom_proxy},
};

const HR: &str = "not-a-secret-hr-0000000000000000000000000000";
const WRONG: &str = "wrong-secret_of-ops+/=~0123456789abcdef0123";
const ECHOED: &str = "echoed-secret_of-it+/=~0123456789abcdef0123";
const BILLING: &str = "the-key-of-billing+/=0123456789abcdef";
const OPERATOR: &str = "the-key-of-the-operator-0123456789abc";
const FIRST_TOKEN: &str = "first-token-that-the-test-knows_0123456789";
const NEXT_TOKEN: &str = "next-token-that-the-test-knows_0123456789";
const CLIENT_TOKEN: &str = "a-token-of-the-client-itself_0123456789";
const WEBHOOK_KEY: &str = "00000000-1111-2222-3333-444444444444";

const CONFIG: &str = r#"
[server]
listen = "127.0.0.1:0"
[upstream]
url = "{url}"
connect_timeout = "2s"
{upstream}
[admin]
listen = "127.0.0.1:0"
key_sha256 = "{operator}"
[log]
level = "trace"
format = "{format}"
[agents.hr]
corpid = "ww1234567890abcdef"
secret = { env = "SECRET_HR" }
[agents.ops]
corpid = "ww1234567890abcdef"
secret = { env = "SECRET_OPS" }
[agents.it]
corpid = "ww1234567890abcdef"
secret = { env = "SECRET_IT" }
[clients.billing]
key = { env = "KEY_BILLING" }
agents = ["*"]
"#;

const ENVIRONMENT: &[(&str, &str)] =
    &[("SECRET_HR", HR), ("SECRET_OPS", WRONG), ("SECRET_IT", ECHOED), ("KEY_BILLING", BILLING)];

#[track_caller]
fn assert_no_secret(source: &str, text: &str) {
    let secrets = [HR, WRONG, ECHOED, BILLING, OPERATOR, FIRST_TOKEN, NEXT_TOKEN, CLIENT_TOKEN, WEBHOOK_KEY];
    let found = leak_detector::find_secret(text, &secrets);
    assert!(found.is_none(), "{source} contains {}", found.unwrap_or_default());
}

async fn assert_no_secret_in_output(tls: bool, format: &str) {
    let authority = Authority::new();
    let tls_config = tls.then(|| authority.issue_server("127.0.0.1").server_config(&["h2", "http/1.1"]));
    let settings = Settings { tls: tls_config, ..Settings::default() };
    let wecom = leak_detector::start_simulator(settings).await;
    let dir = TempDir::new().expect("a directory");
    let path = write_secret_config(dir.path(), &wecom, tls.then_some(&authority), format);
    let mut command = wecom_proxy(&["--config", path.to_str().expect("UTF-8")]);
    command.env("RUST_LOG", "trace").envs(ENVIRONMENT.iter().copied());
    let proxy = Process::start(command);
    let addresses = addresses(&proxy, format).await;
    inject_faults(&wecom);
    let mut responses = call_all(&addresses["listen"]).await;
    responses.push_str(&call_admin(&addresses["admin"]).await);
    wecom.stop().await;
    responses.push_str(&call_all(&addresses["listen"]).await);
    responses.push_str(&call_admin(&addresses["admin"]).await);
    fs::write(&path, fs::read_to_string(&path).expect("a file").replace("[agents.it]", "[agents.cgi-bin]"))
        .expect("a file");
    proxy.signal("HUP");
    proxy.err.wait_for_line("not reloaded").await;

    let output = proxy.stop().await;
    assert_eq!(output.status, 0);
    for marker in ["token refreshed", "token refresh failed", "40014", "/cgi-bin/webhook/send"] {
        assert!(output.err.contains(marker), "no {marker} in the log:\n{}", output.err);
    }
    assert!(responses.contains("x-wecom-retried: 40014"), "{responses}");
    assert_no_secret("stdout", &output.out);
    assert_no_secret("stderr", &output.err);
    assert_no_secret("a response", &responses);
}

#[tokio::test]
async fn plain_upstream_leaves_no_secret_in_the_log() {
    assert_no_secret_in_output(false, "text").await;
}

#[tokio::test]
async fn tls_http2_upstream_leaves_no_secret_in_the_log() {
    assert_no_secret_in_output(true, "json").await;
}

fn write_secret_config(
    dir: &Path,
    wecom: &Simulator,
    authority: Option<&Authority>,
    format: &str,
) -> std::path::PathBuf {
    let operator = sha256(OPERATOR);
    let scheme = if authority.is_some() { "https" } else { "http" };
    let ca = authority.map(Authority::ca_config_line);
    let text = CONFIG
        .replace("{url}", &format!("{scheme}://{}", wecom.api_addr()))
        .replace("{upstream}", &ca.unwrap_or_default())
        .replace("{operator}", &operator)
        .replace("{format}", format);
    let path = dir.join("proxy.toml");
    fs::write(&path, text).expect("a file");
    path
}

async fn addresses(proxy: &Process, format: &str) -> BTreeMap<&'static str, String> {
    let found = match format {
        "json" => {
            let line = proxy.err.wait_for_line("\"message\":\"ready\"").await;
            let line: serde_json::Value = serde_json::from_str(&line).expect("JSON");
            ["listen", "admin"].map(|name| (name, line[name].as_str().expect("an address").to_owned()))
        }
        _ => [
            ("listen", proxy.address().await.to_string()),
            ("admin", proxy.admin_address().await.to_string()),
        ],
    };
    found.into()
}

/// Injects tokens known to the test, a refusal of the first one, and a gettoken response that repeats its own URL.
fn inject_faults(wecom: &Simulator) {
    let gettoken_response = |token: &str| {
        let body = json!({ "errcode": 0, "errmsg": "ok", "access_token": token, "expires_in": 7200 });
        Fault::response(200, "application/json", body.to_string())
            .on_path("/cgi-bin/gettoken")
            .for_agent("hr")
    };
    let user_get_response = |errcode: i64| {
        let text = json!({ "errcode": errcode, "errmsg": "sent by the test" }).to_string();
        Fault::response(200, "application/json", text).on_path("/cgi-bin/user/get")
    };
    let message = format!(
        "no such page: /cgi-bin/gettoken?corpid=ww1234567890abcdef&corpsecret={}, {ECHOED}",
        utf8_percent_encode(ECHOED, NON_ALPHANUMERIC)
    );
    let echo_body = json!({ "errcode": 404, "errmsg": message }).to_string();
    let faults = [
        gettoken_response(FIRST_TOKEN).times(1),
        gettoken_response(NEXT_TOKEN),
        user_get_response(40014).times(1),
        user_get_response(0),
        Fault::response(200, "application/json", echo_body).on_path("/cgi-bin/gettoken").times(1),
    ];
    for fault in faults {
        wecom.inject(fault).expect("a fault");
    }
}

/// Sends requests of all kinds; returns all responses.
async fn call_all(listen: &str) -> String {
    let base = format!("http://{listen}");
    let bearer = format!("Authorization: Bearer {BILLING}");
    let user_get = format!("{base}/hr/cgi-bin/user/get?userid=zhangsan");
    let with_token = format!("{user_get}&access_token={CLIENT_TOKEN}&%61ccess_token={CLIENT_TOKEN}");
    let webhook = format!("{base}/cgi-bin/webhook/send?key={WEBHOOK_KEY}");
    let (it, ops) = (format!("{base}/it/cgi-bin/user/get"), format!("{base}/ops/cgi-bin/user/get"));
    let gettoken = format!("{base}/hr/cgi-bin/gettoken?corpid=ww1234567890abcdef&corpsecret={BILLING}");
    let (basic, api_key) = (format!("billing:{BILLING}"), format!("X-Api-Key: {BILLING}"));
    let (invalid_path, with_secret) = (
        format!("{base}/hr/cgi-bin/../x?access_token={CLIENT_TOKEN}"),
        format!("Authorization: Bearer {HR}"),
    );
    let calls: &[&[&str]] = &[
        // First, so that no other agent's gettoken gets the response injected for this one.
        &["-H", &bearer, &it],
        &["-H", &bearer, &user_get],
        &["-H", &bearer, &user_get],
        &["-u", &basic, &with_token],
        &["-H", &api_key, "--http2-prior-knowledge", &with_token],
        &["-H", &bearer, "-d", "{\"msgtype\":\"text\"}", &webhook],
        &["-H", &bearer, &ops],
        &["-H", &bearer, &it],
        &["-H", &bearer, &gettoken],
        &["-H", &bearer, "--path-as-is", &invalid_path],
        &["-H", &with_secret, &with_token],
        &["-H", &bearer, "-H", "X-Api-Key: another", &user_get],
        &[&with_token],
    ];
    let mut responses = String::new();
    for call in calls {
        let output = curl_outcome(&[&["-i"], *call].concat()).await;
        responses.push_str(&output.out);
    }
    responses
}

async fn call_admin(admin: &str) -> String {
    let key = format!("Authorization: Bearer {OPERATOR}");
    let mut responses = String::new();
    let paths = ["/api/agents", "/readyz", "/healthz", "/metrics", "/api/requests", "/api/overview"];
    for path in paths {
        responses.push_str(&curl(&["-i", "-H", &key, &format!("http://{admin}{path}")]).await);
    }
    for path in ["/api/agents/ops/refresh", "/api/agents/it/refresh", "/api/reload"] {
        let arguments = ["-i", "-H", &key, "--json", "{}", &format!("http://{admin}{path}")];
        responses.push_str(&curl(&arguments).await);
    }
    assert!(responses.contains("\"corpid\""), "{responses}");
    responses
}

#[test]
fn config_debug_output_shows_no_secret() {
    let dir = TempDir::new().expect("a directory");
    let path = dir.path().join("proxy.toml");
    let text = CONFIG
        .replace("{url}", "http://127.0.0.1:1")
        .replace("{upstream}", "via = \"http://robot:the-password-of-the-robot@127.0.0.1:2\"")
        .replace("{operator}", &"01".repeat(32))
        .replace("{format}", "text");
    fs::write(&path, text).expect("a file");
    let environment =
        |name: &str| ENVIRONMENT.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).into());
    let config = config::load_with_env(&path, &environment).unwrap_or_else(|error| panic!("{error}"));
    let debug_text = format!("{config:?} {:?}", config.warnings);
    assert_no_secret("the configuration's Debug text", &debug_text);
    assert!(!debug_text.contains("the-password"));
    assert_eq!(leak_detector::find_secret(&debug_text, &["the-password-of-the-robot"]), None);
}

#[tokio::test]
async fn redirect_location_has_its_token_removed() {
    let mut upstream = crate::raw_http::ManualUpstream::new().await;
    let proxy =
        crate::harness::TestProxy::start_with_upstream(upstream.address, crate::harness::OPEN_CONFIG).await;
    let respond = async {
        let mut call = upstream.next_call().await;
        let target = call.head.split(' ').nth(1).expect("a target").to_owned();
        assert!(target.contains("TOKEN-OF-THE-UPSTREAM"));
        let head = format!("HTTP/1.1 301 Moved\r\nLocation: https://x{target}/\r\nContent-Length: 0\r\n\r\n");
        call.connection.send(head).await.expect("sent");
    };
    let (response, ()) = tokio::join!(proxy.get("/cgi-bin/user?a=1"), respond);
    assert_eq!(response.status.as_u16(), 301);
    assert_eq!(response.header("location"), "https://x/cgi-bin/user?a=1&access_token=/");
}
