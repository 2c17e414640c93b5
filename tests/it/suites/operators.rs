//! What operators see of suites and corps, and how they write corps: the admin API and `check --online`.

use http::Request;
use serde_json::{Value, json};

use super::{
    PROVIDER_ID, SUITE_ID, SUITES, authorize, corp_pass, errcode_of, get, get_keyless, json_of, post,
    receive_ticket, settings, start_without_ticket,
};
use crate::{
    harness::{TestClient, TestProxy, TestResponse, USER_GET, admin_get, sha256, wait_for, write_config},
    leak_detector,
    process::{Process, run_wecom_proxy},
};

const ADMIN_KEY: &str = "the-key-of-the-operator-0123456789";
const ALPHA: &str = "/api/agents/crm:wpAlpha_1";

/// [`SUITES`] with an admin key, and with these lines.
fn config(more: &str) -> String {
    let admin = format!("[admin]\nlisten = \"127.0.0.1:0\"\nkey_sha256 = \"{}\"\n", sha256(ADMIN_KEY));
    format!("{}{more}", SUITES.replace("[admin]\nlisten = \"127.0.0.1:0\"\n", &admin))
}

async fn start(more: &str) -> TestProxy {
    let proxy = start_without_ticket(&config(more)).await;
    receive_ticket(&proxy, "crm").await;
    proxy
}

/// A request at the admin listener with its key.
async fn call(proxy: &TestProxy, method: &str, path: &str, body: Value) -> TestResponse {
    let request = Request::builder().method(method).uri(path);
    let request = request.header("authorization", format!("Bearer {ADMIN_KEY}"));
    let request = request.header("content-type", "application/json");
    let body = if body.is_null() { String::new() } else { body.to_string() };
    TestClient::connect_http1(proxy.admin_address()).await.request(request, body).await
}

/// A corp that WeCom knows; its permanent code.
fn known_corp(proxy: &TestProxy, suite: &str, corpid: &str) -> String {
    proxy.wecom.add_authorized_corp(suite, corpid).expect("a suite")
}

#[tokio::test]
async fn suites_and_corps_are_listed_with_their_tokens() {
    let proxy = start("").await;
    for corpid in ["wpBeta_2", "wpAlpha_1", "wpGamma_3"] {
        authorize(&proxy, "isv", "crm", corpid).await;
    }
    get(&proxy, "isv", &format!("/crm:wpAlpha_1{USER_GET}")).await;
    // The permanent code that the proxy has of this corp is no longer the right one.
    known_corp(&proxy, "crm", "wpBeta_2");
    get(&proxy, "isv", &format!("/crm:wpBeta_2{USER_GET}")).await;
    let listed = json_of(&call(&proxy, "GET", "/api/suites", Value::Null).await);
    let suite = &listed["suites"][0];
    assert_eq!(
        (&suite["name"], &suite["suite_id"], &suite["provider"], &suite["customized"]),
        (&"crm".into(), &SUITE_ID.into(), &"acme".into(), &false.into())
    );
    assert_eq!(
        (&suite["corps"], &suite["corps_failing"], &suite["corps_refused"]),
        (&3.into(), &1.into(), &1.into())
    );
    assert_eq!((&suite["ticket_late"], &suite["token"]["state"]), (&false.into(), &"valid".into()));
    assert!(suite["ticket_age_seconds"].as_u64().is_some_and(|age| age < 60), "{suite}");
    assert_eq!(
        (&listed["suites"][1]["ticket_age_seconds"], &listed["suites"][1]["ticket_late"]),
        (&Value::Null, &true.into())
    );
    assert_eq!(listed["providers"][0]["corpid"], PROVIDER_ID);

    let page = json_of(&call(&proxy, "GET", "/api/suites/crm/corps?limit=2", Value::Null).await);
    let names = |page: &Value| -> Vec<String> {
        let rows = page["corps"].as_array().expect("rows").iter();
        rows.map(|row| row["name"].as_str().expect("a name").to_owned()).collect()
    };
    assert_eq!(names(&page), ["crm:wpAlpha_1", "crm:wpBeta_2"]);
    assert_eq!(
        (&page["next"], &page["corps"][0]["token"]["state"]),
        (&"crm:wpBeta_2".into(), &"valid".into())
    );
    assert!(page["corps"][1]["failing"].as_str().is_some_and(|text| text.contains("40084")), "{page}");
    for (query, expected) in [
        ("after=crm:wpBeta_2", ["crm:wpGamma_3"]),
        ("failing=1", ["crm:wpBeta_2"]),
        ("q=gamma", ["crm:wpGamma_3"]),
    ] {
        let page =
            json_of(&call(&proxy, "GET", &format!("/api/suites/crm/corps?{query}"), Value::Null).await);
        assert_eq!(
            (names(&page).as_slice(), &page["next"]),
            (&expected.map(str::to_owned)[..], &Value::Null),
            "{query}"
        );
    }
    for (path, status) in
        [("/api/suites/nothing/corps", 404), ("/api/suites/crm/corps?limit=0", 400), ("/api/suites/crm", 404)]
    {
        assert_eq!(call(&proxy, "GET", path, Value::Null).await.status.as_u16(), status, "{path}");
    }
    let metrics = call(&proxy, "GET", "/metrics", Value::Null).await;
    for sample in
        ["wecom_proxy_suite_corps{suite=\"crm\"} 3", "wecom_proxy_suite_corps_refused{suite=\"crm\"} 1"]
    {
        assert!(metrics.text().contains(sample), "{sample}");
    }
}

