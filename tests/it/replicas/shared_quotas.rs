//! Replicas keep WeCom's quotas together.

use super::Replicas;
use crate::{
    harness::{USER_GET, wait_for},
    quotas::{config, reported},
    redis_server::RedisServer,
};

#[tokio::test]
async fn quota_is_kept_across_replicas() {
    let redis = RedisServer::start().await;
    let toml = config("shape", &[("/cgi-bin/user/get", "corp", "20/m")]);
    let replicas = Replicas::with(&toml, 2, &redis.store_config_line()).await;
    let (first, second) = (&replicas.first, &replicas.others[0]);
    for _ in 0..16 {
        first.get(USER_GET).await.assert_ok();
    }
    second.get(USER_GET).await.assert_ok();
    wait_for("the usage of the other replica", async || {
        reported(second).await.first().is_some_and(|quota| quota["used"].as_u64() >= Some(17))
    })
    .await;
    second.get(USER_GET).await.assert_ok();
    second.get(USER_GET).await.assert_proxy_error("rate-limited", 429, 45009);
}
