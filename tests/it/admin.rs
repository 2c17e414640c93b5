//! The admin listener: what is well and what is not.

use http::{Request, StatusCode};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use wecom_proxy::simulator::{Fault, Settings};

use crate::{
    process::Process,
    stage::{Caller, OPEN, Reply, Stage, USER_GET, method, soon, write_config},
};

const KEY: &str = "the-key-of-the-operator-0123456789";

async fn admin(stage: &Stage, path: &str) -> Reply {
    Caller::http1(stage.admin()).await.call(Request::get(path), "").await
}

async fn ready(stage: &Stage) -> (u16, Value) {
    let reply = admin(stage, "/readyz").await;
    (reply.status.as_u16(), reply.json())
}

#[tokio::test]
async fn health_has_a_shape_that_monitors_can_rely_on() {
    let stage = Stage::open().await;
    for path in ["/healthz", "/readyz"] {
        let reply = admin(&stage, path).await;
        assert_eq!((reply.status, reply.header("content-type")), (StatusCode::OK, "application/json"));
        let listeners = [stage.address().to_string(), stage.admin().to_string()];
        let expected = json!({
            "status": "ok",
            "agents": { "total": 2, "failing": {}, "held": {} },
            "store": { "kind": "memory", "ok": true },
            "listeners": listeners,
        });
        assert_eq!(reply.json(), expected);
    }
}

