//! Two replicas that share their state in Redis: tickets, corps, auth_codes and stand-ins are everywhere.

use serde_json::json;
use wecom_proxy::simulator::Fault;

use super::{
    SUITES, authorize, errcode_of, get, json_of, post, push_auth_code, push_ticket, settings,
    start_without_ticket,
};
use crate::{
    harness::{TestProxy, USER_GET, wait_for, wait_for_store, write_config},
    redis_server::RedisServer,
};

const PRE_AUTH: &str = "/crm/cgi-bin/service/get_pre_auth_code";

/// Two replicas in front of one simulator, which the first one has.
async fn start_two(redis: &RedisServer) -> (TestProxy, TestProxy) {
    let file = "[state]\npath = \"{dir}/state.db\"\nkey = \"not-a-secret-state-key-0123456789abcdef\"\n";
    let shared = format!("[tokens]\n{}\n[state]\nshared = true\n", redis.store_config_line());
    assert!(SUITES.contains(file));
    let config = SUITES.replace(file, &shared);
    let first = start_without_ticket(&config).await;
    let second = TestProxy::start_with_upstream(first.wecom.api_addr(), &with_agents(&config)).await;
    wait_for_store(&first).await;
    wait_for_store(&second).await;
    (first, second)
}

/// The configuration with the first simulator's agents, which the second one's do not differ from.
fn with_agents(config: &str) -> String {
    let dir = tempfile::TempDir::new().expect("a directory");
    let api = "127.0.0.1:1".parse().expect("an address");
    let path = write_config(&dir, api, &settings(), "{agents}");
    config.replace("{agents}", &std::fs::read_to_string(path).expect("a file"))
}

async fn wait_until_called(proxy: &TestProxy, path: &str) {
    wait_for(path, async || errcode_of(&get(proxy, "isv", path).await) == 0).await;
}

#[tokio::test]
async fn ticket_and_corps_are_shared_among_replicas() {
    let redis = RedisServer::start().await;
    let (first, second) = start_two(&redis).await;
    push_ticket(&first).await;
    wait_until_called(&second, PRE_AUTH).await;
    wait_until_called(&first, PRE_AUTH).await;
    assert_eq!(first.wecom.gettoken_count("crm").expect("a suite"), 1, "one suite token for both");
    let code = first.wecom.authorize_corp("crm", "wpAlpha_1").expect("a suite");
    push_auth_code(&first, "create_auth", &code).await;
    let alpha = format!("/crm:wpAlpha_1{USER_GET}");
    wait_until_called(&second, &alpha).await;
    wait_until_called(&first, &alpha).await;
    assert_eq!(
        first.wecom.gettoken_count("crm:wpAlpha_1").expect("a corp"),
        1,
        "one token of the corp for both"
    );
    // What one replica forgets, the other one forgets.
    let cancel = "<InfoType><![CDATA[cancel_auth]]></InfoType><AuthCorpId><![CDATA[wpAlpha_1]]></AuthCorpId>";
    super::push_command(&second, cancel).await;
    wait_for("the end", async || get(&first, "isv", &alpha).await.status == 404).await;
    assert_eq!(get(&second, "isv", &alpha).await.status, 404);
}

#[tokio::test]
async fn auth_code_is_redeemed_once_in_all_replicas() {
    let redis = RedisServer::start().await;
    let (first, second) = start_two(&redis).await;
    push_ticket(&first).await;
    wait_until_called(&second, PRE_AUTH).await;
    for nth in 0..6 {
        let corpid = format!("wpCorp_{nth}");
        let code = first.wecom.authorize_corp("crm", &corpid).expect("a suite");
        // WeCom's event comes to one replica, and the program's own call to the other one, at the same time.
        let path = ["service/get_permanent_code", "service/v2/get_permanent_code"][nth % 2];
        let path = format!("/crm/cgi-bin/{path}");
        let (_, response) = tokio::join!(
            push_auth_code(&first, "create_auth", &code),
            post(&second, "isv", &path, json!({ "auth_code": code }))
        );
        let json = json_of(&response);
        assert_eq!(
            (&json["errcode"], &json["auth_corp_info"]["corpid"]),
            (&0.into(), &corpid.as_str().into())
        );
        let pass = json["access_token"].as_str();
        assert_eq!(pass.is_some_and(|pass| pass.starts_with("wp1-")), nth % 2 == 0, "{json}");
        assert_eq!(errcode_of(&get(&second, "isv", &format!("/crm:{corpid}{USER_GET}")).await), 0);
    }
    let executed = |path: &str| first.wecom.executed_count(&format!("/cgi-bin/service/{path}"));
    wait_for("the events", async || executed("get_permanent_code") + executed("v2/get_permanent_code") == 6)
        .await;
    let refused =
        first.wecom.observe(|seen| seen.requests().filter(|one| one.errcode == Some(40078)).count());
    assert_eq!(refused, 0, "no code was sent twice");
}

