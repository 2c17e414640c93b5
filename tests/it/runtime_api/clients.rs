//! Clients at run time.

use super::*;

#[tokio::test]
async fn first_client_closes_an_open_proxy() {
    let api = Api::start().await;
    api.put_agent("it", IT_SECRET).await.assert_status(201);
    api.get_as("it", "").await.assert_ok();
    let key = key_of("billing");
    let created = api.call("PUT", "/api/clients/billing", client(&key, &["it"])).await;
    assert!(created.assert_status(201).json()["note"].as_str().is_some_and(|note| note.contains("open")));
    api.get_as("it", "").await.assert_proxy_error("unauthenticated", 401, 40001);
    api.get_as("it", &key).await.assert_ok();
    let other = api.call("PUT", "/api/clients/other", client(&key_of("other"), &["*"])).await;
    assert_eq!(other.assert_status(201).json()["note"], Value::Null);

    api.call("DELETE", "/api/clients/billing", Value::Null).await.assert_status(204);
    api.get_as("it", &key).await.assert_proxy_error("unauthenticated", 401, 40001);
    let last = api.call("DELETE", "/api/clients/other", Value::Null).await;
    assert!(last.assert_status(409).text().contains("server.open"), "{}", last.text());
    api.get_as("it", &key_of("other")).await.assert_ok();
}

#[tokio::test]
async fn last_client_can_be_deleted_where_the_file_allows_it() {
    let toml = config("").replace("[server]", "[server]\nopen = true");
    let api = Api::of(TestProxy::start_with_config(&toml).await);
    let created = api.call("PUT", "/api/clients/billing", client(&key_of("billing"), &["*"])).await;
    assert_eq!(created.assert_status(201).json()["note"], Value::Null, "it stays open");
    api.call("DELETE", "/api/clients/billing", Value::Null).await.assert_status(204);
}

#[tokio::test]
async fn concurrent_deletions_leave_one_client() {
    let api = Api::start().await;
    for name in ["one", "two"] {
        api.call("PUT", &format!("/api/clients/{name}"), client(&key_of(name), &["*"]))
            .await
            .assert_status(201);
    }
    let address = api.proxy.admin_address();
    let delete = |name: &'static str| async move {
        let request = Request::delete(format!("/api/clients/{name}"));
        let request = request.header("authorization", format!("Bearer {ADMIN_KEY}"));
        TestClient::connect_http1(address).await.request(request, "").await.status.as_u16()
    };
    let (one, two) = tokio::join!(delete("one"), delete("two"));
    assert_eq!(BTreeSet::from([one, two]), BTreeSet::from([204, 409]));
}

#[tokio::test]
async fn one_of_concurrent_clients_gets_a_key() {
    let api = Api::start().await;
    let address = api.proxy.admin_address();
    let body = client(&key_of("shared"), &["*"]).to_string();
    let puts = (0..8).map(|nth| {
        let request = Request::put(format!("/api/clients/c{nth}"))
            .header("authorization", format!("Bearer {ADMIN_KEY}"))
            .header("content-type", "application/json");
        let body = body.clone();
        tokio::spawn(async move {
            TestClient::connect_http1(address).await.request(request, body).await.status.as_u16()
        })
    });
    let mut statuses = Vec::new();
    for put in puts.collect::<Vec<_>>() {
        statuses.push(put.await.expect("no panic"));
    }
    statuses.sort_unstable();
    assert_eq!(statuses, [201, 422, 422, 422, 422, 422, 422, 422]);
}

#[tokio::test]
async fn key_that_is_a_secret_is_warned_of() {
    let api = Api::start().await;
    api.put_agent("it", IT_SECRET).await.assert_status(201);
    let made = api.call("PUT", "/api/clients/billing", client(IT_SECRET, &["it"])).await;
    let warnings = made.assert_status(201).json()["warnings"].to_string();
    assert!(warnings.contains("clients.billing.key_sha256: is the real secret of agents.it"), "{warnings}");
    let changed = api.put_agent("it", IT_SECRET).await;
    let warnings = changed.assert_status(200).json()["warnings"].to_string();
    assert!(warnings.contains("agents.it.secret: is the key of clients.billing"), "{warnings}");
    // A secret that is gone is none.
    api.put_agent("it", "another-secret-of-it").await.assert_status(200);
    let shown = api.call("PATCH", "/api/clients/billing", json!({ "limit": "5/s" })).await;
    assert_eq!(shown.assert_status(200).json()["warnings"], Value::Null);
}

