//! The keys of a client.

use super::*;

const KEYS: &str = "/api/clients/billing/keys";

async fn created_key(api: &Api) -> (String, String) {
    let created = api.call("POST", KEYS, Value::Null).await;
    let body = created.assert_status(201).json();
    let text = |key: &str| body[key].as_str().expect("a text").to_owned();
    (text("id"), text("key"))
}

async fn pass_bought_with(api: &Api, key: &str) -> String {
    let buy = format!("/cgi-bin/gettoken?corpid={CORPID}&corpsecret={key}");
    let bought = api.proxy.request(Request::get(&buy), "").await.assert_ok().json();
    format!(
        "/cgi-bin/user/get?userid=zhangsan&access_token={}",
        bought["access_token"].as_str().expect("a pass")
    )
}

async fn shown_keys(api: &Api) -> Vec<Value> {
    let shown = api.call("GET", "/api/clients/billing", Value::Null).await;
    shown.json()["keys"].as_array().expect("a list").clone()
}

#[tokio::test]
async fn key_is_shown_once_and_goes_with_its_passes() {
    let api = Api::start().await;
    api.put_agent("it", IT_SECRET).await.assert_status(201);
    let first = key_of("billing");
    api.call("PUT", "/api/clients/billing", client(&first, &["it"])).await.assert_status(201);
    let (id, second) = created_key(&api).await;
    for key in [&first, &second] {
        api.get_as("it", key).await.assert_ok();
    }
    let keys = shown_keys(&api).await;
    assert_eq!((keys.len(), &keys[1]["id"]), (2, &json!(id)));
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().expect("after 1970").as_secs();
    assert!(keys.iter().all(|key| key["created"].as_u64().is_some_and(|created| now - created < 600)));
    let shown = api.call("GET", "/api/clients/billing", Value::Null).await;
    assert!(!shown.text().contains(&second) && !shown.text().contains(&sha256(&second)));

    let (of_first, of_second) = (pass_bought_with(&api, &first).await, pass_bought_with(&api, &second).await);
    api.call("DELETE", &format!("{KEYS}/{id}"), Value::Null).await.assert_status(204);
    api.get_as("it", &second).await.assert_proxy_error("unauthenticated", 401, 40001);
    assert_eq!(api.proxy.request(Request::get(&of_second), "").await.errcode(), 42001);
    api.get_as("it", &first).await.assert_ok();
    api.proxy.request(Request::get(&of_first), "").await.assert_ok();
    api.call("DELETE", &format!("{KEYS}/{id}"), Value::Null).await.assert_status(404);
    let last = format!("{KEYS}/{}", keys[0]["id"].as_str().expect("an id"));
    api.call("DELETE", &last, Value::Null).await.assert_status(409);
}

#[tokio::test]
async fn client_has_at_most_four_keys() {
    let api = Api::start().await;
    api.call("POST", KEYS, Value::Null).await.assert_status(404);
    api.call("PUT", "/api/clients/billing", client(&key_of("billing"), &["*"])).await.assert_status(201);
    for _ in 0..3 {
        created_key(&api).await;
    }
    api.call("POST", KEYS, Value::Null).await.assert_status(409);
    assert_eq!(shown_keys(&api).await.len(), 4);
    let five: Vec<_> = (0..5).map(|nth| sha256(format!("key-{nth}"))).collect();
    let refused = api.call("PATCH", "/api/clients/billing", json!({ "key_sha256": five })).await;
    refused.assert_status(422);
}

#[tokio::test]
async fn changes_of_the_client_keep_its_keys() {
    let api = Api::start().await;
    api.put_agent("it", IT_SECRET).await.assert_status(201);
    let first = key_of("billing");
    api.call("PUT", "/api/clients/billing", client(&first, &["it"])).await.assert_status(201);
    let (_, second) = created_key(&api).await;
    let keys = shown_keys(&api).await;
    api.call("PATCH", "/api/clients/billing", json!({ "limit": "100/s" })).await.assert_status(200);
    let shown = api.call("GET", "/api/clients/billing", Value::Null).await.json();
    api.call("PUT", "/api/clients/billing", shown).await.assert_status(200);
    assert_eq!(shown_keys(&api).await, keys);
    // A list replaces the keys; one that stays keeps its id and its passes.
    let pass = pass_bought_with(&api, &second).await;
    let next = json!({ "key_sha256": [sha256(&second), sha256("another-key-0123456789")] });
    api.call("PATCH", "/api/clients/billing", next).await.assert_status(200);
    assert_eq!(shown_keys(&api).await[0], keys[1]);
    api.proxy.request(Request::get(&pass), "").await.assert_ok();
    api.get_as("it", &first).await.assert_proxy_error("unauthenticated", 401, 40001);
    api.get_as("it", &second).await.assert_ok();
}

#[tokio::test]
async fn each_documented_status_of_keys_is_returned() {
    let files = format!("[clients.file]\nkey_sha256 = \"{}\"\nagents = [\"*\"]\n", sha256("key-of-the-file"));
    let api = Api::start_with_files(&files).await;
    api.call("PUT", "/api/clients/billing", client(&key_of("billing"), &["*"])).await.assert_status(201);
    let (id, _) = created_key(&api).await;
    let id = format!("{KEYS}/{id}");
    let json = [("content-type", "application/json")];
    for (method, path, of_file, missing) in [
        ("POST", KEYS, "/api/clients/file/keys", "/api/clients/nothing/keys"),
        ("DELETE", &*id, "/api/clients/file/keys/file-1", "/api/clients/billing/keys/nothing"),
    ] {
        for (path, headers, status) in [
            (path, &[("if-match", "\"x\"")][..], 412),
            (path, &[("if-match", "x")], 400),
            (path, &[("sec-fetch-site", "cross-site")], 403),
            (of_file, &[], 409),
            (missing, &[], 404),
            (path, &[("if-match", "*")], if method == "POST" { 201 } else { 204 }),
        ] {
            api.call_with(method, path, headers, Value::Null).await.assert_status(status);
        }
        api.send(method, path, &json, "").await.assert_status(401);
    }
}
