//! PUT, PATCH, GET and DELETE of agents.

use super::*;
use crate::harness::admin_get;

#[tokio::test]
async fn agent_is_created_used_changed_and_deleted() {
    let api = Api::start().await;
    api.get_as("it", "").await.assert_proxy_error("unknown-agent", 404, 40035);
    let created = api.put_agent("it", IT_SECRET).await;
    created.assert_status(201);
    assert_eq!(created.json(), json!({ "corpid": CORPID, "secret": { "set": true }, "origin": "state" }));
    let tag = created.header("etag").to_owned();
    // In force for every request that begins after the response.
    api.get_as("it", "").await.assert_ok();
    let shown = api.call("GET", "/api/agents/it", Value::Null).await;
    assert_eq!((shown.json(), shown.header("etag")), (created.json(), &*tag));

    let changed = api.call("PATCH", "/api/agents/it", json!({ "agentid": 1_000_004, "limit": "1/h" })).await;
    changed.assert_status(200);
    assert_ne!(changed.header("etag"), tag);
    assert_eq!((&changed.json()["agentid"], &changed.json()["limit"]), (&json!(1_000_004), &json!("1/h")));
    api.get_as("it", "").await.assert_ok();
    api.get_as("it", "").await.assert_proxy_error("rate-limited", 429, 45009);
    assert_eq!(api.gettoken_count(), 1, "a changed limit keeps the token");

    api.call("DELETE", "/api/agents/it", Value::Null).await.assert_status(204);
    api.get_as("it", "").await.assert_proxy_error("unknown-agent", 404, 40035);
    for method in ["GET", "PATCH", "DELETE"] {
        let body = if method == "PATCH" { json!({}) } else { Value::Null };
        api.call(method, "/api/agents/it", body).await.assert_status(404);
    }
}

#[tokio::test]
async fn what_get_shows_can_be_put_back() {
    let api = Api::start().await;
    let mut full = agent(IT_SECRET);
    full["agentid"] = json!(1_000_004);
    full["accept_secret"] = json!(true);
    full["limit"] = json!("6000/m");
    full["plain"] = json!(["/cgi-bin/corpgroup/*"]);
    api.call("PUT", "/api/agents/it", full.clone()).await.assert_status(201);
    let shown = api.call("GET", "/api/agents/it", Value::Null).await.json();
    api.call("PUT", "/api/agents/it", shown.clone()).await.assert_status(200);
    assert_eq!(api.call("GET", "/api/agents/it", Value::Null).await.json(), shown);
    full["secret"] = json!({ "set": true });
    full["origin"] = json!("state");
    assert_eq!(shown, full);
    api.get_as("it", "").await.assert_ok();
    // A key that is not in the body is not in the agent any more.
    api.call("PUT", "/api/agents/it", json!({ "corpid": CORPID, "secret": { "set": true } })).await;
    let shown = api.call("GET", "/api/agents/it", Value::Null).await.json();
    assert_eq!(shown, json!({ "corpid": CORPID, "secret": { "set": true }, "origin": "state" }));
}

#[tokio::test]
async fn merge_patch_removes_replaces_and_keeps() {
    let api = Api::start().await;
    api.put_agent("it", "a-wrong-secret").await.assert_status(201);
    let patch =
        json!({ "limit": "5/s", "plain": ["/cgi-bin/a/*", "/cgi-bin/b/*"], "secret": { "set": true } });
    let merge = [("content-type", "application/merge-patch+json")];
    api.call_with("PATCH", "/api/agents/it", &merge, patch).await.assert_status(200);
    let patch = json!({ "limit": null, "plain": ["/cgi-bin/c/*"], "agentid": null, "origin": "x" });
    let patched = api.call("PATCH", "/api/agents/it", patch).await;
    let expected =
        json!({ "corpid": CORPID, "secret": { "set": true }, "plain": ["/cgi-bin/c/*"], "origin": "state" });
    assert_eq!(patched.assert_status(200).json(), expected);
    api.get_as("it", "").await.assert_proxy_error("token-unavailable", 502, 40001);
    api.call("PATCH", "/api/agents/it", json!({ "secret": IT_SECRET })).await.assert_status(200);
    api.get_as("it", "").await.assert_ok();
    let refused = api.call("PATCH", "/api/agents/it", json!({ "secret": null })).await;
    assert_eq!(refused.assert_status(422).json()["key"], "agents.it.secret");
    api.get_as("it", "").await.assert_ok();
}

