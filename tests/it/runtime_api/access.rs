//! Who may change agents and clients.

use super::*;

const PATHS: [(&str, &str); 8] = [
    ("PUT", "/api/agents/it"),
    ("PATCH", "/api/agents/it"),
    ("DELETE", "/api/agents/it"),
    ("PUT", "/api/clients/it"),
    ("PATCH", "/api/clients/it"),
    ("DELETE", "/api/clients/it"),
    ("POST", "/api/clients/it/keys"),
    ("DELETE", "/api/clients/it/keys/1"),
];
const JSON: (&str, &str) = ("content-type", "application/json");

fn body_of(method: &str) -> String {
    if matches!(method, "PUT" | "PATCH") { agent(IT_SECRET).to_string() } else { String::new() }
}

#[tokio::test]
async fn change_needs_the_key_as_a_bearer_token() {
    use base64::{Engine, prelude::BASE64_STANDARD};
    let api = Api::start().await;
    let basic = format!("Basic {}", BASE64_STANDARD.encode(format!("admin:{ADMIN_KEY}")));
    let (bearer, hash) = (format!("Bearer {ADMIN_KEY}"), format!("Bearer {}", sha256(ADMIN_KEY)));
    let cookie = format!("key={ADMIN_KEY}");
    let wrong = [("authorization", "Bearer wrong"), ("authorization", &*hash), ("authorization", ADMIN_KEY)];
    for (nth, (method, path)) in PATHS.into_iter().enumerate() {
        let unseen = [("authorization", &*basic), ("cookie", &*cookie), ("x-api-key", ADMIN_KEY)];
        let wrong = wrong.into_iter().filter(|_| nth == 0);
        for credentials in [None].into_iter().chain(unseen.into_iter().chain(wrong).map(Some)) {
            let headers: Vec<_> = credentials.into_iter().chain([JSON]).collect();
            let refused = api.send(method, path, &headers, body_of(method)).await;
            refused.assert_status(401);
            assert!(refused.header("www-authenticate").starts_with("Bearer "));
        }
        for site in [
            ("origin", "https://elsewhere.example"),
            ("origin", "null"),
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-site", "same-site"),
        ] {
            for headers in [vec![JSON, site], vec![JSON, site, ("authorization", &*bearer)]] {
                api.send(method, path, &headers, body_of(method)).await.assert_status(403);
            }
        }
    }
    // Basic is enough to read.
    api.put_agent("it", IT_SECRET).await.assert_status(201);
    api.send("GET", "/api/agents/it", &[("authorization", &*basic)], "").await.assert_status(200);
    for path in ["/api/agents/it", "/api/clients", "/api/clients/it"] {
        api.send("GET", path, &[], "").await.assert_status(401);
        let headers = [("authorization", &*bearer), ("sec-fetch-site", "cross-site")];
        api.send("GET", path, &headers, "").await.assert_status(403);
    }
}

#[tokio::test]
async fn change_needs_state_and_a_configured_key() {
    let without_state = config("").split("[state]").next().expect("a part").to_owned()
        + &format!("[agents.hr]\ncorpid = \"{CORPID}\"\nsecret = \"a-secret-of-hr\"\n");
    let api = Api::of(TestProxy::start_with_config(&without_state).await);
    for (method, path) in PATHS {
        let refused = api.call_with(method, path, &[JSON], Value::Null).await;
        assert!(refused.assert_status(409).text().contains("[state]"), "{}", refused.text());
    }
    api.call("GET", "/api/agents/hr", Value::Null).await.assert_status(200);

    let without_key = config("").replace("key_sha256 = ", "# ");
    let api = Api::of(TestProxy::start_with_config(&without_key).await);
    for (method, path) in PATHS {
        let refused = api.call_with(method, path, &[JSON], Value::Null).await;
        assert!(refused.assert_status(403).text().contains("admin.key_sha256"), "{}", refused.text());
    }
}

#[tokio::test]
async fn body_of_another_type_is_refused() {
    let api = Api::start().await;
    let bearer = format!("Bearer {ADMIN_KEY}");
    let authorization = ("authorization", &*bearer);
    for (method, path, kind, status) in [
        ("PUT", "/api/agents/it", "", 415),
        ("PUT", "/api/agents/it", "text/plain", 415),
        ("PUT", "/api/agents/it", "application/x-www-form-urlencoded", 415),
        ("PUT", "/api/agents/it", "application/merge-patch+json", 415),
        ("PUT", "/api/agents/it", "Application/JSON; charset=utf-8", 201),
        ("PATCH", "/api/agents/it", "text/plain", 415),
        ("PATCH", "/api/agents/it", "application/merge-patch+json", 200),
        ("DELETE", "/api/agents/it", "text/plain", 415),
        ("PUT", "/api/clients/it", "text/plain", 415),
        ("PATCH", "/api/clients/it", "text/plain", 415),
        ("DELETE", "/api/clients/it", "text/plain", 415),
        ("POST", "/api/clients/it/keys", "text/plain", 415),
        ("DELETE", "/api/clients/it/keys/1", "text/plain", 415),
        ("DELETE", "/api/agents/it", "application/json", 204),
    ] {
        let headers: Vec<_> =
            [authorization].into_iter().chain((!kind.is_empty()).then_some(("content-type", kind))).collect();
        let response = api.send(method, path, &headers, agent(IT_SECRET).to_string()).await;
        response.assert_status(status);
        let is_patch = method == "PATCH" && status == 415;
        assert_eq!(response.header("accept-patch").contains("merge-patch+json"), is_patch);
    }
}

#[tokio::test]
async fn other_methods_are_not_allowed() {
    let api = Api::start().await;
    for (path, allowed) in [
        ("/api/agents/it", "GET, HEAD, PUT, PATCH, DELETE"),
        ("/api/clients", "GET, HEAD"),
        ("/api/clients/it", "GET, HEAD, PUT, PATCH, DELETE"),
        ("/api/clients/it/keys", "POST"),
        ("/api/clients/it/keys/1", "DELETE"),
    ] {
        for method in ["GET", "PUT", "PATCH", "POST", "DELETE", "OPTIONS"] {
            if !allowed.contains(method) {
                let response = api.call_with(method, path, &[JSON], Value::Null).await;
                assert_eq!(response.status, StatusCode::METHOD_NOT_ALLOWED, "{method} {path}");
                assert_eq!(response.header("allow"), allowed);
            }
        }
    }
}
