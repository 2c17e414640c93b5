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

const NAMED: &str = "/api/agents/crm-acme";

async fn call_named(api: &Api) -> (u16, u16) {
    let by_name = suites::get(&api.proxy, "all", &format!("/crm-acme{USER_GET}")).await;
    (by_name.status.as_u16(), call_corp(api).await.status.as_u16())
}

fn table_of(api: &Api, corpid: &str) -> Value {
    let code = api.proxy.wecom.add_authorized_corp("crm", corpid).expect("a suite");
    json!({ "suite": "crm", "corpid": corpid, "permanent_code": code })
}

async fn cancel(api: &Api) {
    let info = "<InfoType><![CDATA[cancel_auth]]></InfoType>";
    let corpid = "<AuthCorpId><![CDATA[wpAlpha_1]]></AuthCorpId>";
    suites::push_command(&api.proxy, &format!("{info}{corpid}")).await;
}

#[tokio::test]
async fn corp_with_a_name_of_its_own_is_put_as_in_a_file() {
    let api = start().await;
    let table = table_of(&api, "wpAlpha_1");
    let dry = api.call("PUT", &format!("{NAMED}?dry_run=1"), table.clone()).await;
    assert_eq!(dry.assert_status(200).json()["status"], 201);
    assert_eq!(call_named(&api).await, (404, 404));
    let created = api.call("PUT", &format!("{NAMED}?verify=1"), table.clone()).await;
    let expected = json!({
        "suite": "crm", "corpid": "wpAlpha_1", "permanent_code": { "set": true }, "origin": "state",
    });
    assert_eq!((created.assert_status(201).json(), created.header("location")), (expected.clone(), NAMED));
    assert_eq!(call_named(&api).await, (200, 200));
    assert_eq!(api.proxy.wecom.gettoken_count("crm:wpAlpha_1").expect("a corp"), 1, "one token for both");
    // It is shown under both names, put back, and changed under its own.
    for path in [NAMED, CORP] {
        let shown = api.call("GET", path, Value::Null).await;
        assert_eq!(
            (shown.json(), shown.header("etag")),
            (expected.clone(), created.header("etag")),
            "{path}"
        );
    }
    let refused = api.call("PATCH", CORP, json!({ "agentid": 7 })).await;
    assert!(
        refused.assert_status(409).text().contains("the agent crm-acme of the state"),
        "{}",
        refused.text()
    );
    api.call("PUT", NAMED, expected).await.assert_status(200);
    let patched = api.call("PATCH", NAMED, json!({ "agentid": 7, "limit": "5/h" })).await;
    assert_eq!(patched.assert_status(200).json()["agentid"], 7);
    assert_eq!(call_named(&api).await, (200, 200));
    let listed = api.call("GET", "/api/agents?q=acme", Value::Null).await.json();
    assert_eq!((&listed["total"], &listed["agents"][0]["name"]), (&1.into(), &"crm-acme".into()));
}

#[tokio::test]
async fn table_of_a_named_corp_is_checked_as_in_a_file() {
    let api = start().await;
    let table = table_of(&api, "wpAlpha_1");
    api.call("PUT", NAMED, table.clone()).await.assert_status(201);
    for (name, change, key, reason) in [
        ("crm-acme", json!({ "suite": "none" }), "agents.crm-acme.suite", "there is no suite \"none\""),
        ("crm-acme", json!({ "secret": "s" }), "agents.crm-acme", "has suite and secret"),
        ("crm-acme", json!({ "permanent_code": 7 }), "agents.crm-acme.permanent_code", "must be a string"),
        ("jssdk", json!({}), "agents.jssdk", "cannot be an agent's name"),
        ("other", json!({}), "agents.other", "is the suite and corpid of agents.crm-acme too"),
    ] {
        let mut table = table.clone();
        table.as_object_mut().expect("a table").extend(change.as_object().expect("a change").clone());
        let body = api.call("PUT", &format!("/api/agents/{name}"), table).await.assert_status(422).json();
        assert!(
            body["key"] == key && body["reason"].as_str().is_some_and(|text| text.contains(reason)),
            "{body}"
        );
    }
}

#[tokio::test]
async fn named_corp_becomes_another_corp_an_agent_and_nothing() {
    let api = start().await;
    api.call("PUT", NAMED, table_of(&api, "wpAlpha_1")).await.assert_status(201);
    api.call("PUT", NAMED, table_of(&api, "wpBeta_2")).await.assert_status(200);
    assert_eq!(call_named(&api).await, (200, 404));
    api.put_agent("crm-acme", IT_SECRET).await.assert_status(200);
    let shown = api.call("GET", NAMED, Value::Null).await.json();
    assert_eq!((&shown["corpid"], &shown["suite"]), (&json!(CORPID), &Value::Null));
    api.call("GET", "/api/agents/crm:wpBeta_2", Value::Null).await.assert_status(404);
    api.call("PUT", NAMED, table_of(&api, "wpAlpha_1")).await.assert_status(200);
    assert_eq!(call_named(&api).await, (200, 200));
    let pass = suites::corp_pass(&api.proxy, "crm", "wpAlpha_1").await;
    let with_pass = async || {
        let target = format!("/cgi-bin/user/get?userid=zhangsan&access_token={pass}");
        api.proxy.request(Request::get(target), "").await.errcode()
    };
    assert_eq!(with_pass().await, 0);
    api.call("DELETE", NAMED, Value::Null).await.assert_status(204);
    assert_eq!(call_named(&api).await, (404, 404));
    api.call("PUT", NAMED, table_of(&api, "wpAlpha_1")).await.assert_status(201);
    assert_eq!(with_pass().await, 42001, "passes from before the deletion stay void");
}

