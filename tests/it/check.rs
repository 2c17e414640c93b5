//! `check --online`: what WeCom says of each agent, what is wrong in plain words, and where it is put right.

use std::{net::SocketAddr, path::PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;
use wecom_proxy::simulator::{Fault, Settings, SimulatedAgent, Simulator};

use crate::{
    certificates::Authority,
    harness::{OPEN_CONFIG, TestProxy, USER_GET, wait_for, write_config},
    process::{ExitOutput, run_wecom_proxy},
    redis_server::{RedisServer, STORE_KEY},
};

const AGENT_GET: &str = "/cgi-bin/agent/get";
const GETTOKEN: &str = "/cgi-bin/gettoken";

/// A simulated WeCom, and a configuration for it.
struct CheckSetup {
    wecom: Simulator,
    settings: Settings,
    dir: TempDir,
}

impl CheckSetup {
    async fn start() -> Self {
        Self::start_with(Settings::default()).await
    }

    async fn start_with(settings: Settings) -> Self {
        let wecom = Simulator::start_local(settings.clone()).await.expect("a simulator");
        Self { wecom, settings, dir: TempDir::new().expect("a directory") }
    }

    /// With so many agents, whose secrets are wrong.
    async fn with_wrong_secrets(agents: usize) -> Self {
        let all = (0..agents)
            .map(|nth| SimulatedAgent::new(&format!("agent{nth}"), &real_secret(nth), nth as u64 + 1));
        let mut surgery = Self::start_with(Settings { agents: all.collect(), ..Settings::default() }).await;
        for agent in &mut surgery.settings.agents {
            agent.secret = "not-the-real-secret".to_owned();
        }
        surgery
    }

    fn write(&self, toml: &str) -> PathBuf {
        write_config(&self.dir, self.wecom.api_addr(), &self.settings, toml)
    }

    /// `check` with these options; no secret and no token may be printed.
    async fn check(&self, toml: &str, options: &[&str]) -> ExitOutput {
        let path = self.write(toml);
        let mut arguments = vec!["check", "--config", path.to_str().expect("UTF-8")];
        arguments.extend(options);
        let ended = run_wecom_proxy(&arguments).await;
        for agent in &self.settings.agents {
            assert!(!format!("{ended:?}").contains(&agent.secret), "{ended:?}");
        }
        ended
    }

    async fn check_online(&self) -> ExitOutput {
        self.check(CONFIG, &["--online"]).await
    }

    /// The paths that were called, in order.
    fn called_paths(&self) -> Vec<String> {
        self.wecom.requests().into_iter().map(|record| record.path).collect()
    }
}

/// The secret that the simulator knows, of those with a wrong one in the configuration.
fn real_secret(nth: usize) -> String {
    format!("the-real-secret-of-agent{nth}")
}

const CONFIG: &str = "[upstream]\nurl = \"http://{api}\"\n{agents}";

#[track_caller]
fn assert_output(ended: &ExitOutput, status: i32, words: &[&str]) {
    assert_eq!(ended.status, status, "{}{}", ended.out, ended.err);
    for word in words {
        assert!(ended.out.contains(word), "no {word:?} in {}{}", ended.out, ended.err);
    }
}

/// The row of the second table that begins with this name.
#[track_caller]
fn row<'a>(ended: &'a ExitOutput, agent: &str) -> Vec<&'a str> {
    let (_, online) = ended.out.split_once("each agent was checked at").expect("a second table");
    let mut rows = online.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    rows.find(|row| row.first() == Some(&agent)).unwrap_or_else(|| panic!("no {agent} in {online}"))
}

#[tokio::test]
async fn healthy_agents_are_probed_once_and_pass() {
    let surgery = CheckSetup::start().await;
    let ended = surgery.check_online().await;
    assert_output(&ended, 0, &["proxy.toml is valid", "AGENT  GETTOKEN  CALL"]);
    for agent in ["hr", "ops"] {
        assert_eq!(row(&ended, agent)[..5], [agent, "ok", "agent/get", "ok", "ok"]);
    }
    assert_eq!(surgery.called_paths(), [GETTOKEN, AGENT_GET, GETTOKEN, AGENT_GET]);
    assert!(!ended.out.contains('\u{1b}') && !ended.out.contains("note:"), "{}", ended.out);
}

