//! `key NAME`: prints a new key once, and the configuration section that accepts it.

use std::fs;

use http::Request;

use crate::{
    gettoken::{gettoken_target, pass_from_response, send_get},
    harness::{OPEN_CONFIG, TestProxy, USER_GET},
    process::{ExitOutput, run_wecom_proxy},
};

/// The printed key, and the printed configuration section.
#[track_caller]
fn split_output(output: &ExitOutput) -> (String, String) {
    assert_eq!((output.status, &*output.err), (0, ""));
    let (key, rest) = output.out.split_once('\n').expect("a first line");
    assert!(key.len() >= 32 && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)));
    assert!(!rest.contains(key), "the key is printed twice");
    assert!(rest.contains("agents = [\"AGENT\"]") && !rest.contains('*'), "an agent to fill in: {rest}");
    (key.to_owned(), rest.replace("\"AGENT\"", "\"hr\", \"ops\""))
}

#[tokio::test]
async fn printed_config_accepts_only_the_printed_key() {
    let (key, section) = split_output(&run_wecom_proxy(&["key", "billing"]).await);
    let (other, _) = split_output(&run_wecom_proxy(&["key", "billing"]).await);
    assert_ne!(key, other);
    let proxy = TestProxy::start_with_config(&format!("{OPEN_CONFIG}\n{section}")).await;
    let text = fs::read_to_string(proxy.dir.path().join("proxy.toml")).expect("the file");
    assert!(text.contains("[clients.billing]") && !text.contains(&key));
    let with_bearer =
        |key: &str| Request::get(format!("/ops{USER_GET}")).header("authorization", format!("Bearer {key}"));
    proxy.request(with_bearer(&key), "").await.assert_ok();
    pass_from_response(&send_get(&proxy, format!("/hr{}", gettoken_target(&key))).await);
    proxy.request(with_bearer(&other), "").await.assert_proxy_error("unauthenticated", 401, 40001);
    send_get(&proxy, format!("/hr{USER_GET}")).await.assert_proxy_error("unauthenticated", 401, 40001);
}

#[tokio::test]
async fn key_and_hash_mixed_up_is_explained() {
    let (key, section) = split_output(&run_wecom_proxy(&["key", "billing"]).await);
    let hash = section.split('"').find(|word| word.len() == 64).expect("a hash").to_owned();
    let with_key = |key: &str| Request::get(format!("/ops{USER_GET}")).header("x-api-key", key);
    // The hash is sent as the key, or the key is configured as the hash.
    for value in [&hash, &key] {
        let proxy =
            TestProxy::start_with_config(&format!("{OPEN_CONFIG}\n{}", section.replace(&hash, value))).await;
        let response = proxy.request(with_key(value), "").await;
        let text = response.assert_proxy_error("unauthenticated", 401, 40001).text();
        assert!(text.contains("key_sha256") && !text.contains(value), "{text}");
        let response = proxy.request(with_key(&value.replace(|any| any > 'b', "a")), "").await;
        assert!(!response.assert_proxy_error("unauthenticated", 401, 40001).text().contains("key_sha256"));
    }
}

#[tokio::test]
async fn printed_config_can_be_pasted() {
    let (_, lines) = split_output(&run_wecom_proxy(&["key", "a-b_C9"]).await);
    let section: Vec<_> = lines.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    assert_eq!(section.len(), 3, "{lines}");
    assert_eq!(section[0], "[clients.a-b_C9]");
    assert!(section[1].starts_with("key_sha256 = \"") && section[1].len() == 14 + 64 + 1, "{}", section[1]);
}

#[tokio::test]
async fn invalid_client_name_is_refused() {
    for name in ["", "a b", "über", "a.b", "../a", &"n".repeat(65)] {
        let output = run_wecom_proxy(&["key", name]).await;
        assert_eq!((output.status, &*output.out), (2, ""), "{name}: {}", output.err);
        assert!(output.err.contains("A-Z, a-z, 0-9, _ and -"), "{}", output.err);
    }
}
