//! Configuration reload: by the library call, and by SIGHUP to the program.

use std::{fs, path::PathBuf};

use http::Request;
use tempfile::TempDir;
use tokio::sync::watch;
use wecom_proxy::simulator::{Fault, Settings, SimulatedAgent, Simulator};

use crate::{
    certificates::Authority,
    harness::{
        OPEN_CONFIG, TestClient, TestProxy, TestResponse, USER_GET, wait_for, with_timeout,
        with_upstream_tls, write_config,
    },
    process::{Process, wecom_proxy},
};

const IT_SECRET: &str = "not-a-secret-it-0000000000000000000000000000";

/// Two clients; tests change the key of `billing`.
const CONFIG_WITH_KEYS: &str = r#"
[server]
listen = "127.0.0.1:0"
[upstream]
url = "http://{api}"
{agents}
[clients.billing]
key = "BILLING"
agents = ["hr"]
[clients.reports]
key = "the-key-of-reports-0123456789abcdef"
agents = ["*"]
"#;

fn config_with_key(billing: &str) -> String {
    CONFIG_WITH_KEYS.replace("BILLING", billing)
}

/// A reload invalidates the authentication cache of open connections.
#[tokio::test]
async fn changed_key_is_refused_on_an_open_connection() {
    let (old, new) = ("the-old-key-0123456789abcdef", "the-new-key-0123456789abcdef");
    let proxy = TestProxy::start_with_config(&config_with_key(old)).await;
    let mut client = TestClient::connect_http1(proxy.address()).await;
    let with_key = |key: &str| Request::get(format!("/hr{USER_GET}")).header("x-api-key", key);
    for _ in 0..4 {
        client.request(with_key(old), "").await.assert_ok();
    }
    proxy.rewrite_config(&config_with_key(new));
    proxy.app.reload().expect("a reload");
    for _ in 0..2 {
        client.request(with_key(old), "").await.assert_proxy_error("unauthenticated", 401, 40001);
    }
    for _ in 0..4 {
        client.request(with_key(new), "").await.assert_ok();
    }
    let mut other = TestClient::connect_http1(proxy.address()).await;
    other.request(with_key(old), "").await.assert_proxy_error("unauthenticated", 401, 40001);
}

async fn get_with_key(proxy: &TestProxy, key: &str) -> TestResponse {
    let request = Request::get(format!("/hr{USER_GET}")).header("x-api-key", key);
    proxy.request(request, "").await
}

/// 61 wrong secrets have spent the failures of the address, and others wait for more.
#[tokio::test]
async fn corrected_secret_is_tried_at_once_beside_many_wrong_ones() {
    let section = |name: &str, secret: &str| {
        format!("[agents.{name}]\ncorpid = \"ww1234567890abcdef\"\nsecret = \"{secret}\"\n")
    };
    let wrong: String =
        (0..70).map(|nth| section(&format!("bad-{nth}"), &format!("not-a-secret-{nth}"))).collect();
    let config = |secret: &str| format!("{OPEN_CONFIG}\n{wrong}{}", section("it", secret));
    let proxy = TestProxy::start_with_config(&config("not-a-secret-it-mistyped")).await;
    proxy.wecom.add_agent(SimulatedAgent::new("it", IT_SECRET, 1_000_004));
    let get = |agent: &str| proxy.request(Request::get(format!("/{agent}{USER_GET}")), "");
    for nth in 0..70 {
        get(&format!("bad-{nth}")).await.assert_proxy_error(
            "token-unavailable",
            502,
            if nth < 60 { 40001 } else { -1 },
        );
    }
    let waiting = get("it").await;
    waiting.assert_proxy_error("token-unavailable", 502, -1);
    let wait: u64 = waiting.header("retry-after").parse().expect("seconds");
    assert!((1..=120).contains(&wait), "{wait}");
    proxy.rewrite_config(&config(IT_SECRET));
    proxy.app.reload().expect("a reload");
    get("it").await.assert_ok();
}

