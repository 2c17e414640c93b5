//! JS-SDK signatures: who gets them, and what they are.

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use http::Request;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use wecom_proxy::simulator::Fault;

use crate::{
    browser::Browser,
    gettoken::{config_with_hr_lines, fetch_pass},
    harness::{CONFIG_WITH_CLIENTS, OPEN_CONFIG, TestProxy, TestResponse, client_key, get_as_client},
};

const APP: &str = "https://app.example.com";
const PAGE: &str = "https://app.example.com/a+b?code=1&state=x";

fn target(page: &str) -> String {
    format!("/hr/jssdk/signature?url={}", utf8_percent_encode(page, NON_ALPHANUMERIC))
}

/// A proxy with clients, and `jssdk_origins` for the agent `hr`.
async fn start_with_origins() -> TestProxy {
    let lines =
        format!("jssdk_origins = [\"{APP}\", \"https://other.example.com\", \"http://localhost:3000\"]");
    TestProxy::start_with_config(&config_with_hr_lines(&lines)).await
}

/// A GET with these headers and without a key.
async fn get_with(proxy: &TestProxy, target: &str, headers: &[(&str, &str)]) -> TestResponse {
    let request =
        headers.iter().fold(Request::get(target), |request, (name, value)| request.header(*name, *value));
    proxy.request(request, "").await
}

async fn ticket(proxy: &TestProxy, path: &str) -> String {
    let response = get_as_client(proxy, "crm", &format!("/hr{path}")).await;
    response.json()["ticket"].as_str().expect("a ticket").to_owned()
}

/// Asserts the signature of `page` with WeCom's own formula.
#[track_caller]
fn assert_signed(signed: &Value, ticket: &str, page: &str) {
    let (nonce, timestamp) = (signed["nonceStr"].as_str().expect("a nonce"), &signed["timestamp"]);
    assert!(nonce.len() >= 16 && nonce.bytes().all(|byte| byte.is_ascii_alphanumeric()), "{nonce}");
    assert!(timestamp.as_u64().is_some_and(|seconds| seconds > 1_700_000_000), "{timestamp}");
    let text = format!("jsapi_ticket={ticket}&noncestr={nonce}&timestamp={timestamp}&url={page}");
    let hash = digest(&SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes());
    let hash: String = hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(signed["signature"], hash, "{signed}");
    assert_eq!(signed.as_object().expect("an object").len(), 3);
}

#[tokio::test]
async fn signature_is_made_with_both_tickets() {
    let proxy = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let response = get_as_client(&proxy, "billing", &target(&format!("{PAGE}#part"))).await;
    assert_eq!(response.header("content-type"), "application/json; charset=UTF-8");
    assert_eq!((response.header("cache-control"), response.header("x-wecom-agent")), ("no-store", "hr"));
    let body = response.assert_ok().json();
    let jsapi = ticket(&proxy, "/cgi-bin/get_jsapi_ticket").await;
    let of_agent = ticket(&proxy, "/cgi-bin/ticket/get?type=agent_config").await;
    assert!(!response.text().contains(&jsapi) && !response.text().contains(&of_agent));
    assert_signed(&body["config"], &jsapi, PAGE);
    assert_signed(&body["agentConfig"], &of_agent, PAGE);
    let head = r#"{"errcode":0,"errmsg":"ok","corpid":"ww1234567890abcdef","agentid":1000002,"url":""#;
    assert!(
        response.text().starts_with(&format!("{head}{PAGE}\",\"config\":{{\"timestamp\":")),
        "{}",
        response.text()
    );
    // Signed once more, with the same tickets.
    let again = get_as_client(&proxy, "billing", &target(PAGE)).await.assert_ok().json();
    assert_ne!(again["config"]["nonceStr"], body["config"]["nonceStr"]);
    assert_eq!(proxy.wecom.observe(|observed| observed.received_count("/cgi-bin/get_jsapi_ticket")), 1);
    assert_eq!(proxy.wecom.observe(|observed| observed.received_count("/cgi-bin/ticket/get")), 1);
}

#[tokio::test]
async fn agent_without_agentid_has_no_agent_config() {
    let toml = OPEN_CONFIG.replace(
        "{agents}",
        "[agents.hr]\ncorpid = \"ww1234567890abcdef\"\nsecret = \"not-a-secret-hr-0000000000000000000000000000\"",
    );
    let proxy = TestProxy::start_with_config(&toml).await;
    // The only agent needs no name.
    let response = get_with(&proxy, &target(PAGE)["/hr".len()..], &[]).await;
    let body = response.assert_ok().json();
    assert_eq!((body.get("agentid"), body.get("agentConfig")), (None, None));
    assert!(body["config"]["signature"].as_str().is_some_and(|text| text.len() == 40));
    assert_eq!(proxy.wecom.observe(|observed| observed.received_count("/cgi-bin/ticket/get")), 0);
}

