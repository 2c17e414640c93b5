//! A store behind TLS with an authority of its own, and one that wants a user and a password and allows little.

use super::Replicas;
use crate::{
    certificates::Authority,
    redis::{KEY, Redis},
    stage::{OPEN, Stage, wait_for},
};

pub(super) const PASSWORD: &str = "password-of-the-stories";

/// What a user of the store must be allowed; docs/scale.md says the same.
pub(super) const RIGHTS: &str = "~wecom-proxy:* &wecom-proxy:* -@all +hello +auth +ping +select +subscribe +unsubscribe \
                      +publish +evalsha +script|load +type +get +set +del +pttl +pexpire +hget +hset +hmget +time";

#[tokio::test]
async fn a_store_behind_tls_is_trusted_by_its_own_authority_only() {
    let authority = Authority::new();
    let [cert, key] = authority.server_files("127.0.0.1");
    let redis = Redis::with(&[
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
        &authority.file().display().to_string(),
    ])
    .await;
    let url = format!("rediss://{}", redis.address());
    let store = |ca: &str| format!("store = {{ redis = \"{url}\", key = \"{KEY}\"{ca} }}");
    let ca = format!(", ca_file = \"{}\"", authority.file().display());
    let replicas = Replicas::start(2, &store(&ca)).await;
    replicas.crowd(20).await;
    assert_eq!(replicas.seen(), (1, 40));
    replicas.renew_once(20).await;

    let wary = Stage::with(&format!("{OPEN}\n[tokens]\n{}\n", store(""))).await;
    wait_for("its doubt", async || {
        wary.proxy.store_trouble().is_some_and(|trouble| trouble.contains("UnknownIssuer"))
    })
    .await;
}

#[tokio::test]
async fn a_user_of_few_rights_is_enough_and_a_wrong_password_is_told_without_it() {
    let (user, password) = (format!("wecom on >{PASSWORD} {RIGHTS}"), PASSWORD);
    let mut options = vec!["--user", "default", "off", "--user"];
    options.extend(user.split_whitespace());
    let redis = Redis::with(&options).await;
    let store = |password: &str| {
        let url = format!("redis://{}", redis.address());
        format!(
            "store = {{ redis = \"{url}\", user = \"wecom\", password = \"{password}\", key = \"{KEY}\" }}"
        )
    };
    let replicas = Replicas::start(2, &store(password)).await;
    replicas.crowd(20).await;
    assert_eq!(replicas.seen(), (1, 40));
    replicas.renew_once(20).await;
    for stage in replicas.all() {
        assert_eq!(stage.proxy.store_trouble(), None, "what it may do is all that it does");
    }

    let wrong = Stage::with(&format!("{OPEN}\n[tokens]\n{}\n", store("another-password"))).await;
    let mut trouble = String::new();
    wait_for("its refusal", async || {
        trouble = wrong.proxy.store_trouble().unwrap_or_default();
        trouble != "not connected yet"
    })
    .await;
    assert!(trouble.contains("password") && !trouble.contains("another-password"), "{trouble}");
}