#[tokio::test]
async fn reload_adds_and_removes_agents() {
    let proxy = TestProxy::start_open().await;
    proxy.wecom.add_agent(SimulatedAgent::new("it", IT_SECRET, 1_000_004));
    let get_it = || proxy.request(Request::get(format!("/it{USER_GET}")), "");
    get_it().await.assert_proxy_error("unknown-agent", 404, 40035);
    let section = format!("[agents.it]\ncorpid = \"ww1234567890abcdef\"\nsecret = \"{IT_SECRET}\"\n");
    proxy.rewrite_config(&format!("{OPEN_CONFIG}\n{section}"));
    proxy.app.reload().expect("a reload");
    get_it().await.assert_ok();
    proxy.rewrite_config(&OPEN_CONFIG.replace("{agents}", &section));
    proxy.app.reload().expect("a reload");
    get_it().await.assert_ok();
    proxy.get(USER_GET).await.assert_proxy_error("unknown-agent", 404, 40035);
    assert_eq!(proxy.wecom.gettoken_count("it").expect("an agent"), 1, "the token is kept");
}

#[tokio::test]
async fn changed_secret_gets_a_new_token_and_others_keep_theirs() {
    let proxy = TestProxy::start_open().await;
    let get_ops = || proxy.request(Request::get(format!("/ops{USER_GET}")), "");
    proxy.get(USER_GET).await.assert_ok();
    get_ops().await.assert_ok();
    let secret = "not-a-secret-hr-1111111111111111111111111111";
    proxy.wecom.reset_secret("hr", secret).expect("an agent");
    // The old secret is refused, and gettoken backs off for at least a minute.
    proxy.get(USER_GET).await.assert_proxy_error("token-unavailable", 502, 40001);
    let path = proxy.rewrite_config(OPEN_CONFIG);
    let text = fs::read_to_string(&path).expect("the file");
    fs::write(&path, text.replace("not-a-secret-hr-0000000000000000000000000000", secret)).expect("a file");
    proxy.app.reload().expect("a reload");
    proxy.get(USER_GET).await.assert_ok();
    get_ops().await.assert_ok();
    assert_eq!(proxy.wecom.gettoken_count("ops").expect("an agent"), 1);
}

#[tokio::test]
async fn reload_without_changes_keeps_every_token() {
    let proxy = TestProxy::start_open().await;
    proxy.get(USER_GET).await.assert_ok();
    for _ in 0..5 {
        proxy.app.reload().expect("a reload");
        proxy.get(USER_GET).await.assert_ok();
    }
    assert_eq!(proxy.wecom.gettoken_count("hr").expect("an agent"), 1);
}

#[tokio::test]
async fn client_keys_follow_a_reload() {
    let (old, new) = ("the-old-key-of-billing-0123456789ab", "the-new-key-of-billing-0123456789ab");
    let proxy = TestProxy::start_with_config(&config_with_key(old)).await;
    get_with_key(&proxy, old).await.assert_ok();
    get_with_key(&proxy, new).await.assert_proxy_error("unauthenticated", 401, 40001);
    proxy.rewrite_config(&config_with_key(new));
    proxy.app.reload().expect("a reload");
    get_with_key(&proxy, old).await.assert_proxy_error("unauthenticated", 401, 40001);
    get_with_key(&proxy, new).await.assert_ok();
    get_with_key(&proxy, "the-key-of-reports-0123456789abcdef").await.assert_ok();
}

#[tokio::test]
async fn invalid_file_changes_nothing_on_reload() {
    let key = "the-old-key-of-billing-0123456789ab";
    let proxy = TestProxy::start_with_config(&config_with_key(key)).await;
    get_with_key(&proxy, key).await.assert_ok();
    let invalid = [
        "[server]\nlisten = ".to_owned(),
        config_with_key("another-key-of-billing-0123456789ab").replace("listen", "lissten"),
        config_with_key("another-key-of-billing-0123456789ab").replace("[\"hr\"]", "[\"unknown\"]"),
        config_with_key("another-key-of-billing-0123456789ab")
            .replace("{agents}", "{agents}\naccept_secret = 7"),
    ];
    for text in invalid {
        proxy.rewrite_config(&text);
        let error = proxy.app.reload().expect_err("no reload").to_string();
        assert!(error.contains("proxy.toml"), "{error}");
        assert!(!error.contains("another-key"), "{error}");
        get_with_key(&proxy, key).await.assert_ok();
        get_with_key(&proxy, "another-key-of-billing-0123456789ab").await.assert_proxy_error(
            "unauthenticated",
            401,
            40001,
        );
    }
    assert_eq!(proxy.wecom.gettoken_count("hr").expect("an agent"), 1);
}