#[tokio::test]
async fn corp_with_a_name_of_its_own_follows_what_wecom_pushes() {
    let api = start().await;
    api.call("PUT", NAMED, table_of(&api, "wpAlpha_1")).await.assert_status(201);
    assert_eq!(call_named(&api).await, (200, 200));
    suites::authorize(&api.proxy, "isv", "crm", "wpAlpha_1").await.assert_ok();
    assert_eq!(call_named(&api).await, (200, 200), "with the code of the reset");
    let proxy = api.proxy.restart().await;
    suites::receive_ticket(&proxy, "crm").await;
    let api = Api { proxy };
    assert_eq!(call_named(&api).await, (200, 200));
    // Another limit is no other code.
    api.call("PATCH", NAMED, json!({ "limit": "500/h" })).await.assert_status(200);
    assert_eq!(call_named(&api).await, (200, 200));
    cancel(&api).await;
    assert_eq!(call_named(&api).await, (404, 404));
    for path in [NAMED, CORP] {
        api.call("GET", path, Value::Null).await.assert_status(404);
        api.call("DELETE", path, Value::Null).await.assert_status(404);
    }
    // Without its suite it waits, and comes back with it.
    api.call("PUT", NAMED, table_of(&api, "wpAlpha_1")).await.assert_status(201);
    let path = api.proxy.dir.path().join("proxy.toml");
    let text = std::fs::read_to_string(&path).expect("a file");
    let renamed = text.replace("[suites.crm]", "[suites.erp]").replace("\"crm", "\"erp");
    for (text, expected) in [(&renamed, 404), (&text, 200)] {
        std::fs::write(&path, text).expect("a file");
        api.proxy.app.reload().expect("a valid file");
        let by_name = suites::get(&api.proxy, "all", &format!("/crm-acme{USER_GET}")).await;
        assert_eq!(by_name.status.as_u16(), expected, "{}", by_name.text());
    }
    // What stands in the file counts more.
    let code = api.proxy.wecom.add_authorized_corp("crm", "wpAlpha_1").expect("a suite");
    let corp =
        format!("[agents.in-file]\nsuite = \"crm\"\ncorpid = \"wpAlpha_1\"\npermanent_code = \"{code}\"\n");
    std::fs::write(&path, text.replace("[clients.isv]", &format!("{corp}[clients.isv]"))).expect("a file");
    api.proxy.app.reload().expect("a valid file");
    assert_eq!(call_named(&api).await, (404, 200));
    std::fs::write(&path, &text).expect("a file");
    api.proxy.app.reload().expect("a valid file");
    api.call("GET", NAMED, Value::Null).await.assert_status(200);
}

#[tokio::test]
async fn deleting_an_agent_that_is_not_in_force_leaves_the_corp_of_the_file() {
    let api = start().await;
    api.call("PUT", NAMED, table_of(&api, "wpAlpha_1")).await.assert_status(201);
    let path = api.proxy.dir.path().join("proxy.toml");
    let text = std::fs::read_to_string(&path).expect("a file");
    let code = api.proxy.wecom.add_authorized_corp("crm", "wpAlpha_1").expect("a suite");
    let corp =
        format!("[agents.in-file]\nsuite = \"crm\"\ncorpid = \"wpAlpha_1\"\npermanent_code = \"{code}\"\n");
    std::fs::write(&path, text.replace("[clients.isv]", &format!("{corp}[clients.isv]"))).expect("a file");
    api.proxy.app.reload().expect("a valid file");
    let authorized = suites::authorize(&api.proxy, "isv", "crm", "wpAlpha_1").await.json();
    let stand_in = authorized["permanent_code"].as_str().expect("a stand-in").to_owned();
    assert_eq!(call_named(&api).await, (404, 200), "with the code of the reset");
    let code_is_known = async || {
        let body = json!({ "auth_corpid": "wpAlpha_1", "permanent_code": stand_in });
        let info = suites::post(&api.proxy, "isv", "/crm/cgi-bin/service/get_auth_info", body).await;
        info.errcode()
    };
    assert_eq!(code_is_known().await, 0);
    api.call("DELETE", NAMED, Value::Null).await.assert_status(204);
    assert_eq!(call_named(&api).await, (404, 200));
    assert_eq!(code_is_known().await, 0);
    api.proxy.app.reload().expect("a valid file");
    assert_eq!(call_named(&api).await, (404, 200));
}
