//! `check --online`: probes each agent at WeCom, explains each problem, and says where to fix it.

use std::path::PathBuf;

use serde_json::{Value, json};
use tempfile::TempDir;
use wecom_proxy::simulator::{Fault, Settings, SimulatedAgent, Simulator};

use crate::{
    certificates::Authority,
    harness::{OPEN_CONFIG, TestProxy, USER_GET, closed_port, wait_for, write_config},
    process::{ExitOutput, run_wecom_proxy},
    redis_server::{RedisServer, STORE_KEY},
};

const WRONG_AGENTS: usize = 6;
const AGENT_GET: &str = "/cgi-bin/agent/get";
const GETTOKEN: &str = "/cgi-bin/gettoken";

/// A simulated WeCom and a configuration for it.
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

    /// `agents` agents whose configured secrets are wrong.
    async fn with_wrong_secrets(agents: usize) -> Self {
        let all = (0..agents)
            .map(|nth| SimulatedAgent::new(&format!("agent{nth}"), &real_secret(nth), nth as u64 + 1));
        let mut setup = Self::start_with(Settings { agents: all.collect(), ..Settings::default() }).await;
        for agent in &mut setup.settings.agents {
            agent.secret = "not-the-real-secret".to_owned();
        }
        setup
    }

    fn write(&self, toml: &str) -> PathBuf {
        write_config(&self.dir, self.wecom.api_addr(), &self.settings, toml)
    }

    /// Runs `check` with these options; asserts that no secret is printed.
    async fn check(&self, toml: &str, options: &[&str]) -> ExitOutput {
        let path = self.write(toml);
        let mut arguments = vec!["check", "--config", path.to_str().expect("UTF-8")];
        arguments.extend(options);
        let output = run_wecom_proxy(&arguments).await;
        for agent in &self.settings.agents {
            assert!(!format!("{output:?}").contains(&agent.secret), "{output:?}");
        }
        output
    }

    async fn check_online(&self) -> ExitOutput {
        self.check(CONFIG, &["--online"]).await
    }

    /// The paths that WeCom received, in order.
    fn called_paths(&self) -> Vec<String> {
        self.wecom.requests().into_iter().map(|record| record.path).collect()
    }
}

/// The secret that the simulator accepts for an agent of [`CheckSetup::with_wrong_secrets`].
fn real_secret(nth: usize) -> String {
    format!("the-real-secret-of-agent{nth}")
}

const CONFIG: &str = "[upstream]\nurl = \"http://{api}\"\n{agents}";

#[track_caller]
fn assert_output(output: &ExitOutput, status: i32, expected: &[&str]) {
    assert_eq!(output.status, status, "{}{}", output.out, output.err);
    for text in expected {
        assert!(output.out.contains(text), "no {text:?} in {}{}", output.out, output.err);
    }
}

/// The row of this agent in the table of online results.
#[track_caller]
fn row<'a>(output: &'a ExitOutput, agent: &str) -> Vec<&'a str> {
    let (_, online) = output.out.split_once("each agent was checked at").expect("a second table");
    let mut rows = online.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    rows.find(|row| row.first() == Some(&agent)).unwrap_or_else(|| panic!("no {agent} in {online}"))
}

#[tokio::test]
async fn healthy_agents_are_probed_once_and_pass() {
    let setup = CheckSetup::start().await;
    let output = setup.check_online().await;
    assert_output(&output, 0, &["proxy.toml is valid", "AGENT  GETTOKEN  CALL"]);
    for agent in ["hr", "ops"] {
        assert_eq!(row(&output, agent)[..5], [agent, "ok", "agent/get", "ok", "ok"]);
    }
    assert_eq!(setup.called_paths(), [GETTOKEN, AGENT_GET, GETTOKEN, AGENT_GET]);
    assert!(!output.out.contains('\u{1b}') && !output.out.contains("note:"), "{}", output.out);
}

#[tokio::test]
async fn check_without_online_sends_nothing() {
    let setup = CheckSetup::start().await;
    assert_output(&setup.check(CONFIG, &[]).await, 0, &["is valid"]);
    assert_eq!(setup.called_paths(), [""; 0]);
}

