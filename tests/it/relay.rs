//! A plain request goes in, the right token goes out.

use crate::stage::{ECHO, Stage, USER_GET};

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
