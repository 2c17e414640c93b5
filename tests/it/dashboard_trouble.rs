//! The dashboard when something is wrong: troubles, links to exchanges, a proxy that is gone; and editing.

use std::sync::Arc;

use http::Request;
use wecom_proxy::simulator::{Fault, SimulatedAgent};

use crate::{
    browser::Browser,
    harness::{CONFIG_WITH_CLIENTS, OPEN_CONFIG, TestProxy, USER_GET, get_as_client, sha256},
};

const KEY: &str = "the-key-of-the-operator-0123456789";
const STATE_KEY: &str = "the-key-of-the-state-0123456789-abcdef";
/// JavaScript: the number of exchanges in the list.
const ROW_COUNT: &str = "document.querySelectorAll('#requests tbody tr button').length";

/// The lower edge of the first agent in trouble, in pixels of the page.
const FIRST_TROUBLE: &str = "document.querySelector('#troubles li').getBoundingClientRect().bottom";

#[tokio::test]
async fn trouble_comes_first_and_leads_to_its_exchanges() {
    let proxy = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    proxy.wecom.inject(Fault::errcode(60020).on_path("/cgi-bin/user/simplelist")).expect("a fault");
    for _ in 0..3 {
        get_as_client(&proxy, "crm", &format!("/ops{USER_GET}")).await;
        get_as_client(&proxy, "crm", "/ops/cgi-bin/user/simplelist").await;
        get_as_client(&proxy, "billing", "/hr/cgi-bin/user/get?userid=absent-member").await;
    }
    let mut browser = Browser::start().await;
    for (width, height) in [(1440, 900), (1024, 768), (390, 844)] {
        browser.resize(width, height).await;
        browser.open_dashboard(proxy.admin_address()).await;
        browser.wait_for("document.querySelector('#troubles').innerText.includes('127.0.0.1')").await;
        let bottom = browser.eval(FIRST_TROUBLE).await.as_f64().expect("pixels");
        assert!(bottom < f64::from(height), "{width}: the first trouble ends at {bottom}");
        browser.wait_for("document.querySelector('#agents tbody tr').innerText.startsWith('ops')").await;
        if width == 1024 {
            let tallest =
                "Math.max(...[...document.querySelectorAll('tbody tr')].map((it) => it.offsetHeight))";
            assert!(browser.eval(tallest).await.as_f64() <= Some(120.0));
        }
        browser.screenshot(&format!("trouble-{width}")).await;
    }
    assert_eq!(browser.eval("document.title").await, "(1) wecom-proxy");
    assert!(browser.text("#health").await.contains("1 in trouble"));
    // Only the outages are red; the callers' mistakes are grey.
    let numbers = browser.text("#numbers").await;
    assert!(numbers.contains("caller's mistakes") && numbers.contains("outage"), "{numbers}");

    // The reason is a link to its exchanges, whose filter stands in the address.
    browser.click("#troubles .chip.bad").await;
    browser.wait_for(&format!("{ROW_COUNT} === 3")).await;
    let query = "new URLSearchParams(location.search)";
    assert_eq!(browser.eval(&format!("{query}.get('agent') + {query}.get('errcode')")).await, "ops60020");
    browser.eval("(location.reload(), true)").await;
    browser
        .wait_for(&format!(
            "performance.getEntriesByType('navigation')[0].type === 'reload' && {ROW_COUNT} === 3"
        ))
        .await;
    assert_eq!(browser.eval("document.querySelector('[name=errcode]').value").await, "60020");
    browser.eval("document.activeElement.blur()").await;
    press_slash(&mut browser).await;
    assert_eq!(browser.eval("document.activeElement.id").await, "agent-search");
    browser.assert_no_errors();
}

/// Presses the key that leads to the search.
async fn press_slash(browser: &mut Browser) {
    let key = serde_json::json!({ "type": "keyDown", "key": "/", "code": "Slash", "text": "/", "windowsVirtualKeyCode": 191 });
    browser.call("Input.dispatchKeyEvent", key).await;
}

