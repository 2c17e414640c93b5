//! `[state]`.

use super::{AGENT_TABLE, assert_refused, env, load_text};
use crate::config::StateConfig;

#[test]
fn state_is_none_in_a_file_or_shared() {
    assert_eq!(load_text(AGENT_TABLE).unwrap().state, None);
    let text = format!("[state]\npath = \"s.db\"\nkey = {{ env = \"LONG\" }}\n{AGENT_TABLE}");
    let Some(StateConfig::File(file)) = load_text(&text).unwrap().state else { panic!("no file") };
    assert!(file.path.is_absolute() && file.path.ends_with("s.db"), "relative to the file");
    assert_eq!((file.key.expose(), file.old_key), (&*env("LONG").unwrap(), None));
    let store = "[tokens]\nstore = { redis = \"redis://127.0.0.1\", key = { env = \"LONG\" } }";
    let text = format!("{store}\n[state]\nshared = true\n{AGENT_TABLE}");
    assert!(matches!(load_text(&text).unwrap().state, Some(StateConfig::Shared(_))));
}

#[test]
fn invalid_state_is_refused() {
    assert_refused(&[
        ("[state]", ":1: state.path: is missing; write one like path = \"/var/lib/wecom-proxy/state.db\""),
        (
            "[state]\npath = \"s.db\"",
            ":1: state.key: is missing; write one like key = { env = \"WECOM_PROXY_STATE_KEY\" }",
        ),
        (
            "[state]\npath = \"s.db\"\nkey = { env = \"SHORT\" }",
            ":3: state.key: is too short; it must have 32 characters or more",
        ),
        (
            "[state]\nfile = \"s.db\"",
            ":2: state.file: unknown key \"file\"; allowed: path, key, old_key, shared",
        ),
        (
            "[state]\nshared = true",
            ":2: state.shared: needs tokens.store = { redis = … }; without it, write path = \"/var/lib/wecom-proxy/state.db\"",
        ),
        (
            "[state]\nshared = true\npath = \"s.db\"",
            ":3: state.path: conflicts with shared = true, which keeps the state in tokens.store under its key",
        ),
    ]);
}
