//! Replies of targets, which go back to WeCom.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::{CORPID, config, console, event, push, push_raw, target};
use crate::harness::{
    TestProxy, TestResponse,
    callback_target::{CallbackTarget, TargetResponse},
};

async fn start(receiver: &CallbackTarget, more: &str) -> TestProxy {
    let to = target("bot", format!("http://{}/", receiver.address), &format!("reply = true\n{more}"));
    TestProxy::start_with_config(&config(&format!("answer = \"success\"\n{to}"))).await
}

/// The decrypted reply, after its signature was verified.
fn decrypted(proxy: &TestProxy, response: &TestResponse, nonce: &str) -> (String, String) {
    let part = |name: &str| {
        let text = response.text();
        let open = [format!("<{name}><![CDATA["), format!("<{name}>")];
        let rest = open.iter().find_map(|open| text.split_once(open.as_str())).expect(name).1;
        rest.split(['<', ']']).next().unwrap_or_default().to_owned()
    };
    let encrypted = part("Encrypt");
    assert_eq!(part("Nonce"), nonce);
    assert_eq!(part("MsgSignature"), console(proxy).signature(&part("TimeStamp"), nonce, &encrypted));
    let (message, receive_id) = console(proxy).decrypt(&encrypted).expect("decrypted");
    (String::from_utf8(message).expect("UTF-8"), receive_id)
}

fn nonce_of(query: &str) -> String {
    query.split_once("nonce=").expect("a nonce").1.to_owned()
}

#[tokio::test]
async fn reply_is_encrypted_in_the_format_of_the_push() {
    let receiver = CallbackTarget::start().await;
    let proxy = start(&receiver, "").await;
    let reply = "<xml><MsgType><![CDATA[text]]></MsgType><Content><![CDATA[好]]></Content></xml>";
    receiver.respond([TargetResponse::body(reply)]);
    let (query, body) = console(&proxy).encrypted_push(event("x", 1).as_bytes(), false);
    let response = push_raw(&proxy, &query, body).await;
    let expected = (reply.to_owned(), CORPID.to_owned());
    assert_eq!(decrypted(&proxy, &response, &nonce_of(&query)), expected);

    receiver.respond([TargetResponse::body(r#"{"msgtype":"stream"}"#)]);
    let (query, body) = console(&proxy).encrypted_push(br#"{"msgid":"1"}"#, true);
    let response = push_raw(&proxy, &query, body).await;
    let json = response.json();
    let encrypted = json["encrypt"].as_str().expect("a text");
    assert_eq!(json["nonce"], nonce_of(&query));
    let timestamp = json["timestamp"].as_u64().expect("a number").to_string();
    assert_eq!(json["msgsignature"], console(&proxy).signature(&timestamp, &nonce_of(&query), encrypted));
    assert_eq!(console(&proxy).decrypt(encrypted).expect("decrypted").0, br#"{"msgtype":"stream"}"#);
    assert_eq!(receiver.received().len(), 2);
}

#[tokio::test]
async fn nothing_to_say_is_the_answer() {
    let receiver = CallbackTarget::start().await;
    let proxy = start(&receiver, "").await;
    receiver.respond([
        TargetResponse::body(""),
        TargetResponse::body("success"),
        TargetResponse::Respond(500, Bytes::from_static(b"no"), Duration::ZERO),
    ]);
    for number in 0..3 {
        assert_eq!(push(&proxy, &event("x", number)).await.text(), "success");
    }
    // The third is repeated like any other.
    assert_eq!(receiver.wait_for(4).await[3].header("x-wecom-attempt"), "2");
}

#[tokio::test]
async fn late_reply_is_not_waited_for() {
    let receiver = CallbackTarget::start().await;
    let proxy = start(&receiver, "").await;
    receiver.respond([TargetResponse::Respond(
        200,
        Bytes::from_static(b"late"),
        Duration::from_millis(4500),
    )]);
    let before = Instant::now();
    assert_eq!(push(&proxy, &event("x", 1)).await.text(), "", "not the answer of the file");
    assert!(before.elapsed() >= Duration::from_millis(3900), "{:?}", before.elapsed());
    // It was delivered, so it is not repeated: the next one is number two.
    push(&proxy, &event("y", 2)).await;
    assert_eq!(receiver.wait_for(2).await[1].header("x-wecom-event"), "y");
}

#[tokio::test]
async fn raw_reply_goes_back_as_it_is() {
    let receiver = CallbackTarget::start().await;
    let proxy = start(&receiver, "form = \"raw\"").await;
    receiver.respond([TargetResponse::body("<xml><Encrypt>E</Encrypt></xml>")]);
    assert_eq!(push(&proxy, &event("x", 1)).await.text(), "<xml><Encrypt>E</Encrypt></xml>");
}

#[tokio::test]
async fn reencrypted_reply_is_encrypted_again() {
    let receiver = CallbackTarget::start().await;
    let lines = "form = \"reencrypt\"\ntoken = \"token-of-the-target\"\naes_key = \"abcdefghijklmnopqrstuvwxyz0123456789ABCDEFG\"\nreceive_id = \"wwtarget\"";
    let proxy = start(&receiver, lines).await;
    let keys = wecom_proxy::simulator::SimulatedCallback {
        aes_key: "abcdefghijklmnopqrstuvwxyz0123456789ABCDEFG".to_owned(),
        receive_id: "wwtarget".to_owned(),
        ..console(&proxy)
    };
    let encrypted = keys.encrypt(b"<xml>reply</xml>");
    receiver
        .respond([TargetResponse::body(format!("<xml><Encrypt><![CDATA[{encrypted}]]></Encrypt></xml>"))]);
    let (query, body) = console(&proxy).encrypted_push(event("x", 1).as_bytes(), false);
    let response = push_raw(&proxy, &query, body).await;
    let expected = ("<xml>reply</xml>".to_owned(), CORPID.to_owned());
    assert_eq!(decrypted(&proxy, &response, &nonce_of(&query)), expected);
}