#[tokio::test]
async fn agent_of_a_signature_is_chosen_like_any_other() {
    let proxy = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let unnamed = &target(PAGE)["/hr".len()..];
    get_as_client(&proxy, "billing", unnamed).await.assert_ok();
    get_as_client(&proxy, "crm", unnamed).await.assert_proxy_error("no-agent", 400, 40035);
    let by_header =
        Request::get(unnamed).header("x-api-key", client_key("crm")).header("x-wecom-agent", "ops");
    assert_eq!(proxy.request(by_header, "").await.assert_ok().json()["agentid"], 1_000_003);
    let pass = fetch_pass(&proxy, "hr", "crm").await;
    get_with(&proxy, &format!("{unnamed}&access_token={pass}"), &[]).await.assert_ok();
    let foreign = target(PAGE).replace("/hr/", "/ops/");
    get_as_client(&proxy, "billing", &foreign).await.assert_proxy_error("unknown-agent", 404, 40035);
}

#[tokio::test]
async fn signature_needs_a_client_that_may_have_it() {
    let allow = "allow = [\"GET /jssdk/signature\", \"/cgi-bin/user/*\"]";
    let toml = CONFIG_WITH_CLIENTS.replace("allow = [\"/cgi-bin/user/*\", \"/cgi-bin/simulator/*\"]", allow);
    let proxy = TestProxy::start_with_config(&toml).await;
    get_with(&proxy, &target(PAGE), &[]).await.assert_proxy_error("unauthenticated", 401, 40001);
    let unknown = target(PAGE).replace("/hr/", "/nothing/");
    get_with(&proxy, &unknown, &[]).await.assert_proxy_error("unauthenticated", 401, 40001);
    let wrong = get_with(&proxy, &target(PAGE), &[("x-api-key", "key-of-no-client-0000000000")]).await;
    wrong.assert_proxy_error("unauthenticated", 401, 40001);
    get_as_client(&proxy, "narrow", &target(PAGE)).await.assert_proxy_error("forbidden", 403, 48002);
    get_as_client(&proxy, "alert", &target(PAGE)).await.assert_ok();
    // A client with a key needs no origin, and its page may be any.
    get_as_client(&proxy, "billing", &target("http://192.0.2.1/x")).await.assert_ok();
    for method in ["POST", "PUT", "DELETE"] {
        let request = Request::builder().method(method).uri(target(PAGE));
        let refused = proxy.request(request.header("x-api-key", client_key("billing")), "").await;
        refused.assert_proxy_error("bad-request", 405, 40035);
        assert_eq!(refused.header("allow"), "GET, HEAD, OPTIONS", "{method}");
    }
    // OPTIONS that is no preflight.
    let options = proxy.request(Request::options(target(PAGE)), "").await;
    assert_eq!((options.status.as_u16(), options.header("allow")), (204, "GET, HEAD, OPTIONS"));
    assert_eq!(options.header("access-control-allow-origin"), "");
    let head = Request::head(target(PAGE)).header("x-api-key", client_key("billing"));
    assert_eq!(proxy.request(head, "").await.status, 200);
}

#[tokio::test]
async fn url_that_cannot_be_signed_is_a_bad_request() {
    let proxy = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    for query in
        ["", "?url=", "?url=app.example.com", "?url=https://a.example/&state=1", "?url=https%3A%2F%2Fa%20b"]
    {
        let response = get_as_client(&proxy, "billing", &format!("/hr/jssdk/signature{query}")).await;
        response.assert_proxy_error("bad-request", 400, 40035);
        assert!(response.text().contains("url"), "{}", response.text());
    }
    assert_eq!(proxy.forwarded_count(), 0);
}

#[tokio::test]
async fn page_of_a_listed_origin_needs_no_key() {
    let proxy = start_with_origins().await;
    let with_origin =
        get_with(&proxy, &target(PAGE), &[("origin", APP), ("sec-fetch-site", "cross-site")]).await;
    let jsapi = ticket(&proxy, "/cgi-bin/get_jsapi_ticket").await;
    assert_signed(&with_origin.assert_ok().json()["config"], &jsapi, PAGE);
    assert_eq!(with_origin.header("access-control-allow-origin"), APP);
    assert_eq!((with_origin.header("vary"), with_origin.header("cache-control")), ("Origin", "no-store"));
    assert_eq!(with_origin.header("access-control-allow-credentials"), "");
    // Without an Origin the URL decides; same-origin and none say that no other site's page asks.
    for headers in [&[][..], &[("sec-fetch-site", "same-origin")], &[("sec-fetch-site", "none")]] {
        let response = get_with(&proxy, &target(PAGE), headers).await;
        assert_eq!(response.assert_ok().header("access-control-allow-origin"), "");
        assert_eq!(response.header("vary"), "Origin");
    }
    let local = "http://localhost:3000";
    get_with(&proxy, &target(&format!("{local}/x")), &[("origin", local)]).await.assert_ok();
}

