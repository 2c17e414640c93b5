//! ISV programs unchanged: passes in place of the tokens of provider, suite and corp.

use serde_json::{Value, json};

use super::{PROVIDER_ID, SUITE_ID, authorize, errcode_of, get_keyless, json_of, post, post_keyless, start};
use crate::harness::{TestProxy, USER_GET, client_key};

fn suite_body(suite_id: &str, secret: &str) -> Value {
    json!({ "suite_id": suite_id, "suite_secret": secret, "suite_ticket": "any" })
}

async fn suite_pass(proxy: &TestProxy) -> String {
    let body = suite_body(SUITE_ID, &client_key("isv"));
    let response = post_keyless(proxy, "/cgi-bin/service/get_suite_token", body).await;
    let rest = response.text().strip_prefix(r#"{"errcode":0,"errmsg":"ok","suite_access_token":""#);
    let pass = rest.and_then(|rest| rest.strip_suffix(r#"","expires_in":7200}"#));
    pass.unwrap_or_else(|| panic!("{}", response.text())).to_owned()
}

async fn provider_pass(proxy: &TestProxy) -> String {
    let body = json!({ "corpid": PROVIDER_ID, "provider_secret": client_key("isv") });
    let response = post_keyless(proxy, "/cgi-bin/service/get_provider_token", body).await;
    let rest = response.text().strip_prefix(r#"{"provider_access_token":""#);
    let pass = rest.and_then(|rest| rest.strip_suffix(r#"","expires_in":7200}"#));
    pass.unwrap_or_else(|| panic!("{}", response.text())).to_owned()
}

#[tokio::test]
async fn isv_program_works_with_passes_from_start_to_end() {
    let proxy = start().await;
    let (suite, provider) = (suite_pass(&proxy).await, provider_pass(&proxy).await);
    let code = proxy.wecom.authorize_corp("crm", "wpAlpha_1").unwrap();
    let path = format!("/cgi-bin/service/v2/get_permanent_code?suite_access_token={suite}");
    let json = json_of(&post_keyless(&proxy, &path, json!({ "auth_code": code })).await);
    let stand_in = json["permanent_code"].as_str().unwrap().to_owned();
    let path = format!("/cgi-bin/service/get_corp_token?suite_access_token={suite}");
    let body = json!({ "auth_corpid": "wpAlpha_1", "permanent_code": stand_in });
    let response = post_keyless(&proxy, &path, body).await;
    let corp = json_of(&response)["access_token"].as_str().unwrap().to_owned();
    assert!(response.text().starts_with(r#"{"errcode":0,"errmsg":"ok","access_token":"wp1-"#));
    assert_eq!(errcode_of(&get_keyless(&proxy, &format!("{USER_GET}&access_token={corp}")).await), 0);
    let path = format!("/cgi-bin/service/get_pre_auth_code?suite_access_token={suite}");
    assert_eq!(errcode_of(&get_keyless(&proxy, &path).await), 0);
    for path in [
        format!("/cgi-bin/license/list_order?provider_access_token={provider}"),
        format!("/cgi-bin/service/get_login_info?access_token={provider}"),
        format!("/cgi-bin/service/get_login_info?provider_access_token={provider}"),
    ] {
        assert_eq!(errcode_of(&post_keyless(&proxy, &path, json!({})).await), 0, "{path}");
    }
    let sent = proxy.last_request("/cgi-bin/service/get_login_info").query;
    assert!(sent.starts_with("access_token=token#"), "{sent}");
}

#[tokio::test]
async fn pass_is_good_in_its_own_parameter_only() {
    let proxy = start().await;
    authorize(&proxy, "isv", "crm", "wpAlpha_1").await;
    let (suite, provider) = (suite_pass(&proxy).await, provider_pass(&proxy).await);
    let corp = super::corp_pass(&proxy, "crm", "wpAlpha_1").await;
    let before = proxy.forwarded_count();
    for target in [
        format!("{USER_GET}&access_token={suite}"),
        format!("{USER_GET}&access_token={provider}"),
        format!("/cgi-bin/service/get_pre_auth_code?suite_access_token={corp}"),
        format!("/cgi-bin/service/get_pre_auth_code?suite_access_token={provider}"),
        format!("/cgi-bin/service/get_pre_auth_code?access_token={suite}"),
        format!("/cgi-bin/license/list_order?provider_access_token={suite}"),
        format!("/cgi-bin/license/list_order?access_token={provider}"),
        format!("/cgi-bin/service/get_login_info?access_token={suite}"),
        format!("/cgi-bin/webhook/send?key={suite}"),
    ] {
        let response = get_keyless(&proxy, &target).await;
        assert_eq!((response.status.as_u16(), errcode_of(&response)), (200, 40014), "{target}");
    }
    assert_eq!(proxy.forwarded_count(), before, "nothing was sent");
}

#[tokio::test]
async fn wrong_secrets_and_ids_get_wecoms_errcodes() {
    let proxy = start().await;
    let key = client_key("isv");
    for (path, body, errcode) in [
        ("get_suite_token", json!({}), 41021),
        ("get_suite_token", json!({ "suite_id": SUITE_ID }), 41024),
        ("get_suite_token", suite_body(SUITE_ID, "wrong-wrong-wrong"), 40080),
        ("get_suite_token", suite_body("ww0000000000000000", &key), 40083),
        ("get_suite_token", suite_body(SUITE_ID, &client_key("all")), 40083),
        ("get_provider_token", json!({}), 41002),
        ("get_provider_token", json!({ "corpid": PROVIDER_ID, "provider_secret": "wrong-wrong" }), 40001),
        ("get_provider_token", json!({ "corpid": "ww0000000000000000", "provider_secret": key }), 40013),
    ] {
        let response = post_keyless(&proxy, &format!("/cgi-bin/service/{path}"), body).await;
        assert_eq!((response.status.as_u16(), errcode_of(&response)), (200, errcode), "{path} {errcode}");
    }
    let path = "/crm/cgi-bin/service/get_corp_token";
    for (body, errcode) in [
        (json!({}), 41002),
        (json!({ "auth_corpid": "wpAlpha_1" }), 41025),
        (json!({ "auth_corpid": "wpAlpha_1", "permanent_code": "any" }), 40084),
    ] {
        assert_eq!(errcode_of(&post(&proxy, "isv", path, body).await), errcode);
    }
    assert_eq!(proxy.forwarded_count(), 0);
}

#[tokio::test]
async fn customized_app_gets_its_pass_by_gettoken() {
    let proxy = start().await;
    let json = json_of(&authorize(&proxy, "isv", "custom", "wpAlpha_1").await);
    let stand_in = json["permanent_code"].as_str().unwrap().to_owned();
    let gettoken =
        |corpid: &str, secret: &str| format!("/cgi-bin/gettoken?corpid={corpid}&corpsecret={secret}");
    for secret in [stand_in.clone(), client_key("isv")] {
        let response = get_keyless(&proxy, &gettoken("wpAlpha_1", &secret)).await;
        let pass = crate::gettoken::pass_from_response(&response);
        let response = get_keyless(&proxy, &format!("{USER_GET}&access_token={pass}")).await;
        assert_eq!((errcode_of(&response), response.header("x-wecom-agent")), (0, "custom:wpAlpha_1"));
    }
    let real = proxy.wecom.permanent_code("custom", "wpAlpha_1").unwrap();
    for (corpid, secret) in [("wpOther_1", &stand_in), ("wpAlpha_1", &real)] {
        let response = get_keyless(&proxy, &gettoken(corpid, secret)).await;
        assert!([40001, 40013].contains(&errcode_of(&response)), "{}", response.text());
    }
    let path = "/custom/cgi-bin/service/get_corp_token";
    let body = json!({ "auth_corpid": "wpAlpha_1", "permanent_code": stand_in });
    assert_eq!(errcode_of(&post(&proxy, "isv", path, body).await), 48002);
}

#[tokio::test]
async fn sdk_under_the_prefix_of_its_suite_works() {
    let proxy = start().await;
    authorize(&proxy, "isv", "crm", "wpAlpha_1").await;
    let suite = suite_pass(&proxy).await;
    let key = client_key("isv");
    let body = json!({ "corpid": PROVIDER_ID, "provider_secret": key });
    let provider = json_of(&post_keyless(&proxy, "/crm/cgi-bin/service/get_provider_token", body).await);
    let provider = provider["provider_access_token"].as_str().unwrap().to_owned();
    let body = json!({ "auth_corpid": "wpAlpha_1", "permanent_code": "any" });
    let path = format!("/crm/cgi-bin/service/get_corp_token?suite_access_token={suite}");
    let corp = json_of(&post_keyless(&proxy, &path, body).await)["access_token"].as_str().unwrap().to_owned();
    for path in [
        format!(
            "/crm/cgi-bin/service/get_pre_auth_code?suite_access_token={suite}&provider_access_token={provider}"
        ),
        format!("/crm/cgi-bin/service/contact/search?provider_access_token={provider}"),
        format!("/crm/cgi-bin/license/list_order?provider_access_token={provider}"),
        format!("/crm{USER_GET}&access_token={corp}"),
    ] {
        assert_eq!(errcode_of(&get_keyless(&proxy, &path).await), 0, "{path}");
    }
    // Another suite's prefix, and a corp of another suite, disagree.
    for path in [
        format!("/custom/cgi-bin/service/get_pre_auth_code?suite_access_token={suite}"),
        format!("/custom/cgi-bin/service/contact/search?provider_access_token={provider}"),
        format!("/custom{USER_GET}&access_token={corp}"),
        format!("/acme{USER_GET}&access_token={corp}"),
    ] {
        get_keyless(&proxy, &path).await.assert_proxy_error("bad-request", 400, 40035);
    }
}

#[tokio::test]
async fn two_passes_of_one_program_are_told_apart_by_the_path() {
    let proxy = start().await;
    let (suite, provider) = (suite_pass(&proxy).await, provider_pass(&proxy).await);
    for (path, agent) in [("service/get_pre_auth_code", "crm"), ("license/list_order", "acme")] {
        let both = format!("suite_access_token={suite}&provider_access_token={provider}");
        let response = get_keyless(&proxy, &format!("/cgi-bin/{path}?{both}")).await;
        assert_eq!((errcode_of(&response), response.header("x-wecom-agent")), (0, agent));
        let query = proxy.last_request(&format!("/cgi-bin/{path}")).query;
        assert_eq!(query.matches("token=").count(), 1, "{query}");
    }
    // Of two clients, or twice of one kind, nothing is guessed.
    let body = suite_body(SUITE_ID, &client_key("suite"));
    let other = json_of(&post_keyless(&proxy, "/cgi-bin/service/get_suite_token", body).await);
    let other = other["suite_access_token"].as_str().unwrap().to_owned();
    let path = format!(
        "/cgi-bin/service/get_pre_auth_code?suite_access_token={other}&provider_access_token={provider}"
    );
    get_keyless(&proxy, &path).await.assert_proxy_error("bad-request", 400, 40035);
}

#[tokio::test]
async fn gettoken_of_a_corp_with_both_kinds_of_apps_is_the_customized_ones() {
    let proxy = start().await;
    authorize(&proxy, "isv", "crm", "wpAlpha_1").await;
    authorize(&proxy, "isv", "custom", "wpAlpha_1").await;
    for (prefix, agent) in
        [("", "custom:wpAlpha_1"), ("/custom", "custom:wpAlpha_1"), ("/crm", "crm:wpAlpha_1")]
    {
        let path = format!("{prefix}/cgi-bin/gettoken?corpid=wpAlpha_1&corpsecret={}", client_key("isv"));
        let pass = crate::gettoken::pass_from_response(&get_keyless(&proxy, &path).await);
        let response = get_keyless(&proxy, &format!("{USER_GET}&access_token={pass}")).await;
        assert_eq!((errcode_of(&response), response.header("x-wecom-agent")), (0, agent), "{prefix}");
    }
}
