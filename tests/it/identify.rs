//! §4: which client calls, and through which agent.

use base64::{Engine, prelude::BASE64_STANDARD};
use http::{Request, request::Builder};
use wecom_proxy::simulator::Record;

use crate::stage::{KEYED, OPEN, Reply, Stage, USER_GET, key};

/// GET `user/get` with these headers.
fn user_get(headers: &[(&str, &str)]) -> Builder {
    with(Request::get(USER_GET), headers)
}

fn with(request: Builder, headers: &[(&str, &str)]) -> Builder {
    headers.iter().fold(request, |request, (name, value)| request.header(*name, *value))
}

fn bearer(client: &str) -> String {
    format!("Bearer {}", key(client))
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}")))
}

/// Calls with a client's key.
async fn call_as(stage: &Stage, client: &str, request: Builder) -> Reply {
    stage.call(request.header("authorization", bearer(client)), "").await
}

fn holds_no_key(record: &Record) {
    for (name, value) in &record.headers {
        assert!(!value.contains("key-of-"), "{name}: {value}");
        assert!(!["authorization", "x-api-key"].contains(&name.as_str()), "{name}: {value}");
    }
    assert!(!record.query.contains("key-of-"), "{}", record.query);
}

#[tokio::test]
async fn a_key_is_taken_in_each_of_its_forms_and_never_leaves() {
    let stage = Stage::with(KEYED).await;
    let key = key("billing");
    for (name, value) in [
        ("authorization", format!("Bearer {key}")),
        ("authorization", format!("bearer  {key}")),
        ("x-api-key", key.clone()),
        ("authorization", basic("billing", &key)),
        ("authorization", basic("", &key)),
    ] {
        stage.wecom.reset();
        stage.call(user_get(&[(name, &value)]), "").await.is_ok();
        for record in stage.wecom.requests() {
            holds_no_key(&record);
        }
        assert_eq!(stage.got_through(), 1);
    }
}

#[tokio::test]
async fn the_same_key_shown_twice_is_one_client() {
    let stage = Stage::with(KEYED).await;
    let request = user_get(&[("authorization", &bearer("billing")), ("x-api-key", &key("billing"))]);
    stage.call(request, "").await.is_ok();
    holds_no_key(&stage.last_seen("/cgi-bin/user/get"));
}

#[tokio::test]
async fn the_keys_of_two_clients_are_refused() {
    let stage = Stage::with(KEYED).await;
    let request = user_get(&[("authorization", &bearer("billing")), ("x-api-key", &key("crm"))]);
    stage.call(request, "").await.is_own("bad-request", 400, 40035);
    assert_eq!(stage.wecom.requests().len(), 0);
}

#[tokio::test]
async fn one_header_with_two_values_is_refused() {
    let stage = Stage::with(KEYED).await;
    for name in ["authorization", "x-api-key"] {
        let value = if name == "x-api-key" { key("billing") } else { bearer("billing") };
        stage.call(user_get(&[(name, &value), (name, &value)]), "").await.is_own("bad-request", 400, 40035);
    }
    assert_eq!(stage.wecom.requests().len(), 0);
}

#[tokio::test]
async fn a_wrong_key_or_none_is_told_how_to_show_one() {
    let stage = Stage::with(KEYED).await;
    let almost = format!("{}0", bearer("billing"));
    let bare = key("billing");
    let wrong = basic("billing", "not-the-key");
    for headers in [
        &[][..],
        &[("authorization", almost.as_str())],
        &[("authorization", "Bearer ")],
        &[("authorization", bare.as_str())],
        &[("authorization", "Digest username=x")],
        &[("authorization", "Basic %%%")],
        &[("authorization", wrong.as_str())],
        &[("x-api-key", "")],
        &[("x-api-key", "KEY-OF-BILLING-0000000000")],
    ] {
        let reply = stage.call(user_get(headers), "").await;
        reply.is_own("unauthenticated", 401, 40001);
        let ways = reply.header("www-authenticate");
        assert!(ways.contains("Bearer") && ways.contains("Basic"), "{ways}");
        assert!(!reply.text().contains("key-of-") && !reply.text().contains("not-the-key"), "{reply:?}");
    }
    assert_eq!(stage.wecom.requests().len(), 0);
}

