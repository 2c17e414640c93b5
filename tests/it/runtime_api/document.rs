//! `/api/openapi.json` says what the admin listener does, and nothing else.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

/// The document, as served.
const DOCUMENT: &str = include_str!("../../../src/admin/openapi.json");

/// The statuses by method and path.
fn documented() -> BTreeMap<(String, String), BTreeSet<u16>> {
    let document: Value = serde_json::from_str(DOCUMENT).expect("JSON");
    let mut operations = BTreeMap::new();
    for (path, item) in document["paths"].as_object().expect("paths") {
        for (method, operation) in item.as_object().expect("operations") {
            if method != "parameters" {
                let responses = operation["responses"].as_object().expect("responses");
                let statuses = responses.keys().map(|status| status.parse().expect("a status"));
                operations.insert((method.to_uppercase(), path.clone()), statuses.collect());
            }
        }
    }
    operations
}

/// The path as the document names it.
fn template(path: &str) -> String {
    let segments: Vec<_> = path.split('?').next().unwrap_or_default().split('/').collect();
    match *segments {
        ["", "api", kind @ ("agents" | "clients"), _] => format!("/api/{kind}/{{name}}"),
        ["", "api", kind @ ("agents" | "clients"), _, action] => format!("/api/{kind}/{{name}}/{action}"),
        ["", "api", "callbacks", _, "events"] => "/api/callbacks/{name}/events".to_owned(),
        ["", "api", "callbacks", _, "events", _, "redeliver"] => {
            "/api/callbacks/{name}/events/{id}/redeliver".to_owned()
        }
        ["", "api", "suites", _, resource] => format!("/api/suites/{{name}}/{resource}"),
        ["", "api", "clients", _, "keys", _] => "/api/clients/{name}/keys/{id}".to_owned(),
        _ => segments.join("/"),
    }
}

/// Asserts that the document has this response.
#[track_caller]
pub fn check(method: &str, path: &str, response: &TestResponse) {
    let (path, status) = (template(path), response.status.as_u16());
    let operation = (method.to_owned(), path);
    match documented().get(&operation) {
        Some(statuses) => assert!(statuses.contains(&status), "{operation:?}: {status} is not documented"),
        None => assert_eq!(status, 405, "{operation:?} is not documented"),
    }
}

#[tokio::test]
async fn document_names_each_route_and_no_other() {
    let api = Api::start().await;
    let served = api.call("GET", "/api/openapi.json", Value::Null).await;
    assert_eq!((served.text(), served.header("content-type")), (DOCUMENT, "application/json"));
    let documented = documented();
    let paths: BTreeSet<_> = documented.keys().map(|(_, path)| path.clone()).collect();
    for path in paths {
        let target = path.replace("{name}", "nothing").replace("{id}", "1");
        for method in ["GET", "POST", "PUT", "PATCH", "DELETE"] {
            if path == "/api/requests/stream" && method == "GET" {
                continue; // It does not end.
            }
            let is_documented = documented.contains_key(&(method.to_owned(), path.clone()));
            let response =
                api.call_with(method, &target, &[("content-type", "application/json")], Value::Null).await;
            let is_known = response.status != StatusCode::METHOD_NOT_ALLOWED
                && !response.text().contains("unknown path");
            assert_eq!(is_known, is_documented, "{method} {path}: {}", response.status);
        }
    }
    // The list in the text for an unknown path is the document's, too.
    let request = Request::get("/api/nothing").header("authorization", format!("Bearer {ADMIN_KEY}"));
    let unknown = TestClient::connect_http1(api.proxy.admin_address()).await.request(request, "").await;
    for (_, path) in documented.keys().filter(|(method, path)| method == "GET" && !path.contains('{')) {
        assert!(unknown.text().contains(path), "{path} is not in {}", unknown.text());
    }
}

/// Statuses that need a disk that is full or gone, a body that stalls, or many wrong secrets; other tests have them.
const NOT_PROVOKED: [u16; 4] = [408, 429, 503, 507];

#[tokio::test]
async fn each_documented_status_of_changes_is_returned() {
    let (documented, key) = (documented(), key_of("billing"));
    for (kind, good, bad) in [
        ("agents", agent(IT_SECRET), json!({ "corpid": 1 })),
        ("clients", client(&key, &["*"]), json!({ "key_sha256": 1 })),
    ] {
        let files = "\n[agents.file]\ncorpid = \"ww1\"\nsecret = \"a-secret-of-a-file\"\n".to_owned()
            + &format!("[clients.file]\nkey_sha256 = \"{}\"\nagents = [\"*\"]\n", sha256("key-of-the-file"));
        let api = Api::start_with_files(&files).await;
        let (path, file) = (format!("/api/{kind}/it"), format!("/api/{kind}/file"));
        let mut seen: BTreeMap<&str, BTreeSet<u16>> = BTreeMap::new();
        let long = json!({ "corpid": "w".repeat(1 << 20) });
        let cross = [("sec-fetch-site", "cross-site")];
        for (method, path, headers, body) in [
            ("GET", &*path, &[][..], Value::Null),
            ("PATCH", &path, &[], json!({})),
            ("DELETE", &path, &[], Value::Null),
            ("PUT", &path, &[], good.clone()),
            ("PUT", &path, &[], good.clone()),
            ("GET", &path, &[], Value::Null),
            ("GET", &path, &[("if-none-match", "*")], Value::Null),
            ("GET", &path, &[("if-match", "\"x\"")], Value::Null),
            ("GET", &path, &[("if-match", "x")], Value::Null),
            ("GET", &path, &cross, Value::Null),
            ("PATCH", &path, &[], json!({ "limit": "5/s" })),
            ("PUT", &path, &[("if-match", "x")], good.clone()),
            ("PATCH", &path, &[("if-match", "x")], good.clone()),
            ("DELETE", &path, &[("if-match", "x")], Value::Null),
            ("PUT", &path, &cross, good.clone()),
            ("PATCH", &path, &cross, good.clone()),
            ("DELETE", &path, &cross, Value::Null),
            ("PUT", &file, &[], good.clone()),
            ("PATCH", &file, &[], good.clone()),
            ("DELETE", &file, &[], Value::Null),
            ("PUT", &path, &[("if-none-match", "*")], good.clone()),
            ("PATCH", &path, &[("if-none-match", "*")], good.clone()),
            ("DELETE", &path, &[("if-none-match", "*")], Value::Null),
            ("PUT", &path, &[], long.clone()),
            ("PATCH", &path, &[], long.clone()),
            ("PUT", &path, &[("content-type", "text/plain")], good.clone()),
            ("PATCH", &path, &[("content-type", "text/plain")], good.clone()),
            ("DELETE", &path, &[("content-type", "text/plain")], good.clone()),
            ("PUT", &path, &[], bad.clone()),
            ("PATCH", &path, &[], bad.clone()),
            ("DELETE", &format!("{path}?dry_run=1"), &[], Value::Null),
            ("DELETE", &path, &[], Value::Null),
        ] {
            let response = api.call_with(method, path, headers, body).await;
            seen.entry(method).or_default().insert(response.status.as_u16());
        }
        for method in ["GET", "PUT", "PATCH", "DELETE"] {
            let response = api.send(method, &path, &[("content-type", "application/json")], "{}").await;
            seen.entry(method).or_default().insert(response.status.as_u16());
        }
        for (method, seen) in seen {
            let operation = (method.to_owned(), format!("/api/{kind}/{{name}}"));
            let expected =
                documented[&operation].iter().copied().filter(|status| !NOT_PROVOKED.contains(status));
            assert_eq!(seen, expected.collect(), "{method} {kind}");
        }
    }
}
