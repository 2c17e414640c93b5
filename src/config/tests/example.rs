//! The repository's `proxy.toml`: it loads, shows the defaults, and contains every setting.

use super::{HASH, directory_with, env, load_in, load_text};
use crate::config::*;

const EXAMPLE: &str = include_str!("../../../proxy.toml");

/// The example with every commented-out setting enabled.
fn example_with_all_settings() -> String {
    let uncomment = |line: &'static str| match line.strip_prefix('#') {
        Some(setting) if setting.starts_with(|c: char| c.is_ascii_lowercase() || c == '[') => setting,
        _ => line,
    };
    // Its hashes are placeholders, which would be refused.
    EXAMPLE.lines().map(uncomment).collect::<Vec<_>>().join("\n").replace(&"0".repeat(64), HASH)
}

#[test]
fn example_loads_without_warnings() {
    let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/proxy.toml"));
    let config = load_with_env(path, &env).unwrap();
    assert_eq!(config.warnings, []);
    assert!(config.is_open());
    assert_eq!(config.agents.keys().collect::<Vec<_>>(), ["hr"]);
}

#[test]
fn example_shows_defaults() {
    let example = load_text(EXAMPLE).unwrap();
    let minimal = "[agents.hr]\ncorpid = \"ww1234567890abcdef\"\nsecret = { env = \"HR\" }\n[admin]\n";
    let defaults = load_text(minimal).unwrap();
    assert_eq!(
        Config { path: PathBuf::new(), include_counts: defaults.include_counts.clone(), ..example },
        Config { path: PathBuf::new(), ..defaults }
    );
}

#[test]
fn example_with_all_settings_is_accepted() {
    let text = example_with_all_settings();
    let files = ["server.pem", "server.key", "ca.pem", "private-ca.pem"].map(|name| (name, ""));
    let directory = directory_with(&[&files[..], &[("proxy.toml", &text)]].concat());
    let config = load_in(directory.path()).unwrap_or_else(|error| panic!("{error}"));
    assert!(config.server.tls.is_some_and(|tls| tls.client_ca.is_some()));
    assert!(config.upstream.via.is_some() && config.clients["billing"].always_200);
}

#[test]
fn example_contains_every_key() {
    let text = example_with_all_settings();
    let table = toml::de::DeTable::parse(&text).unwrap().into_inner();
    for (path, keys) in [
        ("", KEYS),
        ("server", server::KEYS),
        ("server.tls", server::TLS_KEYS),
        ("upstream", upstream::KEYS),
        ("tokens", tokens::KEYS),
        ("replay", replay::KEYS),
        ("log", log::KEYS),
        ("admin", admin::KEYS),
        ("agents.hr", agents::KEYS),
        ("clients.billing", clients::KEYS),
    ] {
        let mut section = &table;
        for step in path.split('.').filter(|step| !step.is_empty()) {
            section = section[step].get_ref().as_table().unwrap();
        }
        // A client has either key_sha256 or key; the example mentions the other in a comment.
        let missing: Vec<_> = keys
            .iter()
            .filter(|key| !section.contains_key(**key) && (path, **key) != ("clients.billing", "key"))
            .collect();
        assert!(missing.is_empty(), "{path}: {missing:?}");
    }
    for key in [secret::KEYS, store::KEYS].concat() {
        assert!(EXAMPLE.contains(&format!("{key} = ")), "{key}");
    }
}
