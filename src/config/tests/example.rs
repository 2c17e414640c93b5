//! The repository's `proxy.toml`: it loads, shows the defaults, and contains every setting.

use super::{HASH, directory_with, env, load_in, load_text};
use crate::config::*;

/// Keys in whose place another one stands; the example mentions them in a comment.
const ALTERNATIVES: [(&str, &str); 3] =
    [("clients.billing", "key"), ("state", "shared"), ("callbacks.hr", "receive_ids")];

const READER_HASH: &str = "0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a69788796a5b4c3d2e1f0";
const EXAMPLE: &str = include_str!("../../../proxy.toml");

/// The example with every commented-out setting enabled.
pub(super) fn example_with_all_settings() -> String {
    let uncomment = |line: &'static str| match line.strip_prefix('#') {
        Some(setting) if setting.starts_with(|c: char| c.is_ascii_lowercase() || c == '[') => setting,
        _ => line,
    };
    // Its hashes are placeholders, which would be refused.
    EXAMPLE
        .lines()
        .map(uncomment)
        .collect::<Vec<_>>()
        .join("\n")
        .replace(&"0".repeat(64), HASH)
        .replace(&"1".repeat(64), READER_HASH)
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
    let mut example = load_text(EXAMPLE).unwrap();
    let minimal = "[agents.hr]\ncorpid = \"ww1234567890abcdef\"\nsecret = { env = \"HR\" }\n[admin]\n";
    let defaults = load_text(minimal).unwrap();
    for (name, agent) in &mut example.agents {
        agent.origin = defaults.agents[name].origin.clone();
    }
    assert_eq!(
        Config {
            path: PathBuf::new(),
            include_counts: defaults.include_counts.clone(),
            loaded_files: defaults.loaded_files.clone(),
            ..example
        },
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
    assert_eq!(config.agents["hr"].upstream.name(), Some("private"));
    assert!(!config.upstream.via.is_empty() && config.clients["billing"].always_200);
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
        ("upstream.via", egress::KEYS),
        ("upstreams.private", &["url"]),
        ("tokens", tokens::KEYS),
        ("replay", replay::KEYS),
        ("quotas", quotas::KEYS),
        ("log", log::KEYS),
        ("admin", admin::KEYS),
        ("state", state::KEYS),
        ("agents.hr", agents::KEYS),
        ("agents.crm-acme", suites::CORP_KEYS),
        ("suites.crm", suites::SUITE_KEYS),
        ("providers.acme", suites::PROVIDER_KEYS),
        ("clients.billing", clients::KEYS),
        ("callbacks.hr", callbacks::KEYS),
    ] {
        let mut section = &table;
        for step in path.split('.').filter(|step| !step.is_empty()) {
            section = section[step].get_ref().as_table().unwrap();
        }
        let missing: Vec<_> = keys
            .iter()
            .filter(|key| !section.contains_key(**key) && !ALTERNATIVES.contains(&(path, **key)))
            .collect();
        assert!(missing.is_empty(), "{path}: {missing:?}");
    }
    for key in [secret::KEYS, store::KEYS].concat() {
        assert!(EXAMPLE.contains(&format!("{key} = ")), "{key}");
    }
}