#[tokio::test]
async fn the_agents_are_listed_without_secrets_or_tokens() {
    let stage = Stage::open().await;
    let wecom = &stage.wecom;
    let token = "a-token-that-the-test-knows-0123456789";
    let grant =
        json!({ "errcode": 0, "errmsg": "ok", "access_token": token, "expires_in": 7200 }).to_string();
    wecom
        .inject(Fault::answer(200, "application/json", grant).on("/cgi-bin/gettoken").of("hr"))
        .expect("a fault");
    let everything = Fault::answer(200, "application/json", r#"{"errcode":0,"errmsg":"ok"}"#);
    wecom.inject(everything.on("/cgi-bin/user/get")).expect("a fault");
    stage.get(USER_GET).await.is_ok();
    wecom.reset_secret("ops", "another-secret-of-ops").expect("an agent");
    stage.call(Request::get(format!("/ops{USER_GET}")), "").await.is_own("token-unavailable", 502, 40001);

    let reply = admin(&stage, "/api/agents").await;
    assert_eq!(reply.status, StatusCode::OK);
    let agents = reply.json()["agents"].as_array().expect("a list").clone();
    let names: Vec<_> = agents.iter().map(|agent| agent["name"].as_str().expect("a name")).collect();
    assert_eq!(names, ["hr", "ops"]);
    let hr = &agents[0];
    assert_eq!(
        (&hr["corpid"], &hr["agentid"], &hr["token"]["state"]),
        (&json!("ww1234567890abcdef"), &json!(1_000_002), &json!("valid"))
    );
    assert_eq!((&hr["last_renewal"]["ok"], &hr["last_renewal"]["reason"]), (&json!(true), &json!("first")));
    assert_eq!(hr["failing"], Value::Null);
    let lifetime = hr["token"]["expires_at"].as_u64().zip(hr["token"]["first_seen"].as_u64());
    assert!(lifetime.is_some_and(|(expires, seen)| expires - seen <= 7200 && expires > seen), "{hr}");
    let ops = &agents[1];
    assert_eq!((&ops["token"]["state"], &ops["last_renewal"]["ok"]), (&json!("none"), &json!(false)));
    assert!(ops["failing"].as_str().is_some_and(|words| words.contains("40001")), "{ops}");
    assert!(ops["next_try_in_seconds"].as_u64().is_some_and(|wait| (30..=900).contains(&wait)), "{ops}");
    for secret in [token, "not-a-secret", "another-secret"] {
        assert!(!reply.text().contains(secret), "{}", reply.text());
    }
}

#[tokio::test]
async fn ready_as_long_as_one_agent_that_was_asked_for_has_a_token() {
    let stage = Stage::open().await;
    assert_eq!(ready(&stage).await.0, 200, "nothing was asked for");
    stage.wecom.reset_secret("hr", "another-secret").expect("an agent");
    stage.get(USER_GET).await.is_own("token-unavailable", 502, 40001);
    let (status, body) = ready(&stage).await;
    assert_eq!(status, 503, "the only one that was asked for fails");
    assert!(body["agents"]["failing"]["hr"].as_str().is_some_and(|words| words.contains("40001")), "{body}");
    assert_eq!(admin(&stage, "/healthz").await.status, StatusCode::OK, "the process itself is well");
    stage.call(Request::get(format!("/ops{USER_GET}")), "").await.is_ok();
    let (status, body) = ready(&stage).await;
    assert_eq!(status, 200, "one bad secret takes nobody else out of service");
    assert!(body["agents"]["failing"].get("hr").is_some(), "{body}");
}

#[tokio::test]
async fn a_token_that_ran_out_while_nobody_asked_is_no_failure() {
    let settings = Settings { token_lifetime: std::time::Duration::from_secs(1), ..Settings::default() };
    let stage = Stage::set(settings, OPEN).await;
    stage.get(USER_GET).await.is_ok();
    let state = || async { admin(&stage, "/api/agents").await.json()["agents"][0]["token"]["state"].clone() };
    let expired = async {
        while state().await != "expired" {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    soon(expired).await;
    // Were it taken out of service now, nobody would ever ask, and it would stay out.
    assert_eq!(ready(&stage).await.0, 200);
    stage.get(USER_GET).await.is_ok();
}

#[tokio::test]
async fn a_first_token_that_is_on_its_way_is_no_failure() {
    let stage = Stage::open().await;
    stage.wecom.inject(Fault::hold().on("/cgi-bin/gettoken")).expect("a fault");
    let during = async {
        stage.wecom.wait_until(|seen| seen.in_flight() == 1).await.expect("a gettoken");
        assert_eq!(ready(&stage).await.0, 200);
        stage.wecom.release();
    };
    tokio::join!(stage.get(USER_GET), during).0.is_ok();
}

#[tokio::test]
async fn while_shutting_down_it_is_neither_well_nor_ready() {
    let wecom = crate::confidant::simulator(Settings::default()).await;
    let dir = tempfile::tempdir().expect("a directory");
    let proxy = Process::serve(&write_config(&dir, wecom.api_addr(), &Settings::default(), OPEN)).await;
    let mut caller = Caller::http1(proxy.address().await).await;
    wecom.inject(Fault::hold().on("/cgi-bin/user/get")).expect("a fault");
    let admin = proxy.admin().await;
    let during = async {
        wecom.wait_until(|seen| seen.in_flight() == 1).await.expect("a request");
        proxy.signal("TERM");
        proxy.err.line("stopping").await;
        for path in ["/readyz", "/healthz"] {
            let asked = async {
                loop {
                    let reply = Caller::http1(admin).await.call(Request::get(path), "").await;
                    if reply.status == StatusCode::SERVICE_UNAVAILABLE {
                        return reply;
                    }
                }
            };
            let reply = soon(asked).await;
            assert_eq!(reply.json()["status"], "shutting down");
        }
        wecom.release();
    };
    tokio::join!(caller.get(USER_GET), during).0.is_ok();
    assert_eq!(proxy.ended().await.status, 0);
}

#[tokio::test]
async fn other_paths_and_methods_are_refused_in_words() {
    let stage = Stage::open().await;
    for path in ["/index.html", "/healthz/", "/api/agents/hr", "/hr/cgi-bin/user/get"] {
        let reply = admin(&stage, path).await;
        assert_eq!(reply.status, StatusCode::NOT_FOUND, "{path}");
        assert!(reply.json()["error"].is_string());
    }
    for path in ["/healthz", "/readyz", "/api/agents"] {
        let mut caller = Caller::http1(stage.admin()).await;
        for name in ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "trace", "get", "Post", "TRACK"] {
            let reply = caller.call(Request::builder().uri(path).method(method(name)), "").await;
            assert_eq!(reply.status, StatusCode::METHOD_NOT_ALLOWED, "{name} {path}");
            assert!(reply.header("allow").contains("GET"));
        }
        let head = caller.call(Request::head(path), "").await;
        assert_eq!((head.status, head.body.len()), (StatusCode::OK, 0));
    }
    assert_eq!(stage.wecom.look(|seen| seen.total()), 0);
}

#[tokio::test]
async fn with_a_key_only_the_health_checks_are_open() {
    use sha2::Digest;
    let hash: String = sha2::Sha256::digest(KEY).iter().map(|byte| format!("{byte:02x}")).collect();
    let toml = OPEN.replace("[admin]", &format!("[admin]\nkey_sha256 = \"{hash}\""));
    let stage = Stage::with(&toml).await;
    let ask = async |path: &str, authorization: Option<String>| {
        let request = Request::get(path);
        let request = match authorization {
            Some(value) => request.header("authorization", value),
            None => request,
        };
        Caller::http1(stage.admin()).await.call(request, "").await
    };
    let basic = |text: &str| {
        use base64::Engine;
        format!("Basic {}", base64::prelude::BASE64_STANDARD.encode(text))
    };
    for path in ["/healthz", "/readyz"] {
        assert_eq!(ask(path, None).await.status, StatusCode::OK);
    }
    for right in [format!("Bearer {KEY}"), format!("bearer {KEY}"), basic(&format!("me:{KEY}"))] {
        assert_eq!(ask("/api/agents", Some(right)).await.status, StatusCode::OK);
    }
    let wrong = [
        None,
        Some("Bearer wrong".into()),
        Some(KEY.into()),
        Some(basic(KEY)),
        Some(format!("Bearer {hash}")),
    ];
    for wrong in wrong {
        for path in ["/api/agents", "/nothing-here"] {
            let reply = ask(path, wrong.clone()).await;
            assert_eq!(reply.status, StatusCode::UNAUTHORIZED, "{wrong:?}");
            let ways = reply.headers.get_all("www-authenticate").iter();
            let ways: Vec<_> = ways.filter_map(|way| way.to_str().ok()?.split(' ').next()).collect();
            // A line each: a browser sees no other way behind the first one of a line.
            assert_eq!(ways, ["Basic", "Bearer"]);
            assert!(!reply.text().contains("corpid"));
            // To send what was sent already once more helps nobody.
            assert_eq!(
                reply.text().contains("is not the listener's key"),
                wrong.is_some(),
                "{}",
                reply.text()
            );
        }
    }
}

#[tokio::test]
async fn a_caller_that_says_nothing_keeps_nobody_else_out() {
    let stage = Stage::open().await;
    let mut silent = Vec::new();
    for _ in 0..100 {
        silent.push(TcpStream::connect(stage.admin()).await.expect("a connection"));
    }
    assert_eq!(admin(&stage, "/healthz").await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_token_that_wecom_refuses_and_that_cannot_be_renewed_is_not_called_valid() {
    let stage = Stage::open().await;
    stage.get(USER_GET).await.is_ok();
    stage.wecom.reset_secret("hr", "another").expect("an agent");
    stage.get(USER_GET).await.is_own("token-unavailable", 502, 40001);
    let mut admin = Caller::http1(stage.admin()).await;
    let ready = admin.call(http::Request::get("/readyz"), "").await;
    assert_eq!(ready.status, 503, "{}", ready.text());
    let agents = admin.call(http::Request::get("/api/agents"), "").await.json();
    assert_eq!(agents["agents"][0]["token"]["state"], "refused", "{agents}");
}

#[tokio::test]
async fn a_health_check_gets_in_however_many_stay() {
    let stage = Stage::open().await;
    let mut silent = Vec::new();
    for _ in 0..300 {
        silent.push(TcpStream::connect(stage.admin()).await.expect("a connection"));
    }
    assert_eq!(crate::stage::soon(ready(&stage)).await.0, 200);
    drop(silent);
}

#[tokio::test]
async fn another_sites_page_may_lead_here_and_is_told_of_health_only() {
    let stage = Stage::open().await;
    for (path, status) in [
        ("/", 200),
        ("/healthz", 200),
        ("/metrics", 403),
        ("/api/overview", 403),
        ("/api/requests/stream", 403),
    ] {
        let request = Request::get(path).header("sec-fetch-site", "cross-site");
        let reply = Caller::http1(stage.admin()).await.call(request, "").await;
        assert_eq!(reply.status.as_u16(), status, "{path}");
    }
}