#[tokio::test]
async fn a_right_key_beside_a_wrong_one_is_refused() {
    let stage = Stage::with(KEYED).await;
    let request = user_get(&[("authorization", &bearer("billing")), ("x-api-key", "guessed")]);
    stage.call(request, "").await.is_own("unauthenticated", 401, 40001);
}

#[tokio::test]
async fn a_key_in_the_query_is_no_key() {
    let stage = Stage::with(KEYED).await;
    let target = format!("{USER_GET}&key={}", key("billing"));
    stage.call(Request::get(target), "").await.is_own("unauthenticated", 401, 40001);
}

#[tokio::test]
async fn the_agent_is_named_by_path_or_header_or_is_the_only_one() {
    let stage = Stage::with(KEYED).await;
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
        let reply = call_as(&stage, client, request).await;
        assert_eq!(reply.is_ok().header("x-wecom-agent"), agent, "{client} {path} {header:?}");
        let record = stage.last_seen("/cgi-bin/user/get");
        assert_eq!(record.agent.as_deref(), Some(agent));
        assert!(record.header("x-wecom-agent").is_empty());
    }
}

#[tokio::test]
async fn an_open_proxy_with_one_agent_needs_no_name() {
    let only = OPEN.replace("{agents}", "[agents.hr]\ncorpid = \"ww1234567890abcdef\"\nsecret = \"not-a-secret-hr-0000000000000000000000000000\"\n");
    let stage = Stage::with(&only).await;
    let reply = stage.call(user_get(&[]), "").await;
    assert_eq!(reply.is_ok().header("x-wecom-agent"), "hr");
}

#[tokio::test]
async fn an_open_proxy_takes_whatever_key_it_is_shown_and_sends_none_on() {
    let stage = Stage::open().await;
    let shown =
        [("authorization", "Bearer key-of-nobody"), ("x-api-key", "key-of-nobody"), ("x-wecom-agent", "hr")];
    stage.call(user_get(&shown), "").await.is_ok();
    holds_no_key(&stage.last_seen("/cgi-bin/user/get"));
}

#[tokio::test]
async fn path_and_header_that_disagree_are_refused() {
    let stage = Stage::with(KEYED).await;
    let request = Request::get(format!("/hr{USER_GET}")).header("x-wecom-agent", "ops");
    call_as(&stage, "crm", request).await.is_own("bad-request", 400, 40035);
    let request = user_get(&[("x-wecom-agent", "hr"), ("x-wecom-agent", "ops")]);
    call_as(&stage, "crm", request).await.is_own("bad-request", 400, 40035);
    assert_eq!(stage.wecom.requests().len(), 0);
}

#[tokio::test]
async fn who_names_no_agent_among_several_learns_the_three_ways() {
    let stage = Stage::with(KEYED).await;
    let open = Stage::open().await;
    for reply in [call_as(&stage, "crm", user_get(&[])).await, open.call(user_get(&[]), "").await] {
        reply.is_own("no-agent", 400, 40035);
        for way in ["/NAME/cgi-bin/", "X-Wecom-Agent", "key of a client"] {
            assert!(reply.text().contains(way), "{way}: {}", reply.text());
        }
    }
    assert_eq!(stage.wecom.requests().len() + open.wecom.requests().len(), 0);
}

