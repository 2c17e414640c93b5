//! Client authentication and agent selection (contract §4).

use base64::{Engine, prelude::BASE64_STANDARD};
use http::{Request, request::Builder};
use wecom_proxy::simulator::RecordedRequest;

use crate::harness::{CONFIG_WITH_CLIENTS, OPEN_CONFIG, TestProxy, TestResponse, USER_GET, client_key};

/// GET `user/get` with these headers.
fn user_get_request(headers: &[(&str, &str)]) -> Builder {
    with_headers(Request::get(USER_GET), headers)
}

fn with_headers(request: Builder, headers: &[(&str, &str)]) -> Builder {
    headers.iter().fold(request, |request, (name, value)| request.header(*name, *value))
}

fn bearer_header(client: &str) -> String {
    format!("Bearer {}", client_key(client))
}

fn basic_header(user: &str, password: &str) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}")))
}

/// Sends a request with a client's key.
async fn get_as_client(proxy: &TestProxy, client: &str, request: Builder) -> TestResponse {
    proxy.request(request.header("authorization", bearer_header(client)), "").await
}

fn assert_holds_no_key(record: &RecordedRequest) {
    for (name, value) in &record.headers {
        assert!(!value.contains("key-of-"), "{name}: {value}");
        assert!(!["authorization", "x-api-key"].contains(&name.as_str()), "{name}: {value}");
    }
    assert!(!record.query.contains("key-of-"), "{}", record.query);
}

#[tokio::test]
async fn key_is_accepted_in_each_form_and_never_forwarded() {
    let proxy = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let key = client_key("billing");
    for (name, value) in [
        ("authorization", format!("Bearer {key}")),
        ("authorization", format!("bearer  {key}")),
        ("x-api-key", key.clone()),
        ("authorization", basic_header("billing", &key)),
        ("authorization", basic_header("", &key)),
    ] {
        proxy.wecom.reset();
        proxy.request(user_get_request(&[(name, &value)]), "").await.assert_ok();
        for record in proxy.wecom.requests() {
            assert_holds_no_key(&record);
        }
        assert_eq!(proxy.forwarded_count(), 1);
    }
}

#[tokio::test]
async fn same_key_in_two_headers_is_accepted() {
    let proxy = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let request = user_get_request(&[
        ("authorization", &bearer_header("billing")),
        ("x-api-key", &client_key("billing")),
    ]);
    proxy.request(request, "").await.assert_ok();
    assert_holds_no_key(&proxy.last_request("/cgi-bin/user/get"));
}

#[tokio::test]
async fn keys_of_two_clients_are_refused() {
    let proxy = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let request =
        user_get_request(&[("authorization", &bearer_header("billing")), ("x-api-key", &client_key("crm"))]);
    proxy.request(request, "").await.assert_proxy_error("bad-request", 400, 40035);
    assert_eq!(proxy.wecom.requests().len(), 0);
}

#[tokio::test]
async fn duplicate_credential_header_is_refused() {
    let proxy = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    for name in ["authorization", "x-api-key"] {
        let value = if name == "x-api-key" { client_key("billing") } else { bearer_header("billing") };
        proxy.request(user_get_request(&[(name, &value), (name, &value)]), "").await.assert_proxy_error(
            "bad-request",
            400,
            40035,
        );
    }
    assert_eq!(proxy.wecom.requests().len(), 0);
}

#[tokio::test]
async fn missing_or_wrong_key_gets_www_authenticate() {
    let proxy = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let longer_key = format!("{}0", bearer_header("billing"));
    let raw_key = client_key("billing");
    let basic = basic_header("billing", "not-the-key");
    for headers in [
        &[][..],
        &[("authorization", longer_key.as_str())],
        &[("authorization", "Bearer ")],
        &[("authorization", raw_key.as_str())],
        &[("authorization", "Digest username=x")],
        &[("authorization", "Basic %%%")],
        &[("authorization", basic.as_str())],
        &[("x-api-key", "")],
        &[("x-api-key", "KEY-OF-BILLING-0000000000")],
    ] {
        let response = proxy.request(user_get_request(headers), "").await;
        response.assert_proxy_error("unauthenticated", 401, 40001);
        let challenges = response.headers.get_all("www-authenticate").iter();
        let schemes: Vec<_> =
            challenges.filter_map(|challenge| challenge.to_str().ok()?.split(' ').next()).collect();
        // One header per challenge: some programs read only the first challenge of a header.
        assert_eq!(schemes, ["Basic", "Bearer"]);
        assert!(
            !response.text().contains("key-of-") && !response.text().contains("not-the-key"),
            "{response:?}"
        );
    }
    assert_eq!(proxy.wecom.requests().len(), 0);
}