#[tokio::test]
async fn check_without_online_sends_nothing() {
    let surgery = CheckSetup::start().await;
    assert_output(&surgery.check(CONFIG, &[]).await, 0, &["is valid"]);
    assert_eq!(surgery.called_paths(), [""; 0]);
}

#[tokio::test]
async fn wrong_secret_is_reported_and_other_agents_are_checked() {
    let surgery = CheckSetup::start().await;
    surgery.wecom.reset_secret("hr", "another-secret").expect("an agent");
    let ended = surgery.check_online().await;
    let place = "App Management > Apps > the app > Secret";
    assert_output(
        &ended,
        1,
        &[
            "hr, gettoken: errcode 40001",
            "What to do: ",
            place,
            "应用管理 → 应用 → 选择应用 → Secret",
            "40001  ",
        ],
    );
    assert!(ended.err.contains("1 of 2 agents failed"), "{}", ended.err);
    assert_eq!(row(&ended, "ops")[1..5], ["ok", "agent/get", "ok", "ok"]);
    assert_eq!(surgery.called_paths(), [GETTOKEN, GETTOKEN, AGENT_GET]);
}

#[tokio::test]
async fn untrusted_ip_is_reported_as_wecom_sees_it() {
    let surgery = CheckSetup::start().await;
    surgery.wecom.inject(Fault::errcode(60020).on_path(AGENT_GET).for_agent("hr")).expect("a fault");
    let ended = surgery.check_online().await;
    let sees = "WeCom sees this machine as 127.0.0.1.";
    assert_output(&ended, 1, &["hr, agent/get: errcode 60020", sees, "Company's Trusted IP", "企业可信IP"]);
}

#[tokio::test]
async fn known_errcodes_are_explained() {
    let surgery = CheckSetup::start().await;
    for (errcode, words) in [
        (48002, "this app may not call this API"),
        (50003, "the app is disabled"),
        (40013, "My Company > Company Information > Company ID"),
    ] {
        let path = if errcode == 40013 { GETTOKEN } else { AGENT_GET };
        surgery
            .wecom
            .inject(Fault::errcode(errcode).on_path(path).for_agent("hr").times(1))
            .expect("a fault");
        assert_output(&surgery.check_online().await, 1, &[&format!("errcode {errcode}: "), words]);
    }
    surgery
        .wecom
        .inject(Fault::errcode(99_999).on_path(AGENT_GET).for_agent("hr").times(1))
        .expect("a fault");
    assert_output(&surgery.check_online().await, 1, &["errcode 99999: "]);
}

#[tokio::test]
async fn wrong_agentid_is_reported() {
    let mut surgery = CheckSetup::start().await;
    for (agentid, errcode) in [(1_000_003, "301002"), (77, "40056")] {
        surgery.settings.agents[0].agentid = agentid;
        let ended = surgery.check_online().await;
        assert_output(
            &ended,
            1,
            &[&format!("hr, agent/get: errcode {errcode}: "), "the app > AgentId", "AgentId"],
        );
        assert_eq!(row(&ended, "hr")[1..5], ["ok", "agent/get", errcode, "failed"]);
    }
}

#[tokio::test]
async fn missing_agentid_checks_only_the_token() {
    let surgery = CheckSetup::start().await;
    let toml = "[upstream]\nurl = \"http://{api}\"\n[agents.hr]\ncorpid = \"ww1234567890abcdef\"\nsecret = \"not-a-secret-hr-0000000000000000000000000000\"\n";
    let ended = surgery.check(toml, &["--online"]).await;
    assert_output(&ended, 0, &["note: hr: no agentid is set"]);
    assert!(!ended.out.contains("What to do"), "{}", ended.out);
    assert_eq!(surgery.called_paths(), [GETTOKEN, "/cgi-bin/get_api_domain_ip"]);
}

#[tokio::test]
async fn app_visible_to_thousands_passes() {
    let surgery = CheckSetup::start().await;
    let users = vec![json!({"userid": "a-member-with-a-long-userid"}); 5000];
    let large =
        json!({"errcode": 0, "errmsg": "ok", "close": 0, "allow_userinfos": {"user": users}}).to_string();
    surgery
        .wecom
        .inject(Fault::response(200, "application/json", large).on_path(AGENT_GET))
        .expect("a fault");
    assert_output(&surgery.check_online().await, 0, &["agent/get ok"]);
}

