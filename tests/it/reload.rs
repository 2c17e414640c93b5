//! The configuration read again: in the library, and by SIGHUP in the real program.

use std::{fs, path::PathBuf};

use http::Request;
use tempfile::TempDir;
use tokio::sync::watch;
use wecom_proxy::simulator::{Agent, Fault, Settings, Simulator};

use crate::{
    certificates::Authority,
    process::Process,
    stage::{Caller, OPEN, Reply, Stage, USER_GET, soon, write_config},
};

const IT: &str = "not-a-secret-it-0000000000000000000000000000";

/// Keys for two clients, of which the first is to be changed.
const KEYS: &str = r#"
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

fn keys(billing: &str) -> String {
    KEYS.replace("BILLING", billing)
}

/// A kept connection on which the same lines came often is asked for its key anew when the clients change.
#[tokio::test]
async fn a_key_that_was_changed_is_refused_on_a_connection_that_is_known() {
    let (old, new) = ("the-old-key-0123456789abcdef", "the-new-key-0123456789abcdef");
    let stage = Stage::with(&keys(old)).await;
    let mut caller = Caller::http1(stage.address()).await;
    let with = |key: &str| Request::get(format!("/hr{USER_GET}")).header("x-api-key", key);
    for _ in 0..4 {
        caller.call(with(old), "").await.is_ok();
    }
    stage.rewrite(&keys(new));
    stage.proxy.reload().expect("a reload");
    for _ in 0..2 {
        caller.call(with(old), "").await.is_own("unauthenticated", 401, 40001);
    }
    for _ in 0..4 {
        caller.call(with(new), "").await.is_ok();
    }
    let mut other = Caller::http1(stage.address()).await;
    other.call(with(old), "").await.is_own("unauthenticated", 401, 40001);
}

async fn as_client(stage: &Stage, key: &str) -> Reply {
    let request = Request::get(format!("/hr{USER_GET}")).header("x-api-key", key);
    stage.call(request, "").await
}

#[tokio::test]
async fn an_agent_that_is_added_serves_and_one_that_is_removed_does_not() {
    let stage = Stage::open().await;
    stage.wecom.add_agent(Agent::new("it", IT, 1_000_004));
    let it = || stage.call(Request::get(format!("/it{USER_GET}")), "");
    it().await.is_own("unknown-agent", 404, 40035);
    let section = format!("[agents.it]\ncorpid = \"ww1234567890abcdef\"\nsecret = \"{IT}\"\n");
    stage.rewrite(&format!("{OPEN}\n{section}"));
    stage.proxy.reload().expect("a reload");
    it().await.is_ok();
    stage.rewrite(&OPEN.replace("{agents}", &section));
    stage.proxy.reload().expect("a reload");
    it().await.is_ok();
    stage.get(USER_GET).await.is_own("unknown-agent", 404, 40035);
    assert_eq!(stage.wecom.gettoken_count("it").expect("an agent"), 1, "it kept its token");
}

#[tokio::test]
async fn a_changed_secret_gets_a_new_token_at_once_and_other_agents_keep_theirs() {
    let stage = Stage::open().await;
    let ops = || stage.call(Request::get(format!("/ops{USER_GET}")), "");
    stage.get(USER_GET).await.is_ok();
    ops().await.is_ok();
    let secret = "not-a-secret-hr-1111111111111111111111111111";
    stage.wecom.reset_secret("hr", secret).expect("an agent");
    // The old secret is refused, and that for a minute at least.
    stage.get(USER_GET).await.is_own("token-unavailable", 502, 40001);
    let path = stage.rewrite(OPEN);
    let text = fs::read_to_string(&path).expect("the file");
    fs::write(&path, text.replace("not-a-secret-hr-0000000000000000000000000000", secret)).expect("a file");
    stage.proxy.reload().expect("a reload");
    stage.get(USER_GET).await.is_ok();
    ops().await.is_ok();
    assert_eq!(stage.wecom.gettoken_count("ops").expect("an agent"), 1);
}

#[tokio::test]
async fn a_reload_that_changes_nothing_keeps_every_token() {
    let stage = Stage::open().await;
    stage.get(USER_GET).await.is_ok();
    for _ in 0..5 {
        stage.proxy.reload().expect("a reload");
        stage.get(USER_GET).await.is_ok();
    }
    assert_eq!(stage.wecom.gettoken_count("hr").expect("an agent"), 1);
}