#[tokio::test]
async fn corp_is_put_shown_patched_and_deleted() {
    let proxy = start("").await;
    let code = known_corp(&proxy, "crm", "wpAlpha_1");
    let path = format!("/crm:wpAlpha_1{USER_GET}");
    assert_eq!(get(&proxy, "isv", &path).await.status.as_u16(), 404);
    let created = call(&proxy, "PUT", &format!("{ALPHA}?verify=1"), json!({ "permanent_code": code })).await;
    assert_eq!(created.status.as_u16(), 201, "{}", created.text());
    assert_eq!((created.header("location"), created.header("etag").starts_with("\"v")), (ALPHA, true));
    let shown = json!({ "suite": "crm", "corpid": "wpAlpha_1", "permanent_code": { "set": true }, "origin": "state" });
    assert_eq!(created.json(), shown);
    assert_eq!(errcode_of(&get(&proxy, "isv", &path).await), 0);
    assert_eq!(proxy.wecom.gettoken_count("crm:wpAlpha_1").expect("a corp"), 1, "the verified token serves");
    let pass = corp_pass(&proxy, "crm", "wpAlpha_1").await;

    // What GET shows can be put back, and a patch keeps the rest.
    let read = call(&proxy, "GET", ALPHA, Value::Null).await;
    assert_eq!((read.json(), read.header("etag")), (shown.clone(), created.header("etag")));
    assert_eq!(call(&proxy, "PUT", ALPHA, read.json()).await.status.as_u16(), 200);
    let patched = call(&proxy, "PATCH", ALPHA, json!({ "limit": "2/h", "agentid": 7 })).await;
    assert_eq!((patched.status.as_u16(), &patched.json()["limit"]), (200, &"2/h".into()));
    let statuses =
        [get(&proxy, "isv", &path).await, get(&proxy, "isv", &path).await, get(&proxy, "isv", &path).await];
    assert_eq!(statuses.map(|response| response.status.as_u16()), [200, 200, 429]);
    let unset = call(&proxy, "PATCH", ALPHA, json!({ "limit": null })).await;
    assert_eq!((unset.status.as_u16(), &unset.json()["agentid"]), (200, &7.into()));
    let target = format!("{USER_GET}&access_token={pass}");
    assert_eq!(errcode_of(&get_keyless(&proxy, &target).await), 0, "changes do not void passes");

    for (body, key) in [
        (json!({}), "agents.\"crm:wpAlpha_1\".permanent_code"),
        (json!({ "permanent_code": code, "corpid": "wpOther" }), "agents.\"crm:wpAlpha_1\".corpid"),
        (json!({ "permanent_code": { "env": "X" } }), "agents.\"crm:wpAlpha_1\".permanent_code"),
        (json!({ "permanent_code": code, "secret": "x-of-it" }), "agents.\"crm:wpAlpha_1\""),
        (json!({ "permanent_code": code, "limits": "1/s" }), "agents.\"crm:wpAlpha_1\".limits"),
    ] {
        let response = call(&proxy, "PUT", ALPHA, body).await;
        assert_eq!(
            (response.status.as_u16(), &response.json()["key"]),
            (422, &key.into()),
            "{}",
            response.text()
        );
    }
    let wrong =
        call(&proxy, "PUT", &format!("{ALPHA}?verify=1"), json!({ "permanent_code": "wrong-code" })).await;
    assert_eq!((wrong.status.as_u16(), &wrong.json()["errcode"]), (422, &40084.into()), "{}", wrong.text());

    assert_eq!(call(&proxy, "DELETE", ALPHA, Value::Null).await.status.as_u16(), 204);
    assert_eq!(call(&proxy, "DELETE", ALPHA, Value::Null).await.status.as_u16(), 404);
    assert_eq!(get(&proxy, "isv", &path).await.status.as_u16(), 404);
    assert_eq!(errcode_of(&get_keyless(&proxy, &target).await), 40014);
    assert_eq!(call(&proxy, "PUT", ALPHA, json!({ "permanent_code": code })).await.status.as_u16(), 201);
    assert_eq!(errcode_of(&get_keyless(&proxy, &target).await), 42001, "a pass from before stays void");
}

