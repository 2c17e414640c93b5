//! `check --online` looks at callbacks, too.

use serde_json::{Value, json};

use super::{config, event, push, target};
use crate::{
    harness::{TestProxy, callback_target::CallbackTarget, closed_port},
    process::{ExitOutput, run_wecom_proxy},
};

async fn check(proxy: &TestProxy, options: &[&str]) -> ExitOutput {
    let path = proxy.dir.path().join("proxy.toml");
    let arguments = [&["check", "--online", "--config", path.to_str().expect("UTF-8")], options].concat();
    run_wecom_proxy(&arguments).await
}

#[tokio::test]
async fn callbacks_are_checked_without_a_message() {
    let receiver = CallbackTarget::start().await;
    let crm = target("crm", format!("http://{}/", receiver.address), "");
    let proxy = TestProxy::start_with_config(&config(&crm)).await;
    let output = check(&proxy, &[]).await;
    let row = |output: &ExitOutput, target: &str| {
        let mut rows =
            output.out.lines().map(|line| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
        rows.find(|row| row.len() == 4 && row[1] == target).unwrap_or_default()
    };
    assert_eq!(
        (output.status, row(&output, "crm").join(" ")),
        (0, "/callbacks/hr crm ok 0".to_owned()),
        "{}",
        output.out
    );
    push(&proxy, &event("x", 1)).await;
    receiver.wait_for(1).await;
    let output = check(&proxy, &[]).await;
    assert_eq!(row(&output, "crm").join(" "), "/callbacks/hr crm ok 1");
    for text in
        ["127.0.0.1 pushed valid messages", "getcallbackip", "server.trusted_proxies", "What to do", "处理"]
    {
        assert!(output.out.contains(text), "{text}: {}", output.out);
    }
    // The token of the tests is not one of the console's.
    assert_eq!(output.status, 0, "what should only be looked at is no failure: {}", output.out);
    assert!(output.out.contains("at most 32 letters and digits"), "{}", output.out);
    proxy.rewrite_config(&config(&(crm + &target("gone", format!("http://{}/", closed_port()), ""))));
    let output = check(&proxy, &[]).await;
    assert_eq!(
        (output.status, row(&output, "gone").join(" ")),
        (1, "/callbacks/hr gone unreachable 1".to_owned())
    );
    assert!(output.out.contains("target gone cannot be reached: connection failed: "), "{}", output.out);
    assert!(output.err.contains("all agents passed, but 1 of 1 callbacks need attention"), "{}", output.err);
    let json: Value = serde_json::from_str(&check(&proxy, &["--json"]).await.out).expect("JSON");
    let callback = &json["online"]["callbacks"][0];
    assert_eq!(
        (&callback["name"], &callback["ok"], &callback["callers"]),
        (&json!("hr"), &json!(false), &json!(1))
    );
    let targets = json!([{"name": "crm", "reachable": true}, {"name": "gone", "reachable": false}]);
    assert_eq!(callback["targets"], targets);
    let kinds = callback["problems"].as_array().expect("a list").iter().map(|problem| &problem["kind"]);
    assert_eq!(kinds.collect::<Vec<_>>(), ["token", "target", "callers"]);
    assert!(!format!("{output:?}{json}").contains(super::TOKEN), "no secret is shown");
    assert_eq!(receiver.received().len(), 1, "no message is sent");
}