#[tokio::test]
async fn valid_key_with_a_wrong_one_is_refused() {
    let proxy = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let request = user_get_request(&[("authorization", &bearer_header("billing")), ("x-api-key", "guessed")]);
    proxy.request(request, "").await.assert_proxy_error("unauthenticated", 401, 40001);
}

#[tokio::test]
async fn key_in_the_query_is_not_accepted() {
    let proxy = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let target = format!("{USER_GET}&key={}", client_key("billing"));
    proxy.request(Request::get(target), "").await.assert_proxy_error("unauthenticated", 401, 40001);
}

#[tokio::test]
async fn agent_is_selected_by_path_header_or_default() {
    let proxy = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    for (client, path, header, agent) in [
        ("crm", "/ops/cgi-bin/user/get?userid=zhangsan", None, "ops"),
        ("crm", USER_GET, Some("ops"), "ops"),
        ("crm", "/hr/cgi-bin/user/get?userid=zhangsan", Some("hr"), "hr"),
        ("billing", USER_GET, None, "hr"),
        ("billing", USER_GET, Some("hr"), "hr"),
        ("crm", "/ops//cgi-bin/user/get?userid=zhangsan", None, "ops"),
    ] {
        let request = Request::get(path);
        let request = header.map_or_else(|| Request::get(path), |name| request.header("x-wecom-agent", name));
        let response = get_as_client(&proxy, client, request).await;
        assert_eq!(response.assert_ok().header("x-wecom-agent"), agent, "{client} {path} {header:?}");
        let record = proxy.last_request("/cgi-bin/user/get");
        assert_eq!(record.agent.as_deref(), Some(agent));
        assert!(record.header_values("x-wecom-agent").is_empty());
    }
}

#[tokio::test]
async fn open_proxy_with_one_agent_needs_no_agent_name() {
    let only = OPEN_CONFIG.replace("{agents}", "[agents.hr]\ncorpid = \"ww1234567890abcdef\"\nsecret = \"not-a-secret-hr-0000000000000000000000000000\"\n");
    let proxy = TestProxy::start_with_config(&only).await;
    let response = proxy.request(user_get_request(&[]), "").await;
    assert_eq!(response.assert_ok().header("x-wecom-agent"), "hr");
}

#[tokio::test]
async fn open_proxy_accepts_any_key_and_forwards_none() {
    let proxy = TestProxy::start_open().await;
    let headers = [
        ("authorization", "Bearer key-of-unknown"),
        ("x-api-key", "key-of-unknown"),
        ("x-wecom-agent", "hr"),
    ];
    proxy.request(user_get_request(&headers), "").await.assert_ok();
    assert_holds_no_key(&proxy.last_request("/cgi-bin/user/get"));
}

#[tokio::test]
async fn conflicting_agent_in_path_and_header_is_refused() {
    let proxy = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let request = Request::get(format!("/hr{USER_GET}")).header("x-wecom-agent", "ops");
    get_as_client(&proxy, "crm", request).await.assert_proxy_error("bad-request", 400, 40035);
    let request = user_get_request(&[("x-wecom-agent", "hr"), ("x-wecom-agent", "ops")]);
    get_as_client(&proxy, "crm", request).await.assert_proxy_error("bad-request", 400, 40035);
    assert_eq!(proxy.wecom.requests().len(), 0);
}

#[tokio::test]
async fn missing_agent_error_lists_the_ways_to_name_one() {
    let proxy = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let open = TestProxy::start_open().await;
    for response in [
        get_as_client(&proxy, "crm", user_get_request(&[])).await,
        open.request(user_get_request(&[]), "").await,
    ] {
        response.assert_proxy_error("no-agent", 400, 40035);
        for hint in ["/NAME/cgi-bin/", "X-Wecom-Agent", "key of a client"] {
            assert!(response.text().contains(hint), "{hint}: {}", response.text());
        }
    }
    assert_eq!(proxy.wecom.requests().len() + open.wecom.requests().len(), 0);
}