#[tokio::test]
async fn wrong_secret_is_reported_and_other_agents_are_checked() {
    let setup = CheckSetup::start().await;
    setup.wecom.reset_secret("hr", "another-secret").expect("an agent");
    let output = setup.check_online().await;
    let location = "App Management > Apps > the app > Secret";
    assert_output(
        &output,
        1,
        &[
            "hr, gettoken: errcode 40001",
            "What to do: ",
            location,
            "应用管理 → 应用 → 选择应用 → Secret",
            "40001  ",
        ],
    );
    assert!(output.err.contains("1 of 2 agents failed"), "{}", output.err);
    assert_eq!(row(&output, "ops")[1..5], ["ok", "agent/get", "ok", "ok"]);
    assert_eq!(setup.called_paths(), [GETTOKEN, GETTOKEN, AGENT_GET]);
}

#[tokio::test]
async fn untrusted_ip_is_reported_as_wecom_sees_it() {
    let setup = CheckSetup::start().await;
    setup.wecom.inject(Fault::errcode(60020).on_path(AGENT_GET).for_agent("hr")).expect("a fault");
    let output = setup.check_online().await;
    let seen_as = "WeCom sees this machine as 127.0.0.1.";
    assert_output(
        &output,
        1,
        &["hr, agent/get: errcode 60020", seen_as, "Company's Trusted IP", "企业可信IP"],
    );
}

#[tokio::test]
async fn known_errcodes_are_explained() {
    let setup = CheckSetup::start().await;
    for (errcode, expected) in [
        (48002, "this app may not call this API"),
        (50003, "the app is disabled"),
        (40013, "My Company > Company Information > Company ID"),
    ] {
        let path = if errcode == 40013 { GETTOKEN } else { AGENT_GET };
        setup.wecom.inject(Fault::errcode(errcode).on_path(path).for_agent("hr").times(1)).expect("a fault");
        assert_output(&setup.check_online().await, 1, &[&format!("errcode {errcode}: "), expected]);
    }
    setup.wecom.inject(Fault::errcode(99_999).on_path(AGENT_GET).for_agent("hr").times(1)).expect("a fault");
    assert_output(&setup.check_online().await, 1, &["errcode 99999: "]);
}

#[tokio::test]
async fn wrong_agentid_is_reported() {
    let mut setup = CheckSetup::start().await;
    for (agentid, errcode) in [(1_000_003, "301002"), (77, "40056")] {
        setup.settings.agents[0].agentid = agentid;
        let output = setup.check_online().await;
        assert_output(
            &output,
            1,
            &[&format!("hr, agent/get: errcode {errcode}: "), "the app > AgentId", "AgentId"],
        );
        assert_eq!(row(&output, "hr")[1..5], ["ok", "agent/get", errcode, "failed"]);
    }
}

#[tokio::test]
async fn missing_agentid_checks_only_the_token() {
    let setup = CheckSetup::start().await;
    let toml = "[upstream]\nurl = \"http://{api}\"\n[agents.hr]\ncorpid = \"ww1234567890abcdef\"\nsecret = \"not-a-secret-hr-0000000000000000000000000000\"\n";
    let output = setup.check(toml, &["--online"]).await;
    assert_output(&output, 0, &["note: hr: no agentid is set"]);
    assert!(!output.out.contains("What to do"), "{}", output.out);
    assert_eq!(setup.called_paths(), [GETTOKEN, "/cgi-bin/get_api_domain_ip"]);
}

#[tokio::test]
async fn app_visible_to_thousands_passes() {
    let setup = CheckSetup::start().await;
    let users = vec![json!({"userid": "a-member-with-a-long-userid"}); 5000];
    let large =
        json!({"errcode": 0, "errmsg": "ok", "close": 0, "allow_userinfos": {"user": users}}).to_string();
    setup.wecom.inject(Fault::response(200, "application/json", large).on_path(AGENT_GET)).expect("a fault");
    assert_output(&setup.check_online().await, 0, &["agent/get ok"]);
}

