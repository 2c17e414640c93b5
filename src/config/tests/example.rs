//! The `proxy.toml` that is checked in: it loads, says what the defaults are, and leaves no setting out.

use super::super::*;
use super::{HASH, directory, env, load_in, load_text};

const EXAMPLE: &str = include_str!("../../../proxy.toml");

/// With every setting that is off switched on.
fn uncommented() -> String {
    let on = |line: &'static str| match line.strip_prefix('#') {
        Some(setting) if setting.starts_with(|c: char| c.is_ascii_lowercase() || c == '[') => setting,
        _ => line,
    };
    // Its hashes are placeholders, which are refused.
    EXAMPLE.lines().map(on).collect::<Vec<_>>().join("\n").replace(&"0".repeat(64), HASH)
}

#[test]
fn loads_as_it_stands() {
    let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/proxy.toml"));
    let config = load_with(path, &env).unwrap();
    assert_eq!(config.warnings, []);
    assert!(config.is_open());
    assert_eq!(config.agents.keys().collect::<Vec<_>>(), ["hr"]);
}

#[test]
fn shows_the_defaults() {
    let shown = load_text(EXAMPLE).unwrap();
    let hr = "[agents.hr]\ncorpid = \"ww1234567890abcdef\"\nsecret = { env = \"HR\" }\n[admin]\n";
    let silent = load_text(hr).unwrap();
    assert_eq!(
        Config { path: PathBuf::new(), included: silent.included.clone(), ..shown },
        Config { path: PathBuf::new(), ..silent }
    );
}

#[test]
fn everything_in_it_is_accepted() {
    let text = uncommented();
    let files = ["server.pem", "server.key", "ca.pem", "private-ca.pem"].map(|name| (name, ""));
    let directory = directory(&[&files[..], &[("proxy.toml", &text)]].concat());
    let config = load_in(directory.path()).unwrap_or_else(|error| panic!("{error}"));
    assert!(config.server.tls.is_some_and(|tls| tls.client_ca.is_some()));
    assert!(config.upstream.via.is_some() && config.clients["billing"].always_200);
}

#[test]
fn everything_is_in_it() {
    let text = uncommented();
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
        // A client has one of the two; the other is named in a comment.
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
