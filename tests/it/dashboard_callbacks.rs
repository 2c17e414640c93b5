//! The dashboard's tables of callbacks and suites, redelivery, replay, and the settings in force.

use http::Request;
use serde_json::{Value, json};
use wecom_proxy::simulator::SimulatedCallback;

use crate::{
    browser::Browser,
    callbacks::{ADMIN_KEY, AES_KEY, CORPID, TOKEN, admin_get, config, event, target},
    dashboard::assert_accessible,
    harness::{
        TestClient, TestProxy, USER_GET,
        callback_target::{CallbackTarget, TargetResponse},
        start_simulator_with_config,
    },
    process::Process,
};

/// A suite without a ticket.
pub const SUITE: &str = r#"
[providers.acme]
corpid = "ww9r0v1der00000001"
secret = "not-a-secret-acme-00000000000000000000000000"
[suites.crm]
suite_id = "ww5u1te00000000001"
secret = "not-a-secret-crm-000000000000000000000000000"
provider = "acme"
token = "not-a-secret-token-of-crm"
aes_key = "jWmYm7qr5nMoAUwZRjGtBxmz3KA1tkAj3ykkR6q2B2C"
"#;
const SIZES: [(u32, u32); 3] = [(1440, 900), (1024, 768), (390, 844)];

async fn open_with_key(address: std::net::SocketAddr) -> Browser {
    let mut browser = Browser::start().await;
    browser.login = Some(("operator", ADMIN_KEY));
    browser.call("Fetch.enable", json!({ "handleAuthRequests": true })).await;
    browser.resize(1440, 900).await;
    browser.open_dashboard(address).await;
    browser.wait_for("document.querySelector('#uptime').innerText").await;
    browser
}

/// Looks at the page in all sizes, colours and languages.
async fn look_at_all(browser: &mut Browser, name: &str) {
    for (width, height) in SIZES {
        browser.resize(width, height).await;
        for scheme in ["light", "dark"] {
            let media = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
            browser.call("Emulation.setEmulatedMedia", media).await;
            for language in ["en", "zh"] {
                assert_accessible(browser).await;
                let overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth";
                assert_eq!(browser.eval(overflow).await, 0, "{name} {width} {scheme} {language}");
                browser.screenshot(&format!("{name}-{width}-{scheme}-{language}")).await;
                browser.eval("(document.querySelector('#language').click(), true)").await;
            }
        }
    }
    browser.resize(1440, 900).await;
}

/// A message that its target refused until its deadline: a proxy that starts a day later gives it up.
#[tokio::test]
async fn dead_letter_is_redelivered_and_a_request_replayed_on_the_page() {
    let receiver = CallbackTarget::start().await;
    receiver.respond([TargetResponse::status(500)]);
    let toml = config(&target("crm", format!("http://{}/", receiver.address), "")) + SUITE;
    let (wecom, _dir, path) = start_simulator_with_config(&toml).await;
    let proxy = Process::serve(&path).await;
    let console = SimulatedCallback {
        name: "hr".to_owned(),
        url: format!("http://{}/callbacks/hr", proxy.address().await),
        token: TOKEN.to_owned(),
        aes_key: AES_KEY.to_owned(),
        receive_id: CORPID.to_owned(),
    };
    let (query, body) = console.encrypted_push(event("change_contact", 1).as_bytes(), false);
    let push = Request::post(format!("/callbacks/hr?{query}")).header("content-type", "text/xml");
    TestClient::connect_http1(proxy.address().await).await.request(push, body).await;
    receiver.wait_for(1).await;
    proxy.stop().await;

    receiver.respond([TargetResponse::status(200)]);
    let proxy = Process::serve_with_clock_offset(&path, "+25h").await;
    let mut browser = open_with_key(proxy.admin_address().await).await;
    browser.wait_for("document.querySelector('#callbacks [data-key=\"dead hr crm\"]')").await;
    assert!(browser.text("#suites").await.contains("no ticket"));
    // Without its query a request could not be sent again.
    let inspect = Request::post("/api/agents/hr/inspect?for=10m").header("content-type", "application/json");
    let inspect = inspect.header("authorization", format!("Bearer {ADMIN_KEY}"));
    TestClient::connect_http1(proxy.admin_address().await).await.request(inspect, "").await;
    let request = Request::get(format!("/hr{USER_GET}")).header("x-api-key", "key-of-desktop-0000000000");
    let mut client = TestClient::connect_http1(proxy.address().await).await;
    client.request(request, "").await.assert_ok();
    browser.wait_for("document.querySelectorAll('#requests tbody tr button').length === 1").await;
    look_at_all(&mut browser, "callbacks").await;
    browser.click("#callbacks [data-key='dead hr crm']").await;
    browser.wait_for("document.querySelector('#dead-letters').innerText.includes('change_contact')").await;
    look_at_all_of_dialog(&mut browser, "dead-letters").await;
    browser.click("#dead-letters button").await;
    browser.fill("#key-input", ADMIN_KEY).await;
    browser.click("#ask-yes").await;
    browser.wait_for("document.querySelector('#notice').innerText.includes('Redelivered to crm')").await;
    receiver.wait_for(2).await;
    browser.wait_for("!document.querySelector('#callbacks [data-key=\"dead hr crm\"]')").await;

    // The exchange is sent again, and the new one is shown in its place.
    let forwarded = wecom.requests().len();
    browser.click("#requests tbody tr button").await;
    browser.click("[data-key=replay]").await;
    browser.wait_for("document.querySelectorAll('#requests tbody tr').length === 2").await;
    assert_eq!(wecom.requests().len(), forwarded + 1);
    browser.assert_no_errors();
}