#[tokio::test]
async fn page_of_any_other_origin_is_forbidden() {
    let proxy = start_with_origins().await;
    let (evil, other) = ("https://evil.example.com", "https://other.example.com");
    for (page, headers) in [
        (PAGE, &[("origin", evil)][..]),
        (PAGE, &[("origin", other)]),
        (PAGE, &[("origin", "null")]),
        (PAGE, &[("origin", "https://app.example.com.evil.example")]),
        (PAGE, &[("origin", "http://app.example.com")]),
        (PAGE, &[("sec-fetch-site", "cross-site")]),
        (PAGE, &[("sec-fetch-site", "same-site")]),
        ("https://evil.example.com/", &[]),
        ("https://evil.example.com/", &[("origin", APP)]),
        ("https://app.example.com:8443/", &[]),
        ("http://app.example.com/", &[]),
        ("https://app.example.com.evil.example/", &[]),
        ("http://localhost:3001/", &[]),
    ] {
        let response = get_with(&proxy, &target(page), headers).await;
        response.assert_proxy_error("forbidden", 403, 48002);
        let allowed = response.header("access-control-allow-origin");
        let is_listed = headers.iter().any(|(_, value)| [APP, other].contains(value));
        assert_eq!(!allowed.is_empty(), is_listed, "{page} {headers:?}: {allowed}");
        assert_eq!(response.header("vary"), "Origin");
    }
    let hidden = "https://app.example.com%40evil.example/";
    get_with(&proxy, &format!("/hr/jssdk/signature?url={hidden}"), &[]).await.assert_proxy_error(
        "bad-request",
        400,
        40035,
    );
    assert_eq!(proxy.forwarded_count(), 0, "no ticket was fetched");
    // The other agent has no origins.
    let ops = target(PAGE).replace("/hr/", "/ops/");
    get_with(&proxy, &ops, &[("origin", APP)]).await.assert_proxy_error("unauthenticated", 401, 40001);
}

#[tokio::test]
async fn open_proxy_signs_for_programs_but_not_for_other_sites() {
    let proxy = TestProxy::start_open().await;
    get_with(&proxy, &target(PAGE), &[]).await.assert_ok();
    for header in [("origin", APP), ("sec-fetch-site", "cross-site")] {
        get_with(&proxy, &target(PAGE), &[header]).await.assert_proxy_error("forbidden", 403, 48002);
    }
}

#[tokio::test]
async fn preflight_allows_exactly_the_listed_origins() {
    let proxy = start_with_origins().await;
    let preflight = |target: String, origin: &'static str| {
        let request = Request::options(target).header("access-control-request-method", "GET");
        proxy.request(
            request.header("origin", origin).header("access-control-request-headers", "x-wecom-agent"),
            "",
        )
    };
    for target in [target(PAGE), "/jssdk/signature".to_owned()] {
        let response = preflight(target.clone(), APP).await;
        assert_eq!((response.status.as_u16(), response.text()), (204, ""));
        assert_eq!(response.header("access-control-allow-origin"), APP);
        assert_eq!(response.header("access-control-allow-methods"), "GET");
        assert_eq!(response.header("access-control-allow-headers"), "X-Wecom-Agent");
        assert_eq!(response.header("vary"), "Origin");
        let response = preflight(target, "https://evil.example.com").await;
        response.assert_proxy_error("forbidden", 403, 48002);
        assert_eq!(response.header("access-control-allow-origin"), "");
    }
    let ops = target(PAGE).replace("/hr/", "/ops/");
    preflight(ops, APP).await.assert_proxy_error("forbidden", 403, 48002);
}

#[tokio::test]
async fn pages_get_sixty_signatures_a_minute_per_address() {
    let proxy = start_with_origins().await;
    let start = tokio::time::Instant::now();
    let (mut signed, mut limited) = (0, None);
    for _ in 0..200 {
        let response = get_with(&proxy, &target(PAGE), &[("origin", APP)]).await;
        match response.status.as_u16() {
            200 => signed += 1,
            _ => {
                limited = Some(response);
                break;
            }
        }
    }
    let refilled = start.elapsed().as_secs() + 1;
    assert!((60..=60 + refilled).contains(&signed), "{signed} signatures, {refilled} s");
    let limited = limited.expect("a limit");
    limited.assert_proxy_error("rate-limited", 429, 45009);
    assert_eq!(limited.header("access-control-allow-origin"), APP, "the page can read why");
    let wait: u64 = limited.header("retry-after").parse().expect("seconds");
    assert!((1..=60).contains(&wait), "{wait}");
    get_as_client(&proxy, "billing", &target(PAGE)).await.assert_ok();
}