#[tokio::test]
async fn client_made_anew_gets_no_response_of_the_one_before() {
    let api = Api::start().await;
    api.put_agent("it", IT_SECRET).await.assert_status(201);
    api.call("PUT", "/api/clients/keeper", client(&key_of("keeper"), &["*"])).await.assert_status(201);
    let path = "/api/clients/billing";
    let create =
        async |key: &str| api.call("PUT", path, client(key, &["it"])).await.assert_status(201).status;
    let send = async |key: &str| {
        let request = Request::post("/it/cgi-bin/message/send")
            .header("x-api-key", key)
            .header("content-type", "application/json")
            .header("idempotency-key", "order-17");
        let body = json!({ "touser": "zhangsan", "msgtype": "text", "agentid": 1_000_004, "text": { "content": "hi" } });
        let response = api.proxy.request(request, body.to_string()).await;
        response.assert_ok().header("idempotency-replayed") == "true"
    };
    create(&key_of("first")).await;
    assert!(!send(&key_of("first")).await);
    // Another key of the same client is the same client.
    api.call("PATCH", path, json!({ "key_sha256": sha256(key_of("second")) })).await.assert_status(200);
    assert!(send(&key_of("second")).await);
    api.call("DELETE", path, Value::Null).await.assert_status(204);
    create(&key_of("third")).await;
    assert!(!send(&key_of("third")).await);
    assert!(send(&key_of("third")).await);
}

#[tokio::test]
async fn client_may_name_an_agent_that_is_not_there() {
    let api = Api::start().await;
    let (path, key) = ("/api/clients/billing", key_of("billing"));
    let assert_warns = |response: &TestResponse| {
        let warnings = response.json()["warnings"].to_string();
        assert!(warnings.contains("clients.billing.agents["), "{warnings}");
        assert!(warnings.contains("there is no agent \\\"it\\\""), "{warnings}");
    };
    let created = api.call("PUT", path, client(&key, &["it", "hr"])).await;
    assert_warns(created.assert_status(201));
    api.get_as("it", &key).await.assert_proxy_error("unknown-agent", 404, 40035);
    for name in ["it", "hr"] {
        api.put_agent(name, IT_SECRET).await.assert_status(201);
    }
    api.get_as("it", &key).await.assert_ok();
    api.call("DELETE", "/api/agents/it", Value::Null).await.assert_status(204);
    api.get_as("it", &key).await.assert_proxy_error("unknown-agent", 404, 40035);
    api.get_as("hr", &key).await.assert_ok();
    // What is shown can be put back, and changed, all the same.
    let shown = api.call("GET", path, Value::Null).await.json();
    assert_eq!(shown["agents"], json!(["hr", "it"]));
    assert_warns(api.call("PUT", path, shown).await.assert_status(200));
    assert_warns(api.call("PATCH", path, json!({ "limit": "5/s" })).await.assert_status(200));
}

#[tokio::test]
async fn mistakes_of_clients_are_refused() {
    let api = Api::start().await;
    api.call("PUT", "/api/clients/one", client(&key_of("one"), &["*"])).await.assert_status(201);
    for (table, key, reason) in [
        (json!({ "agents": ["*"] }), "clients.two", "has no key; write key_sha256"),
        (json!({ "key": "a-key-of-two-0123456789", "agents": ["*"] }), "clients.two.key", "key_sha256"),
        (json!({ "key_sha256": "abc", "agents": ["*"] }), "clients.two.key_sha256", "64 hex digits"),
        (json!({ "key_sha256": { "env": "HOME" }, "agents": ["*"] }), "clients.two.key_sha256", "must be"),
        (
            json!({ "key_sha256": { "set": true }, "agents": ["*"] }),
            "clients.two.key_sha256",
            "nothing is set",
        ),
        (client(&key_of("one"), &["*"]), "clients.two.key_sha256", "the same key as one of clients.one"),
        (client(&key_of("two"), &[]), "clients.two.agents", "is empty"),
    ] {
        let refused = api.call("PUT", "/api/clients/two", table).await;
        let body = refused.assert_status(422).json();
        assert!(body["key"].as_str().is_some_and(|found| found.starts_with(key)), "{body}");
        let found = body["reason"].as_str().expect("a text");
        assert!(found.contains(reason) && !found.contains("env ="), "{body}");
    }
    api.call("PUT", "/api/clients/one?verify=1", client(&key_of("one"), &["*"])).await.assert_status(400);
}

