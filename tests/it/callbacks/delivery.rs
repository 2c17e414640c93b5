//! Delivery to targets.

use hmac::{Hmac, KeyInit, Mac};
use http::StatusCode;
use sha2::Sha256;
use wecom_proxy::simulator::SimulatedCallback;

use super::{config, console, event, push, push_raw, target};
use crate::certificates::Authority;
use crate::harness::{
    TestProxy, TestResponse,
    callback_target::{CallbackTarget, Delivery, TargetResponse},
    wait_for,
};

async fn start(receiver: &CallbackTarget, more: &str) -> TestProxy {
    let to = target("crm", format!("http://{}/wecom?a=b", receiver.address), more);
    TestProxy::start_with_config(&config(&to)).await
}

fn assert_accepted(response: &TestResponse) {
    assert_eq!(response.status, StatusCode::OK, "{}", response.text());
}

#[tokio::test]
async fn plain_message_is_delivered_as_wecom_wrote_it() {
    let receiver = CallbackTarget::start().await;
    let proxy = start(&receiver, "").await;
    // Formatting that no serialiser would keep.
    let message = "<xml>\r\n <Event><![CDATA[a]]></Event><Event >b</Event>&#x4e00;</xml> ";
    assert_accepted(&push(&proxy, message).await);
    let delivery = &receiver.wait_for(1).await[0];
    assert_eq!((delivery.target.as_str(), delivery.text()), ("/wecom?a=b", message));
    assert_eq!(delivery.header("content-type"), "application/xml; charset=utf-8");
    assert_eq!(delivery.header("x-wecom-callback"), "hr");
    assert_eq!(delivery.header("x-wecom-event"), "a");
    assert_eq!(delivery.header("x-wecom-attempt"), "1");
    assert_eq!(delivery.header("x-wecom-event-id").len(), 28);
    assert_eq!(delivery.header("x-wecom-callback-signature"), "");
}

#[tokio::test]
async fn json_message_is_delivered_as_json() {
    let receiver = CallbackTarget::start().await;
    let proxy = start(&receiver, "").await;
    let message = r#"{ "msgtype":"event","event":{"eventtype":"enter_chat"} }"#;
    let (query, body) = console(&proxy).encrypted_push(message.as_bytes(), true);
    assert_accepted(&push_raw(&proxy, &query, body).await);
    let delivery = &receiver.wait_for(1).await[0];
    assert_eq!((delivery.text(), delivery.header("x-wecom-event")), (message, "enter_chat"));
    assert_eq!(delivery.header("content-type"), "application/json; charset=utf-8");
}

#[tokio::test]
async fn plain_message_is_signed_with_the_secret() {
    let receiver = CallbackTarget::start().await;
    let proxy = start(&receiver, "secret = \"secret-of-the-target\"").await;
    assert_accepted(&push(&proxy, &event("x", 1)).await);
    let delivery = &receiver.wait_for(1).await[0];
    let signature = delivery.header("x-wecom-callback-signature");
    let (time, signature) =
        signature.strip_prefix("t=").and_then(|rest| rest.split_once(",v1=")).expect("two parts");
    let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(b"secret-of-the-target").expect("a key");
    mac.update(format!("{time}.{}", delivery.text()).as_bytes());
    let expected: String = mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(signature, expected);
}

#[tokio::test]
async fn raw_message_is_delivered_with_its_query() {
    let receiver = CallbackTarget::start().await;
    let proxy = start(&receiver, "form = \"raw\"").await;
    let (query, body) = console(&proxy).encrypted_push(event("x", 1).as_bytes(), false);
    let query = format!("{query}&more=%20");
    assert_accepted(&push_raw(&proxy, &query, body.clone()).await);
    let delivery = &receiver.wait_for(1).await[0];
    assert_eq!((delivery.target.as_str(), delivery.text()), (&*format!("/wecom?a=b&{query}"), &*body));
    assert_eq!(delivery.header("content-type"), "text/xml");
}

/// The message of a re-encrypted delivery, after its signature was verified with the target's keys.
fn open(keys: &SimulatedCallback, delivery: &Delivery) -> (Vec<u8>, String) {
    let query = delivery.target.split_once("?a=b&").expect("the query").1;
    let value = |name: &str| {
        let pair = query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
        pair.unwrap_or_default().to_owned()
    };
    let body = delivery.text();
    let encrypted = match body.split_once("<Encrypt><![CDATA[") {
        Some((_, rest)) => rest.split_once("]]>").expect("the end").0.to_owned(),
        None => serde_json::from_str::<serde_json::Value>(body).expect("JSON")["encrypt"]
            .as_str()
            .expect("text")
            .to_owned(),
    };
    assert_eq!(value("msg_signature"), keys.signature(&value("timestamp"), &value("nonce"), &encrypted));
    keys.decrypt(&encrypted).expect("decrypted")
}

