//! What an operator orders, and who else may not.

use http::{Request, StatusCode};
use serde_json::json;
use wecom_proxy::simulator::{Settings, Simulator};

use crate::{
    process::Process,
    stage::{Caller, OPEN, Reply, Stage, USER_GET, write_config},
};

const REFRESH: &str = "/api/agents/hr/refresh";

async fn order(stage: &Stage, path: &str, headers: &[(&str, &str)]) -> Reply {
    let request =
        headers.iter().fold(Request::post(path), |request, (name, value)| request.header(*name, *value));
    Caller::http1(stage.admin()).await.call(request, "").await
}

const JSON: (&str, &str) = ("content-type", "application/json");

#[tokio::test]
async fn a_token_is_renewed_on_order_whatever_failed_before() {
    let stage = Stage::open().await;
    let secret = Settings::default().agents[0].secret.clone();
    stage.wecom.reset_secret("hr", "another").expect("an agent");
    stage.get(USER_GET).await.is_own("token-unavailable", 502, 40001);
    let reply = order(&stage, REFRESH, &[JSON]).await;
    assert_eq!((reply.status, &reply.json()["ok"]), (StatusCode::BAD_GATEWAY, &json!(false)));
    assert!(
        reply.json()["failure"].as_str().is_some_and(|words| words.contains("40001")),
        "{}",
        reply.text()
    );
    assert!(reply.json()["next_try_in_seconds"].as_u64() >= Some(30), "{}", reply.text());
    assert!(!reply.text().contains(&secret));

    stage.wecom.reset_secret("hr", &secret).expect("an agent");
    stage.get(USER_GET).await.is_own("token-unavailable", 502, 40001);
    let reply = order(&stage, REFRESH, &[JSON]).await;
    assert_eq!((reply.status, &reply.json()["ok"]), (StatusCode::OK, &json!(true)), "{}", reply.text());
    assert_eq!(reply.json()["same_token"], false);
    stage.get(USER_GET).await.is_ok();
    let again = order(&stage, REFRESH, &[("x-requested-with", "curl")]).await.json();
    assert_eq!((&again["ok"], &again["same_token"]), (&json!(true), &json!(true)), "{again}");
    assert_eq!(order(&stage, "/api/agents/nobody/refresh", &[JSON]).await.status, StatusCode::NOT_FOUND);
    let get = Caller::http1(stage.admin()).await.call(Request::get(REFRESH), "").await;
    assert_eq!((get.status, get.header("allow")), (StatusCode::METHOD_NOT_ALLOWED, "POST"));
}

#[tokio::test]
async fn the_file_is_read_again_on_order() {
    let wecom = Simulator::local(Settings::default()).await.expect("a simulator");
    let dir = tempfile::tempdir().expect("a directory");
    let write = |toml: &str| write_config(&dir, wecom.api_addr(), &Settings::default(), toml);
    let proxy = Process::serve(&write(OPEN)).await;
    let admin = proxy.admin().await;
    let reload = async || {
        Caller::http1(admin).await.call(Request::post("/api/reload").header(JSON.0, JSON.1), "").await
    };
    let more = "[log]\nlevel = \"debug\"\n[replay]\nmemory = \"1MiB\"\n[agents.it]\ncorpid = \"ww1\"\nsecret = \"a-secret-of-it\"\n";
    write(&format!("{OPEN}{more}"));
    let reply = reload().await;
    assert_eq!(reply.status, StatusCode::OK, "{}", reply.text());
    let body = reply.json();
    assert_eq!(
        (&body["ok"], &body["agents"], &body["clients"]),
        (&json!(true), &json!(3), &json!(0)),
        "{body}"
    );
    assert_eq!(body["needs_restart"], json!(["replay"]));
    assert!(!reply.text().contains("a-secret-of-it"), "{}", reply.text());
    // The level is followed too: the end of a connection is told of only to who wants all.
    assert!(Caller::http1(admin).await.call(Request::get("/api/agents"), "").await.text().contains("\"it\""));

    write(&format!("{OPEN}\n[agents.it]\nnonsense = 1\n"));
    let reply = reload().await;
    assert_eq!((reply.status, &reply.json()["ok"]), (StatusCode::UNPROCESSABLE_ENTITY, &json!(false)));
    assert!(
        reply.json()["failure"].as_str().is_some_and(|words| words.contains("nonsense")),
        "{}",
        reply.text()
    );
    proxy.err.line("the old one goes on").await;
    assert!(Caller::http1(admin).await.call(Request::get("/api/agents"), "").await.text().contains("\"it\""));
    assert_eq!(proxy.stop().await.status, 0);
}