#[tokio::test]
async fn request_in_flight_survives_removal_of_its_agent() {
    let proxy = TestProxy::start_open().await;
    proxy.get(USER_GET).await.assert_ok();
    proxy.wecom.inject(Fault::hold().on_path("/cgi-bin/user/get")).expect("a fault");
    let during = async {
        proxy.wecom.wait_until(|observed| observed.in_flight() == 1).await.expect("a request");
        let only_ops = "[agents.ops]\ncorpid = \"ww1234567890abcdef\"\nsecret = \"not-a-secret-ops-000000000000000000000000000\"\n";
        proxy.rewrite_config(&OPEN_CONFIG.replace("{agents}", only_ops));
        proxy.app.reload().expect("a reload");
        proxy.wecom.release_held();
    };
    let (response, ()) = tokio::join!(proxy.get(USER_GET), during);
    assert_eq!(response.assert_ok().header("x-wecom-agent"), "hr");
}

/// The simulator, and a directory for the program's configuration.
async fn start_simulator() -> (Simulator, TempDir) {
    let wecom = crate::leak_detector::start_simulator(Settings::default()).await;
    (wecom, TempDir::new().expect("a directory"))
}

fn write(setup: &(Simulator, TempDir), toml: &str) -> PathBuf {
    write_config(&setup.1, setup.0.api_addr(), &Settings::default(), toml)
}

#[tokio::test]
async fn sighup_reloads_and_logs_an_invalid_file() {
    let setup = start_simulator().await;
    let proxy = Process::serve(&write(&setup, OPEN_CONFIG)).await;
    let mut client = TestClient::connect_http1(proxy.address().await).await;
    client.get(USER_GET).await.assert_ok();

    write(&setup, &OPEN_CONFIG.replace("listen", "lissten"));
    proxy.signal("HUP");
    let line = proxy.err.wait_for_line("ERROR").await;
    for expected in ["configuration was not reloaded", "proxy.toml", "lissten"] {
        assert!(line.contains(expected), "{line}");
    }
    client.get(USER_GET).await.assert_ok();

    // A request is in flight during the reload.
    setup.0.inject(Fault::hold().on_path("/cgi-bin/user/get").times(1)).expect("a fault");
    write(&setup, OPEN_CONFIG);
    let during = async {
        setup.0.wait_until(|observed| observed.in_flight() == 1).await.expect("a request");
        proxy.signal("HUP");
        proxy.err.wait_for_line("configuration reloaded").await;
        setup.0.release_held();
    };
    let (response, ()) = tokio::join!(client.get(USER_GET), during);
    response.assert_ok();
    assert_eq!(setup.0.gettoken_count("hr").expect("an agent"), 1);
    assert_eq!(proxy.stop().await.status, 0);
}

#[tokio::test]
async fn log_level_follows_a_reload() {
    let setup = start_simulator().await;
    let config = |level: &str, extra: &str| format!("{OPEN_CONFIG}\n[log]\nlevel = \"{level}\"\n{extra}");
    let proxy = Process::serve_with_config_log_level(&write(&setup, &config("error", ""))).await;
    write(&setup, &config("info", "[agents.it]\ncorpid = \"ww1\"\nsecret = \"a-secret-of-it\"\n"));
    proxy.signal("HUP");
    // This reload is logged under the level `error`, so not at all; the new agent shows that it happened.
    let admin = proxy.admin_address().await;
    let reloaded = async {
        while !TestClient::connect_http1(admin)
            .await
            .request(Request::get("/api/agents"), "")
            .await
            .text()
            .contains("\"it\"")
        {}
    };
    with_timeout(reloaded).await;
    proxy.signal("HUP");
    proxy.err.wait_for_line("configuration reloaded").await;
    write(&setup, &config("error", ""));
    proxy.signal("HUP");
    proxy.err.wait_for_nth_line("configuration reloaded", 1).await;
    let output = proxy.stop().await;
    assert_eq!(output.status, 0);
    assert!(!output.err.contains("stopping"), "the level is error again:\n{}", output.err);
}

#[tokio::test]
async fn changed_sections_that_need_a_restart_are_logged() {
    let setup = start_simulator().await;
    let proxy = Process::serve(&write(&setup, OPEN_CONFIG)).await;
    write(
        &setup,
        &OPEN_CONFIG.replace("[upstream]", "idle_timeout = \"9s\"\n[upstream]\nconnect_timeout = \"9s\""),
    );
    proxy.signal("HUP");
    proxy.err.wait_for_line("configuration reloaded").await;
    let log = proxy.err.text();
    for section in ["server", "upstream"] {
        let line = log.lines().find(|line| line.contains(&format!("section=\"{section}\"")));
        assert!(line.is_some_and(|line| line.contains("restart")), "{section}: {log}");
    }
    assert!(!log.contains("section=\"admin\""), "{log}");
}