#[tokio::test]
async fn forbidden_agent_looks_like_an_unknown_one() {
    let proxy = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let by_path = |name: &str| Request::get(format!("/{name}{USER_GET}"));
    let by_header = |name: &str| user_get_request(&[]).header("x-wecom-agent", name);
    let plain = |name: &str| Request::get(format!("/{name}/cgi-bin/service/echo"));
    for build in [&by_path as &dyn Fn(&str) -> Builder, &by_header, &plain] {
        let mut shapes = Vec::new();
        for name in ["ops", "nil"] {
            let response = get_as_client(&proxy, "billing", build(name)).await;
            response.assert_proxy_error("unknown-agent", 404, 40035);
            let names: Vec<_> = response.headers.keys().map(ToString::to_string).collect();
            shapes.push((
                response.text().replace(name, "NAME"),
                names,
                response.header("content-length").to_owned(),
            ));
        }
        assert_eq!(shapes[0], shapes[1]);
    }
    assert_eq!(proxy.wecom.requests().len(), 0);
}

#[tokio::test]
async fn allow_list_restricts_methods_and_paths() {
    let proxy = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let post = |path: &str| Request::post(path.to_owned());
    let get = |path: &str| Request::get(path.to_owned());
    for allowed in [get(USER_GET), post(USER_GET), get("/hr/cgi-bin//user/get?userid=zhangsan")] {
        let response = get_as_client(&proxy, "narrow", allowed).await;
        assert_eq!(response.header("x-wecom-proxy-error"), "", "{}", response.text());
    }
    let before = proxy.wecom.requests().len();
    for forbidden in [
        get("/cgi-bin/message/send"),
        post("/cgi-bin/message/send/more"),
        post("/cgi-bin/Message/send"),
        get("/cgi-bin/user"),
        get("/cgi-bin/department/list?x=/cgi-bin/user/get"),
        get("/cgi-bin/webhook/send?key=1"),
        get("/cgi-bin/service/echo"),
    ] {
        let uri = forbidden.uri_ref().cloned();
        let response = get_as_client(&proxy, "narrow", forbidden).await;
        assert_eq!(response.header("x-wecom-proxy-error"), "forbidden", "{uri:?}");
        response.assert_proxy_error("forbidden", 403, 48002);
        assert!(response.text().contains("clients.narrow.allow"), "{}", response.text());
    }
    assert_eq!(proxy.wecom.requests().len(), before);
}

#[tokio::test]
async fn always_200_applies_to_every_error_of_the_client() {
    let proxy = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    proxy.wecom.stop().await;
    for (kind, errcode, path, header) in [
        ("no-route", 40035, "/favicon.ico", ("x", "y")),
        ("bad-request", 40035, "/cgi-bin/%2e%2e/x", ("x", "y")),
        ("bad-request", 40035, USER_GET, ("x-api-key", "key-of-crm-0000000000")),
        ("unknown-agent", 40035, "/ops/cgi-bin/user/get", ("x", "y")),
        ("forbidden", 48002, "/cgi-bin/message/send", ("x", "y")),
        ("token-unavailable", -1, USER_GET, ("x", "y")),
    ] {
        let response = get_as_client(&proxy, "alert", Request::get(path).header(header.0, header.1)).await;
        if header.0 == "x-api-key" {
            // Keys of two clients: neither client's `always_200` applies.
            response.assert_proxy_error(kind, 400, errcode);
        } else {
            response.assert_proxy_error(kind, 200, errcode);
        }
    }
    let trace = Request::builder().method("TRACE").uri(USER_GET);
    get_as_client(&proxy, "alert", trace).await.assert_proxy_error("bad-request", 200, 40035);
    get_as_client(&proxy, "billing", Request::get("/favicon.ico"))
        .await
        .assert_proxy_error("no-route", 404, 40035);
}

#[tokio::test]
async fn pass_on_a_passthrough_path_is_refused() {
    let proxy = TestProxy::start_open().await;
    let path = "/cgi-bin/service/get_corp_token?a=1";
    proxy.request(Request::get(path), "").await;
    assert_eq!(proxy.forwarded_count(), 1);
    for parameter in
        ["access_token=wp1-x", "%61ccess_token=%20wp1-x", "suite_access_token=wp1-x", "key=%77p1-x%0a"]
    {
        let response = proxy.request(Request::get(format!("{path}&{parameter}")), "").await;
        assert_eq!(response.errcode(), 40014, "{parameter}");
    }
    assert_eq!(proxy.forwarded_count(), 1);
}
