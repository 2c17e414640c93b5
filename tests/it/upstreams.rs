//! More than one upstream: `[upstreams.*]`.

use http::Request;
use wecom_proxy::simulator::{Fault, Settings, SimulatedAgent, Simulator};

use crate::{
    certificates::Authority,
    harness::{
        TestProxy, TestResponse, USER_GET, admin_get, agent_section, closed_port, wait_for, write_config,
    },
    leak_detector::start_simulator,
    process::run_wecom_proxy,
};

const USER_GET_PATH: &str = "/cgi-bin/user/get";
const GETTOKEN: &str = "/cgi-bin/gettoken";
const TICKET: &str = "/cgi-bin/get_jsapi_ticket";
const PREFIX: &str = "/wecom/v1";

/// The agent `hr` of both upstreams is at the private one `private-hr`.
const CONFIG: &str = r#"
[server]
listen = "127.0.0.1:0"
[upstream]
url = "http://{api}"
[upstreams.private]
url = "SCHEME://PRIVATE/wecom/v1"
MORE
[admin]
listen = "127.0.0.1:0"
{agents}
"#;

/// A private deployment, whose API is under a path prefix.
struct PrivateWecom {
    wecom: Simulator,
    authority: Option<Authority>,
}

impl PrivateWecom {
    async fn start() -> Self {
        Self { wecom: start_simulator(Self::settings()).await, authority: None }
    }

    /// Speaks HTTP/2 over TLS, with a certificate of an authority of its own.
    async fn start_with_tls() -> Self {
        let authority = Authority::new();
        let tls = Some(authority.issue_server("127.0.0.1").server_config(&["h2", "http/1.1"]));
        let wecom = start_simulator(Settings { tls, ..Self::settings() }).await;
        Self { wecom, authority: Some(authority) }
    }

    fn settings() -> Settings {
        Settings { path_prefix: PREFIX.to_owned(), ..Settings::default() }
    }

    /// The configuration with the agent `private-hr` beside those of [`CONFIG`]; `more` are further keys of
    /// `[upstreams.private]`.
    fn config(&self, more: &str) -> String {
        let scheme = if self.authority.is_some() { "https" } else { "http" };
        let ca_file = self.authority.as_ref().map(|authority| authority.ca_config_line() + "\n");
        CONFIG
            .replace("SCHEME", scheme)
            .replace("PRIVATE", &self.wecom.api_addr().to_string())
            .replace("MORE", &(ca_file.unwrap_or_default() + more))
            + &private_agent("upstream = \"private\"")
    }

    fn received(&self, path: &str) -> usize {
        self.wecom.observe(|observed| observed.received_count(path))
    }
}

/// An agent with the corpid and secret of `hr`.
fn private_agent(more: &str) -> String {
    let mut agent = Settings::default().agents.remove(0);
    agent.name = "private-hr".to_owned();
    agent_section(&agent, more)
}

fn received(proxy: &TestProxy, path: &str) -> usize {
    proxy.wecom.observe(|observed| observed.received_count(path))
}

async fn get(proxy: &TestProxy, agent: &str, path: &str) -> TestResponse {
    proxy.request(Request::get(format!("/{agent}{path}")), "").await
}

#[tokio::test]
async fn requests_tokens_and_tickets_go_to_the_agents_own_upstream() {
    for tls in [false, true] {
        let private = if tls { PrivateWecom::start_with_tls().await } else { PrivateWecom::start().await };
        let proxy = TestProxy::start_with_config(&private.config("")).await;
        get(&proxy, "private-hr", USER_GET).await.assert_ok();
        get(&proxy, "private-hr", TICKET).await.assert_ok();
        let posted = Request::post("/private-hr/cgi-bin/message/send");
        proxy
            .request(
                posted,
                r#"{"touser":"zhangsan","msgtype":"text","agentid":1000002,"text":{"content":"a"}}"#,
            )
            .await
            .assert_ok();
        assert_eq!(
            (private.received(GETTOKEN), private.received(USER_GET_PATH), private.received(TICKET)),
            (1, 1, 1)
        );
        assert_eq!(proxy.wecom.requests().len(), 0, "nothing went to [upstream]");
        let version = if tls { "HTTP/2.0" } else { "HTTP/1.1" };
        for record in private.wecom.requests() {
            assert_eq!(record.version, version);
            assert!(tls || record.header_values("host") == [private.wecom.api_addr().to_string()]);
        }
        get(&proxy, "hr", USER_GET).await.assert_ok();
        assert_eq!((received(&proxy, GETTOKEN), received(&proxy, USER_GET_PATH)), (1, 1));
        assert_eq!(private.received(USER_GET_PATH), 1);
    }
}

