//! Many corps at once: one token of the suite for all of them, one for each corp, and none waits behind another.
//! `python3 bench/suites.py` does the same with 10,000 corps and the real program.

use std::sync::Arc;

use http::Request;
use tokio::task::JoinSet;
use wecom_proxy::{
    config::{JsonTable, Origin, corp_from_json},
    directory::StoredEntry,
    simulator::Fault,
};

use super::{agent, receive_ticket, start_without_ticket};
use crate::harness::{TestClient, TestProxy, USER_GET, client_key, wait_for_work};

/// More than the refreshes that all agents together have in an hour.
const CORPS: usize = 400;
const CALLERS: usize = 5;
/// Streams of one connection.
const STREAMS: usize = 100;
const GET_CORP_TOKEN: &str = "/cgi-bin/service/get_corp_token";

fn corpid(nth: usize) -> String {
    format!("wpCorp_{nth}")
}

/// A proxy whose state has the corps, and no token yet.
async fn start_with_corps() -> TestProxy {
    let proxy = start_without_ticket(super::SUITES).await;
    receive_ticket(&proxy, "crm").await;
    let suite = agent(&proxy, "crm").suite().expect("a suite").clone();
    for nth in 0..CORPS {
        let code = proxy.wecom.add_authorized_corp("crm", &corpid(nth)).expect("a suite");
        let table = serde_json::json!({ "permanent_code": code }).to_string();
        let entry = StoredEntry::create(JsonTable::parse(table.as_bytes()).expect("a table"), Vec::new());
        let origin = Origin::State { version: 0, generation: entry.generation };
        let (corp, _) = corp_from_json(("crm", &corpid(nth)), &entry.table, origin).expect("a corp");
        proxy.app.suites().put_corp(&suite, (&corp, &entry), None).await.expect("written");
    }
    proxy
}

/// All callers of all corps at once, on connections with many streams each; each yields the number of its corp.
async fn call_all(proxy: &TestProxy) -> JoinSet<usize> {
    let mut calls = JoinSet::new();
    let key = client_key("isv");
    for first in (0..CORPS * CALLERS).step_by(STREAMS) {
        let TestClient::Http2(sender) = TestClient::connect_http2(proxy.address()).await else {
            panic!("HTTP/2")
        };
        for nth in first..first + STREAMS {
            let (mut client, corp) = (TestClient::Http2(sender.clone()), nth / CALLERS);
            let request = Request::get(format!("/crm:{}{USER_GET}", corpid(corp))).header("x-api-key", &key);
            calls.spawn(async move {
                client.request(request, "").await.assert_ok();
                corp
            });
        }
    }
    calls
}

fn counts(proxy: &TestProxy) -> (u64, Vec<u64>) {
    let count = |name: &str| proxy.wecom.gettoken_count(name).expect("known");
    (count("crm"), (0..CORPS).map(|nth| count(&format!("crm:{}", corpid(nth)))).collect())
}

#[tokio::test]
async fn cold_start_fetches_each_token_once_and_no_corp_waits() {
    let proxy = Arc::new(start_with_corps().await);
    // WeCom keeps one corp waiting for its token; all others are served meanwhile.
    proxy.wecom.inject(Fault::hold().on_path(GET_CORP_TOKEN).times(1)).expect("a fault");
    let mut calls = call_all(&proxy).await;
    for _ in 0..(CORPS - 1) * CALLERS {
        calls.join_next().await.expect("a call").expect("a response");
    }
    assert_eq!(calls.len(), CALLERS, "the callers of one corp wait");
    proxy.wecom.release_held();
    let mut last = Vec::new();
    while let Some(call) = calls.join_next().await {
        last.push(call.expect("a response"));
    }
    assert!(last.iter().all(|corp| *corp == last[0]), "{last:?}");
    assert_eq!(counts(&proxy), (1, vec![1; CORPS]), "one call for each token");

    // The suite's token and those of all corps are voided under load.
    proxy.wecom.inject(Fault::hold().on_path("/cgi-bin/user/get")).expect("a fault");
    let mut calls = call_all(&proxy).await;
    let before = proxy.wecom.observe(|seen| seen.received_count("/cgi-bin/user/get"));
    wait_for_work("the load", async || {
        proxy.wecom.observe(|seen| seen.received_count("/cgi-bin/user/get")) >= before + 100
    })
    .await;
    proxy.wecom.revoke_tokens("crm").expect("a suite");
    for nth in 0..CORPS {
        proxy.wecom.expire_tokens(&format!("crm:{}", corpid(nth))).expect("a corp");
    }
    proxy.wecom.release_held();
    while let Some(call) = calls.join_next().await {
        call.expect("a response");
    }
    for call in call_all(&proxy).await.join_all().await {
        assert!(call < CORPS);
    }
    let (suite, corps) = counts(&proxy);
    assert_eq!(suite, 2, "one renewal of the suite's token");
    assert!(corps.iter().all(|count| *count == 2), "one renewal for each corp: {corps:?}");
}