#[tokio::test]
async fn page_of_a_proxy_that_is_gone_is_grey() {
    let proxy = Arc::new(TestProxy::start_with_config(OPEN_CONFIG).await);
    proxy.request(Request::get(USER_GET), "").await;
    let mut browser = Browser::start().await;
    browser.resize(1280, 1000).await;
    browser.open_dashboard(proxy.admin_address()).await;
    browser.wait_for("document.querySelectorAll('#agents tbody tr th').length > 0").await;
    assert_eq!(browser.eval("document.body.classList.contains('stale')").await, false);
    browser.call("Network.emulateNetworkConditions", serde_json::json!({ "offline": true, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1 })).await;
    browser.wait_for("document.body.classList.contains('stale')").await;
    browser.wait_for("/last answer \\d+ s ago/.test(document.querySelector('#notice').innerText)").await;
    browser.call("Network.emulateNetworkConditions", serde_json::json!({ "offline": false, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1 })).await;
    browser.wait_for("!document.body.classList.contains('stale')").await;
}

#[tokio::test]
async fn agents_and_clients_are_edited_on_the_page() {
    let state = format!(
        "key_sha256 = \"{}\"\n[state]\npath = \"{{dir}}/state.db\"\nkey = \"{STATE_KEY}\"\n",
        sha256(KEY)
    );
    let proxy = TestProxy::start_with_config(&CONFIG_WITH_CLIENTS.replace(
        "[admin]\nlisten = \"127.0.0.1:0\"\n",
        &format!("[admin]\nlisten = \"127.0.0.1:0\"\n{state}"),
    ))
    .await;
    let secret = "not-a-secret-it-0000000000000000000000000000";
    proxy.wecom.add_agent(SimulatedAgent::new("it", secret, 1_000_004));
    let mut browser = Browser::start().await;
    browser.login = Some(("operator", KEY));
    browser.call("Fetch.enable", serde_json::json!({ "handleAuthRequests": true })).await;
    browser.resize(1280, 1000).await;
    browser.open_dashboard(proxy.admin_address()).await;
    browser.wait_for("!document.querySelector('#add-agent').hidden").await;

    // A wrong secret is refused by WeCom before anything is saved.
    browser.click("#add-agent").await;
    for (field, text) in
        [("name", "it"), ("corpid", "ww1234567890abcdef"), ("secret", "wrong-secret-of-it-0000")]
    {
        browser.fill(&format!("#entry [name={field}]"), text).await;
    }
    browser.click("#entry [data-key=save]").await;
    browser.fill("#key-input", KEY).await;
    browser.click("#ask-yes").await;
    browser.wait_for("document.querySelector('#entry-message').innerText.includes('40001')").await;
    browser.fill("#entry [name=secret]", secret).await;
    browser.click("#entry [data-key=save]").await;
    browser.wait_for("document.querySelector('#notice').innerText.includes('it: saved')").await;
    browser.wait_for("document.querySelector('#agents').innerText.includes('it')").await;

    // A client gets a key, which serves at once.
    browser.click("#add-client").await;
    browser.fill("#entry [name=name]", "desktop").await;
    browser.fill("#entry [name=agents]", "it").await;
    browser.click("#entry [data-key=save]").await;
    browser.wait_for("document.querySelector('#exchange-title').innerText === 'desktop'").await;
    let key = browser.wait_for("document.querySelector('#made-key pre').innerText").await;
    let request = Request::get(format!("/it{USER_GET}"));
    let request = request.header("authorization", format!("Bearer {}", key.as_str().expect("a key")));
    proxy.request(request, "").await.assert_ok();
    assert_eq!(browser.eval("document.querySelectorAll('section.keys li').length").await, 1);
    browser.screenshot("client").await;
    browser.click("[data-key='new key']").await;
    browser.wait_for("document.querySelectorAll('section.keys li').length === 2").await;

    // What stands in the file is only shown.
    browser.press("Escape").await;
    browser.click("[data-key='edit agents hr']").await;
    browser.wait_for("document.querySelector('#entry').innerText.includes('proxy.toml')").await;
    assert_eq!(browser.eval("document.querySelector('#entry [name=corpid]').disabled").await, true);
    assert_eq!(browser.eval("document.querySelectorAll('#entry button').length").await, 0);
}