#[tokio::test]
async fn closed_app_is_reported() {
    let setup = CheckSetup::start().await;
    let closed = Fault::response(200, "application/json", r#"{"errcode":0,"errmsg":"ok","close":1}"#);
    setup.wecom.inject(closed.on_path(AGENT_GET).times(1)).expect("a fault");
    assert_output(
        &setup.check_online().await,
        1,
        &["hr, agent/get: WeCom reports the app as disabled", "enable it again"],
    );
}

#[tokio::test]
async fn three_refusals_in_a_row_stop_the_check() {
    let setup = CheckSetup::with_wrong_secrets(5).await;
    let output = setup.check_online().await;
    assert_output(
        &output,
        1,
        &["note: the other agents were not checked: three agents in a row were refused"],
    );
    assert!(output.err.contains("3 of 5 agents failed, 2 were not checked"), "{}", output.err);
    assert_eq!(setup.called_paths(), [GETTOKEN; 3]);
    let report = check_json(&setup, CONFIG, &["--online"], 1).await;
    assert_eq!((&report["online"]["stopped"], &report["online"]["ok"]), (&json!("refusals"), &json!(false)));
    assert_eq!(report["agents"][3]["online"]["result"], "not-asked");
    assert_eq!(row(&output, "agent3")[1..], ["-", "-", "not", "checked", "-"]);
}

#[tokio::test]
async fn success_resets_the_refusal_count() {
    let mut setup = CheckSetup::with_wrong_secrets(5).await;
    setup.settings.agents[1].secret = real_secret(1);
    let output = setup.check_online().await;
    assert!(output.err.contains("4 of 5 agents failed"), "{}", output.err);
    assert_eq!(row(&output, "agent4")[1], "40001");
}

#[tokio::test]
async fn frequency_limit_stops_the_check_at_once() {
    let setup = CheckSetup::start().await;
    setup.wecom.inject(Fault::errcode(45009).on_path(GETTOKEN)).expect("a fault");
    let output = setup.check_online().await;
    assert_output(&output, 1, &["note: the other agents were not checked: WeCom reports too many calls"]);
    assert_eq!(setup.called_paths(), [GETTOKEN]);
}

#[tokio::test]
async fn clock_skew_is_reported() {
    let setup = CheckSetup::start().await;
    let body =
        r#"{"errcode":0,"errmsg":"ok","access_token":"a-token-that-is-never-shown","expires_in":7200}"#;
    let late =
        Fault::response(200, "application/json", body).with_header("date", "Fri, 01 Jan 2021 00:00:00 GMT");
    setup.wecom.inject(late.on_path(GETTOKEN)).expect("a fault");
    setup.wecom.inject(Fault::response(200, "application/json", "{}").on_path(AGENT_GET)).expect("a fault");
    let output = setup.check_online().await;
    assert_output(&output, 0, &["note: this machine's clock is ", " s ahead of WeCom's"]);
    assert!(!format!("{output:?}").contains("never-shown"), "{output:?}");
}

#[tokio::test]
async fn non_wecom_response_is_reported() {
    let setup = CheckSetup::start().await;
    let page = Fault::response(403, "text/html", "<html>a portal</html>").for_agent("hr").times(1);
    setup.wecom.inject(page.clone().on_path(GETTOKEN)).expect("a fault");
    setup.wecom.inject(page.for_agent("ops").on_path(AGENT_GET)).expect("a fault");
    let output = setup.check_online().await;
    assert_output(
        &output,
        1,
        &["hr, gettoken: gettoken response with HTTP 403", "upstream.url or upstream.via may not point"],
    );
    assert_output(&output, 1, &["ops, agent/get: HTTP 403, not JSON"]);
    assert_eq!(row(&output, "hr")[1], "senseless");
}

#[tokio::test]
async fn echoed_url_is_reported_with_the_token_masked() {
    let setup = CheckSetup::start().await;
    let token = "a-token-that-is-never-shown";
    let body = format!(r#"{{"errcode":0,"errmsg":"ok","access_token":"{token}","expires_in":7200}}"#);
    setup.wecom.inject(Fault::response(200, "application/json", body).on_path(GETTOKEN)).expect("a fault");
    let echo = format!(r#"{{"errcode":1,"errmsg":"/cgi-bin/agent/get?access_token={token}"}}"#);
    setup.wecom.inject(Fault::response(200, "application/json", echo).on_path(AGENT_GET)).expect("a fault");
    for options in [&["--online"][..], &["--online", "--json"]] {
        let output = setup.check(CONFIG, options).await;
        assert_output(&output, 1, &["access_token=[masked]"]);
        assert!(!format!("{output:?}").contains(token), "{output:?}");
    }
}

/// A configuration with these `[upstream]` settings and short timeouts.
fn config_for_upstream(upstream: &str) -> String {
    format!("[upstream]\n{upstream}\nconnect_timeout = \"2s\"\nresponse_timeout = \"2s\"\n{{agents}}")
}

#[tokio::test]
async fn unreachable_upstream_is_reported_once() {
    let setup = CheckSetup::start().await;
    let closed = closed_port();
    let unknown = format!("{}.test", "x".repeat(63));
    for (upstream, expected) in [
        (format!("url = \"http://{closed}\""), "Connection refused (os error 111); nothing listens there"),
        (format!("url = \"http://{unknown}\""), "cannot resolve"),
        (
            format!("url = \"https://qyapi.weixin.qq.com\"\nvia = \"http://{closed}\""),
            "the egress proxy (upstream.via): cannot connect",
        ),
    ] {
        let output = setup.check(&config_for_upstream(&upstream), &["--online"]).await;
        assert_output(&output, 1, &["hr, gettoken: WeCom cannot be reached: ", expected, "for any agent"]);
        assert_eq!(row(&output, "hr")[1], "unreachable");
        assert_eq!(row(&output, "ops")[3..5], ["not", "checked"]);
    }
}

#[tokio::test]
async fn silent_upstream_is_reported_after_three_timeouts() {
    let setup = CheckSetup::with_wrong_secrets(4).await;
    setup.wecom.inject(Fault::hold().on_path(GETTOKEN)).expect("a fault");
    let output = setup.check(&config_for_upstream("url = \"http://{api}\""), &["--online"]).await;
    assert_output(
        &output,
        1,
        &["no response within upstream.response_timeout", "three agents in a row got no valid response"],
    );
    assert_eq!([row(&output, "agent2")[1], row(&output, "agent3")[1]], ["no-answer", "-"]);
}

#[tokio::test]
async fn refused_tunnel_is_reported() {
    let egress = Simulator::start_local(Settings::default()).await.expect("a server without CONNECT");
    let setup = CheckSetup::start().await;
    let via = format!("url = \"https://qyapi.weixin.qq.com\"\nvia = \"http://{}\"", egress.api_addr());
    let output = setup.check(&config_for_upstream(&via), &["--online"]).await;
    assert_output(
        &output,
        1,
        &["the egress proxy (upstream.via) refused the tunnel with 4", "must allow CONNECT"],
    );
}

#[tokio::test]
async fn untrusted_certificate_is_reported() {
    let (authority, other) = (Authority::new(), Authority::new());
    let settings_with = |identity: crate::certificates::Identity| Settings {
        tls: Some(identity.server_config(&["h2", "http/1.1"])),
        ..Settings::default()
    };
    let config_with_ca = |ca: Option<&Authority>| {
        let ca = ca.map(Authority::ca_config_line).unwrap_or_default();
        format!("[upstream]\nurl = \"https://{{api}}\"\n{ca}\n{{agents}}")
    };
    let setup = CheckSetup::start_with(settings_with(authority.issue_server("127.0.0.1"))).await;
    assert_output(&setup.check(&config_with_ca(Some(&authority)), &["--online"]).await, 0, &["agent/get ok"]);
    for ca in [None, Some(&other)] {
        let output = setup.check(&config_with_ca(ca), &["--online"]).await;
        assert_output(&output, 1, &["untrusted authority: for a private one set upstream.ca_file"]);
    }
    let setup = CheckSetup::start_with(settings_with(authority.issue_expired("127.0.0.1"))).await;
    let output = setup.check(&config_with_ca(Some(&authority)), &["--online"]).await;
    assert_output(&output, 1, &["certificate has expired: renew it, or set this machine's clock"]);
    let (_, self_signed) = Authority::self_signed("127.0.0.1", |_| {});
    let setup = CheckSetup::start_with(settings_with(self_signed)).await;
    let output = setup.check(&config_with_ca(Some(&other)), &["--online"]).await;
    assert_output(
        &output,
        1,
        &["certificate is self-signed and untrusted: to trust it, set upstream.ca_file to it"],
    );
}

#[tokio::test]
async fn upstream_without_tls_is_reported() {
    let setup = CheckSetup::start().await;
    let output = setup.check("[upstream]\nurl = \"https://{api}\"\n{agents}", &["--online"]).await;
    assert_output(&output, 1, &["does not speak TLS: check the scheme and the port of upstream.url"]);
}

async fn check_json(setup: &CheckSetup, toml: &str, options: &[&str], status: i32) -> Value {
    let output = setup.check(toml, &[options, &["--json"]].concat()).await;
    assert_eq!(output.status, status, "{output:?}");
    assert_eq!(output.out.lines().count(), 1, "{}", output.out);
    serde_json::from_str(&output.out).expect("JSON")
}

#[tokio::test]
async fn json_output_is_one_object() {
    let setup = CheckSetup::start().await;
    let clients =
        "[clients.billing]\nkey = \"key-of-billing-0000000000\"\nagents = [\"hr\"]\nlimit = \"600/m\"\n";
    let report = check_json(&setup, &format!("{CONFIG}{clients}"), &[], 0).await;
    assert_eq!((&report["valid"], &report["open"]), (&json!(true), &json!(false)));
    let hr = json!({"name":"hr","corpid":"ww1234567890abcdef","agentid":1_000_002,"limit":null});
    assert_eq!(report["agents"][0], hr);
    let billing =
        json!({"name":"billing","agents":["hr"],"allow":["/cgi-bin/*","/jssdk/signature"],"limit":"600/m"});
    assert_eq!(report["clients"], json!([billing]));
    assert_eq!(report["warnings"][0]["key"], "agents.hr.secret");
    assert!(report.get("online").is_none() && report.get("error").is_none(), "{report}");
}

#[tokio::test]
async fn json_output_contains_the_wecom_problem() {
    let setup = CheckSetup::start().await;
    setup.wecom.inject(Fault::errcode(60020).on_path(AGENT_GET).for_agent("hr")).expect("a fault");
    let report = check_json(&setup, CONFIG, &["--online"], 1).await;
    assert_eq!((&report["online"]["ok"], &report["online"]["stopped"]), (&json!(false), &Value::Null));
    assert!(report["online"]["clock_ahead_s"].as_i64().is_some_and(|ahead| ahead.abs() <= 60), "{report}");
    let [hr, ops] = [0, 1].map(|nth| &report["agents"][nth]["online"]);
    assert_eq!((&hr["result"], &ops["result"]), (&json!("failed"), &json!("ok")));
    assert_eq!((&hr["call"], &ops["problem"]), (&json!("agent/get"), &Value::Null));
    let problem = &hr["problem"];
    let fields = ["step", "kind", "errcode", "seen_from"].map(|key| problem[key].clone());
    assert_eq!(fields, [json!("agent/get"), json!("refused"), json!(60020), json!("127.0.0.1")]);
    for key in ["meaning_en", "meaning_zh", "action_en", "action_zh", "place_en", "place_zh"] {
        assert!(problem["hint"][key].is_string(), "{key}: {problem}");
    }
}

/// A configuration with a store encrypted under `key`.
fn config_with_store(redis: &RedisServer, key: &str) -> String {
    format!("{CONFIG}[tokens]\nstore = {{ redis = \"redis://{}\", key = \"{key}\" }}\n", redis.address())
}

#[tokio::test]
async fn store_is_probed_and_its_problems_are_explained() {
    const OTHER_KEY: &str = "another-store-key-of-the-tests-01234567";
    let setup = CheckSetup::start().await;
    let mut redis = RedisServer::start().await;
    let toml = config_with_store(&redis, STORE_KEY);
    let store_ok = format!("the store at {}: ok", redis.address());
    assert_output(&setup.check(&toml, &["--online"]).await, 0, &[&store_ok, "tokens of 0 of 2 agents"]);

    let replica = TestProxy::start_with_upstream(
        setup.wecom.api_addr(),
        &format!("{OPEN_CONFIG}{}", &toml[CONFIG.len()..]),
    )
    .await;
    wait_for("the store", async || replica.app.store_error().is_none()).await;
    replica.get(USER_GET).await.assert_ok();
    let before = redis.command(&["--raw", "KEYS", "*:record"]).await;
    assert_output(&setup.check(&toml, &["--online"]).await, 0, &[&store_ok, "tokens of 1 of 2 agents"]);
    assert_eq!(redis.command(&["--raw", "KEYS", "*:record"]).await, before);

    let other = setup.check(&config_with_store(&redis, OTHER_KEY), &["--online"]).await;
    assert_output(
        &other,
        1,
        &["contains entries this key cannot decrypt, for hr", "the same tokens.store.key", "相同的"],
    );
    assert!(other.err.contains("all agents passed, but the shared store"), "{}", other.err);
    let report = check_json(&setup, &config_with_store(&redis, OTHER_KEY), &["--online"], 1).await["online"]
        ["store"]
        .clone();
    assert_eq!((&report["unreadable"], &report["hint"]["kind"]), (&json!(["hr"]), &json!("key")));
    let report = check_json(&setup, &toml, &["--online"], 0).await["online"]["store"].clone();
    let fields = ["ok", "trouble", "readable", "hint"].map(|key| report[key].clone());
    assert_eq!(fields, [json!(true), Value::Null, json!(1), Value::Null]);
    assert_eq!(check_json(&setup, CONFIG, &["--online"], 0).await["online"]["store"], Value::Null);

    // Each problem of the store is named, with what to do.
    drop(replica);
    let assert_problem = async |redis: &RedisServer, toml: &str, kind: &str| {
        let report = check_json(&setup, toml, &["--online"], 1).await["online"]["store"].clone();
        assert_eq!(report["hint"]["kind"], kind, "{}: {report}", redis.address());
        for key in ["action_en", "action_zh"] {
            assert!(report["hint"][key].as_str().is_some_and(|text| !text.is_empty()), "{report}");
        }
        assert_output(
            &setup.check(toml, &["--online"]).await,
            1,
            &["cannot be used", "What to do: ", "处理："],
        );
    };
    redis.command(&["CONFIG", "SET", "maxmemory", "1"]).await;
    assert_problem(&redis, &toml, "full").await;
    redis.command(&["CONFIG", "SET", "maxmemory", "0"]).await;
    redis.command(&["REPLICAOF", "127.0.0.1", "1"]).await;
    assert_problem(&redis, &toml, "read-only").await;
    redis.command(&["REPLICAOF", "NO", "ONE"]).await;
    assert_problem(&redis, &toml.replace("key =", "sentinel = \"mymaster\", key ="), "sentinel").await;
    redis.command(&["ACL", "SETUSER", "default", "-publish"]).await;
    assert_problem(&redis, &toml, "rights").await;
    redis.command(&["ACL", "SETUSER", "default", "+publish", ">a-password-of-the-tests"]).await;
    assert_problem(&redis, &toml, "password").await;
    assert_problem(&redis, &toml.replace("key =", "password = \"not-the-password\", key ="), "password")
        .await;
    assert_problem(&redis, &toml.replace("redis://", "rediss://"), "unreachable").await;
    redis.kill().await;
    assert_problem(&redis, &toml, "unreachable").await;
}

#[tokio::test]
async fn sentinels_and_master_have_logins_of_their_own() {
    let setup = CheckSetup::start().await;
    let master = RedisServer::start().await;
    let _replica = RedisServer::start_replica(master.address()).await;
    let sentinel = RedisServer::start_sentinel(master.address()).await;
    sentinel.command(&["ACL", "SETUSER", "default", "resetpass", ">password-of-the-sentinels"]).await;
    let toml = |more: &str| {
        let store = format!(
            "redis = \"redis://{}\", sentinel = \"mymaster\", {more} key = \"key-of-the-store-for-tests-0123456789\"",
            sentinel.address()
        );
        format!("{CONFIG}[tokens]\nstore = {{ {store} }}\n")
    };
    let password = "sentinel_password = \"password-of-the-sentinels\",";
    let report = check_json(&setup, &toml(password), &["--online"], 0).await;
    assert_eq!(report["online"]["store"]["ok"], true, "{report}");
    for more in ["", "sentinel_password = \"another-password-of-the-tests\","] {
        let report = check_json(&setup, &toml(more), &["--online"], 1).await["online"]["store"].clone();
        assert_eq!(report["hint"]["kind"], "sentinel", "{report}");
        assert!(
            report["trouble"].as_str().is_some_and(|error| error.contains("the sentinel refused")),
            "{report}"
        );
    }
    master.command(&["CONFIG", "SET", "requirepass", "password-of-the-master"]).await;
    let report = check_json(&setup, &toml(password), &["--online"], 1).await["online"]["store"].clone();
    assert_eq!(report["hint"]["kind"], "password", "{report}");
    assert!(report["trouble"].as_str().is_some_and(|error| error.contains("the master refused")), "{report}");
}

#[tokio::test]
async fn json_output_locates_a_config_error() {
    let setup = CheckSetup::start().await;
    let report = check_json(&setup, "[server]\nlissten = 1\n{agents}", &["--online"], 2).await;
    assert_eq!((&report["valid"], &report["error"]["line"]), (&json!(false), &json!(2)));
    assert_eq!(report["error"]["key"], "server.lissten");
    std::fs::write(setup.dir.path().join("ca.pem"), "no certificate").expect("a file");
    let unusable = "[upstream]\nurl = \"https://{api}\"\nca_file = \"ca.pem\"\n{agents}";
    let report = check_json(&setup, unusable, &[], 2).await;
    assert!(
        report["error"]["what"].as_str().is_some_and(|what| what.contains("upstream.ca_file")),
        "{report}"
    );
    assert_eq!(setup.called_paths(), [""; 0]);
}

#[tokio::test]
async fn only_named_agents_are_checked() {
    let setup = CheckSetup::start().await;
    let output = setup.check(CONFIG, &["--online", "--agent", "ops"]).await;
    assert_eq!(output.status, 0, "{output:?}");
    assert!(output.out.contains("the named agents were checked"), "{}", output.out);
    assert_eq!(setup.called_paths(), [GETTOKEN, AGENT_GET]);
    let output = setup.check(CONFIG, &["--online", "--json", "--agent", "ops"]).await;
    let result: Value = serde_json::from_str(&output.out).expect("JSON");
    assert_eq!(
        (&result["agents"][0]["online"], &result["agents"][1]["online"]["result"]),
        (&Value::Null, &json!("ok"))
    );
    let output = setup.check(CONFIG, &["--online", "--agent", "opps"]).await;
    assert_eq!(output.status, 2, "{output:?}");
    assert!(output.err.contains("--agent opps: there is no agent of this name"), "{output:?}");
}

#[tokio::test]
async fn check_that_keeps_going_checks_every_agent() {
    let setup = CheckSetup::with_wrong_secrets(WRONG_AGENTS).await;
    let output = setup.check(CONFIG, &["--online"]).await;
    assert!(output.err.contains("were not checked"), "{output:?}");
    let before = setup.called_paths().len();
    let output = setup.check(CONFIG, &["--online", "--keep-going"]).await;
    assert_eq!(output.status, 1, "{output:?}");
    assert!(output.err.contains("6 of 6 agents failed"), "{output:?}");
    assert_eq!(setup.called_paths().len() - before, WRONG_AGENTS);
}
