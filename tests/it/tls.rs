//! TLS towards the upstream: private authorities, HTTP/2 by ALPN, and certificates that are refused.

use std::{fs, net::SocketAddr, sync::Arc, time::Duration};

use http::Request;
use tokio::{net::TcpListener, time::Instant};
use wecom_proxy::{
    app::Prepared,
    config,
    simulator::{Fault, Settings},
};

use crate::{
    certificates::{Authority, Identity},
    stage::{Caller, ECHO, Reply, Stage, USER_GET, all_at_once},
};

const WEBHOOK: &str = "/cgi-bin/webhook/send?key=00000000-1111-2222-3333-444444444444";
const BOTH: &[&str] = &["h2", "http/1.1"];

/// A configuration whose upstream is the simulator behind TLS.
fn behind(authority: &Authority, more: &str) -> String {
    let ca = authority.file().display().to_string();
    format!(
        "[server]\nlisten = \"127.0.0.1:0\"\n[upstream]\nurl = \"https://{{api}}\"\nca_file = \"{ca}\"\n{more}\n{{agents}}"
    )
}

/// A stage whose simulator shows this certificate.
async fn secure(identity: &Identity, alpn: &[&str], toml: &str) -> Stage {
    Stage::set(Settings { tls: Some(identity.server_config(alpn)), ..Settings::default() }, toml).await
}

async fn well(alpn: &[&str]) -> Stage {
    let authority = Authority::new();
    secure(&authority.server("127.0.0.1"), alpn, &behind(&authority, "")).await
}

/// The protocol versions that the simulator was spoken to in.
fn versions(stage: &Stage) -> Vec<String> {
    let mut versions: Vec<_> = stage.wecom.requests().into_iter().map(|record| record.version).collect();
    versions.dedup();
    versions
}

#[tokio::test]
async fn an_upstream_with_a_private_authority_is_reached_over_http1() {
    for alpn in [&["http/1.1"][..], &[]] {
        let stage = well(alpn).await;
        stage.get(USER_GET).await.is_ok();
        stage.post(ECHO, "{\"a\":1}").await.is_ok();
        assert_eq!(versions(&stage), ["HTTP/1.1"]);
    }
}

#[tokio::test]
async fn an_upstream_that_offers_http2_is_spoken_to_in_http2() {
    let stage = well(BOTH).await;
    stage.get(USER_GET).await.is_ok();
    stage.post(ECHO, "{\"a\":1}").await.is_ok();
    assert_eq!(versions(&stage), ["HTTP/2.0"]);
    let record = stage.wecom.requests().pop().expect("a record");
    assert_eq!(record.header("connection"), Vec::<&str>::new());
    assert!(record.query.ends_with("access_token=token#1"), "{}", record.query);
}

