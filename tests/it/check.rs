//! `check --online`: what WeCom says of each agent, what is wrong in plain words, and where it is put right.

use std::{net::SocketAddr, path::PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;
use wecom_proxy::simulator::{Agent, Fault, Settings, Simulator};

use crate::{
    certificates::Authority,
    process::{Ended, run_wecom_proxy},
    redis::{KEY, Redis},
    stage::{OPEN, Stage, USER_GET, wait_for, write_config},
};

const AGENT_GET: &str = "/cgi-bin/agent/get";
const GETTOKEN: &str = "/cgi-bin/gettoken";

/// A simulated WeCom, and a configuration for it.
struct Surgery {
    wecom: Simulator,
    settings: Settings,
    dir: TempDir,
}

impl Surgery {
    async fn open() -> Self {
        Self::set(Settings::default()).await
    }

    async fn set(settings: Settings) -> Self {
        let wecom = Simulator::local(settings.clone()).await.expect("a simulator");
        Self { wecom, settings, dir: TempDir::new().expect("a directory") }
    }

    /// With so many agents, whose secrets are wrong.
    async fn with_wrong_secrets(agents: usize) -> Self {
        let all =
            (0..agents).map(|nth| Agent::new(&format!("agent{nth}"), &real_secret(nth), nth as u64 + 1));
        let mut surgery = Self::set(Settings { agents: all.collect(), ..Settings::default() }).await;
        for agent in &mut surgery.settings.agents {
            agent.secret = "not-the-real-secret".to_owned();
        }
        surgery
    }

    fn write(&self, toml: &str) -> PathBuf {
        write_config(&self.dir, self.wecom.api_addr(), &self.settings, toml)
    }

    /// `check` with these options; no secret and no token may be printed.
    async fn check(&self, toml: &str, options: &[&str]) -> Ended {
        let path = self.write(toml);
        let mut arguments = vec!["check", "--config", path.to_str().expect("UTF-8")];
        arguments.extend(options);
        let ended = run_wecom_proxy(&arguments).await;
        for agent in &self.settings.agents {
            assert!(!format!("{ended:?}").contains(&agent.secret), "{ended:?}");
        }
        ended
    }

    async fn online(&self) -> Ended {
        self.check(PLAIN, &["--online"]).await
    }

    /// The paths that were called, in order.
    fn called(&self) -> Vec<String> {
        self.wecom.requests().into_iter().map(|record| record.path).collect()
    }
}

/// The secret that the simulator knows, of those with a wrong one in the configuration.
fn real_secret(nth: usize) -> String {
    format!("the-real-secret-of-agent{nth}")
}

const PLAIN: &str = "[upstream]\nurl = \"http://{api}\"\n{agents}";

#[track_caller]
fn says(ended: &Ended, status: i32, words: &[&str]) {
    assert_eq!(ended.status, status, "{}{}", ended.out, ended.err);
    for word in words {
        assert!(ended.out.contains(word), "no {word:?} in {}{}", ended.out, ended.err);
    }
}

/// The row of the second table that begins with this name.
#[track_caller]
fn row<'a>(ended: &'a Ended, agent: &str) -> Vec<&'a str> {
    let (_, online) = ended.out.split_once("was asked about each agent").expect("a second table");
    let mut rows = online.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    rows.find(|row| row.first() == Some(&agent)).unwrap_or_else(|| panic!("no {agent} in {online}"))
}

#[tokio::test]
async fn each_agent_is_asked_about_once_and_is_fine() {
    let surgery = Surgery::open().await;
    let ended = surgery.online().await;
    says(&ended, 0, &["proxy.toml is valid", "AGENT  GETTOKEN  CALL"]);
    for agent in ["hr", "ops"] {
        assert_eq!(row(&ended, agent)[..5], [agent, "ok", "agent/get", "ok", "ok"]);
    }
    assert_eq!(surgery.called(), [GETTOKEN, AGENT_GET, GETTOKEN, AGENT_GET]);
    assert!(!ended.out.contains('\u{1b}') && !ended.out.contains("note:"), "{}", ended.out);
}

