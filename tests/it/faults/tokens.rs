//! What gettoken may answer, or not, and what it means for the request that waits and for the next one.

use wecom_proxy::simulator::Fault;

use crate::stage::{OPEN, Stage, USER_GET, wait_for};

const GETTOKEN: &str = "/cgi-bin/gettoken";

#[tokio::test]
async fn whatever_gettoken_says_of_its_life_the_token_serves() {
    for life in [
        "7200",
        "\"7200\"",
        "7200.0",
        "0",
        "-1",
        "\"\"",
        "\"soon\"",
        "null",
        "[]",
        "1e999",
        "18446744073709551616",
        "-9223372036854775809",
        "0.5",
    ] {
        let stage = Stage::open().await;
        let token = stage.wecom.token_of("hr");
        let body = format!("{{\"errcode\":0,\"access_token\":\"{token}\",\"expires_in\":{life}}}");
        stage.wecom.inject(Fault::answer(200, "application/json", body).on(GETTOKEN)).expect("a fault");
        for _ in 0..5 {
            stage.get(USER_GET).await.is_ok();
        }
        let asked = stage.wecom.look(|seen| seen.received(GETTOKEN));
        assert_eq!(asked, 1, "{life}: no renewal that is not due");
    }
}
