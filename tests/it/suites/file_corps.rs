//! Corps that the file names (contract §18): what WeCom pushes of them counts more than the permanent code of the file,
//! until the file has another one.

use serde_json::{Value, json};

use super::{
    SUITES, TestProxy, authorize, errcode_of, get, get_keyless, json_of, post, push_auth_code, push_command,
    receive_ticket, start_without_ticket,
};
use crate::{
    harness::{USER_GET, admin_get, wait_for},
    leak_detector,
};

const CANCEL: &str =
    "<InfoType><![CDATA[cancel_auth]]></InfoType><AuthCorpId><![CDATA[wpAlpha_1]]></AuthCorpId>";

fn corp_section(code: &str) -> String {
    format!(
        "[agents.crm-acme]\nsuite = \"crm\"\ncorpid = \"wpAlpha_1\"\npermanent_code = \"{code}\"\nagentid = 7\n\
         [clients.file]\nkey = \"key-of-file-0000000000\"\nagents = [\"crm-acme\"]\n"
    )
}

/// A proxy whose file names a corp with the permanent code that WeCom has.
async fn start() -> TestProxy {
    start_with(SUITES).await
}

/// The same with this configuration.
async fn start_with(toml: &str) -> TestProxy {
    let proxy = start_without_ticket(toml).await;
    receive_ticket(&proxy, "crm").await;
    let code = proxy.wecom.add_authorized_corp("crm", "wpAlpha_1").expect("a suite");
    set_code(&proxy, &code);
    assert_eq!(call(&proxy).await, (200, 200));
    proxy
}

/// Writes the file with this code, and reloads it.
fn set_code(proxy: &TestProxy, code: &str) {
    leak_detector::add_secret(code);
    let path = proxy.dir.path().join("proxy.toml");
    let text = std::fs::read_to_string(&path).expect("a file");
    let rest = &text[text.find("[clients.isv]").expect("a client")..];
    let head = &text[..text.find("[agents.crm-acme]").unwrap_or(text.len() - rest.len())];
    std::fs::write(path, format!("{head}{}{rest}", corp_section(code))).expect("a file");
    proxy.app.reload().expect("a valid file");
}

/// The statuses of a call by both names.
async fn call(proxy: &TestProxy) -> (u16, u16) {
    let by_name = get(proxy, "file", &format!("/crm-acme{USER_GET}")).await;
    let by_corpid = get(proxy, "isv", &format!("/crm:wpAlpha_1{USER_GET}")).await;
    (by_name.status.as_u16(), by_corpid.status.as_u16())
}

/// A pass that the client of the corp buys.
async fn pass(proxy: &TestProxy) -> String {
    let body = json!({ "auth_corpid": "wpAlpha_1", "permanent_code": "any" });
    let response = post(proxy, "isv", "/crm/cgi-bin/service/get_corp_token", body).await;
    json_of(&response)["access_token"].as_str().unwrap_or_else(|| panic!("{}", response.text())).to_owned()
}

async fn call_with(proxy: &TestProxy, pass: &str) -> i64 {
    errcode_of(&get_keyless(proxy, &format!("{USER_GET}&access_token={pass}")).await)
}

#[tokio::test]
async fn corp_of_the_file_that_cancels_is_gone_until_it_authorises_again() {
    let proxy = start().await;
    let before = pass(&proxy).await;
    assert_eq!(call_with(&proxy, &before).await, 0);
    push_command(&proxy, CANCEL).await;
    let refused = get(&proxy, "file", &format!("/crm-acme{USER_GET}")).await;
    refused.assert_proxy_error("unknown-agent", 404, 40035);
    assert!(refused.text().contains("withdrew its authorisation"), "{}", refused.text());
    let other = get(&proxy, "all", &format!("/crm-none{USER_GET}")).await;
    assert!(!other.text().contains("withdrew"), "{}", other.text());
    assert_eq!(call(&proxy).await, (404, 404));
    assert_eq!(call_with(&proxy, &before).await, 40014);

    // Neither a reload nor a restart brings it back.
    proxy.app.reload().expect("a valid file");
    assert_eq!(call(&proxy).await, (404, 404));
    let proxy = proxy.restart().await;
    receive_ticket(&proxy, "crm").await;
    assert_eq!(call(&proxy).await, (404, 404));
    assert_eq!(call_with(&proxy, &before).await, 40014);

    authorize(&proxy, "isv", "crm", "wpAlpha_1").await;
    assert_eq!(call(&proxy).await, (200, 200));
    assert_eq!(call_with(&proxy, &before).await, 42001, "passes from before stay void");
    let after = pass(&proxy).await;
    assert_eq!(call_with(&proxy, &after).await, 0);
    let proxy = proxy.restart().await;
    receive_ticket(&proxy, "crm").await;
    assert_eq!(call(&proxy).await, (200, 200));
    assert_eq!((call_with(&proxy, &after).await, call_with(&proxy, &before).await), (0, 42001));
}