#[tokio::test]
async fn passes_and_stand_ins_serve_in_each_replica() {
    let redis = RedisServer::start().await;
    let (first, second) = start_two(&redis).await;
    push_ticket(&first).await;
    wait_until_called(&second, PRE_AUTH).await;
    let json = json_of(&authorize_at(&first, &first, "wpAlpha_1").await);
    let stand_in = json["permanent_code"].as_str().expect("a stand-in").to_owned();
    let body = json!({ "auth_corpid": "wpAlpha_1", "permanent_code": stand_in });
    let path = "/crm/cgi-bin/service/v2/get_auth_info";
    wait_for("the stand-in", async || errcode_of(&post(&second, "isv", path, body.clone()).await) == 0).await;
    let pass = super::corp_pass(&second, "crm", "wpAlpha_1").await;
    let target = format!("{USER_GET}&access_token={pass}");
    assert_eq!(errcode_of(&super::get_keyless(&first, &target).await), 0);
    // A reset that the other replica redeems changes nothing that passes are made under.
    authorize_at(&second, &first, "wpAlpha_1").await;
    wait_for("the new permanent code", async || errcode_of(&super::get_keyless(&first, &target).await) == 0)
        .await;
}

/// A corp authorises the suite, and a client redeems the code at `proxy`.
async fn authorize_at(
    proxy: &TestProxy,
    with_simulator: &TestProxy,
    corpid: &str,
) -> crate::harness::TestResponse {
    if std::ptr::eq(proxy, with_simulator) {
        return authorize(proxy, "isv", "crm", corpid).await;
    }
    let code = with_simulator.wecom.authorize_corp("crm", corpid).expect("a suite");
    post(proxy, "isv", "/crm/cgi-bin/service/v2/get_permanent_code", json!({ "auth_code": code })).await
}

/// What the store has of tokens and tickets, beside the token of the suite.
async fn records_of_corps(redis: &RedisServer) -> usize {
    let records = redis.command(&["--scan", "--pattern", "*:record"]).await;
    records.lines().filter(|line| !line.is_empty()).count() - 1
}

#[tokio::test]
async fn tokens_of_a_cancelled_corp_leave_the_store() {
    let redis = RedisServer::start().await;
    let (first, second) = start_two(&redis).await;
    push_ticket(&first).await;
    wait_until_called(&second, PRE_AUTH).await;
    let cancel = async |corpid: &str| {
        let info = "<InfoType><![CDATA[cancel_auth]]></InfoType>";
        super::push_command(&first, &format!("{info}<AuthCorpId><![CDATA[{corpid}]]></AuthCorpId>")).await;
    };
    authorize_at(&first, &first, "wpAlpha_1").await;
    let alpha = "/crm:wpAlpha_1/cgi-bin";
    wait_until_called(&second, &format!("{alpha}/get_jsapi_ticket")).await;
    wait_until_called(&first, &format!("{alpha}/ticket/get?type=agent_config")).await;
    assert_eq!(records_of_corps(&redis).await, 3, "a token and two tickets");
    cancel("wpAlpha_1").await;
    wait_for("their end", async || records_of_corps(&redis).await == 0).await;

    // A replica that fetches meanwhile leaves nothing either.
    authorize_at(&first, &first, "wpBeta_2").await;
    let path = format!("/crm:wpBeta_2{USER_GET}");
    let known = async || second.app.directory().find_agent("crm:wpBeta_2").is_some();
    wait_for("the corp", known).await;
    let get_corp_token = "/cgi-bin/service/get_corp_token";
    let fetches = || first.wecom.observe(|seen| seen.received_count(get_corp_token));
    let before = fetches();
    first.wecom.inject(Fault::hold().on_path(get_corp_token)).expect("a fault");
    let fetch = async { get(&second, "isv", &path).await };
    let cancelled = async {
        wait_for("the fetch", async || fetches() > before).await;
        cancel("wpBeta_2").await;
        wait_for("the end", async || second.app.directory().find_agent("crm:wpBeta_2").is_none()).await;
        first.wecom.release_held();
    };
    tokio::join!(fetch, cancelled);
    wait_for("its end", async || records_of_corps(&redis).await == 0).await;
}