#[tokio::test]
async fn mistakes_are_refused_with_key_and_reason() {
    let api = Api::start().await;
    for (name, change, key, reason) in [
        ("it", json!({ "corpid": 1 }), "agents.it.corpid", "must be a string"),
        ("it", json!({ "corpId": "ww1" }), "agents.it.corpId", "unknown key"),
        ("it", json!({ "secret": { "env": "HOME" } }), "agents.it.secret", "must be a string"),
        ("it", json!({ "secret": { "file": "/etc/hostname" } }), "agents.it.secret", "must be a string"),
        ("it", json!({ "secret": { "set": true } }), "agents.it.secret", "nothing is set yet"),
        ("it", json!({ "secret": { "set": false } }), "agents.it.secret", "must be a string"),
        ("it", json!({ "secret": [] }), "agents.it.secret", "lists 0 secrets"),
        ("it", json!({ "secret": 7 }), "agents.it.secret", "must be a string"),
        ("it", json!({ "limit": "many" }), "agents.it.limit", "a limit like"),
        ("it", json!({ "agentid": null }), "agents.it.agentid", "must not be null"),
        ("cgi-bin", json!({}), "agents.cgi-bin", "cannot be an agent's name"),
        ("a.b", json!({}), "agents.\"a.b\"", "is not a name"),
        ("%E4%B8%AD", json!({}), "agents.\"中\"", "is not a name"),
    ] {
        let mut table = agent(IT_SECRET);
        table.as_object_mut().expect("a table").extend(change.as_object().expect("a change").clone());
        let refused = api.call("PUT", &format!("/api/agents/{name}"), table).await;
        let body = refused.assert_status(422).json();
        assert_eq!(body["key"], key, "{body}");
        assert!(body["reason"].as_str().is_some_and(|text| text.contains(reason)), "{body}");
    }
    let refused = api.call("PUT", "/api/agents/it", json!({ "corpid": CORPID })).await;
    let body = refused.assert_status(422).json();
    assert_eq!(body["reason"], "is missing; write one like \"secret\": \"…\"", "what is 422 is not advised");
    for text in ["", "{", "[]", "null", "{\"corpid\":\"a\",\"corpid\":\"b\"}", "\u{feff}{}"] {
        let bearer = format!("Bearer {ADMIN_KEY}");
        let headers = [("authorization", &*bearer), ("content-type", "application/json")];
        api.send("PUT", "/api/agents/it", &headers, text).await.assert_status(400);
    }
    let long = json!({ "corpid": "w".repeat(1 << 20) });
    api.call("PUT", "/api/agents/it", long).await.assert_status(413);
    for query in ["dryrun=1", "dry_run=yes", "verify"] {
        api.call("PUT", &format!("/api/agents/it?{query}"), agent(IT_SECRET)).await.assert_status(400);
    }
    api.call("GET", "/api/agents/it", Value::Null).await.assert_status(404);
}

#[tokio::test]
async fn dry_run_checks_only() {
    let api = Api::start().await;
    let dry = "/api/agents/it?dry_run=1";
    let would = |response: &TestResponse| response.assert_status(200).json()["status"].clone();
    assert_eq!(would(&api.call("PUT", dry, agent(IT_SECRET)).await), 201);
    api.call("PUT", dry, agent("")).await.assert_status(422);
    api.call("GET", "/api/agents/it", Value::Null).await.assert_status(404);
    api.put_agent("it", IT_SECRET).await.assert_status(201);
    assert_eq!(would(&api.call("PUT", dry, agent("other-secret")).await), 200);
    assert_eq!(would(&api.call("PATCH", dry, json!({ "limit": "1/h" })).await), 200);
    assert_eq!(would(&api.call("DELETE", dry, Value::Null).await), 204);
    let verified = api.call("PUT", "/api/agents/other?dry_run=1&verify=1", agent(IT_SECRET)).await;
    assert_eq!(would(&verified), 201);
    assert_eq!(api.gettoken_count(), 1);
    api.get_as("it", "").await.assert_ok();
    api.call("GET", "/api/agents/other", Value::Null).await.assert_status(404);
}

