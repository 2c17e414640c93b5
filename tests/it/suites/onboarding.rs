//! What WeCom pushes to a suite's URLs, and installations by redirect.

use http::StatusCode;

use super::{
    PROVIDER_ID, SUITE_ID, SUITES, console, errcode_of, get, get_keyless, json_of, push_auth_code,
    push_command, push_ticket, push_to, start, start_without_ticket,
};
use crate::harness::{USER_GET, admin_get, callback_target::CallbackTarget, leak_detector, wait_for};

#[tokio::test]
async fn pushed_ticket_is_used_and_targets_get_a_stand_in() {
    let receiver = CallbackTarget::start().await;
    let target = format!("[[suites.crm.to]]\nname = \"app\"\nurl = \"http://{}/\"\n", receiver.address);
    let proxy = start_without_ticket(&format!("{SUITES}{target}")).await;
    let ticket = push_ticket(&proxy).await;
    leak_detector::add_secret(&ticket);
    assert_eq!(errcode_of(&get(&proxy, "isv", "/crm/cgi-bin/service/get_pre_auth_code").await), 0);
    let delivery = &receiver.wait_for(1).await[0];
    assert_eq!(delivery.header("x-wecom-event"), "suite_ticket");
    assert!(!delivery.text().contains(&ticket) && delivery.text().contains("<SuiteTicket><![CDATA[wpt1-"));
    let metrics = admin_get(&proxy, "/metrics").await;
    let line = metrics.text().lines().find(|line| line.starts_with("wecom_proxy_suite_ticket_age_seconds{"));
    assert!(line.is_some_and(|line| line.contains("suite=\"crm\"")), "{line:?}");
}

#[tokio::test]
async fn corp_comes_by_create_auth_is_reset_and_goes_by_cancel_auth() {
    let proxy = start().await;
    let call = format!("/crm:wpAlpha_1{USER_GET}");
    for info_type in ["create_auth", "reset_permanent_code"] {
        let before = proxy.wecom.permanent_code("crm", "wpAlpha_1");
        let code = proxy.wecom.authorize_corp("crm", "wpAlpha_1").unwrap();
        push_auth_code(&proxy, info_type, &code).await;
        let redeemed = async || {
            let known = proxy.wecom.permanent_code("crm", "wpAlpha_1");
            let known = known.filter(|known| before.as_ref() != Some(known));
            let corp = proxy.app.directory().find_agent("crm:wpAlpha_1");
            corp.zip(known)
                .is_some_and(|(corp, known)| corp.token.entries()[0].credentials().secret.expose() == known)
        };
        wait_for("the permanent code", redeemed).await;
        assert_eq!(errcode_of(&get(&proxy, "isv", &call).await), 0, "{info_type}");
    }
    push_command(
        &proxy,
        "<InfoType><![CDATA[cancel_auth]]></InfoType><AuthCorpId><![CDATA[wpAlpha_1]]></AuthCorpId>",
    )
    .await;
    get(&proxy, "isv", &call).await.assert_proxy_error("unknown-agent", 404, 40035);
}

#[tokio::test]
async fn auth_code_of_an_event_is_redeemed_once_and_answers_the_program_too() {
    let proxy = start().await;
    let code = proxy.wecom.authorize_corp("crm", "wpAlpha_1").unwrap();
    push_auth_code(&proxy, "create_auth", &code).await;
    let body = serde_json::json!({ "auth_code": code });
    let response = super::post(&proxy, "isv", "/crm/cgi-bin/service/get_permanent_code", body).await;
    let json = json_of(&response);
    assert_eq!(
        (json["errcode"].clone(), json["auth_corp_info"]["corpid"].clone()),
        (0.into(), "wpAlpha_1".into())
    );
    assert!(json["access_token"].as_str().is_some_and(|pass| pass.starts_with("wp1-")), "{json}");
    let executed = |path: &str| proxy.wecom.executed_count(&format!("/cgi-bin/service/{path}"));
    assert_eq!(executed("get_permanent_code") + executed("v2/get_permanent_code"), 1);
}

