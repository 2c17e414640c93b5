//! Forwarding: the token that a path wants, under its parameter, and what a refusal renews.

use std::sync::Arc;

use serde_json::json;

use super::{authorize, errcode_of, get, post, receive_ticket, start, start_without_ticket};
use crate::harness::{TestProxy, USER_GET};

const PRE_AUTH: &str = "/crm/cgi-bin/service/get_pre_auth_code";

/// The query of the last request for a path, as the simulator recorded it.
fn last_query(proxy: &TestProxy, path: &str) -> String {
    proxy.last_request(path).query
}

#[tokio::test]
async fn each_path_gets_its_token_under_its_parameter() {
    let proxy = start().await;
    for (path, param) in [
        ("/crm/cgi-bin/service/get_pre_auth_code", "suite_access_token"),
        ("/crm/cgi-bin/service/set_session_info", "suite_access_token"),
        ("/crm/cgi-bin/idconvert/upgrade_chatid_for_new_corp", "suite_access_token"),
        ("/crm/cgi-bin/service/something_new", "suite_access_token"),
        ("/crm/cgi-bin/service/contact/search", "provider_access_token"),
        ("/acme/cgi-bin/service/contact/search", "provider_access_token"),
        ("/acme/cgi-bin/service/get_login_info", "access_token"),
        ("/acme/cgi-bin/license/list_order", "provider_access_token"),
        ("/acme/cgi-bin/advanced_api/list", "provider_access_token"),
        ("/acme/cgi-bin/paytool/get_order_list", "provider_access_token"),
        ("/acme/cgi-bin/hardware/get_device_feature", "provider_access_token"),
    ] {
        let response = get(&proxy, "isv", &format!("{path}?a=1&{param}=stale")).await;
        assert_eq!(
            (response.status.as_u16(), errcode_of(&response)),
            (200, 0),
            "{path}: {}",
            response.text()
        );
        let upstream_path = path.split_once("/cgi-bin").map(|(_, rest)| format!("/cgi-bin{rest}")).unwrap();
        let query = last_query(&proxy, &upstream_path);
        assert!(
            query.starts_with(&format!("a=1&{param}=token#")) && query.matches("token=").count() == 1,
            "{query}"
        );
    }
}

#[tokio::test]
async fn ordinary_path_under_a_suite_says_how_to_name_the_corp() {
    let proxy = start().await;
    for name in ["crm", "acme"] {
        let response = get(&proxy, "isv", &format!("/{name}{USER_GET}")).await;
        response.assert_proxy_error("unknown-agent", 404, 40035);
        assert!(response.text().contains("/SUITE:CORPID/cgi-bin/"), "{}", response.text());
    }
    assert_eq!(proxy.forwarded_count(), 0);
}

#[tokio::test]
async fn providers_path_needs_the_provider_in_the_clients_list() {
    let proxy = start().await;
    let path = "/crm/cgi-bin/service/contact/search";
    get(&proxy, "suite", path).await.assert_proxy_error("unknown-agent", 404, 40035);
    let other = get(&proxy, "isv", "/custom/cgi-bin/service/contact/search").await;
    other.assert_proxy_error("unknown-agent", 404, 40035);
    let suites_path = get(&proxy, "isv", "/acme/cgi-bin/service/get_pre_auth_code").await;
    suites_path.assert_proxy_error("unknown-agent", 404, 40035);
    assert_eq!(errcode_of(&get(&proxy, "isv", path).await), 0);
}

#[tokio::test]
async fn clients_reach_only_what_they_list() {
    let proxy = start().await;
    for corpid in ["wpAlpha_1", "wpBeta_2"] {
        assert_eq!(errcode_of(&authorize(&proxy, "isv", "crm", corpid).await), 0);
    }
    for (client, alpha, beta, suite) in [
        ("isv", true, true, true),
        ("corps", true, true, false),
        ("one", true, false, false),
        ("all", true, true, false),
        ("suite", true, true, true),
    ] {
        for (path, allowed) in [
            (format!("/crm:wpAlpha_1{USER_GET}"), alpha),
            (format!("/crm:wpBeta_2{USER_GET}"), beta),
            (format!("/crm:wpalpha_1{USER_GET}"), false),
        ] {
            let response = get(&proxy, client, &path).await;
            assert_eq!(response.status == 200, allowed, "{client} {path}: {}", response.text());
        }
        // Without the right to the suite, its path is one with a credential of its own.
        let response = get(&proxy, client, PRE_AUTH).await;
        assert_eq!(response.header("x-wecom-agent") == "crm", suite, "{client}: {}", response.text());
    }
}

