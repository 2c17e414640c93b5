//! A store behind TLS with an authority of its own, and one that wants a user and a password and allows little.

use super::Replicas;
use crate::{
    certificates::Authority,
    harness::{OPEN_CONFIG, TestProxy, wait_for},
    redis_server::{RedisServer, STORE_KEY},
};

pub(super) const PASSWORD: &str = "password-of-the-stories";

/// What a user of the store must be allowed; docs/scale.md says the same.
pub(super) const ACL_RULES: &str = "~wecom-proxy:* &wecom-proxy:* -@all +hello +auth +ping +select +subscribe +unsubscribe \
                      +publish +evalsha +script|load +type +get +set +del +pttl +pexpire +hget +hset +hmget +time";

#[tokio::test]
async fn store_tls_trusts_only_the_configured_ca() {
    let authority = Authority::new();
    let [cert, key] = authority.server_files("127.0.0.1");
    let redis = RedisServer::start_with(&[
        "--port",
        "0",
        "--tls-port",
        "{port}",
        "--tls-auth-clients",
        "no",
        "--tls-cert-file",
        &cert,
        "--tls-key-file",
        &key,
        "--tls-ca-cert-file",
        &authority.ca_file().display().to_string(),
    ])
    .await;
    let url = format!("rediss://{}", redis.address());
    let store = |ca: &str| format!("store = {{ redis = \"{url}\", key = \"{STORE_KEY}\"{ca} }}");
    let ca = format!(", ca_file = \"{}\"", authority.ca_file().display());
    let replicas = Replicas::start(2, &store(&ca)).await;
    replicas.load(20).await;
    assert_eq!(replicas.upstream_counts(), (1, 40));
    replicas.assert_one_refresh(20).await;

    let wary = TestProxy::start_with_config(&format!("{OPEN_CONFIG}\n[tokens]\n{}\n", store(""))).await;
    wait_for("its doubt", async || {
        wary.app.store_error().is_some_and(|trouble| trouble.contains("UnknownIssuer"))
    })
    .await;
}

#[tokio::test]
async fn minimal_acl_is_enough_and_a_wrong_password_is_masked() {
    let (user, password) = (format!("wecom on >{PASSWORD} {ACL_RULES}"), PASSWORD);
    let mut options = vec!["--user", "default", "off", "--user"];
    options.extend(user.split_whitespace());
    let redis = RedisServer::start_with(&options).await;
    let store = |password: &str| {
        let url = format!("redis://{}", redis.address());
        format!(
            "store = {{ redis = \"{url}\", user = \"wecom\", password = \"{password}\", key = \"{STORE_KEY}\" }}"
        )
    };
    let replicas = Replicas::start(2, &store(password)).await;
    replicas.load(20).await;
    assert_eq!(replicas.upstream_counts(), (1, 40));
    replicas.assert_one_refresh(20).await;
    for stage in replicas.all() {
        assert_eq!(stage.app.store_error(), None, "what it may do is all that it does");
    }

    let wrong =
        TestProxy::start_with_config(&format!("{OPEN_CONFIG}\n[tokens]\n{}\n", store("another-password")))
            .await;
    let mut trouble = String::new();
    wait_for("its refusal", async || {
        trouble = wrong.app.store_error().unwrap_or_default();
        trouble != "not connected yet"
    })
    .await;
    assert!(trouble.contains("password") && !trouble.contains("another-password"), "{trouble}");
}