#[tokio::test]
async fn without_online_nobody_is_asked() {
    let surgery = Surgery::open().await;
    says(&surgery.check(PLAIN, &[]).await, 0, &["is valid"]);
    assert_eq!(surgery.called(), [""; 0]);
}

#[tokio::test]
async fn a_wrong_secret_is_told_and_the_others_are_asked_all_the_same() {
    let surgery = Surgery::open().await;
    surgery.wecom.reset_secret("hr", "another-secret").expect("an agent");
    let ended = surgery.online().await;
    let place = "App Management > Apps > the app > Secret";
    says(
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
    assert_eq!(surgery.called(), [GETTOKEN, GETTOKEN, AGENT_GET]);
}

#[tokio::test]
async fn an_untrusted_address_is_named_as_wecom_sees_it() {
    let surgery = Surgery::open().await;
    surgery.wecom.inject(Fault::errcode(60020).on(AGENT_GET).of("hr")).expect("a fault");
    let ended = surgery.online().await;
    let sees = "WeCom sees this machine as 127.0.0.1.";
    says(&ended, 1, &["hr, agent/get: errcode 60020", sees, "Company's Trusted IP", "企业可信IP"]);
}

#[tokio::test]
async fn every_errcode_of_the_call_is_explained() {
    let surgery = Surgery::open().await;
    for (errcode, words) in [
        (48002, "this app may not call this API"),
        (50003, "the app is disabled"),
        (40013, "My Company > Company Information > Company ID"),
    ] {
        let path = if errcode == 40013 { GETTOKEN } else { AGENT_GET };
        surgery.wecom.inject(Fault::errcode(errcode).on(path).of("hr").times(1)).expect("a fault");
        says(&surgery.online().await, 1, &[&format!("errcode {errcode}: "), words]);
    }
    surgery.wecom.inject(Fault::errcode(99_999).on(AGENT_GET).of("hr").times(1)).expect("a fault");
    says(&surgery.online().await, 1, &["errcode 99999: "]);
}

#[tokio::test]
async fn a_wrong_agentid_is_told() {
    let mut surgery = Surgery::open().await;
    for (agentid, errcode) in [(1_000_003, "301002"), (77, "40056")] {
        surgery.settings.agents[0].agentid = agentid;
        let ended = surgery.online().await;
        says(&ended, 1, &[&format!("hr, agent/get: errcode {errcode}: "), "the app > AgentId", "AgentId"]);
        assert_eq!(row(&ended, "hr")[1..5], ["ok", "agent/get", errcode, "failed"]);
    }
}

#[tokio::test]
async fn without_an_agentid_only_the_token_is_tried() {
    let surgery = Surgery::open().await;
    let toml = "[upstream]\nurl = \"http://{api}\"\n[agents.hr]\ncorpid = \"ww1234567890abcdef\"\nsecret = \"not-a-secret-hr-0000000000000000000000000000\"\n";
    let ended = surgery.check(toml, &["--online"]).await;
    says(&ended, 0, &["note: hr: no agentid is set"]);
    assert!(!ended.out.contains("What to do"), "{}", ended.out);
    assert_eq!(surgery.called(), [GETTOKEN, "/cgi-bin/get_api_domain_ip"]);
}

#[tokio::test]
async fn an_app_that_thousands_may_see_is_fine() {
    let surgery = Surgery::open().await;
    let users = vec![json!({"userid": "a-member-with-a-long-userid"}); 5000];
    let large =
        json!({"errcode": 0, "errmsg": "ok", "close": 0, "allow_userinfos": {"user": users}}).to_string();
    surgery.wecom.inject(Fault::answer(200, "application/json", large).on(AGENT_GET)).expect("a fault");
    says(&surgery.online().await, 0, &["agent/get ok"]);
}

#[tokio::test]
async fn a_closed_app_is_told() {
    let surgery = Surgery::open().await;
    let closed = Fault::answer(200, "application/json", r#"{"errcode":0,"errmsg":"ok","close":1}"#);
    surgery.wecom.inject(closed.on(AGENT_GET).times(1)).expect("a fault");
    says(
        &surgery.online().await,
        1,
        &["hr, agent/get: WeCom says that the app is closed", "enable it again"],
    );
}

#[tokio::test]
async fn three_refusals_in_a_row_are_enough() {
    let surgery = Surgery::with_wrong_secrets(5).await;
    let ended = surgery.online().await;
    says(&ended, 1, &["note: no more agents were asked about: three agents in a row were refused"]);
    assert!(ended.err.contains("3 of 5 agents failed, and 2 were not asked about"), "{}", ended.err);
    assert_eq!(surgery.called(), [GETTOKEN; 3]);
    let said = json_of(&surgery, PLAIN, &["--online"], 1).await;
    assert_eq!((&said["online"]["stopped"], &said["online"]["ok"]), (&json!("refusals"), &json!(false)));
    assert_eq!(said["agents"][3]["online"]["result"], "not-asked");
    assert_eq!(row(&ended, "agent3")[1..], ["-", "-", "not", "asked", "-"]);
}

#[tokio::test]
async fn a_refusal_between_good_agents_does_not_count_on() {
    let mut surgery = Surgery::with_wrong_secrets(5).await;
    surgery.settings.agents[1].secret = real_secret(1);
    let ended = surgery.online().await;
    assert!(ended.err.contains("4 of 5 agents failed"), "{}", ended.err);
    assert_eq!(row(&ended, "agent4")[1], "40001");
}

#[tokio::test]
async fn one_word_of_too_many_calls_is_enough() {
    let surgery = Surgery::open().await;
    surgery.wecom.inject(Fault::errcode(45009).on(GETTOKEN)).expect("a fault");
    let ended = surgery.online().await;
    says(&ended, 1, &["note: no more agents were asked about: WeCom says that there are too many calls"]);
    assert_eq!(surgery.called(), [GETTOKEN]);
}

#[tokio::test]
async fn a_clock_that_is_wrong_is_told() {
    let surgery = Surgery::open().await;
    let granted =
        r#"{"errcode":0,"errmsg":"ok","access_token":"a-token-that-nobody-sees","expires_in":7200}"#;
    let late =
        Fault::answer(200, "application/json", granted).with_header("date", "Fri, 01 Jan 2021 00:00:00 GMT");
    surgery.wecom.inject(late.on(GETTOKEN)).expect("a fault");
    surgery.wecom.inject(Fault::answer(200, "application/json", "{}").on(AGENT_GET)).expect("a fault");
    let ended = surgery.online().await;
    says(&ended, 0, &["note: this machine's clock is ", " s ahead of WeCom's"]);
    assert!(!format!("{ended:?}").contains("nobody-sees"), "{ended:?}");
}

#[tokio::test]
async fn what_is_no_answer_of_wecoms_is_told() {
    let surgery = Surgery::open().await;
    let page = Fault::answer(403, "text/html", "<html>a portal</html>").of("hr").times(1);
    surgery.wecom.inject(page.clone().on(GETTOKEN)).expect("a fault");
    surgery.wecom.inject(page.of("ops").on(AGENT_GET)).expect("a fault");
    let ended = surgery.online().await;
    says(
        &ended,
        1,
        &["hr, gettoken: gettoken was answered with HTTP 403", "upstream.url or upstream.via may lead"],
    );
    says(&ended, 1, &["ops, agent/get: it was answered with HTTP 403, and it is not JSON"]);
    assert_eq!(row(&ended, "hr")[1], "senseless");
}

#[tokio::test]
async fn a_gateway_that_says_the_url_back_gives_nothing_away() {
    let surgery = Surgery::open().await;
    let token = "a-token-that-nobody-sees";
    let granted = format!(r#"{{"errcode":0,"errmsg":"ok","access_token":"{token}","expires_in":7200}}"#);
    surgery.wecom.inject(Fault::answer(200, "application/json", granted).on(GETTOKEN)).expect("a fault");
    let echo = format!(r#"{{"errcode":1,"errmsg":"/cgi-bin/agent/get?access_token={token}"}}"#);
    surgery.wecom.inject(Fault::answer(200, "application/json", echo).on(AGENT_GET)).expect("a fault");
    for options in [&["--online"][..], &["--online", "--json"]] {
        let ended = surgery.check(PLAIN, options).await;
        says(&ended, 1, &["access_token=[masked]"]);
        assert!(!format!("{ended:?}").contains(token), "{ended:?}");
    }
}

/// A configuration for an upstream that is no WeCom.
fn away(upstream: &str) -> String {
    format!("[upstream]\n{upstream}\nconnect_timeout = \"2s\"\nresponse_timeout = \"2s\"\n{{agents}}")
}

/// An address where nobody listens.
async fn nobody() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    listener.local_addr().expect("an address")
}

#[tokio::test]
async fn a_way_that_leads_nowhere_is_told_once() {
    let surgery = Surgery::open().await;
    let nobody = nobody().await;
    let unknown = format!("{}.test", "x".repeat(63));
    for (upstream, words) in [
        (format!("url = \"http://{nobody}\""), "Connection refused (os error 111); nothing listens there"),
        (format!("url = \"http://{unknown}\""), "cannot resolve"),
        (
            format!("url = \"https://qyapi.weixin.qq.com\"\nvia = \"http://{nobody}\""),
            "the egress proxy (upstream.via): cannot connect",
        ),
    ] {
        let ended = surgery.check(&away(&upstream), &["--online"]).await;
        says(&ended, 1, &["hr, gettoken: WeCom cannot be reached: ", words, "whichever agent asks"]);
        assert_eq!(row(&ended, "hr")[1], "unreachable");
        assert_eq!(row(&ended, "ops")[3..5], ["not", "asked"]);
    }
}

#[tokio::test]
async fn a_silent_upstream_is_told_and_soon_left_alone() {
    let surgery = Surgery::with_wrong_secrets(4).await;
    surgery.wecom.inject(Fault::hold().on(GETTOKEN)).expect("a fault");
    let ended = surgery.check(&away("url = \"http://{api}\""), &["--online"]).await;
    says(
        &ended,
        1,
        &["no answer within upstream.response_timeout", "three agents in a row had no good answer"],
    );
    assert_eq!([row(&ended, "agent2")[1], row(&ended, "agent3")[1]], ["no-answer", "-"]);
}

#[tokio::test]
async fn a_tunnel_that_is_refused_is_told() {
    let egress = Simulator::local(Settings::default()).await.expect("what knows no CONNECT");
    let surgery = Surgery::open().await;
    let via = format!("url = \"https://qyapi.weixin.qq.com\"\nvia = \"http://{}\"", egress.api_addr());
    let ended = surgery.check(&away(&via), &["--online"]).await;
    says(&ended, 1, &["the egress proxy (upstream.via) refused the tunnel with 4", "must allow CONNECT"]);
}

#[tokio::test]
async fn a_certificate_that_is_not_trusted_is_told() {
    let (authority, other) = (Authority::new(), Authority::new());
    let serving = |identity: crate::certificates::Identity| Settings {
        tls: Some(identity.server_config(&["h2", "http/1.1"])),
        ..Settings::default()
    };
    let over_tls = |ca: Option<&Authority>| {
        let ca = ca.map(|ca| format!("ca_file = \"{}\"", ca.file().display())).unwrap_or_default();
        format!("[upstream]\nurl = \"https://{{api}}\"\n{ca}\n{{agents}}")
    };
    let surgery = Surgery::set(serving(authority.server("127.0.0.1"))).await;
    says(&surgery.check(&over_tls(Some(&authority)), &["--online"]).await, 0, &["agent/get ok"]);
    for ca in [None, Some(&other)] {
        let ended = surgery.check(&over_tls(ca), &["--online"]).await;
        says(&ended, 1, &["authority that is not trusted here: for a private one set upstream.ca_file"]);
    }
    let surgery = Surgery::set(serving(authority.expired("127.0.0.1"))).await;
    let ended = surgery.check(&over_tls(Some(&authority)), &["--online"]).await;
    says(&ended, 1, &["certificate has expired: renew it, or set this machine's clock"]);
    let (_, itself) = Authority::self_signed("127.0.0.1", |_| {});
    let surgery = Surgery::set(serving(itself)).await;
    let ended = surgery.check(&over_tls(Some(&other)), &["--online"]).await;
    says(
        &ended,
        1,
        &["certificate is self-signed and not trusted here: to trust it, set upstream.ca_file to it"],
    );
}

#[tokio::test]
async fn what_speaks_no_tls_is_told() {
    let surgery = Surgery::open().await;
    let ended = surgery.check("[upstream]\nurl = \"https://{api}\"\n{agents}", &["--online"]).await;
    says(&ended, 1, &["does not speak TLS: check the scheme and the port of upstream.url"]);
}

async fn json_of(surgery: &Surgery, toml: &str, options: &[&str], status: i32) -> Value {
    let ended = surgery.check(toml, &[options, &["--json"]].concat()).await;
    assert_eq!(ended.status, status, "{ended:?}");
    assert_eq!(ended.out.lines().count(), 1, "{}", ended.out);
    serde_json::from_str(&ended.out).expect("JSON")
}

#[tokio::test]
async fn programs_get_one_json_object() {
    let surgery = Surgery::open().await;
    let clients =
        "[clients.billing]\nkey = \"key-of-billing-0000000000\"\nagents = [\"hr\"]\nlimit = \"600/m\"\n";
    let said = json_of(&surgery, &format!("{PLAIN}{clients}"), &[], 0).await;
    assert_eq!((&said["valid"], &said["open"]), (&json!(true), &json!(false)));
    let hr = json!({"name":"hr","corpid":"ww1234567890abcdef","agentid":1_000_002,"limit":null});
    assert_eq!(said["agents"][0], hr);
    let billing = json!({"name":"billing","agents":["hr"],"allow":["/cgi-bin/*"],"limit":"600/m"});
    assert_eq!(said["clients"], json!([billing]));
    assert_eq!(said["warnings"][0]["key"], "agents.hr.secret");
    assert!(said.get("online").is_none() && said.get("error").is_none(), "{said}");
}

#[tokio::test]
async fn programs_get_what_wecom_said_too() {
    let surgery = Surgery::open().await;
    surgery.wecom.inject(Fault::errcode(60020).on(AGENT_GET).of("hr")).expect("a fault");
    let said = json_of(&surgery, PLAIN, &["--online"], 1).await;
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
fn sharing(redis: &Redis, key: &str) -> String {
    format!("{PLAIN}[tokens]\nstore = {{ redis = \"redis://{}\", key = \"{key}\" }}\n", redis.address())
}

#[tokio::test]
async fn the_store_is_tried_and_what_lies_there_is_read() {
    const OTHER_KEY: &str = "another-store-key-of-the-stories-012345";
    let surgery = Surgery::open().await;
    let mut redis = Redis::start().await;
    let toml = sharing(&redis, KEY);
    let fine = format!("the store at {}: ok", redis.address());
    says(&surgery.check(&toml, &["--online"]).await, 0, &[&fine, "tokens of 0 of 2 agents"]);

    let replica = Stage::facing(surgery.wecom.api_addr(), &format!("{OPEN}{}", &toml[PLAIN.len()..])).await;
    wait_for("the store", async || replica.proxy.store_trouble().is_none()).await;
    replica.get(USER_GET).await.is_ok();
    let before = redis.ask(&["--raw", "KEYS", "*:record"]).await;
    says(&surgery.check(&toml, &["--online"]).await, 0, &[&fine, "tokens of 1 of 2 agents"]);
    assert_eq!(redis.ask(&["--raw", "KEYS", "*:record"]).await, before);

    let other = surgery.check(&sharing(&redis, OTHER_KEY), &["--online"]).await;
    says(&other, 1, &["holds what this key cannot read, for hr", "the same tokens.store.key", "相同的"]);
    assert!(other.err.contains("the agents are fine, but the store"), "{}", other.err);
    let said =
        json_of(&surgery, &sharing(&redis, OTHER_KEY), &["--online"], 1).await["online"]["store"].clone();
    assert_eq!((&said["unreadable"], &said["hint"]["kind"]), (&json!(["hr"]), &json!("key")));
    let said = json_of(&surgery, &toml, &["--online"], 0).await["online"]["store"].clone();
    let facts = ["ok", "trouble", "readable", "hint"].map(|key| said[key].clone());
    assert_eq!(facts, [json!(true), Value::Null, json!(1), Value::Null]);
    assert_eq!(json_of(&surgery, PLAIN, &["--online"], 0).await["online"]["store"], Value::Null);

    // What can be wrong with it, and what to do then.
    drop(replica);
    let wrong = async |redis: &Redis, toml: &str, kind: &str| {
        let said = json_of(&surgery, toml, &["--online"], 1).await["online"]["store"].clone();
        assert_eq!(said["hint"]["kind"], kind, "{}: {said}", redis.address());
        for key in ["action_en", "action_zh"] {
            assert!(said["hint"][key].as_str().is_some_and(|words| !words.is_empty()), "{said}");
        }
        says(&surgery.check(toml, &["--online"]).await, 1, &["cannot be used", "What to do: ", "处理："]);
    };
    redis.ask(&["CONFIG", "SET", "maxmemory", "1"]).await;
    wrong(&redis, &toml, "full").await;
    redis.ask(&["CONFIG", "SET", "maxmemory", "0"]).await;
    redis.ask(&["REPLICAOF", "127.0.0.1", "1"]).await;
    wrong(&redis, &toml, "read-only").await;
    redis.ask(&["REPLICAOF", "NO", "ONE"]).await;
    wrong(&redis, &toml.replace("key =", "sentinel = \"mymaster\", key ="), "sentinel").await;
    redis.ask(&["ACL", "SETUSER", "default", "-publish"]).await;
    wrong(&redis, &toml, "rights").await;
    redis.ask(&["ACL", "SETUSER", "default", "+publish", ">a-password-of-the-stories"]).await;
    wrong(&redis, &toml, "password").await;
    wrong(&redis, &toml.replace("key =", "password = \"not-the-password\", key ="), "password").await;
    wrong(&redis, &toml.replace("redis://", "rediss://"), "unreachable").await;
    redis.kill().await;
    wrong(&redis, &toml, "unreachable").await;
}

#[tokio::test]
async fn programs_are_told_where_a_file_is_wrong() {
    let surgery = Surgery::open().await;
    let said = json_of(&surgery, "[server]\nlissten = 1\n{agents}", &["--online"], 2).await;
    assert_eq!((&said["valid"], &said["error"]["line"]), (&json!(false), &json!(2)));
    assert_eq!(said["error"]["key"], "server.lissten");
    std::fs::write(surgery.dir.path().join("ca.pem"), "no certificate").expect("a file");
    let unusable = "[upstream]\nurl = \"https://{api}\"\nca_file = \"ca.pem\"\n{agents}";
    let said = json_of(&surgery, unusable, &[], 2).await;
    assert!(said["error"]["what"].as_str().is_some_and(|what| what.contains("upstream.ca_file")), "{said}");
    assert_eq!(surgery.called(), [""; 0]);
}
