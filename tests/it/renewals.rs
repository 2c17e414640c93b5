//! How often a refused token is renewed, and who is told when it may be renewed no more.

use std::time::Duration;

use http::Request;
use tempfile::TempDir;
use wecom_proxy::simulator::{Fault, Settings};

use crate::{
    browser::Browser,
    process::Process,
    stage::{Caller, KEYED, OPEN, Reply, Stage, USER_GET, key, wait_for, write_config},
};

const USER: &str = "/cgi-bin/user/get";
const LIST: &str = "/cgi-bin/department/list";
const GETTOKEN: &str = "/cgi-bin/gettoken";

fn gettokens(stage: &Stage) -> usize {
    stage.wecom.look(|seen| seen.received(GETTOKEN))
}

async fn admin(stage: &Stage, path: &str) -> Reply {
    Caller::http1(stage.admin()).await.call(Request::get(path), "").await
}

fn retry_after(reply: &Reply) -> u64 {
    reply.header("retry-after").parse().unwrap_or_else(|_| panic!("no Retry-After: {}", reply.text()))
}

/// One renewal an hour is left, and it is used.
async fn spent() -> Stage {
    let stage = Stage::with(&format!("{OPEN}\n[tokens]\nrenewals_per_hour = 1\n")).await;
    for _ in 0..2 {
        stage.get(USER_GET).await.is_ok();
        stage.wecom.revoke("hr").expect("an agent");
    }
    stage
}

#[tokio::test]
async fn a_held_back_renewal_is_told_to_caller_and_operators() {
    let stage = spent().await;
    let reply = stage.get(USER_GET).await;
    assert_eq!((reply.errcode(), reply.header("x-wecom-proxy-error")), (40014, ""), "as it came");
    assert!((3500..=3600).contains(&retry_after(&reply)));
    assert_eq!(gettokens(&stage), 2);

    let ready = admin(&stage, "/readyz").await;
    assert_eq!(
        (ready.status.as_u16(), &ready.json()["status"]),
        (200, &"ok, but some renewals are held back".into())
    );
    let wait = ready.json()["agents"]["held"]["hr"]["next_try_in_seconds"].as_u64();
    assert!(wait.is_some_and(|wait| (3500..=3600).contains(&wait)), "{}", ready.text());
    let agents = admin(&stage, "/api/agents").await.json()["agents"].clone();
    assert_eq!((&agents[0]["held"], &agents[1]["held"]), (&true.into(), &false.into()));
    let metrics = admin(&stage, "/metrics").await;
    assert!(
        metrics.text().contains("wecom_proxy_token_renewals_held{agent=\"hr\"} 1\n"),
        "{}",
        metrics.text()
    );
    // Others get their first token all the same.
    stage.call(Request::get(format!("/ops{USER_GET}")), "").await.is_ok();

    let order = Request::post("/api/agents/hr/refresh").header("x-requested-with", "test");
    let ordered = Caller::http1(stage.admin()).await.call(order, "").await;
    assert_eq!(ordered.json()["ok"], true, "an order is carried out at once: {}", ordered.text());
    stage.get(USER_GET).await.is_ok();
    assert!(!admin(&stage, "/metrics").await.text().contains("held{"));
    assert_eq!(admin(&stage, "/readyz").await.json()["agents"]["held"], serde_json::json!({}));
}

