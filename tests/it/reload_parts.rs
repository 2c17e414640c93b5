//! What a reload keeps: tokens of credentials that move to another name, and everything where it fails.

use std::fs;

use http::Request;
use tempfile::TempDir;
use wecom_proxy::simulator::Settings;

use crate::{
    certificates::Authority,
    harness::{OPEN_CONFIG, TestProxy, TestResponse, USER_GET, admin_get, with_upstream_tls},
};

const HR_SECRET: &str = "not-a-secret-hr-0000000000000000000000000000";
const OPS_SECRET: &str = "not-a-secret-ops-000000000000000000000000000";

async fn get_as(proxy: &TestProxy, agent: &str) -> TestResponse {
    proxy.request(Request::get(format!("/{agent}{USER_GET}")), "").await
}

/// Reloads the file with these replacements in it.
fn reload_with(proxy: &TestProxy, replacements: &[(&str, &str)]) {
    let path = proxy.rewrite_config(OPEN_CONFIG);
    let text = fs::read_to_string(&path).expect("the file");
    let text = replacements.iter().fold(text, |text, (from, to)| {
        assert!(text.contains(from), "{from} is not in {text}");
        text.replace(from, to)
    });
    fs::write(&path, text).expect("written");
    proxy.app.reload().expect("a reload");
}

fn gettoken_counts(proxy: &TestProxy) -> [u64; 2] {
    ["hr", "ops"].map(|agent| proxy.wecom.gettoken_count(agent).expect("an agent"))
}

#[tokio::test]
async fn renamed_agent_keeps_its_token() {
    let proxy = TestProxy::start_open().await;
    get_as(&proxy, "hr").await.assert_ok();
    reload_with(&proxy, &[("[agents.hr]", "[agents.people]")]);
    get_as(&proxy, "people").await.assert_ok();
    get_as(&proxy, "hr").await.assert_proxy_error("unknown-agent", 404, 40035);
    assert_eq!(gettoken_counts(&proxy), [1, 0]);
    // An agent that is gone for one load has to fetch again.
    reload_with(&proxy, &[("[agents.hr]", "[agents.other]"), (HR_SECRET, "another-secret")]);
    reload_with(&proxy, &[]);
    get_as(&proxy, "hr").await.assert_ok();
    assert_eq!(gettoken_counts(&proxy), [2, 0]);
}

#[tokio::test]
async fn agents_that_swap_their_secrets_keep_both_tokens() {
    let proxy = TestProxy::start_open().await;
    get_as(&proxy, "hr").await.assert_ok();
    get_as(&proxy, "ops").await.assert_ok();
    reload_with(&proxy, &[(HR_SECRET, "SWAPPED"), (OPS_SECRET, HR_SECRET), ("SWAPPED", OPS_SECRET)]);
    for agent in ["hr", "ops"] {
        get_as(&proxy, agent).await.assert_ok();
    }
    assert_eq!(gettoken_counts(&proxy), [1, 1]);
}

#[tokio::test]
async fn reload_that_fails_at_its_callbacks_trusts_no_other_certificate() {
    let (old, new) = (Authority::new(), Authority::new());
    let dir = TempDir::new().expect("a directory");
    let ca_file = dir.path().join("ca.pem");
    fs::copy(old.ca_file(), &ca_file).expect("copied");
    let toml = with_upstream_tls(OPEN_CONFIG, &ca_file);
    let toml = toml + "[state]\npath = \"{dir}/state.db\"\nkey = \"a-state-key-of-the-tests-0123456789\"\n";
    let settings = Settings {
        tls: Some(old.issue_server("127.0.0.1").server_config(&["http/1.1"])),
        ..Settings::default()
    };
    let proxy = TestProxy::start_with_settings(settings, &toml).await;
    proxy.get(USER_GET).await.assert_ok();
    fs::copy(new.ca_file(), &ca_file).expect("copied");
    // The certificates of a target are read only when it is set up.
    let no_certificates = dir.path().join("none.pem");
    fs::write(&no_certificates, "no certificate").expect("written");
    let callbacks = "[callbacks.hr]\nagent = \"hr\"\ntoken = \"token-of-callbacks\"\n\
                     aes_key = \"jWmYm7qr5nMoAUwZRjGtBxmz3KA1tkAj3ykkR6q2B2C\"\n\
                     [[callbacks.hr.to]]\nname = \"one\"\nurl = \"https://target.example/x\"\n";
    let ca_file = format!("ca_file = \"{}\"\n", no_certificates.display());
    proxy.rewrite_config(&format!("{toml}{callbacks}{ca_file}"));
    let error = proxy.app.reload().expect_err("callbacks that cannot be served");
    assert!(error.to_string().starts_with("callbacks.hr, target one: "), "{error}");
    proxy.get(USER_GET).await.assert_ok();
    proxy.rewrite_config(&toml);
    proxy.app.reload().expect("a reload");
    proxy.get(USER_GET).await.assert_proxy_error("upstream-unreachable", 502, -1);
}

/// A warning for each of very many agents would fill the log, and the report is kept.
#[tokio::test]
async fn warnings_of_a_reload_are_summed_up() {
    let proxy = TestProxy::start_with_config(OPEN_CONFIG).await;
    let report = proxy.app.reload().expect("a reload");
    let plain = report.warnings.iter().filter(|warning| warning.english().contains("is in plain text"));
    let plain: Vec<_> = plain.map(|warning| warning.english()).collect();
    assert!(plain.len() == 1 && plain[0].contains("and "), "{plain:?}");
}

#[tokio::test]
async fn agent_that_is_not_read_again_keeps_its_token_and_has_its_new_line() {
    let proxy = TestProxy::start_open().await;
    get_as(&proxy, "hr").await.assert_ok();
    let listed = async || admin_get(&proxy, "/api/agents").await.json()["agents"].clone();
    let line_of = |agents: &serde_json::Value, nth: usize| {
        let origin = agents[nth]["origin"].as_str().expect("an origin").to_owned();
        origin.rsplit_once(':').and_then(|(_, line)| line.parse::<usize>().ok()).expect("a line")
    };
    let before = listed().await;
    let path = proxy.rewrite_config(OPEN_CONFIG);
    let text = fs::read_to_string(&path).expect("the file");
    fs::write(&path, format!("# one\n# two\n{}", text.replace(OPS_SECRET, "another-secret")))
        .expect("written");
    for _ in 0..2 {
        proxy.app.reload().expect("a reload");
    }
    let after = listed().await;
    for nth in 0..2 {
        assert_eq!(line_of(&after, nth), line_of(&before, nth) + 2, "{after}");
    }
    get_as(&proxy, "hr").await.assert_ok();
    assert_eq!(gettoken_counts(&proxy), [1, 0]);
    fs::write(&path, text.replace("[agents.ops]", "[agents.other]")).expect("written");
    proxy.app.reload().expect("a reload");
    let names: Vec<_> =
        listed().await.as_array().expect("agents").iter().map(|of| of["name"].clone()).collect();
    assert_eq!(names, ["hr", "other"]);
}
