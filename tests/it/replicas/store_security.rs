//! A store behind TLS with a private CA, and a store with a minimal ACL user.

use super::Replicas;
use crate::{
    certificates::Authority,
    harness::{OPEN_CONFIG, TestProxy, wait_for},
    redis_server::{RedisServer, STORE_KEY},
};

pub(super) const PASSWORD: &str = "password-of-the-tests-00";

/// The ACL rules that the store's user needs; docs/scale.md lists the same.
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
    let ca = format!(", {}", authority.ca_config_line());
    let replicas = Replicas::start(2, &store(&ca)).await;
    replicas.load(20).await;
    assert_eq!(replicas.upstream_counts(), (1, 40));
    replicas.assert_one_refresh(20).await;

    let without_ca = TestProxy::start_with_config(&format!("{OPEN_CONFIG}\n[tokens]\n{}\n", store(""))).await;
    wait_for("the TLS error", async || {
        without_ca.app.store_error().is_some_and(|error| error.contains("UnknownIssuer"))
    })
    .await;

    // The file at the same path gets the right content, and a reload takes it up.
    let other = Authority::new();
    let ca = format!(", {}", other.ca_config_line());
    let config = format!("{OPEN_CONFIG}\n[tokens]\n{}\n", store(&ca));
    let reloaded = TestProxy::start_with_config(&config).await;
    wait_for("the TLS error", async || {
        reloaded.app.store_error().is_some_and(|error| error.contains("UnknownIssuer"))
    })
    .await;
    std::fs::copy(authority.ca_file(), other.ca_file()).expect("copied");
    let report = reloaded.app.reload().expect("a reload");
    assert!(report.needs_restart.is_empty(), "{:?}", report.needs_restart);
    wait_for("the store", async || reloaded.app.store_error().is_none()).await;
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
    for proxy in replicas.all() {
        assert_eq!(proxy.app.store_error(), None, "the ACL rules are enough");
    }

    let wrong_password =
        TestProxy::start_with_config(&format!("{OPEN_CONFIG}\n[tokens]\n{}\n", store("another-password")))
            .await;
    let mut error = String::new();
    wait_for("the refusal", async || {
        error = wrong_password.app.store_error().unwrap_or_default();
        error != "not connected yet"
    })
    .await;
    assert!(error.contains("password") && !error.contains("another-password"), "{error}");
}