#[tokio::test]
async fn verify_fetches_one_token_and_keeps_to_the_backoff() {
    let api = Api::start().await;
    let path = "/api/agents/it?verify=1";
    for _ in 0..3 {
        let refused = api.call("PUT", path, agent("a-wrong-secret")).await;
        let body = refused.assert_status(422).json();
        assert_eq!((&body["errcode"], &body["key"]), (&json!(40001), &json!("agents.it.secret")), "{body}");
        assert!(body["hint"].is_string(), "{body}");
    }
    assert_eq!(api.gettoken_count(), 1, "a wrong secret is not repeated");
    api.call("GET", "/api/agents/it", Value::Null).await.assert_status(404);
    api.call("PUT", path, agent(IT_SECRET)).await.assert_status(201);
    assert_eq!(api.gettoken_count(), 2);
    api.get_as("it", "").await.assert_ok();
    assert_eq!(api.gettoken_count(), 2, "the token that was fetched is used");
    let refused = api.call("PATCH", path, json!({ "secret": "another-wrong-secret" })).await;
    assert_eq!(refused.assert_status(422).json()["errcode"], 40001);
    api.get_as("it", "").await.assert_ok();
    assert_eq!(api.gettoken_count(), 3);
    api.call("DELETE", path, Value::Null).await.assert_status(400);
    // Without verify, the wrong secret is taken, and its backoff still holds.
    api.put_agent("wrong", "a-wrong-secret").await.assert_status(201);
    api.get_as("wrong", "").await.assert_proxy_error("token-unavailable", 502, 40001);
    assert_eq!(api.gettoken_count(), 3);
}

#[tokio::test]
async fn verify_spends_the_failures_of_the_address_and_no_more() {
    let api = Api::start().await;
    let mut statuses = Vec::new();
    for nth in 0..70 {
        let response =
            api.call("PUT", "/api/agents/it?verify=1", agent(&format!("a-wrong-secret-{nth}"))).await;
        statuses.push(response.status.as_u16());
        if response.status == 429 {
            let body = response.assert_status(429).json();
            assert!(body["reason"].as_str().is_some_and(|text| text.contains("too many secrets")), "{body}");
            let wait: u64 = response.header("retry-after").parse().expect("seconds");
            assert!((1..=60).contains(&wait), "{wait}");
        }
    }
    assert_eq!(api.gettoken_count(), 60, "{statuses:?}");
    assert_eq!((statuses[59], statuses[60]), (422, 429), "{statuses:?}");
    // It is not tried later, either: it would have no caller.
    let readyz = admin_get(&api.proxy, "/readyz").await.json();
    assert_eq!(readyz["agents"]["held"], json!({}), "{readyz}");
    // Without it, the agent can be written.
    api.put_agent("it", IT_SECRET).await.assert_status(201);
}