#[tokio::test]
async fn one_credential_on_two_upstreams_has_two_tokens() {
    let private = PrivateWecom::start().await;
    let proxy = TestProxy::start_with_config(&private.config("")).await;
    for agent in ["hr", "private-hr"] {
        get(&proxy, agent, USER_GET).await.assert_ok();
    }
    private.wecom.revoke_tokens("hr").expect("an agent");
    let retried = get(&proxy, "private-hr", USER_GET).await;
    assert_eq!(retried.assert_ok().header("x-wecom-retried"), "40014");
    assert_eq!(get(&proxy, "hr", USER_GET).await.assert_ok().header("x-wecom-retried"), "");
    assert_eq!((received(&proxy, GETTOKEN), private.received(GETTOKEN)), (1, 2));
}

#[tokio::test]
async fn hanging_upstream_takes_no_permits_of_the_other() {
    let private = PrivateWecom::start().await;
    let config = private.config("max_in_flight = 4\nqueue_timeout = \"10m\"\n");
    let proxy = TestProxy::start_with_config(&config).await;
    get(&proxy, "private-hr", USER_GET).await.assert_ok();
    private.wecom.inject(Fault::hold().on_path(USER_GET_PATH)).expect("a fault");
    let address = proxy.address();
    let calls: Vec<_> = (0..12)
        .map(|_| {
            tokio::spawn(async move {
                let mut client = crate::harness::TestClient::connect_http1(address).await;
                client.request(Request::get(format!("/private-hr{USER_GET}")), "").await
            })
        })
        .collect();
    private.wecom.wait_until(|observed| observed.in_flight() == 4).await.expect("requests");
    get(&proxy, "hr", USER_GET).await.assert_ok();
    let metrics = admin_get(&proxy, "/metrics").await;
    for line in [
        "wecom_proxy_in_flight 4",
        "wecom_proxy_upstream_in_flight{upstream=\"default\"} 0",
        "wecom_proxy_upstream_in_flight{upstream=\"private\"} 4",
        "wecom_proxy_upstream_connections{upstream=\"private\"} ",
    ] {
        assert!(metrics.text().contains(line), "{line}: {}", metrics.text());
    }
    private.wecom.release_held();
    for call in calls {
        call.await.expect("no panic").assert_ok();
    }
    assert!(private.wecom.observe(|observed| observed.max_in_flight()) <= 4);
}

#[tokio::test]
async fn unreachable_upstream_leaves_the_other_alone() {
    let private = PrivateWecom::start().await;
    let config =
        private.config("").replace(&private.wecom.api_addr().to_string(), &closed_port().to_string());
    let proxy = TestProxy::start_with_config(&config).await;
    get(&proxy, "private-hr", USER_GET).await.assert_proxy_error("token-unavailable", 502, -1);
    get(&proxy, "hr", USER_GET).await.assert_ok();
}

#[tokio::test]
async fn tls_error_names_the_keys_of_its_own_table() {
    let private = PrivateWecom::start_with_tls().await;
    let other = Authority::new();
    let trusted = private.authority.as_ref().expect("TLS").ca_file().display().to_string();
    let config = private.config("").replace(&trusted, &other.ca_file().display().to_string());
    let proxy = TestProxy::start_with_config(&config).await;
    let response = get(&proxy, "private-hr", USER_GET).await;
    response.assert_proxy_error("token-unavailable", 502, -1);
    assert!(response.text().contains("upstreams.private.ca_file"), "{}", response.text());
}

#[tokio::test]
async fn absolute_target_must_name_the_agents_own_upstream() {
    let private = PrivateWecom::start().await;
    let proxy = TestProxy::start_with_config(&private.config("")).await;
    let (public_address, private_address) = (proxy.wecom.api_addr(), private.wecom.api_addr());
    for (agent, named, expected) in [
        ("hr", public_address, "200"),
        ("private-hr", private_address, "200"),
        ("hr", private_address, "400"),
        ("private-hr", public_address, "400"),
    ] {
        let head = format!(
            "GET http://{named}/{agent}{USER_GET} HTTP/1.1\r\nHost: {named}\r\nConnection: close\r\n\r\n"
        );
        let response = proxy.send_raw(head).await;
        assert!(response.starts_with(&format!("HTTP/1.1 {expected} ")), "{agent} {named}: {response}");
    }
}