#[tokio::test]
async fn clients_keys_follow_the_file() {
    let (old, new) = ("the-old-key-of-billing-0123456789ab", "the-new-key-of-billing-0123456789ab");
    let stage = Stage::with(&keys(old)).await;
    as_client(&stage, old).await.is_ok();
    as_client(&stage, new).await.is_own("unauthenticated", 401, 40001);
    stage.rewrite(&keys(new));
    stage.proxy.reload().expect("a reload");
    as_client(&stage, old).await.is_own("unauthenticated", 401, 40001);
    as_client(&stage, new).await.is_ok();
    as_client(&stage, "the-key-of-reports-0123456789abcdef").await.is_ok();
}

#[tokio::test]
async fn a_file_that_does_not_pass_changes_nothing() {
    let key = "the-old-key-of-billing-0123456789ab";
    let stage = Stage::with(&keys(key)).await;
    as_client(&stage, key).await.is_ok();
    let bad = [
        "[server]\nlisten = ".to_owned(),
        keys("another-key-of-billing-0123456789ab").replace("listen", "lissten"),
        keys("another-key-of-billing-0123456789ab").replace("[\"hr\"]", "[\"nobody\"]"),
        keys("another-key-of-billing-0123456789ab").replace("{agents}", "{agents}\naccept_secret = 7"),
    ];
    for text in bad {
        stage.rewrite(&text);
        let error = stage.proxy.reload().expect_err("no reload").to_string();
        assert!(error.contains("proxy.toml"), "{error}");
        assert!(!error.contains("another-key"), "{error}");
        as_client(&stage, key).await.is_ok();
        as_client(&stage, "another-key-of-billing-0123456789ab").await.is_own("unauthenticated", 401, 40001);
    }
    assert_eq!(stage.wecom.gettoken_count("hr").expect("an agent"), 1);
}

#[tokio::test]
async fn a_request_in_flight_is_not_disturbed_even_if_its_agent_goes() {
    let stage = Stage::open().await;
    stage.get(USER_GET).await.is_ok();
    stage.wecom.inject(Fault::hold().on("/cgi-bin/user/get")).expect("a fault");
    let during = async {
        stage.wecom.wait_until(|seen| seen.in_flight() == 1).await.expect("a request");
        let only_ops = "[agents.ops]\ncorpid = \"ww1234567890abcdef\"\nsecret = \"not-a-secret-ops-000000000000000000000000000\"\n";
        stage.rewrite(&OPEN.replace("{agents}", only_ops));
        stage.proxy.reload().expect("a reload");
        stage.wecom.release();
    };
    let (reply, ()) = tokio::join!(stage.get(USER_GET), during);
    assert_eq!(reply.is_ok().header("x-wecom-agent"), "hr");
}

/// The simulator, and a directory for the real program's configuration.
async fn scene() -> (Simulator, TempDir) {
    let wecom = crate::confidant::simulator(Settings::default()).await;
    (wecom, TempDir::new().expect("a directory"))
}

fn write(scene: &(Simulator, TempDir), toml: &str) -> PathBuf {
    write_config(&scene.1, scene.0.api_addr(), &Settings::default(), toml)
}

#[tokio::test]
async fn sighup_reloads_and_a_bad_file_is_logged_as_an_error() {
    let scene = scene().await;
    let proxy = Process::serve(&write(&scene, OPEN)).await;
    let mut caller = Caller::http1(proxy.address().await).await;
    caller.get(USER_GET).await.is_ok();

    write(&scene, &OPEN.replace("listen", "lissten"));
    proxy.signal("HUP");
    let line = proxy.err.line("ERROR").await;
    for words in ["not reloaded", "proxy.toml", "lissten"] {
        assert!(line.contains(words), "{line}");
    }
    caller.get(USER_GET).await.is_ok();

    // In flight while the file is read again.
    scene.0.inject(Fault::hold().on("/cgi-bin/user/get").times(1)).expect("a fault");
    write(&scene, OPEN);
    let during = async {
        scene.0.wait_until(|seen| seen.in_flight() == 1).await.expect("a request");
        proxy.signal("HUP");
        proxy.err.line("configuration reloaded").await;
        scene.0.release();
    };
    let (reply, ()) = tokio::join!(caller.get(USER_GET), during);
    reply.is_ok();
    assert_eq!(scene.0.gettoken_count("hr").expect("an agent"), 1);
    assert_eq!(proxy.stop().await.status, 0);
}

