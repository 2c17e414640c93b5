//! `proxy.toml`: whatever it holds, loading it ends, and nothing that is said of it shows a secret.

use std::{cell::RefCell, fs};

use tempfile::TempDir;
use toml::Value;
use wecom_proxy::config::load_with_env;

/// What stands for secrets in an input. Long enough not to be a part of anything else.
const SECRETS: [&str; 3] =
    ["s3cret-of-the-agent-0001", "k3y-of-the-client-000002", "passw0rd-of-the-proxy-03"];

thread_local! {
    static DIRECTORY: RefCell<Option<TempDir>> = const { RefCell::new(None) };
}

/// The input is the file's text.
pub fn check(data: &[u8]) {
    DIRECTORY.with_borrow_mut(|directory| {
        let directory = directory.get_or_insert_with(|| TempDir::new().expect("a directory"));
        let path = directory.path().join("proxy.toml");
        fs::write(&path, data).expect("a file");
        let env = |name: &str| name.starts_with("SET").then(|| SECRETS[0].to_owned());
        let said = match load_with_env(&path, &env) {
            Ok(config) => {
                let warnings: Vec<_> = config.warnings.iter().map(ToString::to_string).collect();
                format!("{config:?} {warnings:?}")
            }
            Err(error) => format!("{error} {error:?}"),
        };
        assert_shows_no_secret(&said, &String::from_utf8_lossy(data));
    });
}

/// A secret that the file holds only where secrets belong is not in what was said. The environment's is in no file, and
/// so it is never to be shown.
fn assert_shows_no_secret(said: &str, text: &str) {
    let parsed = text.parse::<toml::Table>().map(Value::Table).ok();
    for secret in SECRETS {
        let hidden = match &parsed {
            Some(value) => text.matches(secret).count() == count_at_secret_keys(value, "", secret),
            // Nobody can tell where it stands; a key that stands there twice is shown.
            None => !said.contains("is a duplicate key"),
        };
        assert!(!hidden || !said.contains(secret), "{said}\n{text}");
    }
}

/// How often a secret stands where secrets belong.
fn count_at_secret_keys(value: &Value, key: &str, secret: &str) -> usize {
    match value {
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
