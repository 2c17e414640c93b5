//! Agents in trouble: at `/readyz`, `/api/agents`, `/metrics` and in the overview.

use http::Request;
use serde_json::{Value, json};
use wecom_proxy::simulator::Fault;

use crate::harness::{
    CONFIG_WITH_CLIENTS, OPEN_CONFIG, TestProxy, USER_GET, admin_get, get_as_client, wait_for,
};

async fn get_as(proxy: &TestProxy, agent: &str) {
    proxy.request(Request::get(format!("/{agent}{USER_GET}")), "").await;
}

/// The trouble of an agent at `/readyz`, once it has these reasons.
async fn wait_for_reasons(proxy: &TestProxy, agent: &str, reasons: Value) -> Value {
    let mut trouble = Value::Null;
    wait_for("the trouble", async || {
        trouble = admin_get(proxy, "/readyz").await.json()["trouble"][agent].clone();
        trouble["reasons"] == reasons
    })
    .await;
    trouble
}

async fn listed_names(proxy: &TestProxy, query: &str) -> Vec<String> {
    let response = admin_get(proxy, &format!("/api/agents?{query}")).await.json();
    let agents = response["agents"].as_array().unwrap_or_else(|| panic!("{response}"));
    agents.iter().map(|agent| agent["name"].as_str().expect("a name").to_owned()).collect()
}

#[tokio::test]
async fn untrusted_address_is_trouble_everywhere() {
    let proxy = TestProxy::start_with_config(OPEN_CONFIG).await;
    get_as(&proxy, "hr").await;
    proxy.wecom.inject(Fault::errcode(60020).on_path("/cgi-bin/user/get")).expect("a fault");
    get_as(&proxy, "ops").await;
    get_as(&proxy, "ops").await;
    let trouble = wait_for_reasons(&proxy, "ops", json!(["60020"])).await;
    assert_eq!(
        (&trouble["attempts"], &trouble["requests"], &trouble["failed"]),
        (&json!(2), &json!(2), &json!(2))
    );
    assert_eq!(trouble["address"], "127.0.0.1", "the address to add");
    assert!(trouble["failing_since"].is_u64(), "{trouble}");
    assert!(trouble["en"]["place"].as_str().is_some_and(|place| place.contains("Trusted IP")), "{trouble}");
    assert!(trouble["zh"]["place"].as_str().is_some_and(|place| place.contains("企业可信IP")), "{trouble}");

    assert_eq!(listed_names(&proxy, "").await, ["hr", "ops"]);
    assert_eq!(listed_names(&proxy, "sort=trouble").await, ["ops", "hr"]);
    assert_eq!(listed_names(&proxy, "trouble").await, ["ops"]);
    let first = admin_get(&proxy, "/api/agents?sort=trouble&limit=1").await.json();
    assert_eq!(first["agents"][0]["trouble"], trouble);
    assert_eq!(first["total"], 2);
    let next = first["next"].as_str().expect("a next page");
    assert_eq!(listed_names(&proxy, &format!("sort=trouble&limit=1&after={next}")).await, ["hr"]);
    let metrics = admin_get(&proxy, "/metrics").await;
    let series: Vec<_> =
        metrics.text().lines().filter(|line| line.starts_with("wecom_proxy_agent_trouble{")).collect();
    assert_eq!(series, [r#"wecom_proxy_agent_trouble{agent="ops",reason="60020"} 1"#]);
    let exchanges = admin_get(&proxy, "/api/requests?errcode=60020").await.json();
    assert_eq!(exchanges["requests"][0]["untrusted_address"], "127.0.0.1");
}

#[tokio::test]
async fn gettoken_refused_for_the_address_is_trouble() {
    let proxy = TestProxy::start_open().await;
    proxy.wecom.inject(Fault::errcode(60020).on_path("/cgi-bin/gettoken")).expect("a fault");
    get_as(&proxy, "hr").await;
    let trouble = wait_for_reasons(&proxy, "hr", json!(["60020"])).await;
    assert_eq!(trouble["address"], "127.0.0.1");
}

#[tokio::test]
async fn half_of_five_requests_and_time_outs_are_trouble() {
    let config = OPEN_CONFIG.replace("[admin]", "response_timeout = \"1s\"\n[admin]");
    let proxy = TestProxy::start_with_config(&config).await;
    get_as(&proxy, "hr").await;
    get_as(&proxy, "hr").await;
    proxy.wecom.inject(Fault::status(502).on_path("/cgi-bin/user/get").times(3)).expect("a fault");
    get_as(&proxy, "hr").await;
    get_as(&proxy, "hr").await;
    get_as(&proxy, "ops").await;
    wait_for("the requests", async || {
        admin_get(&proxy, "/api/agents").await.json()["agents"][0]["hour"]["outage"] == 2
    })
    .await;
    assert_eq!(
        admin_get(&proxy, "/readyz").await.json()["trouble"],
        Value::Null,
        "four requests are too few"
    );
    proxy.wecom.inject(Fault::status(502).on_path("/cgi-bin/user/get").times(1)).expect("a fault");
    get_as(&proxy, "hr").await;
    wait_for_reasons(&proxy, "hr", json!(["half-failed"])).await;
    proxy.wecom.inject(Fault::hold().on_path("/cgi-bin/user/get")).expect("a fault");
    get_as(&proxy, "ops").await;
    wait_for_reasons(&proxy, "ops", json!(["upstream-timeout"])).await;
}

#[tokio::test]
async fn mistakes_of_callers_and_refusals_here_are_no_trouble() {
    let proxy = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    for _ in 0..6 {
        get_as_client(&proxy, "billing", "/hr/cgi-bin/user/get?userid=absent-member").await;
        proxy.get(USER_GET).await.assert_proxy_error("unauthenticated", 401, 40001);
    }
    let mut minutes = Vec::new();
    let mut sum = |name: &str, overview: &Value| {
        minutes.clone_from(overview["minutes"].as_array().expect("a list"));
        minutes.iter().map(|minute| minute[name].as_u64().expect("a count")).sum::<u64>()
    };
    let mut counts = [0; 5];
    wait_for("the requests", async || {
        let overview = admin_get(&proxy, "/api/overview").await.json();
        counts = ["requests", "outage", "refused", "wecom", "caller"].map(|name| sum(name, &overview));
        counts[0] == 12
    })
    .await;
    assert_eq!(counts, [12, 0, 6, 0, 6]);
    assert_eq!(admin_get(&proxy, "/readyz").await.json()["trouble"], Value::Null);
    let overview = admin_get(&proxy, "/api/overview?agents=0&clients=1").await.json();
    assert!(overview.get("agents").is_none() && overview["client_count"] == 2, "{overview}");
    assert_eq!(overview["clients"].as_array().map(Vec::len), Some(1));
}
