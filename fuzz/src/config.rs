//! `proxy.toml`: loading terminates for any content, and no message about it contains a secret.

use std::{cell::RefCell, fs};

use tempfile::TempDir;
use toml::Value;
use wecom_proxy::config::load_with_env;

/// The secrets in inputs, long enough not to occur by chance.
const SECRETS: [&str; 3] =
    ["s3cret-of-the-agent-0001", "k3y-of-the-client-000002", "passw0rd-of-the-proxy-03"];

thread_local! {
    static DIRECTORY: RefCell<Option<TempDir>> = const { RefCell::new(None) };
}

/// Input: the text of the file.
pub fn check(data: &[u8]) {
    DIRECTORY.with_borrow_mut(|directory| {
        let directory = directory.get_or_insert_with(|| TempDir::new().expect("a directory"));
        let path = directory.path().join("proxy.toml");
        fs::write(&path, data).expect("a file");
        let env = |name: &str| name.starts_with("SET").then(|| SECRETS[0].to_owned());
        let message = match load_with_env(&path, &env) {
            Ok(config) => {
                let warnings: Vec<_> = config.warnings.iter().map(ToString::to_string).collect();
                format!("{config:?} {warnings:?}")
            }
            Err(error) => format!("{error} {error:?}"),
        };
        assert_shows_no_secret(&message, &String::from_utf8_lossy(data));
    });
}

/// A secret that the file contains only at secret keys must not be in the message. The secret of the environment is in no
/// file, so it must never be in the message.
fn assert_shows_no_secret(message: &str, text: &str) {
    let parsed = text.parse::<toml::Table>().map(Value::Table).ok();
    for secret in SECRETS {
        let must_be_hidden = match &parsed {
            Some(value) => text.matches(secret).count() == count_at_secret_keys(value, "", secret),
            // The text cannot be parsed, so the position of the secret is unknown; a duplicate key is shown.
            None => !message.contains("is a duplicate key"),
        };
        assert!(!must_be_hidden || !message.contains(secret), "{message}\n{text}");
    }
}

/// Number of occurrences of a secret at secret keys.
fn count_at_secret_keys(value: &Value, key: &str, secret: &str) -> usize {
    match value {
        // `tls.key` is the name of a file.
        Value::Table(table) if key == "tls" => {
            table.iter().map(|(_, value)| count_at_secret_keys(value, "", secret)).sum()
        }
        Value::Table(table) => {
            table.iter().map(|(key, value)| count_at_secret_keys(value, key, secret)).sum()
        }
        Value::Array(items) => items.iter().map(|item| count_at_secret_keys(item, "", secret)).sum(),
        Value::String(text) => match key {
            "secret" | "key" => text.matches(secret).count(),
            "via" | "redis" | "url" => text.matches(&format!(":{secret}@")).count(),
            _ => 0,
        },
        _ => 0,
    }
}
