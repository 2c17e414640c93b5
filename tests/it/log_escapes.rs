//! Untrusted text in the log is escaped, so that it cannot hide or reorder what an operator sees.

use tempfile::TempDir;
use wecom_proxy::simulator::{Fault, Settings};

use crate::{
    harness::{OPEN_CONFIG, TestClient, USER_GET, write_config},
    process::{Process, wecom_proxy},
    raw_http::RawConnection,
};

/// Bidirectional controls, zero-width characters, line and paragraph separators, C1 controls, DEL and a tag character.
const INVISIBLE_CHARS: [char; 12] = [
    '\u{202e}',
    '\u{2066}',
    '\u{2069}',
    '\u{200b}',
    '\u{200d}',
    '\u{feff}',
    '\u{2028}',
    '\u{2029}',
    '\u{85}',
    '\u{9b}',
    '\u{7f}',
    '\u{e0041}',
];

async fn assert_escaped(format: &str) {
    let wecom = crate::leak_detector::start_simulator(Settings::default()).await;
    let invisible = String::from_iter(INVISIBLE_CHARS);
    let refusal = serde_json::json!({ "errcode": 40001, "errmsg": format!("x{invisible}y 张") }).to_string();
    wecom
        .inject(Fault::response(200, "application/json", refusal).on_path("/cgi-bin/gettoken"))
        .expect("a fault");
    let dir = TempDir::new().expect("a directory");
    let toml = format!("{OPEN_CONFIG}\n[log]\nformat = \"{format}\"\n");
    let config = write_config(&dir, wecom.api_addr(), &Settings::default(), &toml);
    let proxy = Process::start(wecom_proxy(&["--config", config.to_str().expect("a path in UTF-8")]));
    let ready = proxy.err.wait_for_line("wecom_proxy::ready").await;
    let address = ready.split(['"', ' ', ',']).find_map(|word| word.parse().ok()).expect("an address");
    let response = TestClient::connect_http1(address).await.get(USER_GET).await;
    response.assert_proxy_error("token-unavailable", 502, 40001);
    let mut connection = RawConnection::connect(address).await;
    let path = invisible.replace('\u{7f}', "");
    let head = format!("GET /hr/cgi-bin/{path} HTTP/1.1\r\nHost: x\r\nX-Request-Id: by-hand\r\n\r\n");
    connection.send(head).await.expect("sent");
    assert!(connection.read_head().await.starts_with("HTTP/1.1 400 "));
    proxy.err.wait_for_line("by-hand").await;
    let log = proxy.stop().await.err;
    assert!(log.lines().any(|line| line.contains("token refresh failed") && line.contains('张')), "{log}");
    for char in INVISIBLE_CHARS {
        assert!(!log.contains(char), "{char:?} in {log:?}");
    }
    let escape = if format == "json" { "\\u202e" } else { "\\u{202e}" };
    assert_eq!(log.lines().filter(|line| line.contains(escape)).count(), 3, "{log}");
    if format == "json" {
        let read = |line: &str| serde_json::from_str::<serde_json::Value>(line).expect("JSON").to_string();
        assert!(log.lines().map(read).any(|line| line.contains(INVISIBLE_CHARS[0])), "{log}");
    }
}

#[tokio::test]
async fn invisible_characters_are_escaped_in_json_lines() {
    assert_escaped("json").await;
}

#[tokio::test]
async fn invisible_characters_are_escaped_in_text_lines() {
    assert_escaped("text").await;
}