#[tokio::test]
async fn ticket_that_is_refused_names_wecoms_errcode() {
    let proxy = start_with_origins().await;
    proxy.wecom.inject(Fault::errcode(45009).on_path("/cgi-bin/get_jsapi_ticket")).expect("a fault");
    let response = get_as_client(&proxy, "billing", &target(PAGE)).await;
    response.assert_proxy_error("token-unavailable", 502, 45009);
    let keyless = get_with(&proxy, &target(PAGE), &[("origin", APP)]).await;
    keyless.assert_proxy_error("token-unavailable", 502, 45009);
    assert!(!keyless.text().contains("from ip"), "{}", keyless.text());
    // WeCom limits how often a corp fetches tickets: browsers cause no fetch soon after one that failed.
    for _ in 0..20 {
        let keyless = get_with(&proxy, &target(PAGE), &[("origin", APP)]).await;
        keyless.assert_proxy_error("token-unavailable", 502, 45009);
        assert!(!keyless.header("retry-after").is_empty());
    }
    let fetches = proxy.wecom.observe(|observed| observed.received_count("/cgi-bin/get_jsapi_ticket"));
    assert!(fetches <= 6, "{fetches} fetches");
}

/// The origin of a web server, and what starts it with a page.
async fn web_server() -> (String, impl FnOnce(String)) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let origin = format!("http://{}", listener.local_addr().expect("an address"));
    let serve = move |page: String| {
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut head = vec![0; 8192];
                let _ = stream.read(&mut head).await;
                let length = page.len();
                let head = format!(
                    "HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
                );
                let _ = stream.write_all(format!("{head}{page}").as_bytes()).await;
            }
        });
    };
    (origin, serve)
}

/// The JavaScript of docs/clients.md.
fn documented_script() -> &'static str {
    let page = include_str!("../../docs/clients.md");
    let script = page.split("```javascript\n").nth(1).expect("a block of JavaScript");
    script.split("```").next().expect("its end")
}

#[tokio::test]
async fn page_in_a_browser_gets_a_signature_across_origins() {
    let (origin, serve) = web_server().await;
    let proxy =
        TestProxy::start_with_config(&config_with_hr_lines(&format!("jssdk_origins = [\"{origin}\"]"))).await;
    let script =
        documented_script().replace("https://proxy.example.com", &format!("http://{}", proxy.address()));
    assert!(script.contains(&proxy.address().to_string()), "{script}");
    // Stands in for WeCom's library, which asks for both signatures.
    let library = "const ww = { async register(options) { const url = location.href.split('#')[0]; window.signed = { \
        ids: [options.corpId, options.agentId], config: await options.getConfigSignature(url), \
        agentConfig: await options.getAgentConfigSignature(url) }; } };";
    serve(format!("<!doctype html><title>page</title><script type=\"module\">{library}\n{script}</script>"));
    let mut browser = Browser::start().await;
    let page = format!("{origin}/orders?name=%E4%BD%A0+b&x=1");
    browser.call("Page.navigate", serde_json::json!({ "url": format!("{page}#part") })).await;
    let signed = browser.wait_for("window.signed").await;
    browser.assert_no_errors();
    assert_eq!(signed["ids"], serde_json::json!(["ww1234567890abcdef", 1_000_002]));
    assert_signed(&signed["config"], &ticket(&proxy, "/cgi-bin/get_jsapi_ticket").await, &page);
    assert_signed(
        &signed["agentConfig"],
        &ticket(&proxy, "/cgi-bin/ticket/get?type=agent_config").await,
        &page,
    );
    // With a header of its own the browser sends a preflight first.
    let url = format!("http://{}/jssdk/signature?url=", proxy.address());
    let fetch = |target: &str| {
        format!(
            "fetch({target:?} + encodeURIComponent(location.href), {{ headers: {{ 'X-Wecom-Agent': 'hr' }} }}).then((it) => it.status, () => 'refused')"
        )
    };
    assert_eq!(browser.eval(&fetch(&url)).await, 200);
    // A page of another origin gets nothing from there.
    let (foreign, serve_foreign) = web_server().await;
    serve_foreign("<!doctype html><title>foreign</title>".to_owned());
    browser.call("Page.navigate", serde_json::json!({ "url": foreign })).await;
    browser.wait_for("document.title === 'foreign'").await;
    assert_eq!(browser.eval(&fetch(&url)).await, "refused");
}