#[tokio::test]
async fn message_is_reencrypted_under_the_targets_keys() {
    let receiver = CallbackTarget::start().await;
    let keys = SimulatedCallback {
        name: "crm".to_owned(),
        url: String::new(),
        token: "token-of-the-target".to_owned(),
        aes_key: "abcdefghijklmnopqrstuvwxyz0123456789ABCDEFG".to_owned(),
        receive_id: "wwtarget".to_owned(),
    };
    let lines = format!(
        "form = \"reencrypt\"\ntoken = \"{}\"\naes_key = \"{}\"\nreceive_id = \"wwtarget\"",
        keys.token, keys.aes_key
    );
    let proxy = start(&receiver, &lines).await;
    assert_accepted(&push(&proxy, &event("x", 1)).await);
    let delivery = receiver.wait_for(1).await.remove(0);
    assert_eq!(open(&keys, &delivery), (event("x", 1).into_bytes(), "wwtarget".to_owned()));
    assert!(delivery.text().contains("<ToUserName><![CDATA[wwtarget]]></ToUserName>"), "{}", delivery.text());
    let (query, body) = console(&proxy).encrypted_push(br#"{"msgtype":"text"}"#, true);
    assert_accepted(&push_raw(&proxy, &query, body).await);
    let delivery = receiver.wait_for(2).await.remove(1);
    assert_eq!(open(&keys, &delivery).0, br#"{"msgtype":"text"}"#);
}

#[tokio::test]
async fn only_listed_events_are_delivered() {
    let receiver = CallbackTarget::start().await;
    let proxy = start(&receiver, "events = [\"change_contact\", \"text\", \"suite_ticket\"]").await;
    for message in [
        event("other", 1),
        "<xml><InfoType>create_auth</InfoType></xml>".to_owned(),
        event("change_contact", 2),
        "<xml><MsgType>text</MsgType></xml>".to_owned(),
        "<xml><InfoType>suite_ticket</InfoType></xml>".to_owned(),
    ] {
        assert_accepted(&push(&proxy, &message).await);
    }
    let mut events: Vec<_> = receiver
        .wait_for(3)
        .await
        .iter()
        .map(|delivery| delivery.header("x-wecom-event").to_owned())
        .collect();
    events.sort();
    assert_eq!(events, ["change_contact", "suite_ticket", "text"]);
}

#[tokio::test]
async fn failed_delivery_is_repeated_until_it_succeeds() {
    let receiver = CallbackTarget::start().await;
    receiver.respond([TargetResponse::status(500), TargetResponse::status(302)]);
    let proxy = start(&receiver, "").await;
    assert_accepted(&push(&proxy, &event("x", 1)).await);
    let deliveries = receiver.wait_for(3).await;
    let attempts: Vec<_> = deliveries.iter().map(|delivery| delivery.header("x-wecom-attempt")).collect();
    assert_eq!(attempts, ["1", "2", "3"]);
    let ids: Vec<_> = deliveries.iter().map(|delivery| delivery.header("x-wecom-event-id")).collect();
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    assert!(deliveries.iter().all(|delivery| delivery.body == deliveries[0].body));
}

#[tokio::test]
async fn hanging_target_delays_no_other() {
    let (hanging, receiver) = (CallbackTarget::start().await, CallbackTarget::start().await);
    hanging.respond(vec![TargetResponse::Hang; 100]);
    let to = target("hanging", format!("http://{}/", hanging.address), "")
        + &target("crm", format!("http://{}/", receiver.address), "");
    let proxy = TestProxy::start_with_config(&config(&to)).await;
    for number in 0..40 {
        assert_accepted(&push(&proxy, &event("x", number)).await);
    }
    assert_eq!(receiver.wait_for(40).await.len(), 40);
    assert!(hanging.max_in_flight() <= 16, "{}", hanging.max_in_flight());
}

#[tokio::test]
async fn burst_is_delivered_once_each_from_memory_and_state() {
    let receiver = CallbackTarget::start().await;
    // The first ones hold up the rest, so that not all of them wait in memory.
    let slow = TargetResponse::Respond(200, bytes::Bytes::new(), std::time::Duration::from_millis(400));
    receiver.respond(vec![slow; 16]);
    let proxy = start(&receiver, "").await;
    let push_some = async |part: usize| {
        for number in (part * 50)..(part * 50 + 50) {
            assert_accepted(&push(&proxy, &event("x", number)).await);
        }
    };
    tokio::join!(push_some(0), push_some(1), push_some(2), push_some(3), push_some(4));
    receiver.wait_for(250).await;
    wait_for("an empty queue", async || super::operators::listed_target(&proxy, 0).await["pending"] == 0)
        .await;
    let mut received: Vec<_> = receiver.received().iter().map(|one| one.text().to_owned()).collect();
    received.sort();
    received.dedup();
    assert_eq!((received.len(), receiver.received().len()), (250, 250), "each once");
    assert!(receiver.max_in_flight() <= 16, "{}", receiver.max_in_flight());
}

#[tokio::test]
async fn ordered_target_gets_one_message_at_a_time() {
    let receiver = CallbackTarget::start().await;
    receiver.respond([TargetResponse::status(503)]);
    let proxy = start(&receiver, "ordered = true").await;
    for number in 0..10 {
        assert_accepted(&push(&proxy, &event("x", number)).await);
    }
    let deliveries = receiver.wait_for(11).await;
    let expected: Vec<_> = std::iter::once(0).chain(0..10).map(|number| event("x", number)).collect();
    let received: Vec<_> = deliveries.iter().map(|delivery| delivery.text().to_owned()).collect();
    assert_eq!(received, expected, "the first one is repeated before the second");
    assert_eq!(receiver.max_in_flight(), 1);
}

#[tokio::test]
async fn target_may_be_https_with_a_certificate_of_its_own() {
    let authority = Authority::new();
    let receiver = CallbackTarget::start_tls(authority.issue_server("localhost").server_config(&[])).await;
    let url = format!("https://localhost:{}/", receiver.address.port());
    let to = target("own", &url, &authority.ca_config_line()) + &target("built-in", &url, "");
    let proxy = TestProxy::start_with_config(&config(&to)).await;
    assert_accepted(&push(&proxy, &event("x", 1)).await);
    assert_eq!(receiver.wait_for(1).await[0].text(), event("x", 1));
    wait_for("the refusal", async || {
        let error = super::operators::listed_target(&proxy, 1).await["last_error"].to_string();
        error.contains("certificate")
    })
    .await;
    assert_eq!(receiver.received().len(), 1, "the built-in authorities do not vouch for it");
}

#[tokio::test]
async fn target_may_be_a_unix_socket() {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("app.sock");
    let receiver = CallbackTarget::start_unix(&socket);
    let to = target("app", format!("unix:{}:/path?x", socket.display()), "");
    let proxy = TestProxy::start_with_config(&config(&to)).await;
    assert_accepted(&push(&proxy, &event("x", 1)).await);
    let delivery = &receiver.wait_for(1).await[0];
    assert_eq!((delivery.target.as_str(), delivery.header("host")), ("/path?x", "localhost"));
}

#[tokio::test]
async fn pending_messages_are_delivered_after_a_restart() {
    let receiver = CallbackTarget::start().await;
    let to = target("crm", format!("http://{}/", crate::harness::closed_port()), "");
    let proxy = TestProxy::start_with_config(&config(&to)).await;
    for number in 0..3 {
        assert_accepted(&push(&proxy, &event("x", number)).await);
    }
    let to = target("crm", format!("http://{}/", receiver.address), "");
    proxy.rewrite_config(&config(&to));
    let proxy = proxy.restart().await;
    let mut received: Vec<_> =
        receiver.wait_for(3).await.iter().map(|delivery| delivery.text().to_owned()).collect();
    received.sort();
    assert_eq!(received, (0..3).map(|number| event("x", number)).collect::<Vec<_>>());
    // Messages from before are recognised, too.
    assert_accepted(&push(&proxy, &event("x", 1)).await);
    let sample = "wecom_proxy_callbacks_total{callback=\"hr\",result=\"duplicate\"}";
    assert_eq!(super::metric(&proxy, sample).await, 1);
}

#[tokio::test]
async fn reload_changes_the_targets() {
    let (first, second) = (CallbackTarget::start().await, CallbackTarget::start().await);
    let proxy = start(&first, "").await;
    assert_accepted(&push(&proxy, &event("x", 1)).await);
    first.wait_for(1).await;
    let to = target("crm", format!("http://{}/", second.address), "")
        + &target("more", format!("http://{}/more", second.address), "");
    proxy.rewrite_config(&config(&to));
    proxy.app.reload().expect("a valid file");
    assert_accepted(&push(&proxy, &event("x", 2)).await);
    assert_eq!(second.wait_for(2).await.len(), 2);
    proxy.rewrite_config(&config("").replace("[callbacks.hr]", "[callbacks.it]"));
    proxy.app.reload().expect("a valid file");
    assert_eq!(push(&proxy, &event("x", 3)).await.status, StatusCode::NOT_FOUND);
    wait_for("no delivery", async || (first.received().len(), second.received().len()) == (1, 2)).await;
}