async fn look_at_all_of_dialog(browser: &mut Browser, name: &str) {
    for (width, height) in SIZES {
        browser.resize(width, height).await;
        assert_accessible(browser).await;
        browser.screenshot(&format!("{name}-{width}")).await;
    }
    browser.resize(1440, 900).await;
}

fn setting<'a>(shown: &'a Value, key: &str) -> &'a Value {
    let settings = shown["settings"].as_array().expect("settings");
    settings.iter().find(|setting| setting["key"] == key).unwrap_or_else(|| panic!("no {key} in {shown}"))
}

#[tokio::test]
async fn settings_in_force_are_shown_without_secrets() {
    let toml = config("[log]\nlevel = \"info\"\n[quotas]\nmode = \"off\"\n");
    let proxy = TestProxy::start_with_config(&toml).await;
    let shown = admin_get(&proxy, "/api/config").await;
    assert!(!shown.text().contains("key-of-the-state"), "{}", shown.text());
    let shown = shown.json();
    assert_eq!(setting(&shown, "state.key")["value"], json!({ "set": true }));
    let idle = setting(&shown, "server.idle_timeout");
    assert_eq!(
        (&idle["value"], &idle["needs_restart"], &idle["changed"]),
        (&json!("75s"), &json!(true), &json!(false))
    );

    // A reload applies the level; the timeout stays, and is said to differ in the file.
    let changed = toml.replace("level = \"info\"", "level = \"warn\"");
    proxy.rewrite_config(&changed.replace("[server]", "[server]\nidle_timeout = \"65s\""));
    proxy.app.reload().expect("a reload");
    let shown = admin_get(&proxy, "/api/config").await.json();
    assert_eq!(setting(&shown, "log.level")["value"], "warn");
    let idle = setting(&shown, "server.idle_timeout");
    assert_eq!((&idle["value"], &idle["changed"]), (&json!("75s"), &json!(true)));
    let limits = admin_get(&proxy, "/api/overview").await.json()["limits"].clone();
    let names: Vec<_> =
        limits.as_array().expect("limits").iter().map(|limit| limit["name"].clone()).collect();
    assert!(names.contains(&json!("tokens.renewals_per_hour")), "{names:?}");

    let mut browser = open_with_key(proxy.admin_address()).await;
    browser.click("#settings summary").await;
    browser
        .wait_for("document.querySelector('#settings-table').innerText.includes('server.idle_timeout')")
        .await;
    assert!(browser.text("#settings-table").await.contains("changed in the file, needs a restart"));
    look_at_all(&mut browser, "settings").await;
    browser.assert_no_errors();
}

/// A corp without a table of its own has no counters, and its code takes the place of a secret.
#[tokio::test]
async fn an_authorised_corp_is_listed_without_counts_and_edited_by_its_code() {
    let proxy = TestProxy::start_with_config(&(config("") + SUITE)).await;
    let table =
        json!({ "suite": "crm", "corpid": "wpc0rp00000000000001", "permanent_code": "a-permanent-code" });
    let request =
        Request::put("/api/agents/crm:wpc0rp00000000000001").header("content-type", "application/json");
    let request = request.header("authorization", format!("Bearer {ADMIN_KEY}"));
    let mut admin = TestClient::connect_http1(proxy.admin_address()).await;
    assert_eq!(admin.request(request, table.to_string()).await.status, 201);

    let mut browser = open_with_key(proxy.admin_address()).await;
    let row =
        "[...document.querySelectorAll('#agents tbody tr')].find((row) => row.innerText.includes('crm:'))";
    browser.wait_for(row).await;
    let cells = browser.eval(&format!("[...{row}.cells].map((cell) => cell.innerText).slice(5, 7)")).await;
    assert_eq!(cells, json!(["–", "–"]));
    browser.eval(&format!("({row}.querySelector('[data-key^=edit]').click(), true)")).await;
    browser.wait_for("document.querySelector('#entry')").await;
    let fields = "[...document.querySelectorAll('#entry input')].map((field) => field.name)";
    assert_eq!(browser.eval(fields).await, json!(["corpid", "permanent_code", "agentid", "limit", "verify"]));
    browser.assert_no_errors();
}