#[tokio::test]
async fn another_sites_page_gets_nothing_done_and_learns_nothing() {
    let stage = Stage::open().await;
    let host = stage.admin().to_string();
    let own = format!("http://{host}");
    for headers in [
        &[][..],
        &[("content-type", "text/plain")],
        &[JSON, ("origin", "https://elsewhere.example")],
        &[JSON, ("origin", "null")],
        &[JSON, ("sec-fetch-site", "cross-site")],
        &[JSON, ("host", "rebind.example"), ("origin", "http://rebind.example")],
    ] {
        for path in [REFRESH, "/api/reload"] {
            let reply = order(&stage, path, headers).await;
            assert_eq!(reply.status, StatusCode::FORBIDDEN, "{path} {headers:?}");
        }
    }
    assert_eq!(stage.wecom.look(|seen| seen.total()), 0, "no token was fetched");
    let asked = async |path: &str, name: &str| {
        Caller::http1(stage.admin()).await.call(Request::get(path).header("host", name), "").await.status
    };
    for path in ["/metrics", "/api/agents", "/api/requests", "/api/requests/stream", "/api/overview"] {
        assert_eq!(asked(path, "rebind.example:9090").await, StatusCode::FORBIDDEN, "{path}");
    }
    assert_eq!(asked("/readyz", "a-monitor-s-name.example").await, StatusCode::OK);
    assert_eq!(asked("/api/agents", "[::1]:9090").await, StatusCode::OK);
    let own =
        order(&stage, REFRESH, &[JSON, ("host", &host), ("origin", &own), ("sec-fetch-site", "same-origin")])
            .await;
    assert_eq!(own.status, StatusCode::OK, "{}", own.text());
}

#[tokio::test]
async fn with_a_key_every_one_of_them_needs_it() {
    use sha2::Digest;
    let key = "the-key-of-the-operator-0123456789";
    let hash: String = sha2::Sha256::digest(key).iter().map(|byte| format!("{byte:02x}")).collect();
    let stage = Stage::with(&OPEN.replace("[admin]", &format!("[admin]\nkey_sha256 = \"{hash}\""))).await;
    let bearer = format!("Bearer {key}");
    for path in ["/metrics", "/api/requests", "/api/requests/stream", "/api/overview"] {
        let ask = async |request: http::request::Builder| {
            Caller::http1(stage.admin()).await.call(request, "").await.status
        };
        assert_eq!(ask(Request::head(path)).await, StatusCode::UNAUTHORIZED, "{path}");
        let named = Request::head(path).header("host", "proxy.example").header("authorization", &bearer);
        assert_eq!(ask(named).await, StatusCode::OK, "{path}");
    }
    for path in [REFRESH, "/api/reload"] {
        assert_eq!(order(&stage, path, &[JSON]).await.status, StatusCode::UNAUTHORIZED, "{path}");
        let foreign = [("authorization", &*bearer), JSON, ("sec-fetch-site", "cross-site")];
        assert_eq!(order(&stage, path, &foreign).await.status, StatusCode::FORBIDDEN, "{path}");
        assert_eq!(
            order(&stage, path, &[("authorization", &*bearer), JSON]).await.status,
            StatusCode::OK,
            "{path}"
        );
    }
}