#[tokio::test]
async fn another_code_in_the_file_ends_a_cancellation() {
    let proxy = start().await;
    let before = pass(&proxy).await;
    assert_eq!(call_with(&proxy, &before).await, 0);
    push_command(&proxy, CANCEL).await;
    assert_eq!(call(&proxy).await, (404, 404));
    let code = proxy.wecom.add_authorized_corp("crm", "wpAlpha_1").expect("a suite");
    set_code(&proxy, &code);
    assert_eq!(call(&proxy).await, (200, 200));
    assert_eq!(call_with(&proxy, &before).await, 42001, "passes from before stay void");
    let after = pass(&proxy).await;
    assert_eq!(call_with(&proxy, &after).await, 0);
    // Another change of the file, without a cancellation, voids no pass.
    set_code(&proxy, &proxy.wecom.add_authorized_corp("crm", "wpAlpha_1").expect("a suite"));
    assert_eq!((call_with(&proxy, &before).await, call_with(&proxy, &after).await), (42001, 0));
}

#[tokio::test]
async fn passes_under_pass_key_from_before_a_cancellation_stay_void() {
    let pass_key = "[tokens]\npass_key = \"the-pass-key-of-all-replicas-0123456789\"\n";
    let proxy = start_with(&format!("{pass_key}{SUITES}")).await;
    let before = pass(&proxy).await;
    assert_eq!(call_with(&proxy, &before).await, 0);
    push_command(&proxy, CANCEL).await;
    assert_eq!(call(&proxy).await, (404, 404));
    let proxy = proxy.restart().await;
    receive_ticket(&proxy, "crm").await;
    let new_code = || proxy.wecom.add_authorized_corp("crm", "wpAlpha_1").expect("a suite");
    set_code(&proxy, &new_code());
    assert_eq!(call(&proxy).await, (200, 200));
    assert_eq!(call_with(&proxy, &before).await, 42001, "passes from before stay void");
    let after = pass(&proxy).await;
    assert_eq!(call_with(&proxy, &after).await, 0);

    let proxy = proxy.restart().await;
    receive_ticket(&proxy, "crm").await;
    assert_eq!((call_with(&proxy, &before).await, call_with(&proxy, &after).await), (42001, 0));
    // Neither another code nor a second authorisation changes that.
    set_code(&proxy, &proxy.wecom.add_authorized_corp("crm", "wpAlpha_1").expect("a suite"));
    assert_eq!((call_with(&proxy, &before).await, call_with(&proxy, &after).await), (42001, 0));
    push_command(&proxy, CANCEL).await;
    authorize(&proxy, "isv", "crm", "wpAlpha_1").await;
    assert_eq!((call_with(&proxy, &before).await, call_with(&proxy, &after).await), (42001, 42001));
    let last = pass(&proxy).await;
    set_code(&proxy, &proxy.wecom.add_authorized_corp("crm", "wpAlpha_1").expect("a suite"));
    assert_eq!((call_with(&proxy, &after).await, call_with(&proxy, &last).await), (42001, 0));
    let proxy = proxy.restart().await;
    receive_ticket(&proxy, "crm").await;
    assert_eq!((call_with(&proxy, &after).await, call_with(&proxy, &last).await), (42001, 0));
}

#[tokio::test]
async fn code_of_a_reset_is_newer_than_that_of_the_file() {
    let proxy = start().await;
    let before = pass(&proxy).await;
    let code = proxy.wecom.authorize_corp("crm", "wpAlpha_1").expect("a suite");
    push_auth_code(&proxy, "reset_permanent_code", &code).await;
    let redeemed = async || proxy.wecom.executed_count("/cgi-bin/service/v2/get_permanent_code") == 1;
    wait_for("the new code", redeemed).await;
    // The token of the code before is void at WeCom.
    wait_for("the new code in force", async || call(&proxy).await == (200, 200)).await;
    let fetched = proxy.wecom.observe(|seen| seen.received_count("/cgi-bin/service/get_corp_token"));
    assert!(fetched >= 2, "{fetched}");
    assert_eq!(call_with(&proxy, &before).await, 0, "a reset voids no pass");
    let shown = super::agent(&proxy, "crm-acme");
    assert_eq!((shown.name.as_str(), shown.settings.agentid), ("crm-acme", Some(7)));

    proxy.app.reload().expect("a valid file");
    assert_eq!(call(&proxy).await, (200, 200));
    let proxy = proxy.restart().await;
    receive_ticket(&proxy, "crm").await;
    assert_eq!(call(&proxy).await, (200, 200));

    // Another value of the file is newer still.
    let code = proxy.wecom.add_authorized_corp("crm", "wpAlpha_1").expect("a suite");
    set_code(&proxy, &code);
    assert_eq!(call(&proxy).await, (200, 200));
    set_code(&proxy, "a-code-of-the-file-that-is-wrong");
    assert_eq!(call(&proxy).await, (502, 502));
}