#[tokio::test]
async fn the_log_level_follows_the_file() {
    let scene = scene().await;
    let at = |level: &str, more: &str| format!("{OPEN}\n[log]\nlevel = \"{level}\"\n{more}");
    let proxy = Process::serve_as_told(&write(&scene, &at("error", ""))).await;
    write(&scene, &at("info", "[agents.it]\ncorpid = \"ww1\"\nsecret = \"a-secret-of-it\"\n"));
    proxy.signal("HUP");
    // This reload still happens under the level `error`, which does not speak of it; the new agent does.
    let admin = proxy.admin().await;
    let known = async {
        while !Caller::http1(admin)
            .await
            .call(Request::get("/api/agents"), "")
            .await
            .text()
            .contains("\"it\"")
        {}
    };
    soon(known).await;
    proxy.signal("HUP");
    proxy.err.line("configuration reloaded").await;
    write(&scene, &at("error", ""));
    proxy.signal("HUP");
    proxy.err.nth_line("configuration reloaded", 1).await;
    let ended = proxy.stop().await;
    assert_eq!(ended.status, 0);
    assert!(!ended.err.contains("stopping"), "the level is error again:\n{}", ended.err);
}

#[tokio::test]
async fn sections_that_need_a_restart_say_so() {
    let scene = scene().await;
    let proxy = Process::serve(&write(&scene, OPEN)).await;
    write(&scene, &OPEN.replace("[upstream]", "idle_timeout = \"9s\"\n[upstream]\nconnect_timeout = \"9s\""));
    proxy.signal("HUP");
    proxy.err.line("configuration reloaded").await;
    let said = proxy.err.now();
    for section in ["server", "upstream"] {
        let line = said.lines().find(|line| line.contains(&format!("section=\"{section}\"")));
        assert!(line.is_some_and(|line| line.contains("restart")), "{section}: {said}");
    }
    assert!(!said.contains("section=\"admin\""), "{said}");
}

#[tokio::test]
async fn reloads_under_load_lose_nothing_and_new_handshakes_see_the_new_certificate() {
    let (old, new) = (Authority::new(), Authority::new());
    let scene = scene().await;
    let with = |line: &str| OPEN.replace("[upstream]", &format!("{line}\n[upstream]"));
    let (old_line, new_line) = (old.server_line("localhost"), new.server_line("localhost"));
    let proxy = Process::serve(&write(&scene, &with(&old_line))).await;
    let address = proxy.address().await;
    let (stop, stopped) = watch::channel(false);
    let mut load = Vec::new();
    for http2 in [false, true, false, true] {
        let alpn = if http2 { ["h2"] } else { ["http/1.1"] };
        let stream = old.connect(address, &alpn, None).await.expect("a handshake");
        let mut caller = match http2 {
            true => Caller::http2_over(stream).await,
            false => Caller::http1_over(stream).await,
        };
        let stopped = stopped.clone();
        load.push(tokio::spawn(async move {
            let mut calls = 0;
            while !*stopped.borrow() {
                caller.get(USER_GET).await.is_ok();
                calls += 1;
            }
            calls
        }));
    }
    for (nth, (authority, line)) in
        [(&new, &new_line), (&old, &old_line), (&new, &new_line)].into_iter().enumerate()
    {
        write(&scene, &with(line));
        proxy.signal("HUP");
        proxy.err.nth_line("configuration reloaded", nth).await;
        let stream = authority.connect(address, &["http/1.1"], None).await.expect("the new certificate");
        Caller::http1_over(stream).await.get(USER_GET).await.is_ok();
    }
    assert!(old.connect(address, &[], None).await.is_err(), "the old certificate is gone");
    stop.send_replace(true);
    for calls in load {
        assert!(calls.await.expect("each call was answered") > 0);
    }
    assert_eq!(proxy.stop().await.status, 0);
}
