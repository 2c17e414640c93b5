//! `If-Match` and `If-None-Match`.

use super::*;

#[tokio::test]
async fn conditions_are_judged_by_the_newest_version() {
    let api = Api::start().await;
    let path = "/api/agents/it";
    for (name, value) in [("if-match", "*"), ("if-match", "\"v1\"")] {
        api.call_with("PUT", path, &[(name, value)], agent(IT_SECRET)).await.assert_status(412);
    }
    let created = api.call_with("PUT", path, &[("if-none-match", "*")], agent(IT_SECRET)).await;
    let first = created.assert_status(201).header("etag").to_owned();
    api.call_with("PUT", path, &[("if-none-match", "*")], agent(IT_SECRET)).await.assert_status(412);
    let second = api.call_with("PUT", path, &[("if-match", &*first)], agent(IT_SECRET)).await;
    let second = second.assert_status(200).header("etag").to_owned();
    assert_ne!(first, second);
    for (method, body) in [("PUT", agent(IT_SECRET)), ("PATCH", json!({})), ("DELETE", Value::Null)] {
        api.call_with(method, path, &[("if-match", &*first)], body.clone()).await.assert_status(412);
        let weak = format!("W/{second}");
        api.call_with(method, path, &[("if-match", &*weak)], body.clone()).await.assert_status(412);
        api.call_with(method, path, &[("if-none-match", &*weak)], body.clone()).await.assert_status(412);
        api.call_with(method, path, &[("if-match", "v1")], body).await.assert_status(400);
    }
    let list = format!("\"x\", {second}");
    let patched = api.call_with("PATCH", path, &[("if-match", &*list)], json!({ "limit": "1/s" })).await;
    let third = patched.assert_status(200).header("etag").to_owned();
    api.call_with("GET", path, &[("if-none-match", &*third)], Value::Null).await.assert_status(304);
    api.call_with("GET", path, &[("if-none-match", &*second)], Value::Null).await.assert_status(200);
    api.call_with("GET", path, &[("if-match", &*second)], Value::Null).await.assert_status(412);
    api.call_with("DELETE", path, &[("if-match", &*third)], Value::Null).await.assert_status(204);
    for condition in ["*", &*third] {
        for (method, body) in [("PATCH", json!({})), ("DELETE", Value::Null)] {
            let gone = api.call_with(method, path, &[("if-match", condition)], body.clone()).await;
            assert!(gone.assert_status(412).text().contains("there is none"), "{}", gone.text());
            // This one holds.
            api.call_with(method, path, &[("if-none-match", "*")], body).await.assert_status(404);
        }
    }
    let keys = "/api/clients/billing/keys";
    api.call_with("POST", keys, &[("if-match", "*")], Value::Null).await.assert_status(412);
    api.call("POST", keys, Value::Null).await.assert_status(404);
    // A name that comes back has another version.
    let created = api.put_agent("it", IT_SECRET).await;
    assert!(![first, second, third].contains(&created.header("etag").to_owned()));
}

#[tokio::test]
async fn of_concurrent_changes_with_one_tag_one_succeeds() {
    let api = Api::start().await;
    let tag = api.put_agent("it", IT_SECRET).await.header("etag").to_owned();
    let address = api.proxy.admin_address();
    let changes = (0..8).map(|nth| {
        let tag = tag.clone();
        tokio::spawn(async move {
            let request = Request::patch("/api/agents/it")
                .header("authorization", format!("Bearer {ADMIN_KEY}"))
                .header("content-type", "application/json")
                .header("if-match", tag);
            let body = json!({ "agentid": nth }).to_string();
            TestClient::connect_http1(address).await.request(request, body).await.status.as_u16()
        })
    });
    let mut statuses = Vec::new();
    for change in changes.collect::<Vec<_>>() {
        statuses.push(change.await.expect("no panic"));
    }
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 412, 412, 412, 412, 412, 412, 412]);
}

#[tokio::test]
async fn concurrent_patches_without_conditions_all_count() {
    let api = Api::start().await;
    api.put_agent("it", IT_SECRET).await.assert_status(201);
    let address = api.proxy.admin_address();
    let patches = [json!({ "agentid": 7 }), json!({ "limit": "5/s" }), json!({ "accept_secret": true })];
    let calls = patches.clone().map(|patch| {
        tokio::spawn(async move {
            let request = Request::patch("/api/agents/it")
                .header("authorization", format!("Bearer {ADMIN_KEY}"))
                .header("content-type", "application/json");
            TestClient::connect_http1(address).await.request(request, patch.to_string()).await
        })
    });
    for call in calls {
        call.await.expect("no panic").assert_status(200);
    }
    let shown = api.call("GET", "/api/agents/it", Value::Null).await.json();
    assert_eq!(
        (&shown["agentid"], &shown["limit"], &shown["accept_secret"]),
        (&json!(7), &json!("5/s"), &json!(true))
    );
}