#[tokio::test]
async fn name_that_comes_back_gets_neither_token_nor_passes() {
    let key = key_of("billing");
    let api = Api::start().await;
    api.put_agent("it", IT_SECRET).await.assert_status(201);
    api.call("PUT", "/api/clients/billing", client(&key, &["it"])).await.assert_status(201);
    let buy = format!("/cgi-bin/gettoken?corpid={CORPID}&corpsecret={key}");
    let pass = api.proxy.request(Request::get(&buy), "").await.assert_ok().json()["access_token"].clone();
    let with_pass =
        format!("/cgi-bin/user/get?access_token={}&userid=zhangsan", pass.as_str().expect("a pass"));
    api.proxy.request(Request::get(&with_pass), "").await.assert_ok();
    assert_eq!(api.gettoken_count(), 1);

    api.call("DELETE", "/api/agents/it", Value::Null).await.assert_status(204);
    assert_eq!(api.proxy.request(Request::get(&with_pass), "").await.errcode(), 40014);
    api.get_as("it", &key).await.assert_proxy_error("unknown-agent", 404, 40035);
    // The same corpid and secret, and yet another agent.
    api.put_agent("it", IT_SECRET).await.assert_status(201);
    assert_eq!(api.proxy.request(Request::get(&with_pass), "").await.errcode(), 42001);
    api.get_as("it", &key).await.assert_ok();
    assert_eq!(api.gettoken_count(), 2, "the token before is not used");
    let pass = api.proxy.request(Request::get(&buy), "").await.assert_ok().json()["access_token"].clone();
    let with_pass =
        format!("/cgi-bin/user/get?access_token={}&userid=zhangsan", pass.as_str().expect("a pass"));
    api.proxy.request(Request::get(&with_pass), "").await.assert_ok();
    // A changed secret voids no pass, and neither does a change of anything else.
    api.call("PATCH", "/api/agents/it", json!({ "limit": "100/s" })).await.assert_status(200);
    api.proxy.request(Request::get(&with_pass), "").await.assert_ok();
    api.proxy.wecom.reset_secret("it", "the-next-secret-of-it").expect("an agent");
    api.call("PATCH", "/api/agents/it", json!({ "secret": "the-next-secret-of-it" }))
        .await
        .assert_status(200);
    api.proxy.request(Request::get(&with_pass), "").await.assert_ok();
}

#[tokio::test]
async fn request_in_flight_survives_the_deletion_of_its_agent() {
    use wecom_proxy::simulator::Fault;
    let api = Api::start().await;
    api.put_agent("it", IT_SECRET).await.assert_status(201);
    api.proxy.wecom.inject(Fault::hold().on_path("/cgi-bin/user/get")).expect("a fault");
    let address = api.proxy.address();
    let request = tokio::spawn(async move {
        TestClient::connect_http1(address).await.request(Request::get(format!("/it{USER_GET}")), "").await
    });
    api.proxy.wecom.wait_until(|observed| observed.in_flight() == 1).await.expect("a request");
    api.call("DELETE", "/api/agents/it", Value::Null).await.assert_status(204);
    api.proxy.wecom.release_held();
    request.await.expect("no panic").assert_ok();
}

#[tokio::test]
async fn agents_are_listed_in_pages_and_searched() {
    let api = Api::start().await;
    for name in ["a", "b-x", "c", "d-x", "e"] {
        api.put_agent(name, IT_SECRET).await.assert_status(201);
    }
    let names = |response: TestResponse| {
        let body = response.assert_status(200).json();
        let names = body["agents"].as_array().expect("a list").iter();
        let names: Vec<_> = names.map(|agent| agent["name"].as_str().expect("a name").to_owned()).collect();
        (names.join(" "), body["next"].clone())
    };
    for (query, expected, next) in [
        ("", "a b-x c d-x e", Value::Null),
        ("?limit=2", "a b-x", json!("b-x")),
        ("?limit=2&after=b-x", "c d-x", json!("d-x")),
        ("?limit=2&after=d-x", "e", Value::Null),
        ("?after=bb", "c d-x e", Value::Null),
        ("?limit=5", "a b-x c d-x e", Value::Null),
        ("?q=X", "b-x d-x", Value::Null),
        ("?q=X&limit=1", "b-x", json!("b-x")),
        ("?q=567890AB&after=d", "d-x e", Value::Null),
        ("?q=nothing", "", Value::Null),
        ("?failing=1", "", Value::Null),
    ] {
        let listed = names(api.call("GET", &format!("/api/agents{query}"), Value::Null).await);
        assert_eq!(listed, (expected.to_owned(), next), "{query}");
    }
    api.call("GET", "/api/agents?limit=0", Value::Null).await.assert_status(400);
}
