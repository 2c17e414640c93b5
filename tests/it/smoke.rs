//! A request without a token is forwarded with the agent's token.

use crate::harness::{ECHO, TestProxy, USER_GET};

#[tokio::test]
async fn request_without_a_token_is_served() {
    let proxy = TestProxy::start_open().await;
    let response = proxy.get(USER_GET).await;
    response.assert_ok();
    assert_eq!(response.header("x-wecom-agent"), "hr");
    assert_eq!(proxy.wecom.gettoken_count("hr").expect("an agent"), 1);
    proxy.get(ECHO).await.assert_ok();
    assert_eq!(proxy.wecom.gettoken_count("hr").expect("an agent"), 1);
}
