//! `docs/suites.md`: its commands.

use serde_json::Value;
use wecom_proxy::simulator::{Settings, SimulatedCallback, SimulatedProvider, SimulatedSuite, SuiteEvent};

use super::*;
use crate::{
    harness::sha256,
    leak_detector,
    process::{Process, run, wecom_proxy},
};

const ADMIN_KEY: &str = "the-key-of-the-operator-0123456789";
const KEY: &str = "the-key-of-the-crm-app-0123456789";
const AES_KEY: &str = "jWmYm7qr5nMoAUwZRjGtBxmz3KA1tkAj3ykkR6q2B2C";
const SECRET: &str = "a-secret-of-the-page-0123456789";

/// The configuration of the page, in front of this simulator.
fn config_of_page(api: std::net::SocketAddr) -> Table {
    let fragments = block_texts("toml", "fragment");
    let page = fragments.iter().find(|text| text.contains("[suites.crm]") && text.contains("[admin]"));
    let page = page.expect("the configuration").replace("/var/lib/wecom-proxy/", "");
    let page = page.replacen(&"0".repeat(64), &sha256(ADMIN_KEY), 1).replace(&"0".repeat(64), &sha256(KEY));
    let page = page.replace("127.0.0.1:9090", "127.0.0.1:0");
    let mut config = parse_toml(&page);
    config.extend(parse_toml(&format!(
        "[server]\nlisten = \"127.0.0.1:0\"\n[upstream]\nurl = \"http://{api}\"\n"
    )));
    config
}

fn settings(config: &Table) -> Settings {
    let text = |section: &str, name: &str, key: &str| {
        config[section][name][key].as_str().expect("a text").to_owned()
    };
    Settings {
        providers: vec![SimulatedProvider {
            name: "acme".to_owned(),
            corpid: text("providers", "acme", "corpid"),
            secret: SECRET.to_owned(),
        }],
        suites: vec![SimulatedSuite {
            name: "crm".to_owned(),
            suite_id: text("suites", "crm", "suite_id"),
            secret: SECRET.to_owned(),
        }],
        ..Settings::default()
    }
}

#[tokio::test]
async fn documented_commands_for_suites_work() {
    let unused = "127.0.0.1:1".parse().expect("an address");
    let settings = settings(&config_of_page(unused));
    let suite_id = settings.suites[0].suite_id.clone();
    let wecom = leak_detector::start_simulator(settings).await;
    let code = wecom.add_authorized_corp("crm", "wp1234567890abcdef").expect("a suite");
    let dir = TempDir::new().expect("a directory");
    let path = dir.path().join("proxy.toml");
    fs::write(&path, config_of_page(wecom.api_addr()).to_string()).expect("a file");
    let mut command = wecom_proxy(&["--config", path.to_str().expect("UTF-8")]);
    command.env("WECOM_PROXY_STATE_KEY", "a-key-of-the-state-0123456789-0123456789");
    command.envs(["ACME_PROVIDER_SECRET", "CRM_SUITE_SECRET"].map(|name| (name, SECRET)));
    command.env("CRM_TOKEN", "a-token-of-the-page").env("CRM_AES_KEY", AES_KEY);
    let proxy = Process::start(command);
    let (listen, admin) = (proxy.address().await.to_string(), proxy.admin_address().await.to_string());
    let callback = SimulatedCallback {
        name: "crm".to_owned(),
        url: format!("http://{listen}/callbacks/crm"),
        token: "a-token-of-the-page".to_owned(),
        aes_key: AES_KEY.to_owned(),
        receive_id: suite_id,
    };
    wecom.push_suite_event(SuiteEvent::Ticket, &callback, None).await.expect("a response");

    let mut all = String::new();
    for block in block_texts("sh", "suites") {
        let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy");
        let script = block.replace(PROXY, &listen).replace(ADMIN, &admin);
        let script = format!("PATH={}:$PATH\n{script}", deploy.display());
        let mut shell = shell(&script, dir.path());
        shell.env("ADMIN_KEY", ADMIN_KEY).env("KEY", KEY).env("CRM_ACME_CODE", &code);
        let output = run(shell).await;
        assert_eq!(output.status, 0, "{block}\n{}\n{}", output.out, output.err);
        all.push_str(&output.out);
    }
    for expected in ["3rdapp/install?suite_id=", "1 created", "\"errcode\":0", "\"next\":null"] {
        assert!(all.contains(expected), "no {expected} in {all}");
    }
    let listed =
        all.lines().find_map(|line| line.split_once("{\"providers\":").map(|_| line)).unwrap_or_default();
    let start = listed.find("{\"providers\":").unwrap_or_default();
    let mut values = serde_json::Deserializer::from_str(&listed[start..]).into_iter::<Value>();
    let suites = values.next().expect("the suites").expect("JSON");
    assert_eq!(suites["suites"][0]["corps"], 1, "{suites}");
    assert!(!all.contains(&code) && !all.contains(SECRET), "{all}");
    assert_eq!(proxy.stop().await.status, 0);
}
