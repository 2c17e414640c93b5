//! Authorised corps: they come by a permanent code, and go when they cancel.

use serde_json::json;

use super::{agent, authorize, errcode_of, get, json_of, post, start};
use wecom_proxy::app::{PreparedConfig, StartOptions};

use crate::harness::{USER_GET, leak_detector};

#[tokio::test]
async fn permanent_code_stays_here_and_a_stand_in_goes_out() {
    let proxy = start().await;
    let response = authorize(&proxy, "isv", "crm", "wpAlpha_1").await;
    let json = json_of(&response);
    let stand_in = json["permanent_code"].as_str().unwrap().to_owned();
    assert!(stand_in.starts_with("wps1-"), "{json}");
    assert_eq!(json["auth_corp_info"]["corpid"], "wpAlpha_1");
    assert_eq!(errcode_of(&get(&proxy, "isv", &format!("/crm:wpAlpha_1{USER_GET}")).await), 0);

    let path = "/crm/cgi-bin/service/v2/get_auth_info";
    let body = |corpid: &str, code: &str| json!({ "auth_corpid": corpid, "permanent_code": code });
    assert_eq!(errcode_of(&post(&proxy, "isv", path, body("wpAlpha_1", &stand_in)).await), 0);
    for (client, corpid, code) in [
        ("suite", "wpAlpha_1", stand_in.clone()),
        ("isv", "wpOther_1", stand_in.clone()),
        ("isv", "wpAlpha_1", format!("{stand_in}0")),
    ] {
        let response = post(&proxy, client, path, body(corpid, &code)).await;
        assert_eq!((response.status.as_u16(), errcode_of(&response)), (200, 40084), "{client} {corpid}");
    }
    // A code that is no stand-in passes as it came.
    let real = proxy.wecom.permanent_code("crm", "wpAlpha_1").unwrap();
    assert_eq!(errcode_of(&post(&proxy, "isv", path, body("wpAlpha_1", &real)).await), 0);
}

#[tokio::test]
async fn first_version_of_the_call_has_a_pass_as_its_token() {
    let proxy = start().await;
    let code = proxy.wecom.authorize_corp("crm", "wpAlpha_1").unwrap();
    let body = json!({ "auth_code": code });
    let path = "/crm/cgi-bin/service/get_permanent_code";
    let json = json_of(&post(&proxy, "isv", path, body.clone()).await);
    let pass = json["access_token"].as_str().unwrap();
    assert!(pass.starts_with("wp1-") && json["expires_in"] == 7200, "{json}");
    let response = super::get_keyless(&proxy, &format!("{USER_GET}&access_token={pass}")).await;
    assert_eq!((errcode_of(&response), response.header("x-wecom-agent")), (0, "crm:wpAlpha_1"));
    // The same auth_code again: what was kept answers, WeCom is not asked.
    let again = json_of(&post(&proxy, "isv", path, body).await);
    assert_eq!(again["errcode"], 0);
    assert_eq!(proxy.wecom.executed_count("/cgi-bin/service/get_permanent_code"), 1);
}

#[tokio::test]
async fn wrong_auth_code_gets_wecoms_answer() {
    let proxy = start().await;
    let response =
        post(&proxy, "isv", "/crm/cgi-bin/service/v2/get_permanent_code", json!({ "auth_code": "no" })).await;
    assert_eq!((response.status.as_u16(), errcode_of(&response)), (200, 40078));
}

#[tokio::test]
async fn cancelled_corp_is_gone_and_its_passes_are_void() {
    let proxy = start().await;
    authorize(&proxy, "isv", "crm", "wpAlpha_1").await;
    let pass = super::corp_pass(&proxy, "crm", "wpAlpha_1").await;
    let target = format!("{USER_GET}&access_token={pass}");
    assert_eq!(errcode_of(&super::get_keyless(&proxy, &target).await), 0);
    let suite = agent(&proxy, "crm");
    proxy.app.suites().cancel(suite.suite().unwrap(), "wpAlpha_1").await.expect("durable");
    get(&proxy, "isv", &format!("/crm:wpAlpha_1{USER_GET}")).await.assert_proxy_error(
        "unknown-agent",
        404,
        40035,
    );
    assert_eq!(errcode_of(&super::get_keyless(&proxy, &target).await), 40014);
    // Authorised again, the pass from before stays void.
    authorize(&proxy, "isv", "crm", "wpAlpha_1").await;
    assert_eq!(errcode_of(&super::get_keyless(&proxy, &target).await), 42001);
}

#[tokio::test]
async fn reset_code_keeps_passes_and_withdrawn_authorisation_is_named() {
    let proxy = start().await;
    authorize(&proxy, "isv", "crm", "wpAlpha_1").await;
    let pass = super::corp_pass(&proxy, "crm", "wpAlpha_1").await;
    let target = format!("{USER_GET}&access_token={pass}");
    // WeCom has another code now: the old one is refused, until the reset is redeemed.
    proxy.wecom.add_authorized_corp("crm", "wpAlpha_1").unwrap();
    let refused = super::get_keyless(&proxy, &target).await;
    refused.assert_proxy_error("token-unavailable", 502, 40084);
    let count = proxy.wecom.observe(|seen| seen.received_count("/cgi-bin/service/get_corp_token"));
    super::get_keyless(&proxy, &target).await.assert_proxy_error("token-unavailable", 502, 40084);
    assert_eq!(proxy.wecom.observe(|seen| seen.received_count("/cgi-bin/service/get_corp_token")), count);
    authorize(&proxy, "isv", "crm", "wpAlpha_1").await;
    assert_eq!(errcode_of(&super::get_keyless(&proxy, &target).await), 0);
}

#[tokio::test]
async fn corps_and_tickets_outlive_the_process() {
    let proxy = start().await;
    authorize(&proxy, "isv", "crm", "wpAlpha_1").await;
    let path = proxy.dir.path().join("proxy.toml");
    let config = wecom_proxy::config::load(&path).expect("a configuration");
    let (second, _leaks) = {
        let prepared = PreparedConfig::new(config).expect("usable");
        leak_detector::start_proxy(&path, prepared, StartOptions::default())
    };
    let agent = second.directory().find_agent("crm:wpAlpha_1").expect("the corp");
    agent
        .token
        .current_or_fetch()
        .await
        .expect("a token, with the ticket and the permanent code of the state");
}
