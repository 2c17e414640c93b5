//! A plain request goes in, the right token goes out.

use std::sync::Arc;

use crate::stage::{ECHO, Stage, USER_GET, all_at_once};

#[tokio::test]
async fn a_call_without_a_token_is_answered() {
    let stage = Stage::open().await;
    let reply = stage.get(USER_GET).await;
    reply.is_ok();
    assert_eq!(reply.header("x-wecom-agent"), "hr");
    assert_eq!(stage.wecom.gettoken_count("hr").expect("an agent"), 1);
    stage.get(ECHO).await.is_ok();
    assert_eq!(stage.wecom.gettoken_count("hr").expect("an agent"), 1);
}

#[tokio::test]
async fn a_thousand_callers_at_a_cold_start_cause_one_gettoken() {
    let stage = Arc::new(Stage::open().await);
    for reply in all_at_once(&stage, 1000, USER_GET).await {
        reply.is_ok();
    }
    assert_eq!(stage.wecom.gettoken_count("hr").expect("an agent"), 1);
    stage.wecom.revoke("hr").expect("an agent");
    for reply in all_at_once(&stage, 1000, USER_GET).await {
        reply.is_ok();
    }
    assert_eq!(stage.wecom.gettoken_count("hr").expect("an agent"), 2);
    assert_eq!(stage.wecom.executed("/cgi-bin/user/get"), 2000);
}