#[tokio::test]
async fn corp_of_the_file_is_read_only_and_answers_to_both_names() {
    let file = "[agents.crm-acme]\nsuite = \"crm\"\ncorpid = \"wpAlpha_1\"\npermanent_code = \"permanent-code-of-the-file-0\"\n";
    let proxy = start(file).await;
    for name in ["crm-acme", "crm:wpAlpha_1"] {
        let path = format!("/api/agents/{name}");
        let shown = call(&proxy, "GET", &path, Value::Null).await.json();
        assert_eq!((&shown["suite"], &shown["corpid"]), (&"crm".into(), &"wpAlpha_1".into()), "{name}");
        let refused = call(&proxy, "PUT", &path, json!({ "permanent_code": "another-code" })).await;
        assert!(refused.status == 409 && refused.text().contains("proxy.toml:"), "{}", refused.text());
    }
}

#[tokio::test]
async fn names_of_suites_are_not_taken_by_agents_of_the_state() {
    let proxy = start("").await;
    let agent = json!({ "corpid": "ww1", "secret": "a-secret-of-an-agent" });
    for (name, table) in [("crm", "suites.crm"), ("acme", "providers.acme")] {
        let refused = call(&proxy, "PUT", &format!("/api/agents/{name}"), agent.clone()).await;
        assert_eq!(refused.status.as_u16(), 409, "{}", refused.text());
        assert!(
            refused.text().contains(table) && refused.text().contains("proxy.toml:"),
            "{}",
            refused.text()
        );
    }
    // An agent of the state whose name a suite of the file takes later is out of force, and comes back.
    let path = proxy.dir.path().join("proxy.toml");
    let text = std::fs::read_to_string(&path).expect("a file");
    let without =
        text.replace("[suites.custom]", "[suites.templates]").replace("\"custom\"", "\"templates\"");
    std::fs::write(&path, without).expect("a file");
    proxy.app.reload().expect("a valid file");
    assert_eq!(call(&proxy, "PUT", "/api/agents/custom", agent.clone()).await.status.as_u16(), 201);
    std::fs::write(&path, text).expect("a file");
    proxy.app.reload().expect("a valid file");
    assert!(super::agent(&proxy, "custom").suite().is_some(), "the file's is in force");
    let agents = json_of(&call(&proxy, "GET", "/api/agents?q=custom", Value::Null).await);
    assert_eq!(agents["agents"], json!([]));
    let without =
        std::fs::read_to_string(&path).expect("a file").replace("[suites.custom]", "[suites.templates]");
    std::fs::write(&path, without.replace("\"custom\"", "\"templates\"")).expect("a file");
    proxy.app.reload().expect("a valid file");
    assert!(super::agent(&proxy, "custom").suite().is_none(), "the agent of the state is back");
}

#[tokio::test]
async fn stand_ins_end_with_their_client() {
    let proxy = start("").await;
    let key = "key-of-partner-0000000000";
    let partner = json!({ "key_sha256": sha256(key), "agents": ["crm"] });
    assert_eq!(call(&proxy, "PUT", "/api/clients/partner", partner.clone()).await.status.as_u16(), 201);
    let stand_in = json_of(&authorize(&proxy, "partner", "crm", "wpAlpha_1").await)["permanent_code"].clone();
    let path = "/crm/cgi-bin/service/v2/get_auth_info";
    let body = json!({ "auth_corpid": "wpAlpha_1", "permanent_code": stand_in });
    assert_eq!(errcode_of(&post(&proxy, "partner", path, body.clone()).await), 0);
    assert_eq!(call(&proxy, "DELETE", "/api/clients/partner", Value::Null).await.status.as_u16(), 204);
    assert_eq!(call(&proxy, "PUT", "/api/clients/partner", partner).await.status.as_u16(), 201);
    assert_eq!(
        errcode_of(&post(&proxy, "partner", path, body).await),
        40084,
        "the new client is another one"
    );
    // One that the file names ends with a reload.
    let stand_in = json_of(&authorize(&proxy, "suite", "crm", "wpAlpha_1").await)["permanent_code"].clone();
    let body = json!({ "auth_corpid": "wpAlpha_1", "permanent_code": stand_in });
    let file = proxy.dir.path().join("proxy.toml");
    let text = std::fs::read_to_string(&file).expect("a file");
    for text in [&text.replace("[clients.suite]", "[clients.other]"), &text] {
        std::fs::write(&file, text).expect("a file");
        proxy.app.reload().expect("a valid file");
    }
    wait_for("the end", async || errcode_of(&post(&proxy, "suite", path, body.clone()).await) == 40084).await;
}

