//! Tickets: fetched once however many ask, and kept.

use std::{fs, sync::Arc, time::Duration};

use http::Request;
use tokio::task::JoinHandle;
use wecom_proxy::simulator::{Fault, When};

use crate::{
    gettoken::{HR, pass},
    stage::{Caller, KEYED, OPEN, Reply, Stage, all_at_once, wait_for},
    wire::Puppet,
};

const JSAPI: &str = "/cgi-bin/get_jsapi_ticket";
const AGENT_CONFIG: &str = "/cgi-bin/ticket/get?type=agent_config";
const BOTH: [&str; 2] = [JSAPI, AGENT_CONFIG];

fn path(target: &str) -> &str {
    target.split('?').next().unwrap_or(target)
}

/// How often WeCom was asked for this ticket.
fn fetched(stage: &Stage, target: &str) -> usize {
    stage.wecom.look(|seen| seen.received(path(target)))
}

#[track_caller]
fn ticket(reply: &Reply) -> String {
    reply.is_ok();
    let ticket = reply.json()["ticket"].as_str().unwrap_or_default().to_owned();
    assert!(!ticket.is_empty(), "{}", reply.text());
    ticket
}

#[tokio::test]
async fn each_ticket_is_kept_for_its_agent() {
    let stage = Stage::open().await;
    let mut tickets = Vec::new();
    for target in BOTH {
        for agent in ["hr", "ops"] {
            let ask = || stage.call(Request::get(format!("/{agent}{target}")), "");
            let first = ticket(&ask().await);
            assert_eq!(ticket(&ask().await), first);
            tickets.push(first);
        }
        assert_eq!(fetched(&stage, target), 2);
    }
    tickets.sort();
    tickets.dedup();
    assert_eq!(tickets.len(), 4);
}

#[tokio::test]
async fn two_hundred_callers_cause_one_fetch_of_each() {
    let stage = Arc::new(Stage::open().await);
    for target in BOTH {
        stage.wecom.inject(Fault::delay(Duration::from_millis(200)).on(path(target))).expect("a fault");
        let mut tickets: Vec<_> = all_at_once(&stage, 200, target).await.iter().map(ticket).collect();
        tickets.dedup();
        assert_eq!((tickets.len(), fetched(&stage, target)), (1, 1));
    }
    assert_eq!(stage.wecom.gettoken_count("hr").expect("an agent"), 1);
}

#[tokio::test]
async fn a_kept_ticket_says_what_is_left_of_its_life_as_wecom_would() {
    let stage = Stage::open().await;
    let first = ticket(&stage.get(JSAPI).await);
    let mut left = 7200;
    wait_for("a second to pass", async || {
        let reply = stage.get(JSAPI).await;
        let seconds = reply.json()["expires_in"].as_u64().expect("a number");
        let text = format!(r#"{{"errcode":0,"errmsg":"ok","ticket":"{first}","expires_in":{seconds}}}"#);
        assert_eq!(reply.text(), text);
        assert_eq!(reply.header("content-type"), "application/json; charset=UTF-8");
        assert!(seconds <= left && seconds >= 7180, "{seconds} after {left}");
        left = seconds;
        seconds < 7199
    })
    .await;
    assert_eq!(fetched(&stage, JSAPI), 1);
}

/// So many calls for a ticket on one connection, all of which the proxy has begun on.
async fn waiting(stage: &Stage, count: usize) -> Vec<JoinHandle<Reply>> {
    let Caller::Http2(connection) = Caller::http2(stage.address()).await else {
        unreachable!("it is HTTP/2")
    };
    let call = |path: &'static str| {
        let mut caller = Caller::Http2(connection.clone());
        tokio::spawn(async move { caller.get(path).await })
    };
    let calls = (0..count).map(|_| call(JSAPI)).collect();
    // Its answer says that those before it on the connection were begun.
    call("/cgi-bin/user/get?userid=zhangsan").await.expect("no panic").is_ok();
    calls
}

#[tokio::test]
async fn a_failing_answer_is_shared_by_those_who_wait_and_not_kept() {
    let stage = Stage::open().await;
    stage.wecom.inject(Fault::errcode(45009).on(JSAPI)).expect("a fault");
    stage.wecom.inject(Fault::hold().on(JSAPI)).expect("a fault");
    let callers = waiting(&stage, 50).await;
    stage.wecom.wait_until(|seen| seen.received(JSAPI) == 1).await.expect("a fetch");
    stage.wecom.release();
    for caller in callers {
        let reply = caller.await.expect("no panic");
        assert_eq!((reply.status.as_u16(), reply.errcode()), (200, 45009), "{}", reply.text());
    }
    assert_eq!(fetched(&stage, JSAPI), 1);
    stage.wecom.reset();
    ticket(&stage.get(JSAPI).await);
}

#[tokio::test]
async fn an_upstream_that_breaks_off_is_told_to_those_who_wait_and_not_kept() {
    let stage = Stage::open().await;
    stage.wecom.inject(Fault::hold().on(JSAPI)).expect("a fault");
    stage.wecom.inject(Fault::drop(When::Body).on(JSAPI)).expect("a fault");
    let callers = waiting(&stage, 20).await;
    stage.wecom.wait_until(|seen| seen.received(JSAPI) == 1).await.expect("a fetch");
    stage.wecom.release();
    for caller in callers {
        caller.await.expect("no panic").is_own("upstream-broke", 502, -1);
    }
    assert_eq!(fetched(&stage, JSAPI), 1);
    ticket(&stage.get(JSAPI).await);
}

