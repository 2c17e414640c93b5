//! `key NAME`: a key that is shown once, and the lines that let it in.

use std::fs;

use http::Request;

use crate::{
    gettoken::{gettoken_target, pass_from_response, send_get},
    harness::{OPEN_CONFIG, TestProxy, USER_GET},
    process::{ExitOutput, run_wecom_proxy},
};

/// The key, and the lines for the file.
#[track_caller]
fn split_output(ended: &ExitOutput) -> (String, String) {
    assert_eq!((ended.status, &*ended.err), (0, ""));
    let (key, rest) = ended.out.split_once('\n').expect("a first line");
    assert!(key.len() >= 32 && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)));
    assert!(!rest.contains(key), "it is shown twice");
    (key.to_owned(), rest.to_owned())
}

#[tokio::test]
async fn printed_config_accepts_only_the_printed_key() {
    let (key, lines) = split_output(&run_wecom_proxy(&["key", "billing"]).await);
    let (other, _) = split_output(&run_wecom_proxy(&["key", "billing"]).await);
    assert_ne!(key, other);
    let stage = TestProxy::start_with_config(&format!("{OPEN_CONFIG}\n{lines}")).await;
    let text = fs::read_to_string(stage.dir.path().join("proxy.toml")).expect("the file");
    assert!(text.contains("[clients.billing]") && !text.contains(&key));
    let show =
        |key: &str| Request::get(format!("/ops{USER_GET}")).header("authorization", format!("Bearer {key}"));
    stage.request(show(&key), "").await.assert_ok();
    pass_from_response(&send_get(&stage, format!("/hr{}", gettoken_target(&key))).await);
    stage.request(show(&other), "").await.assert_proxy_error("unauthenticated", 401, 40001);
    send_get(&stage, format!("/hr{USER_GET}")).await.assert_proxy_error("unauthenticated", 401, 40001);
}

#[tokio::test]
async fn key_and_hash_mixed_up_is_explained() {
    let (key, lines) = split_output(&run_wecom_proxy(&["key", "billing"]).await);
    let hash = lines.split('"').find(|word| word.len() == 64).expect("a hash").to_owned();
    let shown = |key: &str| Request::get(format!("/ops{USER_GET}")).header("x-api-key", key);
    // The hash sent as the key, and the key written as the hash.
    for both in [&hash, &key] {
        let stage =
            TestProxy::start_with_config(&format!("{OPEN_CONFIG}\n{}", lines.replace(&hash, both))).await;
        let reply = stage.request(shown(both), "").await;
        let words = reply.assert_proxy_error("unauthenticated", 401, 40001).text();
        assert!(words.contains("key_sha256 sent") && !words.contains(both), "{words}");
        let reply = stage.request(shown(&both.replace(|any| any > 'b', "a")), "").await;
        assert!(!reply.assert_proxy_error("unauthenticated", 401, 40001).text().contains("key_sha256"));
    }
}

#[tokio::test]
async fn printed_config_can_be_pasted() {
    let (_, lines) = split_output(&run_wecom_proxy(&["key", "a-b_C9"]).await);
    let odd: Vec<_> = lines.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    assert_eq!(odd.len(), 3, "{lines}");
    assert_eq!(odd[0], "[clients.a-b_C9]");
    assert!(odd[1].starts_with("key_sha256 = \"") && odd[1].len() == 14 + 64 + 1, "{}", odd[1]);
}

#[tokio::test]
async fn invalid_client_name_is_refused() {
    for name in ["", "a b", "über", "a.b", "../a", &"n".repeat(65)] {
        let ended = run_wecom_proxy(&["key", name]).await;
        assert_eq!((ended.status, &*ended.out), (2, ""), "{name}: {}", ended.err);
        assert!(ended.err.contains("A-Z, a-z, 0-9, _ and -"), "{}", ended.err);
    }
}