#[tokio::test]
async fn reload_applies_the_upstream_of_an_agent() {
    let private = PrivateWecom::start().await;
    let proxy = TestProxy::start_with_config(&private.config("")).await;
    get(&proxy, "private-hr", USER_GET).await.assert_ok();
    let config = private.config("").replace("upstream = \"private\"", "");
    proxy.rewrite_config(&config);
    assert_eq!(proxy.app.reload().expect("a reload").needs_restart, Vec::<&str>::new());
    get(&proxy, "private-hr", USER_GET).await.assert_ok();
    assert_eq!((private.received(USER_GET_PATH), received(&proxy, USER_GET_PATH)), (1, 1));
    let agents = admin_get(&proxy, "/api/agents").await.json()["agents"].clone();
    assert_eq!(
        (&agents[2]["name"], &agents[2]["upstream"]),
        (&"private-hr".into(), &serde_json::Value::Null)
    );

    proxy.rewrite_config(&private.config(""));
    proxy.app.reload().expect("a reload");
    get(&proxy, "private-hr", USER_GET).await.assert_ok();
    assert_eq!((private.received(USER_GET_PATH), received(&proxy, USER_GET_PATH)), (2, 1));
    let agents = admin_get(&proxy, "/api/agents").await.json()["agents"].clone();
    assert_eq!(
        (&agents[0]["upstream"], &agents[2]["upstream"]),
        (&serde_json::Value::Null, &"private".into())
    );
}

/// The running table stays; an agent that names an upstream of the new one alone would have nowhere to go.
#[tokio::test]
async fn reload_reports_a_changed_table_of_upstreams() {
    let private = PrivateWecom::start().await;
    let proxy = TestProxy::start_with_config(&private.config("")).await;
    let added = "[upstreams.another]\nurl = \"http://127.0.0.1:9\"\n";
    proxy.rewrite_config(&(private.config("") + added));
    assert_eq!(proxy.app.reload().expect("a reload").needs_restart, ["upstreams"]);
    get(&proxy, "private-hr", USER_GET).await.assert_ok();
    assert_eq!(private.received(USER_GET_PATH), 1, "the index of `private` has changed in the file only");

    let moved = private.config("").replace("upstream = \"private\"", "upstream = \"another\"");
    proxy.rewrite_config(&(moved + added));
    let error = proxy.app.reload().expect_err("no reload").to_string();
    assert!(error.contains("agents.private-hr.upstream: [upstreams.another] is new"), "{error}");
    get(&proxy, "private-hr", USER_GET).await.assert_ok();
    assert_eq!(private.received(USER_GET_PATH), 2);
}

#[tokio::test]
async fn reload_applies_the_ca_file_of_an_upstream() {
    let private = PrivateWecom::start_with_tls().await;
    let trusted = private.authority.as_ref().expect("TLS").ca_file();
    let other = Authority::new();
    let ca_file = trusted.with_file_name("trusted.pem");
    std::fs::copy(other.ca_file(), &ca_file).expect("a file");
    let config = private.config("").replace(&trusted.display().to_string(), &ca_file.display().to_string());
    let proxy = TestProxy::start_with_config(&config).await;
    get(&proxy, "private-hr", USER_GET).await.assert_proxy_error("token-unavailable", 502, -1);
    std::fs::copy(&trusted, &ca_file).expect("a file");
    assert_eq!(proxy.app.reload().expect("a reload").needs_restart, Vec::<&str>::new());
    wait_for("a token", async || get(&proxy, "private-hr", USER_GET).await.status == 200).await;
}

#[tokio::test]
async fn check_uses_each_agents_own_upstream() {
    let dir = tempfile::TempDir::new().expect("a directory");
    let private = PrivateWecom::start().await;
    private.wecom.add_agent(SimulatedAgent::new("it", "not-a-secret-it-0000000000000000000000000000", 3));
    let settings = Settings::default();
    // [upstream] cannot be reached, which must not keep the other from being checked.
    let path = write_config(&dir, closed_port(), &settings, &private.config(""));
    let path = path.to_str().expect("UTF-8");
    let output = run_wecom_proxy(&["check", "--config", path, "--online"]).await;
    let line = |agent: &str| {
        let lines = output.out.lines().filter(|line| line.starts_with(agent));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let url = format!("http://{}{PREFIX}", private.wecom.api_addr());
    assert!(line("private-hr ")[0].contains(&url), "{}", output.out);
    assert!(line("private-hr ")[1].contains("agent/get ok"), "{}", output.out);
    assert!(line("hr ")[1].contains("unreachable"), "{}", output.out);
    assert!(line("ops ")[1].contains("not checked"), "{}", output.out);
    assert_eq!(private.received("/cgi-bin/agent/get"), 1);
    let output = run_wecom_proxy(&["check", "--config", path, "--json"]).await;
    let json: serde_json::Value = serde_json::from_str(&output.out).expect("JSON");
    assert_eq!(
        (&json["agents"][0]["upstream"], &json["agents"][2]["upstream"]),
        (&serde_json::Value::Null, &"private".into())
    );
}