#[tokio::test]
async fn an_agent_that_a_client_may_not_use_looks_as_if_there_were_none() {
    let stage = Stage::with(KEYED).await;
    let by_path = |name: &str| Request::get(format!("/{name}{USER_GET}"));
    let by_header = |name: &str| user_get(&[]).header("x-wecom-agent", name);
    let plain = |name: &str| Request::get(format!("/{name}/cgi-bin/service/echo"));
    for ask in [&by_path as &dyn Fn(&str) -> Builder, &by_header, &plain] {
        let mut shapes = Vec::new();
        for name in ["ops", "nil"] {
            let reply = call_as(&stage, "billing", ask(name)).await;
            reply.is_own("unknown-agent", 404, 40035);
            let names: Vec<_> = reply.headers.keys().map(ToString::to_string).collect();
            shapes.push((
                reply.text().replace(name, "NAME"),
                names,
                reply.header("content-length").to_owned(),
            ));
        }
        assert_eq!(shapes[0], shapes[1]);
    }
    assert_eq!(stage.wecom.requests().len(), 0);
}

#[tokio::test]
async fn an_allow_list_holds_for_methods_and_paths() {
    let stage = Stage::with(KEYED).await;
    let post = |path: &str| Request::post(path.to_owned());
    let get = |path: &str| Request::get(path.to_owned());
    for allowed in [get(USER_GET), post(USER_GET), get("/hr/cgi-bin//user/get?userid=zhangsan")] {
        let reply = call_as(&stage, "narrow", allowed).await;
        assert_eq!(reply.header("x-wecom-proxy-error"), "", "{}", reply.text());
    }
    let before = stage.wecom.requests().len();
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
        let reply = call_as(&stage, "narrow", forbidden).await;
        assert_eq!(reply.header("x-wecom-proxy-error"), "forbidden", "{uri:?}");
        reply.is_own("forbidden", 403, 48002);
        assert!(reply.text().contains("clients.narrow.allow"), "{}", reply.text());
    }
    assert_eq!(stage.wecom.requests().len(), before);
}

#[tokio::test]
async fn always_200_covers_whatever_goes_wrong_for_that_client() {
    let stage = Stage::with(KEYED).await;
    stage.wecom.stop().await;
    for (kind, errcode, path, header) in [
        ("no-route", 40035, "/favicon.ico", ("x", "y")),
        ("bad-request", 40035, "/cgi-bin/%2e%2e/x", ("x", "y")),
        ("bad-request", 40035, USER_GET, ("x-api-key", "key-of-crm-0000000000")),
        ("unknown-agent", 40035, "/ops/cgi-bin/user/get", ("x", "y")),
        ("forbidden", 48002, "/cgi-bin/message/send", ("x", "y")),
        ("token-unavailable", -1, USER_GET, ("x", "y")),
    ] {
        let reply = call_as(&stage, "alert", Request::get(path).header(header.0, header.1)).await;
        if header.0 == "x-api-key" {
            // Two clients: nobody knows whose wish counts.
            reply.is_own(kind, 400, errcode);
        } else {
            reply.is_own(kind, 200, errcode);
        }
    }
    let trace = Request::builder().method("TRACE").uri(USER_GET);
    call_as(&stage, "alert", trace).await.is_own("bad-request", 200, 40035);
    call_as(&stage, "billing", Request::get("/favicon.ico")).await.is_own("no-route", 404, 40035);
}

#[tokio::test]
async fn a_pass_does_not_leave_on_a_path_with_a_credential_of_its_own() {
    let stage = Stage::open().await;
    let path = "/cgi-bin/service/get_corp_token?a=1";
    stage.call(Request::get(path), "").await;
    assert_eq!(stage.got_through(), 1);
    for shown in
        ["access_token=wp1-x", "%61ccess_token=%20wp1-x", "suite_access_token=wp1-x", "key=%77p1-x%0a"]
    {
        let reply = stage.call(Request::get(format!("{path}&{shown}")), "").await;
        assert_eq!(reply.errcode(), 40014, "{shown}");
    }
    assert_eq!(stage.got_through(), 1);
}
