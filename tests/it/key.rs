//! `key NAME`: a key that is shown once, and the lines that let it in.

use std::fs;

use http::Request;

use crate::{
    gettoken::{ask, gettoken, pass_of},
    process::{Ended, run_wecom_proxy},
    stage::{OPEN, Stage, USER_GET},
};

/// The key, and the lines for the file.
#[track_caller]
fn parts(ended: &Ended) -> (String, String) {
    assert_eq!((ended.status, &*ended.err), (0, ""));
    let (key, rest) = ended.out.split_once('\n').expect("a first line");
    assert!(key.len() >= 32 && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)));
    assert!(!rest.contains(key), "it is shown twice");
    (key.to_owned(), rest.to_owned())
}

#[tokio::test]
async fn the_printed_lines_let_the_printed_key_in_and_no_other() {
    let (key, lines) = parts(&run_wecom_proxy(&["key", "billing"]).await);
    let (other, _) = parts(&run_wecom_proxy(&["key", "billing"]).await);
    assert_ne!(key, other);
    let stage = Stage::with(&format!("{OPEN}\n{lines}")).await;
    let text = fs::read_to_string(stage.dir.path().join("proxy.toml")).expect("the file");
    assert!(text.contains("[clients.billing]") && !text.contains(&key));
    let show =
        |key: &str| Request::get(format!("/ops{USER_GET}")).header("authorization", format!("Bearer {key}"));
    stage.call(show(&key), "").await.is_ok();
    pass_of(&ask(&stage, format!("/hr{}", gettoken(&key))).await);
    stage.call(show(&other), "").await.is_own("unauthenticated", 401, 40001);
    ask(&stage, format!("/hr{USER_GET}")).await.is_own("unauthenticated", 401, 40001);
}

#[tokio::test]
async fn whoever_takes_a_key_for_its_hash_is_told_so() {
    let (key, lines) = parts(&run_wecom_proxy(&["key", "billing"]).await);
    let hash = lines.split('"').find(|word| word.len() == 64).expect("a hash").to_owned();
    let shown = |key: &str| Request::get(format!("/ops{USER_GET}")).header("x-api-key", key);
    // The hash sent as the key, and the key written as the hash.
    for both in [&hash, &key] {
        let stage = Stage::with(&format!("{OPEN}\n{}", lines.replace(&hash, both))).await;
        let reply = stage.call(shown(both), "").await;
        let words = reply.is_own("unauthenticated", 401, 40001).text();
        assert!(words.contains("as key_sha256") && !words.contains(both), "{words}");
        let reply = stage.call(shown(&both.replace(|any| any > 'b', "a")), "").await;
        assert!(!reply.is_own("unauthenticated", 401, 40001).text().contains("key_sha256"));
    }
}

#[tokio::test]
async fn all_that_is_printed_can_be_pasted_once_the_key_is_cut_off() {
    let (_, lines) = parts(&run_wecom_proxy(&["key", "a-b_C9"]).await);
    let odd: Vec<_> = lines.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    assert_eq!(odd.len(), 3, "{lines}");
    assert_eq!(odd[0], "[clients.a-b_C9]");
    assert!(odd[1].starts_with("key_sha256 = \"") && odd[1].len() == 14 + 64 + 1, "{}", odd[1]);
}

#[tokio::test]
async fn a_name_that_no_client_can_have_is_refused() {
    for name in ["", "a b", "über", "a.b", "../a", &"n".repeat(65)] {
        let ended = run_wecom_proxy(&["key", name]).await;
        assert_eq!((ended.status, &*ended.out), (2, ""), "{name}: {}", ended.err);
        assert!(ended.err.contains("A-Z, a-z, 0-9, _ and -"), "{}", ended.err);
    }
}