#[tokio::test]
async fn refusal_renews_the_token_that_was_sent() {
    let proxy = start().await;
    assert_eq!(errcode_of(&authorize(&proxy, "isv", "crm", "wpAlpha_1").await), 0);
    let corp = format!("/crm:wpAlpha_1{USER_GET}");
    let provider = "/acme/cgi-bin/license/list_order".to_owned();
    for (path, owner, expired) in
        [(PRE_AUTH.to_owned(), "crm", 42009), (provider, "acme", 42001), (corp, "crm:wpAlpha_1", 42001)]
    {
        assert_eq!(errcode_of(&get(&proxy, "isv", &path).await), 0, "{path}");
        let before = proxy.wecom.gettoken_count(owner).unwrap();
        proxy.wecom.expire_tokens(owner).unwrap();
        let retried = get(&proxy, "isv", &path).await;
        assert_eq!(
            (errcode_of(&retried), retried.header("x-wecom-retried")),
            (0, &*expired.to_string()),
            "{path}"
        );
        assert_eq!(proxy.wecom.gettoken_count(owner).unwrap(), before + 1, "{path}");
    }
}

#[tokio::test]
async fn stale_suite_token_is_renewed_once_for_all_corps() {
    let proxy = Arc::new(start().await);
    for nth in 0..20 {
        let code = proxy.wecom.authorize_corp("crm", &format!("wpCorp_{nth}")).unwrap();
        let body = json!({ "auth_code": code });
        let response = post(&proxy, "isv", "/crm/cgi-bin/service/v2/get_permanent_code", body).await;
        assert_eq!(errcode_of(&response), 0, "{}", response.text());
    }
    assert_eq!(proxy.wecom.gettoken_count("crm").unwrap(), 1);
    proxy.wecom.revoke_tokens("crm").unwrap();
    let calls = (0..20).map(|nth| {
        let proxy = proxy.clone();
        tokio::spawn(async move { get(&proxy, "isv", &format!("/crm:wpCorp_{nth}{USER_GET}")).await })
    });
    for call in calls.collect::<Vec<_>>() {
        let response = call.await.expect("no panic");
        assert_eq!((response.status.as_u16(), errcode_of(&response)), (200, 0), "{}", response.text());
    }
    assert_eq!(proxy.wecom.gettoken_count("crm").unwrap(), 2, "one renewal for all corps");
    for nth in 0..20 {
        assert_eq!(proxy.wecom.gettoken_count(&format!("crm:wpCorp_{nth}")).unwrap(), 1);
    }
}

#[tokio::test]
async fn missing_ticket_is_named_and_its_push_ends_the_wait() {
    let proxy = start_without_ticket(super::SUITES).await;
    let response = get(&proxy, "isv", PRE_AUTH).await;
    response.assert_proxy_error("token-unavailable", 502, -1);
    assert!(response.text().contains("suite_ticket"), "{}", response.text());
    let ready = crate::harness::admin_get(&proxy, "/readyz").await;
    assert_eq!(
        (ready.status.as_u16(), super::json_of(&ready)["degraded"].clone()),
        (200, json!(["crm", "custom"]))
    );
    receive_ticket(&proxy, "crm").await;
    assert_eq!(errcode_of(&get(&proxy, "isv", PRE_AUTH).await), 0);
    let ready = crate::harness::admin_get(&proxy, "/readyz").await;
    assert_eq!(super::json_of(&ready)["degraded"], json!(["custom"]));
}

#[tokio::test]
async fn wrong_ticket_waits_for_the_next_push() {
    let proxy = start().await;
    proxy.wecom.expire_tickets("crm").unwrap();
    for _ in 0..3 {
        let response = get(&proxy, "isv", PRE_AUTH).await;
        response.assert_proxy_error("token-unavailable", 502, 40085);
        assert!(response.text().contains("ticket"), "{}", response.text());
    }
    assert_eq!(proxy.wecom.gettoken_count("crm").unwrap(), 1, "asking again is useless");
    receive_ticket(&proxy, "crm").await;
    assert_eq!(errcode_of(&get(&proxy, "isv", PRE_AUTH).await), 0);
}

#[tokio::test]
async fn service_path_without_a_suite_stays_plain() {
    let proxy = start().await;
    let path = "/cgi-bin/service/echo?suite_access_token=own";
    for prefix in ["", "/hr"] {
        let client = if prefix.is_empty() { "isv" } else { "all" };
        let response = get(&proxy, client, &format!("{prefix}{path}")).await;
        assert_eq!(response.status, 200, "{}", response.text());
        assert_eq!(last_query(&proxy, "/cgi-bin/service/echo"), "suite_access_token=token#?");
    }
}