#[tokio::test]
async fn a_ticket_that_drips_holds_nobody_up_for_ever() {
    let mut puppet = Puppet::new().await;
    let bounds = "connect_timeout = \"200ms\"\nresponse_timeout = \"200ms\"\nbody_timeout = \"200ms\"";
    let toml = OPEN.replace("[upstream]", &format!("[upstream]\n{bounds}"));
    let stage = Stage::facing(puppet.address, &toml).await;
    let drip = async {
        let mut call = puppet.call().await;
        let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 9000\r\n\r\n{";
        call.line.say(head).await.expect("it is taken");
        // Never silent for long, and never done.
        let mut drips = tokio::time::interval(Duration::from_millis(50));
        while call.line.say(" ").await.is_ok() {
            drips.tick().await;
        }
    };
    let (one, other, ()) = tokio::join!(stage.get(JSAPI), stage.get(JSAPI), drip);
    let mut statuses = [one.status.as_u16(), other.status.as_u16()];
    statuses.sort_unstable();
    assert_eq!(statuses, [502, 504], "one has waited for the other");
}

#[tokio::test]
async fn a_caller_who_leaves_takes_nobodys_ticket_away() {
    let stage = Arc::new(Stage::open().await);
    stage.wecom.inject(Fault::hold().on(JSAPI).times(1)).expect("a fault");
    let first = tokio::spawn({
        let stage = stage.clone();
        async move { stage.get(JSAPI).await }
    });
    stage.wecom.wait_until(|seen| seen.received(JSAPI) == 1).await.expect("a fetch");
    let others = waiting(&stage, 20).await;
    first.abort();
    let mut tickets: Vec<_> = Vec::new();
    for other in others {
        tickets.push(ticket(&other.await.expect("no panic")));
    }
    tickets.dedup();
    assert_eq!(tickets.len(), 1);
    assert_eq!(fetched(&stage, JSAPI), 2);
}

#[tokio::test]
async fn without_a_token_each_who_waits_learns_why() {
    let stage = Arc::new(Stage::open().await);
    stage.wecom.reset_secret("hr", "another").expect("an agent");
    for reply in all_at_once(&stage, 30, JSAPI).await {
        reply.is_own("token-unavailable", 502, 40001);
    }
    assert_eq!(fetched(&stage, JSAPI), 0);
    assert_eq!(stage.wecom.look(|seen| seen.gettokens()), 1);
}

#[tokio::test]
async fn a_refused_token_is_renewed_for_a_ticket_too() {
    let stage = Stage::open().await;
    stage.get("/cgi-bin/user/get?userid=zhangsan").await.is_ok();
    stage.wecom.revoke("hr").expect("an agent");
    let reply = stage.get(JSAPI).await;
    ticket(&reply);
    assert_eq!(reply.header("x-wecom-retried"), "40014");
}

#[tokio::test]
async fn tickets_go_with_the_secret_and_stay_without() {
    let stage = Stage::open().await;
    let before = [ticket(&stage.get(JSAPI).await), ticket(&stage.get(AGENT_CONFIG).await)];
    stage.proxy.reload().expect("a reload");
    assert_eq!([ticket(&stage.get(JSAPI).await), ticket(&stage.get(AGENT_CONFIG).await)], before);
    assert_eq!(fetched(&stage, JSAPI), 1);
    let secret = "not-a-secret-hr-1111111111111111111111111111";
    stage.wecom.reset_secret("hr", secret).expect("an agent");
    let path = stage.rewrite(OPEN);
    let text = fs::read_to_string(&path).expect("the file");
    fs::write(&path, text.replace(HR, secret)).expect("a file");
    stage.proxy.reload().expect("a reload");
    let after = [ticket(&stage.get(JSAPI).await), ticket(&stage.get(AGENT_CONFIG).await)];
    assert!(after[0] != before[0] && after[1] != before[1]);
    assert_eq!(fetched(&stage, JSAPI), 2);
}

#[tokio::test]
async fn a_ticket_call_with_more_in_it_goes_through_each_time() {
    let stage = Stage::open().await;
    for target in [
        "/cgi-bin/get_jsapi_ticket?debug=1",
        "/cgi-bin/ticket/get?type=wx_card",
        "/cgi-bin/ticket/get?type=agent_config&debug=1",
        "/cgi-bin/ticket/get",
    ] {
        let before = fetched(&stage, target);
        for _ in 0..2 {
            assert_eq!(stage.get(target).await.status, 200);
        }
        assert_eq!(fetched(&stage, target), before + 2, "{target}");
    }
}

#[tokio::test]
async fn a_ticket_is_had_by_a_pass_and_what_the_client_sent_beside_it_stays_here() {
    let stage = Stage::with(KEYED).await;
    let pass = pass(&stage, "hr", "billing").await;
    let request = Request::get(format!("{JSAPI}?access_token={pass}")).header("x-of-the-caller", "1");
    ticket(&stage.call(request, "").await);
    let record = stage.last_seen(JSAPI);
    assert_eq!(record.query, "access_token=token#1");
    assert!(record.header("x-of-the-caller").is_empty());
}

#[tokio::test]
async fn a_kept_ticket_is_for_those_who_may_ask_for_it() {
    let stage = Stage::with(KEYED).await;
    let ask = |client: &str, target: &str| {
        stage.call(Request::get(target.to_owned()).header("x-api-key", crate::stage::key(client)), "")
    };
    ticket(&ask("crm", &format!("/hr{JSAPI}")).await);
    ticket(&ask("billing", JSAPI).await);
    ask("narrow", JSAPI).await.is_own("forbidden", 403, 48002);
    stage.get(JSAPI).await.is_own("unauthenticated", 401, 40001);
    ask("billing", &format!("/ops{JSAPI}")).await.is_own("unknown-agent", 404, 40035);
    assert_eq!(fetched(&stage, JSAPI), 1);
}