#[tokio::test]
async fn corp_that_was_in_the_state_first_has_the_code_of_the_file() {
    let proxy = start_without_ticket(SUITES).await;
    receive_ticket(&proxy, "crm").await;
    authorize(&proxy, "isv", "crm", "wpAlpha_1").await;
    let code = proxy.wecom.add_authorized_corp("crm", "wpAlpha_1").expect("a suite");
    set_code(&proxy, &code);
    assert_eq!(call(&proxy).await, (200, 200));
}

#[tokio::test]
async fn operators_see_which_corps_are_gone_and_which_are_refused() {
    let proxy = start().await;
    authorize(&proxy, "isv", "crm", "wpBeta_2").await;
    proxy.wecom.add_authorized_corp("crm", "wpBeta_2").expect("a suite");
    get(&proxy, "isv", &format!("/crm:wpBeta_2{USER_GET}")).await.assert_proxy_error(
        "token-unavailable",
        502,
        40084,
    );
    push_command(&proxy, CANCEL).await;

    let list = async |path: &str| json_of(&admin_get(&proxy, path).await);
    let names = |page: &Value, key: &str| -> Vec<String> {
        let rows = page[key].as_array().unwrap_or_else(|| panic!("{page}")).iter();
        rows.map(|row| row["name"].as_str().expect("a name").to_owned()).collect()
    };
    for query in ["failing=1", "failing", "failing=1&sort=trouble"] {
        let mut found = names(&list(&format!("/api/agents?{query}")).await, "agents");
        found.sort();
        assert_eq!(found, ["crm-acme", "crm:wpBeta_2"], "{query}");
    }
    for (query, expected) in [("q=wpbeta", "crm:wpBeta_2"), ("q=crm-ac", "crm-acme")] {
        assert_eq!(names(&list(&format!("/api/agents?{query}")).await, "agents"), [expected], "{query}");
    }
    let page = list("/api/agents?limit=1").await;
    assert_eq!(page["next"], page["agents"][0]["name"]);
    let all = list("/api/agents").await;
    assert!(names(&all, "agents").is_sorted() && names(&all, "agents").contains(&"crm:wpBeta_2".to_owned()));
    assert_eq!(all["total"], names(&all, "agents").len());
    // A corp that counts as its suite has no numbers of its own, and not those of the suite.
    let rows = all["agents"].as_array().expect("rows");
    let beta = rows.iter().find(|row| row["name"] == "crm:wpBeta_2").expect("the corp");
    assert_eq!(beta["hour"], Value::Null, "{beta}");

    let corps = list("/api/suites/crm/corps").await;
    assert_eq!(names(&corps, "corps"), ["crm-acme", "crm:wpBeta_2"]);
    let gone = &corps["corps"][0];
    assert_eq!(gone["cancelled"], true);
    let what_to_do = gone["failing"].as_str().expect("a text");
    assert!(what_to_do.contains("cancel_auth") && what_to_do.contains("proxy.toml:"), "{what_to_do}");
    let suite = &list("/api/suites").await["suites"][0];
    assert_eq!((&suite["corps"], &suite["corps_cancelled"]), (&1.into(), &1.into()), "{suite}");

    let ready = admin_get(&proxy, "/readyz").await;
    let health = json_of(&ready);
    assert_eq!((ready.status.as_u16(), &health["status"]), (200, &"ok, but some agents fail".into()));
    let failing = &health["agents"]["failing"];
    assert!(failing["crm:wpBeta_2"].as_str().is_some_and(|text| text.contains("40084")), "{health}");
    assert!(failing["crm-acme"].as_str().is_some_and(|text| text.contains("cancel_auth")), "{health}");
    assert_eq!(health["corps"], json!({ "total": 2, "failing": 2 }));
    assert_eq!(health["trouble"]["crm:wpBeta_2"]["reasons"][0], "40084", "{health}");
    let shown = admin_get(&proxy, "/api/agents/crm-acme").await;
    assert!(shown.status == 404 && shown.text().contains("cancel_auth"), "{}", shown.text());
    let unknown = admin_get(&proxy, "/api/nothing").await;
    assert!(unknown.text().contains("/api/suites/NAME/corps"), "{}", unknown.text());
}