#[tokio::test]
async fn online_check_tells_ticket_token_and_callback_of_suites() {
    let settings = settings();
    let wecom = leak_detector::start_simulator(settings.clone()).await;
    let dir = tempfile::TempDir::new().expect("a directory");
    let path = write_config(&dir, wecom.api_addr(), &settings, SUITES);
    let check = async |path: &std::path::Path| {
        let text = path.to_str().expect("UTF-8");
        let output = run_wecom_proxy(&["check", "--config", text, "--online", "--json"]).await;
        let human = run_wecom_proxy(&["check", "--config", text, "--online"]).await;
        (output.status, serde_json::from_str::<Value>(&output.out).expect("JSON"), human.out)
    };
    let (status, report, human) = check(&path).await;
    let online = |report: &Value, name: &str| {
        let all = report["suites"].as_array().expect("suites");
        all.iter().find(|suite| suite["name"] == name).expect("a suite")["online"].clone()
    };
    assert_eq!((status, &online(&report, "acme")["token"]), (1, &"ok".into()), "{report}");
    let crm = online(&report, "crm");
    assert_eq!(
        (&crm["token"], &crm["ticket"]["age_s"], &crm["callback"]),
        (&"not-asked".into(), &Value::Null, &"not-running".into())
    );
    assert!(human.contains("https://YOUR-HOST/callbacks/crm") && human.contains("指令回调URL"), "{human}");
    assert!(human.contains("\n/callbacks/crm/data"), "{human}");

    let proxy = Process::serve(&path).await;
    let address = proxy.address().await;
    for (suite, id, token) in [
        ("crm", SUITE_ID, "not-a-secret-token-of-crm"),
        ("custom", super::TEMPLATE_ID, "not-a-secret-token-of-custom"),
    ] {
        let callback = wecom_proxy::simulator::SimulatedCallback {
            name: suite.to_owned(),
            url: format!("http://{address}/callbacks/{suite}"),
            token: token.to_owned(),
            aes_key: "jWmYm7qr5nMoAUwZRjGtBxmz3KA1tkAj3ykkR6q2B2C".to_owned(),
            receive_id: id.to_owned(),
        };
        let pushed =
            wecom.push_suite_event(wecom_proxy::simulator::SuiteEvent::Ticket, &callback, None).await;
        assert_eq!(pushed.expect("a response").body, "success");
    }
    let text = std::fs::read_to_string(&path).expect("a file");
    let running = text.replacen("127.0.0.1:0", &address.to_string(), 1);
    std::fs::write(&path, &running).expect("a file");
    let (status, report, human) = check(&path).await;
    assert_eq!(status, 0, "{report}");
    for suite in ["crm", "custom"] {
        let online = online(&report, suite);
        assert_eq!((&online["ok"], &online["callback"]), (&true.into(), &"answers".into()), "{online}");
        assert!(online["ticket"]["age_s"].as_u64().is_some_and(|age| age < 60), "{online}");
    }
    assert!(human.contains("0 min old") && human.contains("answers"), "{human}");

    // Another token in the file than in the program, and a wrong secret.
    let wrong =
        running.replace("token-of-crm", "token-of-another").replace("secret-custom-0", "secret-custom-1");
    std::fs::write(&path, wrong).expect("a file");
    let (status, report, human) = check(&path).await;
    assert_eq!((status, &online(&report, "crm")["callback"]), (1, &"refused".into()), "{report}");
    assert_eq!(online(&report, "custom")["problem"]["errcode"], 40080, "{report}");
    assert!(human.contains("suite_secret") && human.contains("HTTP 403"), "{human}");
    assert_eq!(proxy.stop().await.status, 0);
}

#[tokio::test]
async fn admin_pages_of_suites_need_the_key() {
    let proxy = start("").await;
    for path in ["/api/suites", "/api/suites/crm/corps", ALPHA] {
        assert_eq!(admin_get(&proxy, path).await.status.as_u16(), 401, "{path}");
    }
}