#[tokio::test]
async fn a_retry_after_of_the_upstream_stays_the_only_one() {
    let stage = spent().await;
    let refusal = Fault::answer(200, "application/json", r#"{"errcode":40014,"errmsg":"x"}"#);
    let refusal = refusal.with_header("Retry-After", "7").on(USER);
    stage.wecom.inject(refusal).expect("a fault");
    let reply = stage.get(USER_GET).await;
    assert_eq!((reply.errcode(), retry_after(&reply)), (40014, 7));
    assert_eq!(reply.headers.get_all("retry-after").iter().count(), 1);
}

#[tokio::test]
async fn a_missing_token_is_told_with_retry_after() {
    let stage = Stage::open().await;
    stage.wecom.inject(Fault::errcode(40001).on(GETTOKEN)).expect("a fault");
    let reply = stage.get(USER_GET).await;
    reply.is_own("token-unavailable", 502, 40001);
    assert!((50..=90).contains(&retry_after(&reply)), "{}", reply.header("retry-after"));
}

#[tokio::test]
async fn a_path_that_always_refuses_holds_up_no_other_path() {
    let stage = Stage::open().await;
    stage.get(USER_GET).await.is_ok();
    stage.wecom.inject(Fault::errcode(40014).on(LIST)).expect("a fault");
    for nth in 0..20 {
        let reply = stage.get(LIST).await;
        assert_eq!(reply.errcode(), 40014);
        assert_eq!(reply.header("retry-after").is_empty(), nth == 0, "{nth}");
    }
    assert_eq!(gettokens(&stage), 2, "one for twenty refusals");
    stage.wecom.revoke("hr").expect("an agent");
    let reply = stage.get(USER_GET).await;
    assert_eq!(reply.is_ok().header("x-wecom-retried"), "40014", "the token had worked here");
    assert_eq!(gettokens(&stage), 3);
}

#[tokio::test]
async fn a_caller_who_leaves_before_its_second_try_starts_the_pause() {
    let stage = Stage::open().await;
    stage.get(USER_GET).await.is_ok();
    stage.wecom.inject(Fault::hold().on(GETTOKEN).times(1)).expect("a fault");
    stage.wecom.revoke("hr").expect("an agent");
    let leaving = tokio::time::timeout(Duration::from_millis(500), stage.get(LIST)).await;
    assert!(leaving.is_err(), "it left before the second try");
    stage.wecom.release();
    let reason =
        async || admin(&stage, "/api/agents").await.json()["agents"][0]["last_renewal"]["reason"].clone();
    wait_for("the renewal", async || reason().await == "refused").await;
    assert_eq!(gettokens(&stage), 2);
    for _ in 0..10 {
        // The path refuses each new token as well.
        stage.wecom.inject(Fault::errcode(40014).on(LIST).times(1)).expect("a fault");
        let reply = stage.get(LIST).await;
        assert_eq!((reply.errcode(), reply.header("x-wecom-retried")), (40014, ""));
        assert!((1..=10).contains(&retry_after(&reply)));
    }
    assert_eq!(gettokens(&stage), 2);
}

#[tokio::test]
async fn a_share_that_holds_renewals_back_is_logged_with_its_agents() {
    let settings = Settings::default();
    let wecom = crate::confidant::simulator(settings.clone()).await;
    let dir = TempDir::new().expect("a directory");
    let toml = format!("{KEYED}\n[tokens]\nrenewals_per_hour = 1\n");
    let proxy = Process::serve(&write_config(&dir, wecom.api_addr(), &settings, &toml)).await;
    let mut caller = Caller::http1(proxy.address().await).await;
    for errcode in [0, 0, 40014] {
        let request = Request::get(format!("/hr{USER_GET}")).header("x-api-key", key("crm"));
        assert_eq!(caller.call(request, "").await.errcode(), errcode);
        wecom.revoke("hr").expect("an agent");
    }
    let line = proxy.err.line("token renewals held back").await;
    assert!(
        line.contains(" WARN ") && line.contains("hr (next try in 35") && line.contains("next_try_in_s=35"),
        "{line}"
    );
}

#[tokio::test]
async fn the_page_shows_a_held_back_renewal_as_trouble() {
    let stage = spent().await;
    assert_eq!(stage.get(USER_GET).await.errcode(), 40014);
    let mut browser = Browser::start().await;
    browser.open(stage.admin()).await;
    browser.until("document.querySelector('#agents').innerText.includes('renewal held back')").await;
    assert!(browser.text("#agents").await.contains("next try in"));
    assert!(browser.text("#health").await.contains("held back (1/2)"));
    browser.eval("document.querySelector('#agent-failing').click()").await;
    browser.until("document.querySelectorAll('#agents tbody tr').length === 1").await;
}