#[tokio::test]
async fn closed_app_is_reported() {
    let surgery = CheckSetup::start().await;
    let closed = Fault::response(200, "application/json", r#"{"errcode":0,"errmsg":"ok","close":1}"#);
    surgery.wecom.inject(closed.on_path(AGENT_GET).times(1)).expect("a fault");
    assert_output(
        &surgery.check_online().await,
        1,
        &["hr, agent/get: WeCom reports the app as disabled", "enable it again"],
    );
}

#[tokio::test]
async fn three_refusals_in_a_row_stop_the_check() {
    let surgery = CheckSetup::with_wrong_secrets(5).await;
    let ended = surgery.check_online().await;
    assert_output(
        &ended,
        1,
        &["note: the other agents were not checked: three agents in a row were refused"],
    );
    assert!(ended.err.contains("3 of 5 agents failed, 2 were not checked"), "{}", ended.err);
    assert_eq!(surgery.called_paths(), [GETTOKEN; 3]);
    let said = check_json(&surgery, CONFIG, &["--online"], 1).await;
    assert_eq!((&said["online"]["stopped"], &said["online"]["ok"]), (&json!("refusals"), &json!(false)));
    assert_eq!(said["agents"][3]["online"]["result"], "not-asked");
    assert_eq!(row(&ended, "agent3")[1..], ["-", "-", "not", "checked", "-"]);
}

#[tokio::test]
async fn success_resets_the_refusal_count() {
    let mut surgery = CheckSetup::with_wrong_secrets(5).await;
    surgery.settings.agents[1].secret = real_secret(1);
    let ended = surgery.check_online().await;
    assert!(ended.err.contains("4 of 5 agents failed"), "{}", ended.err);
    assert_eq!(row(&ended, "agent4")[1], "40001");
}

#[tokio::test]
async fn frequency_limit_stops_the_check_at_once() {
    let surgery = CheckSetup::start().await;
    surgery.wecom.inject(Fault::errcode(45009).on_path(GETTOKEN)).expect("a fault");
    let ended = surgery.check_online().await;
    assert_output(&ended, 1, &["note: the other agents were not checked: WeCom reports too many calls"]);
    assert_eq!(surgery.called_paths(), [GETTOKEN]);
}

#[tokio::test]
async fn clock_skew_is_reported() {
    let surgery = CheckSetup::start().await;
    let granted =
        r#"{"errcode":0,"errmsg":"ok","access_token":"a-token-that-nobody-sees","expires_in":7200}"#;
    let late = Fault::response(200, "application/json", granted)
        .with_header("date", "Fri, 01 Jan 2021 00:00:00 GMT");
    surgery.wecom.inject(late.on_path(GETTOKEN)).expect("a fault");
    surgery.wecom.inject(Fault::response(200, "application/json", "{}").on_path(AGENT_GET)).expect("a fault");
    let ended = surgery.check_online().await;
    assert_output(&ended, 0, &["note: this machine's clock is ", " s ahead of WeCom's"]);
    assert!(!format!("{ended:?}").contains("nobody-sees"), "{ended:?}");
}

#[tokio::test]
async fn non_wecom_response_is_reported() {
    let surgery = CheckSetup::start().await;
    let page = Fault::response(403, "text/html", "<html>a portal</html>").for_agent("hr").times(1);
    surgery.wecom.inject(page.clone().on_path(GETTOKEN)).expect("a fault");
    surgery.wecom.inject(page.for_agent("ops").on_path(AGENT_GET)).expect("a fault");
    let ended = surgery.check_online().await;
    assert_output(
        &ended,
        1,
        &["hr, gettoken: gettoken was answered with HTTP 403", "upstream.url or upstream.via may not point"],
    );
    assert_output(&ended, 1, &["ops, agent/get: HTTP 403, not JSON"]);
    assert_eq!(row(&ended, "hr")[1], "senseless");
}

#[tokio::test]
async fn echoed_url_is_reported_with_the_token_masked() {
    let surgery = CheckSetup::start().await;
    let token = "a-token-that-nobody-sees";
    let granted = format!(r#"{{"errcode":0,"errmsg":"ok","access_token":"{token}","expires_in":7200}}"#);
    surgery
        .wecom
        .inject(Fault::response(200, "application/json", granted).on_path(GETTOKEN))
        .expect("a fault");
    let echo = format!(r#"{{"errcode":1,"errmsg":"/cgi-bin/agent/get?access_token={token}"}}"#);
    surgery.wecom.inject(Fault::response(200, "application/json", echo).on_path(AGENT_GET)).expect("a fault");
    for options in [&["--online"][..], &["--online", "--json"]] {
        let ended = surgery.check(CONFIG, options).await;
        assert_output(&ended, 1, &["access_token=[masked]"]);
        assert!(!format!("{ended:?}").contains(token), "{ended:?}");
    }
}

/// A configuration for an upstream that is no WeCom.
fn config_for_upstream(upstream: &str) -> String {
    format!("[upstream]\n{upstream}\nconnect_timeout = \"2s\"\nresponse_timeout = \"2s\"\n{{agents}}")
}

/// An address where nobody listens.
async fn closed_port() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    listener.local_addr().expect("an address")
}

#[tokio::test]
async fn unreachable_upstream_is_reported_once() {
    let surgery = CheckSetup::start().await;
    let nobody = closed_port().await;
    let unknown = format!("{}.test", "x".repeat(63));
    for (upstream, words) in [
        (format!("url = \"http://{nobody}\""), "Connection refused (os error 111); nothing listens there"),
        (format!("url = \"http://{unknown}\""), "cannot resolve"),
        (
            format!("url = \"https://qyapi.weixin.qq.com\"\nvia = \"http://{nobody}\""),
            "the egress proxy (upstream.via): cannot connect",
        ),
    ] {
        let ended = surgery.check(&config_for_upstream(&upstream), &["--online"]).await;
        assert_output(&ended, 1, &["hr, gettoken: WeCom cannot be reached: ", words, "for any agent"]);
        assert_eq!(row(&ended, "hr")[1], "unreachable");
        assert_eq!(row(&ended, "ops")[3..5], ["not", "checked"]);
    }
}

#[tokio::test]
async fn silent_upstream_is_reported_after_three_timeouts() {
    let surgery = CheckSetup::with_wrong_secrets(4).await;
    surgery.wecom.inject(Fault::hold().on_path(GETTOKEN)).expect("a fault");
    let ended = surgery.check(&config_for_upstream("url = \"http://{api}\""), &["--online"]).await;
    assert_output(
        &ended,
        1,
        &["no answer within upstream.response_timeout", "three agents in a row got no valid response"],
    );
    assert_eq!([row(&ended, "agent2")[1], row(&ended, "agent3")[1]], ["no-answer", "-"]);
}

#[tokio::test]
async fn refused_tunnel_is_reported() {
    let egress = Simulator::start_local(Settings::default()).await.expect("what knows no CONNECT");
    let surgery = CheckSetup::start().await;
    let via = format!("url = \"https://qyapi.weixin.qq.com\"\nvia = \"http://{}\"", egress.api_addr());
    let ended = surgery.check(&config_for_upstream(&via), &["--online"]).await;
    assert_output(
        &ended,
        1,
        &["the egress proxy (upstream.via) refused the tunnel with 4", "must allow CONNECT"],
    );
}

#[tokio::test]
async fn untrusted_certificate_is_reported() {
    let (authority, other) = (Authority::new(), Authority::new());
    let serving = |identity: crate::certificates::Identity| Settings {
        tls: Some(identity.server_config(&["h2", "http/1.1"])),
        ..Settings::default()
    };
    let over_tls = |ca: Option<&Authority>| {
        let ca = ca.map(|ca| format!("ca_file = \"{}\"", ca.ca_file().display())).unwrap_or_default();
        format!("[upstream]\nurl = \"https://{{api}}\"\n{ca}\n{{agents}}")
    };
    let surgery = CheckSetup::start_with(serving(authority.issue_server("127.0.0.1"))).await;
    assert_output(&surgery.check(&over_tls(Some(&authority)), &["--online"]).await, 0, &["agent/get ok"]);
    for ca in [None, Some(&other)] {
        let ended = surgery.check(&over_tls(ca), &["--online"]).await;
        assert_output(
            &ended,
            1,
            &["authority that is not trusted here: for a private one set upstream.ca_file"],
        );
    }
    let surgery = CheckSetup::start_with(serving(authority.issue_expired("127.0.0.1"))).await;
    let ended = surgery.check(&over_tls(Some(&authority)), &["--online"]).await;
    assert_output(&ended, 1, &["certificate has expired: renew it, or set this machine's clock"]);
    let (_, itself) = Authority::self_signed("127.0.0.1", |_| {});
    let surgery = CheckSetup::start_with(serving(itself)).await;
    let ended = surgery.check(&over_tls(Some(&other)), &["--online"]).await;
    assert_output(
        &ended,
        1,
        &["certificate is self-signed and not trusted here: to trust it, set upstream.ca_file to it"],
    );
}

#[tokio::test]
async fn upstream_without_tls_is_reported() {
    let surgery = CheckSetup::start().await;
    let ended = surgery.check("[upstream]\nurl = \"https://{api}\"\n{agents}", &["--online"]).await;
    assert_output(&ended, 1, &["does not speak TLS: check the scheme and the port of upstream.url"]);
}

async fn check_json(surgery: &CheckSetup, toml: &str, options: &[&str], status: i32) -> Value {
    let ended = surgery.check(toml, &[options, &["--json"]].concat()).await;
    assert_eq!(ended.status, status, "{ended:?}");
    assert_eq!(ended.out.lines().count(), 1, "{}", ended.out);
    serde_json::from_str(&ended.out).expect("JSON")
}

#[tokio::test]
async fn json_output_is_one_object() {
    let surgery = CheckSetup::start().await;
    let clients =
        "[clients.billing]\nkey = \"key-of-billing-0000000000\"\nagents = [\"hr\"]\nlimit = \"600/m\"\n";
    let said = check_json(&surgery, &format!("{CONFIG}{clients}"), &[], 0).await;
    assert_eq!((&said["valid"], &said["open"]), (&json!(true), &json!(false)));
    let hr = json!({"name":"hr","corpid":"ww1234567890abcdef","agentid":1_000_002,"limit":null});
    assert_eq!(said["agents"][0], hr);
    let billing = json!({"name":"billing","agents":["hr"],"allow":["/cgi-bin/*"],"limit":"600/m"});
    assert_eq!(said["clients"], json!([billing]));
    assert_eq!(said["warnings"][0]["key"], "agents.hr.secret");
    assert!(said.get("online").is_none() && said.get("error").is_none(), "{said}");
}

#[tokio::test]
async fn json_output_contains_the_wecom_problem() {
    let surgery = CheckSetup::start().await;
    surgery.wecom.inject(Fault::errcode(60020).on_path(AGENT_GET).for_agent("hr")).expect("a fault");
    let said = check_json(&surgery, CONFIG, &["--online"], 1).await;
    assert_eq!((&said["online"]["ok"], &said["online"]["stopped"]), (&json!(false), &Value::Null));
    assert!(said["online"]["clock_ahead_s"].as_i64().is_some_and(|ahead| ahead.abs() <= 60), "{said}");
    let [hr, ops] = [0, 1].map(|nth| &said["agents"][nth]["online"]);
    assert_eq!((&hr["result"], &ops["result"]), (&json!("failed"), &json!("ok")));
    assert_eq!((&hr["call"], &ops["problem"]), (&json!("agent/get"), &Value::Null));
    let problem = &hr["problem"];
    let facts = ["step", "kind", "errcode", "seen_from"].map(|key| problem[key].clone());
    assert_eq!(facts, [json!("agent/get"), json!("refused"), json!(60020), json!("127.0.0.1")]);
    for key in ["meaning_en", "meaning_zh", "action_en", "action_zh", "place_en", "place_zh"] {
        assert!(problem["hint"][key].is_string(), "{key}: {problem}");
    }
}

/// With a store under this key.
fn config_with_store(redis: &RedisServer, key: &str) -> String {
    format!("{CONFIG}[tokens]\nstore = {{ redis = \"redis://{}\", key = \"{key}\" }}\n", redis.address())
}

#[tokio::test]
async fn store_is_probed_and_its_problems_are_explained() {
    const OTHER_KEY: &str = "another-store-key-of-the-stories-012345";
    let surgery = CheckSetup::start().await;
    let mut redis = RedisServer::start().await;
    let toml = config_with_store(&redis, STORE_KEY);
    let fine = format!("the store at {}: ok", redis.address());
    assert_output(&surgery.check(&toml, &["--online"]).await, 0, &[&fine, "tokens of 0 of 2 agents"]);

    let replica = TestProxy::start_with_upstream(
        surgery.wecom.api_addr(),
        &format!("{OPEN_CONFIG}{}", &toml[CONFIG.len()..]),
    )
    .await;
    wait_for("the store", async || replica.app.store_error().is_none()).await;
    replica.get(USER_GET).await.assert_ok();
    let before = redis.command(&["--raw", "KEYS", "*:record"]).await;
    assert_output(&surgery.check(&toml, &["--online"]).await, 0, &[&fine, "tokens of 1 of 2 agents"]);
    assert_eq!(redis.command(&["--raw", "KEYS", "*:record"]).await, before);

    let other = surgery.check(&config_with_store(&redis, OTHER_KEY), &["--online"]).await;
    assert_output(
        &other,
        1,
        &["contains entries this key cannot decrypt, for hr", "the same tokens.store.key", "相同的"],
    );
    assert!(other.err.contains("all agents passed, but the shared store"), "{}", other.err);
    let said = check_json(&surgery, &config_with_store(&redis, OTHER_KEY), &["--online"], 1).await["online"]
        ["store"]
        .clone();
    assert_eq!((&said["unreadable"], &said["hint"]["kind"]), (&json!(["hr"]), &json!("key")));
    let said = check_json(&surgery, &toml, &["--online"], 0).await["online"]["store"].clone();
    let facts = ["ok", "trouble", "readable", "hint"].map(|key| said[key].clone());
    assert_eq!(facts, [json!(true), Value::Null, json!(1), Value::Null]);
    assert_eq!(check_json(&surgery, CONFIG, &["--online"], 0).await["online"]["store"], Value::Null);

    // What can be wrong with it, and what to do then.
    drop(replica);
    let wrong = async |redis: &RedisServer, toml: &str, kind: &str| {
        let said = check_json(&surgery, toml, &["--online"], 1).await["online"]["store"].clone();
        assert_eq!(said["hint"]["kind"], kind, "{}: {said}", redis.address());
        for key in ["action_en", "action_zh"] {
            assert!(said["hint"][key].as_str().is_some_and(|words| !words.is_empty()), "{said}");
        }
        assert_output(
            &surgery.check(toml, &["--online"]).await,
            1,
            &["cannot be used", "What to do: ", "处理："],
        );
    };
    redis.command(&["CONFIG", "SET", "maxmemory", "1"]).await;
    wrong(&redis, &toml, "full").await;
    redis.command(&["CONFIG", "SET", "maxmemory", "0"]).await;
    redis.command(&["REPLICAOF", "127.0.0.1", "1"]).await;
    wrong(&redis, &toml, "read-only").await;
    redis.command(&["REPLICAOF", "NO", "ONE"]).await;
    wrong(&redis, &toml.replace("key =", "sentinel = \"mymaster\", key ="), "sentinel").await;
    redis.command(&["ACL", "SETUSER", "default", "-publish"]).await;
    wrong(&redis, &toml, "rights").await;
    redis.command(&["ACL", "SETUSER", "default", "+publish", ">a-password-of-the-stories"]).await;
    wrong(&redis, &toml, "password").await;
    wrong(&redis, &toml.replace("key =", "password = \"not-the-password\", key ="), "password").await;
    wrong(&redis, &toml.replace("redis://", "rediss://"), "unreachable").await;
    redis.kill().await;
    wrong(&redis, &toml, "unreachable").await;
}

#[tokio::test]
async fn json_output_locates_a_config_error() {
    let surgery = CheckSetup::start().await;
    let said = check_json(&surgery, "[server]\nlissten = 1\n{agents}", &["--online"], 2).await;
    assert_eq!((&said["valid"], &said["error"]["line"]), (&json!(false), &json!(2)));
    assert_eq!(said["error"]["key"], "server.lissten");
    std::fs::write(surgery.dir.path().join("ca.pem"), "no certificate").expect("a file");
    let unusable = "[upstream]\nurl = \"https://{api}\"\nca_file = \"ca.pem\"\n{agents}";
    let said = check_json(&surgery, unusable, &[], 2).await;
    assert!(said["error"]["what"].as_str().is_some_and(|what| what.contains("upstream.ca_file")), "{said}");
    assert_eq!(surgery.called_paths(), [""; 0]);
}
