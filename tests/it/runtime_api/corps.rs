//! Authorised corps by the API, as `SUITE:CORPID`.

use super::*;
use crate::suites;

const CORP: &str = "/api/agents/crm:wpAlpha_1";

/// A proxy with suites that have tickets, and an admin key.
async fn start() -> Api {
    let admin = format!("[admin]\nkey_sha256 = \"{}\"", sha256(ADMIN_KEY));
    let toml = suites::SUITES.replace("[admin]", &admin);
    let api = Api { proxy: suites::start_without_ticket(&toml).await };
    suites::receive_ticket(&api.proxy, "crm").await;
    api
}

async fn call_corp(api: &Api) -> TestResponse {
    suites::get(&api.proxy, "isv", &format!("/crm:wpAlpha_1{USER_GET}")).await
}

#[tokio::test]
async fn authorised_corp_is_shown_put_back_changed_and_carried_over() {
    let api = start().await;
    api.call("GET", CORP, Value::Null).await.assert_status(404);
    suites::authorize(&api.proxy, "isv", "crm", "wpAlpha_1").await.assert_ok();
    let shown = api.call("GET", CORP, Value::Null).await;
    let expected = json!({
        "suite": "crm", "corpid": "wpAlpha_1", "permanent_code": { "set": true }, "origin": "state",
    });
    assert_eq!(shown.assert_status(200).json(), expected);
    let tag = shown.header("etag").to_owned();
    call_corp(&api).await.assert_ok();
    let pass = suites::corp_pass(&api.proxy, "crm", "wpAlpha_1").await;
    let with_pass = || {
        let target = format!("/cgi-bin/user/get?userid=zhangsan&access_token={pass}");
        api.proxy.request(Request::get(target), "")
    };
    with_pass().await.assert_ok();

    let put = api.call_with("PUT", CORP, &[("if-match", &*tag)], expected.clone()).await;
    assert_eq!(put.assert_status(200).json(), expected);
    api.call_with("PUT", CORP, &[("if-match", &*tag)], expected.clone()).await.assert_status(412);
    let patched = api.call("PATCH", CORP, json!({ "agentid": 1_000_009 })).await;
    assert_eq!(patched.assert_status(200).json()["agentid"], 1_000_009);
    with_pass().await.assert_ok();

    api.call("DELETE", &format!("{CORP}?dry_run=1"), Value::Null).await.assert_status(200);
    api.call("DELETE", CORP, Value::Null).await.assert_status(204);
    api.call("DELETE", CORP, Value::Null).await.assert_status(404);
    call_corp(&api).await.assert_proxy_error("unknown-agent", 404, 40035);
    assert_eq!(with_pass().await.errcode(), 40014);
    // A corp that was authorised elsewhere is put with its code.
    let code = api.proxy.wecom.permanent_code("crm", "wpAlpha_1").expect("an authorised corp");
    let table = json!({ "suite": "crm", "corpid": "wpAlpha_1", "permanent_code": code });
    let dry = format!("{CORP}?dry_run=1");
    assert_eq!(api.call("PUT", &dry, table.clone()).await.assert_status(200).json()["status"], 201);
    let created = api.call("PUT", "/api/agents/crm%3AwpAlpha_1", table).await;
    assert_eq!(created.assert_status(201).json(), expected);
    assert_eq!(created.header("location"), CORP);
    assert!(!created.text().contains(&code));
    call_corp(&api).await.assert_ok();
    assert_eq!(with_pass().await.errcode(), 42001, "passes before the deletion stay void");
}

#[tokio::test]
async fn mistakes_of_corps_are_refused_with_key_and_reason() {
    let api = start().await;
    let table = json!({ "suite": "crm", "corpid": "wpAlpha_1", "permanent_code": "code-of-alpha-0123" });
    for (name, change, key, reason) in [
        (
            "crm:wpAlpha_1",
            json!({ "permanent_code": { "set": true } }),
            "permanent_code",
            "nothing is set yet",
        ),
        (
            "crm:wpAlpha_1",
            json!({ "permanent_code": { "env": "HOME" } }),
            "permanent_code",
            "must be a string",
        ),
        ("crm:wpAlpha_1", json!({ "suite": "custom" }), "suite", "another one than in the name"),
        ("crm:wpAlpha_1", json!({ "corpid": "wpBeta" }), "corpid", "another one than in the name"),
        ("crm:wpAlpha_1", json!({ "limit": "often" }), "limit", "is not a limit"),
        ("crm:wpAlpha_1", json!({ "codes": 1 }), "codes", "unknown key"),
        ("none:wpAlpha_1", json!({}), "suite", "there is no suite \"none\""),
        ("crm:wp.Alpha", json!({}), "corpid", "is no corpid"),
    ] {
        let mut table = table.clone();
        table.as_object_mut().expect("a table").extend(change.as_object().expect("a change").clone());
        let refused = api.call("PUT", &format!("/api/agents/{name}"), table).await;
        let body = refused.assert_status(422).json();
        assert_eq!(body["key"], format!("agents.\"{name}\".{key}"), "{body}");
        assert!(body["reason"].as_str().is_some_and(|text| text.contains(reason)), "{body}");
    }
    for method in ["PATCH", "DELETE"] {
        let body = if method == "PATCH" { json!({}) } else { Value::Null };
        api.call(method, CORP, body.clone()).await.assert_status(404);
        api.call(method, "/api/agents/none:wpAlpha_1", body.clone()).await.assert_status(404);
        api.call_with(method, CORP, &[("if-match", "*")], body).await.assert_status(412);
    }
    let refused = api.call("PUT", &format!("{CORP}?verify=1"), table).await;
    assert_eq!(refused.assert_status(422).json()["errcode"], 40084);
    api.call("GET", "/api/agents/crm", Value::Null).await.assert_status(404);
}
