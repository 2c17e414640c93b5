//! `key_in = "path"`: a client's key in the path; and webhook programs, which have one URL to fill in.

use base64::{Engine, prelude::BASE64_STANDARD};
use http::{Request, header::AUTHORIZATION};
use tempfile::TempDir;
use wecom_proxy::simulator::{Settings, Simulator};

use crate::{
    harness::{
        CONFIG_WITH_CLIENTS, TestClient, TestProxy, TestResponse, USER_GET, client_key, wait_for,
        write_config,
    },
    process::Process,
};

const WEBHOOK: &str = "/cgi-bin/webhook/send?key=00000000-1111-2222-3333-444444444444";
/// What Uptime Kuma posts: axios sends these headers, and JSON.
const NOTIFICATION: &str = r#"{"msgtype":"text","text":{"content":"[web] down"}}"#;

fn config() -> String {
    CONFIG_WITH_CLIENTS.replace(
        "key = \"key-of-billing-0000000000\"\n",
        "key = \"key-of-billing-0000000000\"\nkey_in = \"path\"\n",
    )
}

async fn get(proxy: &TestProxy, target: &str) -> TestResponse {
    proxy.request(Request::get(target), "").await
}

#[tokio::test]
async fn key_in_the_path_serves_like_one_in_a_header() {
    let proxy = TestProxy::start_with_config(&config()).await;
    let key = client_key("billing");
    for target in
        [format!("/k/{key}{USER_GET}"), format!("/k/{key}/hr{USER_GET}"), format!("//k/{key}//hr{USER_GET}")]
    {
        for _ in 0..3 {
            get(&proxy, &target).await.assert_ok();
        }
        let mut http2 = TestClient::connect_http2(proxy.address()).await;
        http2.request(Request::get(&target), "").await.assert_ok();
    }
    proxy.request(Request::post(format!("/k/{key}{WEBHOOK}")), NOTIFICATION).await.assert_ok();
    let header = Request::get(USER_GET).header("x-api-key", &key);
    proxy.request(header, "").await.assert_ok();
    for record in proxy.wecom.requests() {
        assert!(!record.path.contains("key-of") && !record.query.contains("key-of"), "{}", record.path);
    }
}

#[tokio::test]
async fn other_keys_in_the_path_are_refused() {
    let proxy = TestProxy::start_with_config(&config()).await;
    for key in [&*client_key("crm"), "key-of-none-0000000000", "key%2Dof-billing-0000000000", "", "k"] {
        let response = get(&proxy, &format!("/k/{key}/hr{USER_GET}")).await;
        response.assert_proxy_error("unauthenticated", 401, 40001);
        assert!(!response.text().contains("key-of"), "{}", response.text());
    }
    let key = client_key("billing");
    let two = Request::get(format!("/k/{key}{USER_GET}")).header("x-api-key", client_key("crm"));
    proxy.request(two, "").await.assert_proxy_error("bad-request", 400, 40035);
    for target in [format!("/k/{key}{USER_GET}&again={key}"), format!("/k/{key}/k/{key}{USER_GET}")] {
        let response = get(&proxy, &target).await;
        assert!([400, 404].contains(&response.status.as_u16()), "{}", response.text());
    }
    for (name, value) in [("x-mine", &*key), (&*key, "1")] {
        let repeated = Request::get(format!("/k/{key}{USER_GET}")).header(name, value);
        proxy.request(repeated, "").await.assert_proxy_error("bad-request", 400, 40035);
    }
    get(&proxy, &format!("/k/{key}/ops{USER_GET}")).await.assert_proxy_error("unknown-agent", 404, 40035);
    get(&proxy, &format!("/k/{key}")).await.assert_proxy_error("no-route", 404, 40035);
    assert_eq!(proxy.wecom.requests().len(), 0);
}

/// An authentication is not remembered by headers alone: those of the next request may be the same.
#[tokio::test]
async fn request_without_the_key_is_refused_after_one_with_it() {
    let proxy = TestProxy::start_with_config(&config()).await;
    let mut client = TestClient::connect_http1(proxy.address()).await;
    for _ in 0..4 {
        client.request(Request::get(format!("/k/{}{USER_GET}", client_key("billing"))), "").await.assert_ok();
        client.request(Request::get(USER_GET), "").await.assert_proxy_error("unauthenticated", 401, 40001);
    }
}

#[tokio::test]
async fn key_in_the_path_is_shown_nowhere() {
    let wecom: Simulator = crate::leak_detector::start_simulator(Settings::default()).await;
    let dir = TempDir::new().expect("a directory");
    let proxy = Process::serve(&write_config(&dir, wecom.api_addr(), &Settings::default(), &config())).await;
    let mut client = TestClient::connect_http1(proxy.address().await).await;
    let key = client_key("billing");
    client.request(Request::get(format!("/k/{key}/hr{USER_GET}")), "").await.assert_ok();
    client.request(Request::get(format!("/k/{key}0/hr{USER_GET}")), "").await.assert_proxy_error(
        "unauthenticated",
        401,
        40001,
    );
    let line = proxy.err.wait_for_line("path=\"/k/***/hr/cgi-bin/user/get\"").await;
    assert!(line.contains("client=\"billing\""), "{line}");
    let repeated =
        Request::get(format!("/k/{key}/hr{USER_GET}")).header("x-request-id", format!("job-{key}"));
    let response = client.request(repeated, "").await;
    assert!(!response.header("x-request-id").contains(&key), "{}", response.header("x-request-id"));
    let log = proxy.stop().await.err;
    assert!(!log.contains(&key), "{log}");
}

/// Uptime Kuma, and Jenkins with its HTTP Request plugin: a JSON POST to one URL, with the login in it or none.
#[tokio::test]
async fn webhook_is_sent_with_the_login_of_the_url() {
    let proxy = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let login = format!("Basic {}", BASE64_STANDARD.encode(format!("billing:{}", client_key("billing"))));
    let post = || {
        Request::post(WEBHOOK)
            .header("accept", "application/json, text/plain, */*")
            .header("content-type", "application/json")
            .header("user-agent", "Uptime-Kuma/1.23.13")
    };
    let preemptive = proxy.request(post().header(AUTHORIZATION, &login), NOTIFICATION).await;
    preemptive.assert_ok();
    // A program that waits to be asked: the challenge must offer Basic, and nothing redirects.
    let mut client = TestClient::connect_http1(proxy.address()).await;
    let challenge = client.request(post(), NOTIFICATION).await;
    challenge.assert_proxy_error("unauthenticated", 401, 40001);
    let challenges: Vec<_> = challenge.headers.get_all("www-authenticate").iter().collect();
    assert!(challenges.iter().any(|value| value.as_bytes().starts_with(b"Basic ")), "{challenges:?}");
    proxy.request(post().header(AUTHORIZATION, &login), NOTIFICATION).await.assert_ok();
    wait_for("both", async || proxy.forwarded_count() == 2).await;
    for record in proxy.wecom.requests() {
        assert_eq!(record.query, "key=00000000-1111-2222-3333-444444444444");
        assert_eq!(record.header_values("authorization"), Vec::<&str>::new());
    }
}
