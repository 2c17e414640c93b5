//! A plain request goes in, the right token goes out.

use crate::harness::{ECHO, TestProxy, USER_GET};

#[tokio::test]
async fn request_without_a_token_is_served() {
    let stage = TestProxy::start_open().await;
    let reply = stage.get(USER_GET).await;
    reply.assert_ok();
    assert_eq!(reply.header("x-wecom-agent"), "hr");
    assert_eq!(stage.wecom.gettoken_count("hr").expect("an agent"), 1);
    stage.get(ECHO).await.assert_ok();
    assert_eq!(stage.wecom.gettoken_count("hr").expect("an agent"), 1);
}