#[tokio::test]
async fn urls_take_their_receiveids_only() {
    let proxy = start().await;
    let data = "/callbacks/crm/data";
    let message = "<xml><MsgType><![CDATA[text]]></MsgType></xml>";
    assert_eq!(push_to(&proxy, data, "wpUnknown_1", message).await.status, StatusCode::OK);
    let command = push_to(&proxy, "/callbacks/crm", "wpUnknown_1", message).await;
    assert_eq!(command.status, StatusCode::FORBIDDEN);
    for path in ["/callbacks/crm", data] {
        for (receive_id, status) in [(PROVIDER_ID, 200), (SUITE_ID, 403)] {
            let query = console(&proxy, path, receive_id).verification_query("echo");
            let response = get_keyless(&proxy, &format!("{path}?{query}")).await;
            assert_eq!(response.status.as_u16(), status, "{path} {receive_id}");
        }
    }
    let metrics = admin_get(&proxy, "/metrics").await;
    let sample = r#"wecom_proxy_callbacks_total{callback="crm.data",result="unknown-corp"} 1"#;
    assert!(metrics.text().contains(sample), "{}", metrics.text());
}

#[tokio::test]
async fn installation_by_redirect_needs_the_state_of_a_link() {
    let config = SUITES.replace(
        "provider = \"acme\"\n",
        "provider = \"acme\"\nafter_install = \"https://crm.example.com/welcome?a=1\"\n",
    );
    let proxy = start_without_ticket(&config).await;
    push_ticket(&proxy).await;
    let link =
        "/api/suites/crm/install-link?redirect_uri=https%3A%2F%2Fcrm.example.com%2Fx&state=own-State.1";
    let link = json_of(&admin_get(&proxy, link).await)["url"].as_str().unwrap().to_owned();
    assert!(link.starts_with(
        "https://open.work.weixin.qq.com/3rdapp/install?suite_id=ww5u1te00000000001&pre_auth_code="
    ));
    let state = link.rsplit_once("&state=").unwrap().1.to_owned();
    assert!(state.len() <= 128 && state.bytes().all(|byte| byte.is_ascii_alphanumeric()), "{state}");

    let code = proxy.wecom.authorize_corp("crm", "wpAlpha_1").unwrap();
    let target =
        |state: &str| format!("/callbacks/crm/authorized?auth_code={code}&expires_in=600&state={state}");
    let asked = || proxy.wecom.observe(|seen| seen.received_count("/cgi-bin/service/v2/get_permanent_code"));
    let forged = format!("{}a", &state[..state.len() - 1]);
    for wrong in ["", "x", &forged, &state.to_uppercase()] {
        if wrong != state {
            let response = get_keyless(&proxy, &target(wrong)).await;
            assert_eq!((response.status.as_u16(), asked()), (403, 0), "{wrong}");
        }
    }
    let other_suite = target(&state).replace("/crm/", "/custom/");
    assert_eq!((get_keyless(&proxy, &other_suite).await.status.as_u16(), asked()), (403, 0));

    let response = get_keyless(&proxy, &target(&state)).await;
    assert_eq!(response.status, StatusCode::FOUND, "{}", response.text());
    let location = response.header("location");
    assert_eq!(location, "https://crm.example.com/welcome?a=1&corpid=wpAlpha%5F1&state=own%2DState%2E1");
    assert!(!response.text().contains(&code));
    assert_eq!(errcode_of(&get(&proxy, "isv", &format!("/crm:wpAlpha_1{USER_GET}")).await), 0);
    assert_eq!((get_keyless(&proxy, &target(&state)).await.status.as_u16(), asked()), (403, 1), "only once");
    let last = async || get_keyless(&proxy, &target("x")).await.status.as_u16();
    for _ in 0..40 {
        if last().await == 429 {
            break;
        }
    }
    assert_eq!(last().await, 429);
}