#[tokio::test]
async fn changed_key_takes_the_passes_of_the_one_before() {
    let api = Api::start().await;
    api.put_agent("it", IT_SECRET).await.assert_status(201);
    let (old, new) = (key_of("old"), key_of("new"));
    api.call("PUT", "/api/clients/billing", client(&old, &["it"])).await.assert_status(201);
    let buy = format!("/cgi-bin/gettoken?corpid={CORPID}&corpsecret={old}");
    let pass = api.proxy.request(Request::get(&buy), "").await.assert_ok().json()["access_token"].clone();
    let with_pass = format!("/cgi-bin/user/get?access_token={}", pass.as_str().expect("a pass"));
    api.call("PATCH", "/api/clients/billing", json!({ "key_sha256": sha256(&new) })).await.assert_status(200);
    api.get_as("it", &old).await.assert_proxy_error("unauthenticated", 401, 40001);
    api.get_as("it", &new).await.assert_ok();
    assert_eq!(api.proxy.request(Request::get(&with_pass), "").await.errcode(), 42001);
}

#[tokio::test]
async fn key_that_comes_back_serves_none_of_its_passes() {
    let api = Api::start().await;
    api.put_agent("it", IT_SECRET).await.assert_status(201);
    api.call("PUT", "/api/clients/other", client(&key_of("other"), &["*"])).await.assert_status(201);
    let (path, key) = ("/api/clients/billing", key_of("billing"));
    let put = async || api.call("PUT", path, client(&key, &["it"])).await;
    put().await.assert_status(201);
    let pass = pass_of(&api, &key).await;
    let use_pass = async |pass: &str| {
        let target = format!("/cgi-bin/user/get?access_token={pass}&userid=zhangsan");
        api.proxy.request(Request::get(target), "").await.errcode()
    };
    assert_eq!(use_pass(&pass).await, 0);
    // The same key put again is the same key.
    put().await.assert_status(200);
    assert_eq!(use_pass(&pass).await, 0);
    api.call("DELETE", path, Value::Null).await.assert_status(204);
    assert_eq!(use_pass(&pass).await, 40014);
    put().await.assert_status(201);
    assert_eq!(use_pass(&pass).await, 42001, "deleted is deleted");
    let pass = pass_of(&api, &key).await;
    for next in [&key_of("another"), &key] {
        api.call("PATCH", path, json!({ "key_sha256": sha256(next) })).await.assert_status(200);
    }
    assert_eq!(use_pass(&pass).await, 42001);
    assert_eq!(use_pass(&pass_of(&api, &key).await).await, 0);
}

/// A pass bought with this key.
async fn pass_of(api: &Api, key: &str) -> String {
    let buy = format!("/cgi-bin/gettoken?corpid={CORPID}&corpsecret={key}");
    let bought = api.proxy.request(Request::get(&buy), "").await.assert_ok().json();
    bought["access_token"].as_str().expect("a pass").to_owned()
}

#[tokio::test]
async fn clients_are_listed_without_keys() {
    let api = Api::start().await;
    let empty = api.call("GET", "/api/clients", Value::Null).await;
    assert_eq!(empty.json(), json!({ "clients": [] }));
    for name in ["two", "one"] {
        let mut table = client(&key_of(name), &["*"]);
        table["allow"] = json!(["/cgi-bin/user/*"]);
        api.call("PUT", &format!("/api/clients/{name}"), table).await.assert_status(201);
    }
    let listed = api.call("GET", "/api/clients", Value::Null).await;
    let body = listed.assert_status(200).json();
    let names: Vec<_> =
        body["clients"].as_array().expect("a list").iter().map(|client| &client["name"]).collect();
    assert_eq!(names, ["one", "two"]);
    assert_eq!(body["clients"][0]["key_sha256"], json!({ "set": true }));
    for name in ["one", "two"] {
        assert!(!listed.text().contains(&sha256(key_of(name))), "{}", listed.text());
    }
    // What is listed can be put back; another name is a mistake.
    let row = body["clients"][0].clone();
    api.call("PUT", "/api/clients/one", row.clone()).await.assert_status(200);
    api.call("PUT", "/api/clients/two", row).await.assert_status(422);
    let listed = api.call("GET", "/api/clients", Value::Null).await;
    let tag = listed.header("etag").to_owned();
    let conditional = [("if-none-match", &*tag)];
    api.call_with("GET", "/api/clients", &conditional, Value::Null).await.assert_status(304);
    // A key that the body does not show changes the entity tag, too.
    api.call("PATCH", "/api/clients/one", json!({ "key_sha256": sha256("another-key-0123456789") })).await;
    api.call_with("GET", "/api/clients", &conditional, Value::Null).await.assert_status(200);
}