#[tokio::test]
async fn reload_under_load_loses_nothing_and_swaps_certificates() {
    let (old, new) = (Authority::new(), Authority::new());
    let setup = start_simulator().await;
    let config = |line: &str| OPEN_CONFIG.replace("[upstream]", &format!("{line}\n[upstream]"));
    let (old_line, new_line) = (old.tls_config_line("localhost"), new.tls_config_line("localhost"));
    let proxy = Process::serve(&write(&setup, &config(&old_line))).await;
    let address = proxy.address().await;
    let (stop, stopped) = watch::channel(false);
    let mut load = Vec::new();
    for http2 in [false, true, false, true] {
        let alpn = if http2 { ["h2"] } else { ["http/1.1"] };
        let stream = old.connect_tls(address, &alpn, None).await.expect("a handshake");
        let mut client = match http2 {
            true => TestClient::http2_over(stream).await,
            false => TestClient::http1_over(stream).await,
        };
        let stopped = stopped.clone();
        load.push(tokio::spawn(async move {
            let mut calls = 0;
            while !*stopped.borrow() {
                client.get(USER_GET).await.assert_ok();
                calls += 1;
            }
            calls
        }));
    }
    for (nth, (authority, line)) in
        [(&new, &new_line), (&old, &old_line), (&new, &new_line)].into_iter().enumerate()
    {
        write(&setup, &config(line));
        proxy.signal("HUP");
        proxy.err.wait_for_nth_line("configuration reloaded", nth).await;
        let stream = authority.connect_tls(address, &["http/1.1"], None).await.expect("the new certificate");
        TestClient::http1_over(stream).await.get(USER_GET).await.assert_ok();
    }
    assert!(old.connect_tls(address, &[], None).await.is_err(), "the old certificate is replaced");
    stop.send_replace(true);
    for calls in load {
        assert!(calls.await.expect("no panic") > 0);
    }
    assert_eq!(proxy.stop().await.status, 0);
}

/// The certificate of the upstream is replaced by one of another authority, and the file at the same path too.
#[tokio::test]
async fn new_content_of_ca_file_is_taken_up() {
    let (old, new) = (Authority::new(), Authority::new());
    let dir = TempDir::new().expect("a directory");
    let ca_file = dir.path().join("ca.pem");
    fs::copy(old.ca_file(), &ca_file).expect("copied");
    let toml = with_upstream_tls(OPEN_CONFIG, &ca_file);
    let settings = Settings {
        tls: Some(new.issue_server("127.0.0.1").server_config(&["http/1.1"])),
        ..Settings::default()
    };
    let proxy = TestProxy::start_with_settings(settings, &toml).await;
    proxy.get(USER_GET).await.assert_proxy_error("token-unavailable", 502, -1);
    fs::copy(new.ca_file(), &ca_file).expect("copied");
    let report = proxy.app.reload().expect("a reload");
    assert!(report.needs_restart.is_empty(), "{:?}", report.needs_restart);
    wait_for("a token", async || proxy.get(USER_GET).await.status == 200).await;

    // Back to the first: no idle connection that the other authority vouched for is used.
    fs::copy(old.ca_file(), &ca_file).expect("copied");
    proxy.app.reload().expect("a reload");
    proxy.get(USER_GET).await.assert_proxy_error("upstream-unreachable", 502, -1);
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn sighup_during_the_start_does_not_end_the_process() {
    let setup = start_simulator().await;
    // So many agents that the start takes a while.
    let mut toml = OPEN_CONFIG.to_owned();
    for nth in 0..3000 {
        toml.push_str(&format!("[agents.a{nth}]\ncorpid = \"ww{nth}\"\nsecret = \"secret-of-{nth}\"\n"));
    }
    let config = write(&setup, &toml);
    let mut command = wecom_proxy(&["serve", "--config", config.to_str().expect("a path in UTF-8")]);
    command.env("RUST_LOG", "info");
    let proxy = Process::start(command);
    // The signal is caught before the file is read.
    let status = format!("/proc/{}/status", proxy.id());
    wait_for("a handler", async || {
        let status = fs::read_to_string(&status).unwrap_or_default();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:\t")).unwrap_or_default();
        u64::from_str_radix(caught, 16).unwrap_or_default() & 1 != 0
    })
    .await;
    proxy.signal("HUP");
    proxy.err.wait_for_line("ready listen=").await;
    proxy.err.wait_for_line("configuration reloaded").await;
    assert_eq!(proxy.stop().await.status, 0);
}
