//! A ticket that is 40 minutes late: what has tokens goes on, what needs the ticket says so.

use std::time::{Duration, SystemTime};

use serde_json::json;
use wecom_proxy::secret::Masked;

use super::{SUITES, agent, authorize, errcode_of, get, json_of, receive_ticket, start_without_ticket};
use crate::harness::{TestProxy, USER_GET, admin_get};

const LATE: Duration = Duration::from_secs(40 * 60);
const PRE_AUTH: &str = "/crm/cgi-bin/service/get_pre_auth_code";

/// A proxy whose suite `crm` got its last ticket 40 minutes ago.
async fn start_with_old_ticket() -> TestProxy {
    let proxy = start_without_ticket(SUITES).await;
    receive_ticket(&proxy, "custom").await;
    let ticket = proxy.wecom.issue_ticket("crm").expect("a suite");
    let suite = agent(&proxy, "crm");
    let held = &suite.suite().expect("a suite").state.ticket;
    assert!(held.set(Masked::new(ticket), SystemTime::now() - LATE));
    proxy
}

fn calls_for_suite_token(proxy: &TestProxy) -> usize {
    proxy.wecom.observe(|seen| seen.received_count("/cgi-bin/service/get_suite_token"))
}

#[tokio::test]
async fn late_ticket_stops_only_what_needs_it() {
    let proxy = start_with_old_ticket().await;
    for corpid in ["wpAlpha_1", "wpBeta_2"] {
        assert_eq!(errcode_of(&authorize(&proxy, "isv", "crm", corpid).await), 0);
    }
    let alpha = format!("/crm:wpAlpha_1{USER_GET}");
    assert_eq!(errcode_of(&get(&proxy, "isv", &alpha).await), 0);
    assert_eq!(errcode_of(&get(&proxy, "isv", "/acme/cgi-bin/license/list_order").await), 0);
    proxy.wecom.expire_tickets("crm").expect("a suite");

    let ready = admin_get(&proxy, "/readyz").await;
    assert_eq!((ready.status.as_u16(), &json_of(&ready)["degraded"]), (200, &json!(["crm"])));
    assert_eq!(json_of(&ready)["status"], "ok, but a suite has no new suite_ticket");
    let metrics = admin_get(&proxy, "/metrics").await;
    let age = metrics.text().lines().find_map(|line| {
        line.strip_prefix("wecom_proxy_suite_ticket_age_seconds{suite=\"crm\"} ")?.parse::<u64>().ok()
    });
    assert!(age.is_some_and(|age| (2400..2460).contains(&age)), "{age:?}");
    let suites = json_of(&admin_get(&proxy, "/api/suites").await);
    assert_eq!(suites["suites"][0]["ticket_late"], true, "{suites}");

    // The tokens that there are go on: of a corp, of the suite, and with it a new one of another corp.
    for path in [&alpha, PRE_AUTH, &format!("/crm:wpBeta_2{USER_GET}")] {
        assert_eq!(errcode_of(&get(&proxy, "isv", path).await), 0, "{path}");
    }
    // The suite's token ends: what needs it names the ticket, and WeCom is asked once.
    proxy.wecom.expire_tokens("crm").expect("a suite");
    proxy.wecom.expire_tokens("crm:wpBeta_2").expect("a corp");
    let before = calls_for_suite_token(&proxy);
    for path in [PRE_AUTH, &format!("/crm:wpBeta_2{USER_GET}"), PRE_AUTH] {
        let response = get(&proxy, "isv", path).await;
        response.assert_proxy_error("token-unavailable", 502, 40085);
        assert!(response.text().contains("suite_ticket"), "{}", response.text());
    }
    assert_eq!(calls_for_suite_token(&proxy), before + 1, "at most one try a minute");
    // A corp with a token, and the provider, need neither.
    assert_eq!(errcode_of(&get(&proxy, "isv", &alpha).await), 0);
    assert_eq!(errcode_of(&get(&proxy, "isv", "/acme/cgi-bin/license/list_order").await), 0);

    receive_ticket(&proxy, "crm").await;
    for path in [PRE_AUTH, &format!("/crm:wpBeta_2{USER_GET}"), &alpha] {
        assert_eq!(errcode_of(&get(&proxy, "isv", path).await), 0, "{path}");
    }
    assert_eq!(json_of(&admin_get(&proxy, "/readyz").await)["degraded"], json!([]));
}