#[tokio::test]
async fn a_query_with_letters_that_http2_does_not_take_gets_through_encoded() {
    let stage = well(BOTH).await;
    let target = format!("/hr{ECHO}?a=\"b\"&c=<d>&e={{|}}^`\\\u{5f20}");
    let given = format!("GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    let answer = stage.raw(given).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let query = "a=%22b%22&c=%3Cd%3E&e={|}^`\\\u{5f20}&access_token=token#1";
    assert_eq!(
        (stage.last_seen(ECHO).query.as_str(), &versions(&stage)[..]),
        (query, &["HTTP/2.0".to_owned()][..])
    );
}

#[tokio::test]
async fn a_large_body_is_replayed_over_http2_after_a_refresh() {
    let stage = well(BOTH).await;
    stage.get(USER_GET).await.is_ok();
    stage.wecom.revoke("hr").expect("an agent");
    let body: Vec<u8> = (0..5 << 20).map(|at: u32| (at % 251) as u8).collect();
    let reply = stage.post(ECHO, body.clone()).await;
    reply.is_ok();
    assert_eq!(reply.header("x-wecom-retried"), "40014");
    let mut echoes = stage.wecom.requests();
    echoes.retain(|record| record.path == ECHO);
    let executed: Vec<_> = echoes.iter().map(|record| record.executed).collect();
    assert_eq!((executed, &*echoes[1].version), (vec![false, true], "HTTP/2.0"));
    assert_eq!(echoes[1].body_bytes, body.len() as u64);
    assert_eq!(echoes[1].body_sha256, Some(sha256(&body)));
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest;
    sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test]
async fn many_callers_share_few_http2_connections() {
    let stage = Arc::new(well(BOTH).await);
    for reply in all_at_once(&stage, 300, USER_GET).await {
        reply.is_ok();
    }
    assert_eq!(stage.wecom.gettoken_count("hr").expect("an agent"), 1);
    let workers = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    let connections = stage.wecom.look(|seen| seen.connections());
    // The simulator takes 200 requests at once on each, and the callers need not be spread evenly.
    assert!(connections <= workers + 2, "{connections} connections for {workers} workers");
}

/// Ends all connections of the simulator, and waits until they are gone.
async fn disconnect(stage: &Stage) {
    stage.wecom.disconnect();
    stage.wecom.wait_until(|seen| seen.connections_open() == 0).await.expect("they close");
}

#[tokio::test]
async fn an_http2_connection_that_dies_is_replaced() {
    let stage = well(BOTH).await;
    // One connection of a client stays with one worker, and so with one connection to the upstream.
    let mut caller = Caller::http1(stage.address()).await;
    for _ in 0..10 {
        caller.get(USER_GET).await.is_ok();
        disconnect(&stage).await;
    }
    caller.get(USER_GET).await.is_ok();
    // With a request on it: a GET is sent again, since it does no harm; a POST may have been carried out.
    for path in [USER_GET, ECHO] {
        let bare = path.split('?').next().expect("a path");
        stage.wecom.inject(Fault::hold().on(bare).times(1)).expect("a fault");
        let cut = async {
            stage.wecom.wait_until(|seen| seen.in_flight() == 1).await.expect("a request");
            stage.wecom.disconnect();
        };
        match path {
            ECHO => tokio::join!(caller.call(Request::post(format!("/hr{ECHO}")), "{}"), cut).0.is_own(
                "upstream-broke",
                502,
                -1,
            ),
            _ => tokio::join!(caller.get(path), cut).0.is_ok(),
        };
        stage.wecom.reset();
    }
    caller.get(USER_GET).await.is_ok();
    assert_eq!(stage.wecom.look(|seen| seen.received(ECHO)), 0, "it was not sent again");
}

#[tokio::test]
async fn an_idle_http2_connection_is_closed_and_one_in_use_is_not_cut() {
    let authority = Authority::new();
    let toml = behind(&authority, "idle_timeout = \"1s\"");
    let stage = secure(&authority.server("127.0.0.1"), BOTH, &toml).await;
    let mut caller = Caller::http1(stage.address()).await;
    caller.get(USER_GET).await.is_ok();
    stage
        .wecom
        .inject(Fault::delay(Duration::from_millis(2500)).on("/cgi-bin/user/get").times(1))
        .expect("a fault");
    caller.get(USER_GET).await.is_ok();
    stage.wecom.wait_until(|seen| seen.connections_open() == 0).await.expect("it closes");
    caller.get(USER_GET).await.is_ok();
    assert_eq!(stage.wecom.look(|seen| seen.received("/cgi-bin/user/get")), 3, "none was sent twice");
}

/// What the proxy says of an upstream that it cannot trust, with and without a token to get first.
async fn refusals(identity: &Identity, toml: &str) -> [Reply; 2] {
    let stage = secure(identity, BOTH, toml).await;
    let replies = [stage.get(USER_GET).await, stage.post(WEBHOOK, "{\"msgtype\":\"text\"}").await];
    replies[0].is_own("token-unavailable", 502, -1);
    replies[1].is_own("upstream-unreachable", 502, -1);
    assert_eq!(stage.wecom.look(|seen| seen.total()), 0, "nothing reaches an upstream that is not trusted");
    replies
}

#[track_caller]
fn says(replies: &[Reply; 2], words: &str) {
    for text in replies.iter().map(Reply::text) {
        assert!(text.contains(words), "{text}");
        for secret in ["not-a-secret", "00000000-1111", "corpsecret", "access_token"] {
            assert!(!text.contains(secret), "{text}");
        }
    }
}

#[tokio::test]
async fn a_self_signed_certificate_is_trusted_where_it_is_listed_itself() {
    let (listed, identity) = Authority::self_signed("127.0.0.1", |_| {});
    let stage = secure(&identity, BOTH, &behind(&listed, "")).await;
    stage.get(USER_GET).await.is_ok();

    let (other, _) = Authority::self_signed("127.0.0.1", |_| {});
    refusals(&identity, &behind(&other, "")).await;
    let (listed, identity) = Authority::self_signed("elsewhere.test", |_| {});
    says(&refusals(&identity, &behind(&listed, "")).await, "certificate is not for its name");
    let (listed, identity) = Authority::self_signed("127.0.0.1", |params| {
        params.not_before = rcgen::date_time_ymd(2001, 1, 1);
        params.not_after = rcgen::date_time_ymd(2002, 1, 1);
    });
    says(&refusals(&identity, &behind(&listed, "")).await, "certificate has expired");
}

#[tokio::test]
async fn a_certificate_for_another_name_is_refused() {
    let authority = Authority::new();
    let replies = refusals(&authority.server("elsewhere.test"), &behind(&authority, "")).await;
    says(&replies, "certificate is not for its name");
}

#[tokio::test]
async fn a_certificate_of_an_unknown_authority_is_refused() {
    let replies = refusals(&Authority::new().server("127.0.0.1"), &behind(&Authority::new(), "")).await;
    says(&replies, "upstream.ca_file");
    let built_in = "[server]\nlisten = \"127.0.0.1:0\"\n[upstream]\nurl = \"https://{api}\"\n{agents}";
    says(&refusals(&Authority::new().server("127.0.0.1"), built_in).await, "not trusted");
}

#[tokio::test]
async fn an_expired_certificate_is_refused() {
    let authority = Authority::new();
    let replies = refusals(&authority.expired("127.0.0.1"), &behind(&authority, "")).await;
    says(&replies, "certificate has expired");
}

#[tokio::test]
async fn an_upstream_without_tls_is_not_taken_for_one_with() {
    let authority = Authority::new();
    let stage = Stage::with(&behind(&authority, "")).await;
    let reply = stage.post(WEBHOOK, "{}").await;
    reply.is_own("upstream-unreachable", 502, -1);
    assert!(reply.text().contains("does not speak TLS"), "{}", reply.text());
}

#[tokio::test]
async fn a_file_without_certificates_stops_the_start() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("proxy.toml");
    fs::write(dir.path().join("empty.pem"), "no certificate\n").expect("a file");
    let start = |file: &str| {
        let toml = format!(
            "[upstream]\nca_file = \"{file}\"\n[agents.hr]\ncorpid = \"ww1\"\nsecret = \"a-secret-of-hr\"\n"
        );
        fs::write(&path, toml).expect("a file");
        let outcome = config::load(&path).map_err(|error| error.to_string());
        let outcome = outcome.and_then(|config| Prepared::new(config).map_err(|error| error.to_string()));
        outcome.err().expect("it does not start")
    };
    for (file, words) in [("empty.pem", "no certificate"), ("missing.pem", "missing.pem")] {
        let said = start(file);
        assert!(said.contains("ca_file") && said.contains(words), "{said}");
        assert!(!said.contains("a-secret-of-hr"), "{said}");
    }
}

/// A server that accepts connections and says nothing.
async fn silent() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    (listener, address)
}

#[tokio::test]
async fn callers_of_an_upstream_that_never_greets_do_not_wait_for_one_another() {
    let (_listener, address) = silent().await;
    let toml = format!(
        "[server]\nlisten = \"127.0.0.1:0\"\n[upstream]\nurl = \"https://{address}\"\nconnect_timeout = \"500ms\"\n{{agents}}"
    );
    let stage = Arc::new(Stage::with(&toml).await);
    let began = Instant::now();
    for reply in all_at_once(&stage, 40, WEBHOOK).await {
        reply.is_own("upstream-unreachable", 502, -1);
        assert!(reply.text().contains("upstream.connect_timeout"), "{}", reply.text());
    }
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
}
