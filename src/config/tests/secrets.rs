//! Secrets and the store: sources, errors and warnings.

use super::{AGENT_TABLE, directory_with, load_error, load_text, warnings};
use crate::{
    config::{StoreConfig, StoreNode, Topology, path_error},
    secret::Masked,
};

fn agent_table_with_secret(secret: &str) -> String {
    format!("[agents.hr]\ncorpid = \"ww1\"\nsecret = {secret}\n")
}

/// Values, each with the error that it causes.
const INVALID_SECRETS: &[(&str, &str)] = &[
    (
        "7",
        "agents.hr.secret: must be { env = \"NAME\" }, { file = \"path\" } or a string, not a whole number",
    ),
    (
        "[]",
        "agents.hr.secret: lists 0 secrets; write one, or two while the secret is changed: the one in use and the other one",
    ),
    (
        "[\"a\", \"b\", \"c\"]",
        "agents.hr.secret: lists 3 secrets; write one, or two while the secret is changed: the one in use and the other one",
    ),
    (
        "[\"hunter2\", 7]",
        "agents.hr.secret[1]: must be { env = \"NAME\" }, { file = \"path\" } or a string, not a whole number",
    ),
    (
        "[[\"hunter2\"]]",
        "agents.hr.secret[0]: must be { env = \"NAME\" }, { file = \"path\" } or a string, not a list",
    ),
    (
        "[\"hunter2\", { env = \"UNSET\" }]",
        "agents.hr.secret[1].env: the environment variable UNSET is not set; set it where this command and the proxy run",
    ),
    ("{}", "agents.hr.secret: must be { env = \"NAME\" }, { file = \"path\" } or a string"),
    ("\"\"", "agents.hr.secret: is empty"),
    (
        "\"hunter2 x\"",
        "agents.hr.secret: is not a secret: it contains characters other than visible ASCII, such as a space or a line break",
    ),
    ("\"changeme\"", "agents.hr.secret: is a placeholder; replace it with the real one"),
    ("\"…\"", "agents.hr.secret: is a placeholder; replace it with the real one"),
    (
        "{ file = \"xs\" }",
        "agents.hr.secret.file: names a file that is a placeholder; replace it with the real one",
    ),
    ("{ env = \"EMPTY\" }", "agents.hr.secret.env: the environment variable EMPTY is empty"),
    (
        "{ env = \"UNSET\" }",
        "agents.hr.secret.env: the environment variable UNSET is not set; set it where this command and the proxy run",
    ),
    (
        "{ env = \"SPACED\" }",
        "agents.hr.secret.env: the environment variable SPACED is not a secret: it contains characters other than visible ASCII, such as a space or a line break",
    ),
    (
        "{ env = \"hunter2-x\" }",
        "agents.hr.secret.env: must be the name of an environment variable: letters, digits and _",
    ),
    ("{ env = 7 }", "agents.hr.secret.env: must be the name of an environment variable, not a whole number"),
    (
        "{ evn = \"HR\" }",
        "agents.hr.secret.evn: unknown key \"evn\"; did you mean \"env\"? allowed: env, file",
    ),
    ("{ env = \"HR\", file = \"f\" }", "agents.hr.secret: names both env and file; keep one"),
    (
        "{ file = \"none\" }",
        "agents.hr.secret.file: \"none\" cannot be read: No such file or directory (os error 2)",
    ),
    ("{ file = \"d\" }", "agents.hr.secret.file: \"d\" is not a file"),
    ("{ file = \"\" }", "agents.hr.secret.file: must be a path, relative to this file or absolute"),
    ("{ file = \"newline\" }", "agents.hr.secret.file: names a file that is empty"),
    (
        "{ file = \"two\" }",
        "agents.hr.secret.file: names a file that is not a secret: it contains characters other than visible ASCII, such as a space or a line break",
    ),
];

#[test]
fn invalid_secret_is_refused_without_being_shown() {
    for (secret, expected) in INVALID_SECRETS {
        let files = [
            ("proxy.toml", &*agent_table_with_secret(secret)),
            ("d/x", ""),
            ("newline", "\n"),
            ("two", "hunter2\nx\n"),
            ("xs", "xxxx\n"),
        ];
        assert_eq!(load_error(&files), format!("proxy.toml:3: {expected}"), "{secret}");
    }
}

#[test]
fn readable_secret_is_warned_of() {
    assert_eq!(
        warnings(&[("proxy.toml", &agent_table_with_secret("\"hunter2\""))]),
        [
            "proxy.toml:3: agents.hr.secret: is in plain text in this file; write { env = \"NAME\" } or { file = \"path\" } instead"
        ]
    );
    assert_eq!(
        warnings(&[("proxy.toml", &agent_table_with_secret("{ file = \"f\" }")), ("f", "hunter2\n")]),
        ["proxy.toml:3: agents.hr.secret.file: \"f\" is world-readable; remove that with chmod o-r"]
    );
    assert_eq!(warnings(&[("proxy.toml", AGENT_TABLE)]), [""; 0]);
}

#[test]
fn shared_credentials_are_warned_of() {
    let duplicate = AGENT_TABLE.replace("[agents.hr]", "[agents.ops]");
    assert_eq!(
        warnings(&[("proxy.toml", &format!("{AGENT_TABLE}\n{duplicate}"))]),
        [
            "proxy.toml:5: agents.ops: has the corpid and secret of agents.hr; they share one token and its budget of refreshes; make them one agent if nothing else differs"
        ]
    );
    let other_corp = duplicate.replace("ww1", "ww2");
    assert_eq!(warnings(&[("proxy.toml", &format!("{AGENT_TABLE}\n{other_corp}"))]), [""; 0]);
}

#[test]
fn insecure_settings_are_warned_of() {
    for (text, expected) in [
        (
            "[upstream]\nurl = \"http://qyapi.example\"",
            "proxy.toml:2: upstream.url: is not https, so secrets and tokens cross the network in plain text",
        ),
        (
            "[upstream]\nvia = \"http://u:hunter2@egress\"",
            "proxy.toml:2: upstream.via: contains a password in plain text; write via = { url = \"…\", user = \"…\", password = { env = \"NAME\" } }",
        ),
        (
            "[replay]\ndisk = \"16MiB\"",
            "proxy.toml:2: replay.disk: is smaller than server.max_request_body: bodies that fit neither in it nor in \
             an eighth of replay.memory are refused or not retried",
        ),
        (
            "[clients.a]\nkey = { env = \"SHORT\" }\nagents = [\"*\"]",
            "proxy.toml:2: clients.a.key: is shorter than 16 characters and easy to guess",
        ),
        (
            "[clients.a]\nkey = { env = \"HR\" }\nagents = [\"*\"]",
            "proxy.toml:2: clients.a.key: is the real secret of agents.hr; give the client a key of its own",
        ),
    ] {
        assert_eq!(warnings(&[("proxy.toml", &format!("{text}\n{AGENT_TABLE}"))]), [expected]);
    }
}

/// Values, each with the error that it causes.
const INVALID_STORES: &[(&str, &str)] = &[
    (
        "\"redis://:hunter2@h\"",
        "tokens.store: must be \"memory\" or { redis = \"redis://127.0.0.1:6379/0\", key = { env = \"STORE_KEY\" } }",
    ),
    (
        "{ redis = \"hunter2\", KEY }",
        "tokens.store.redis: must start with redis:// or rediss://, as in \"redis://127.0.0.1:6379/0\"",
    ),
    (
        "{ redis = \"redis://:hunter2@h/x\", KEY }",
        "tokens.store.redis: must contain nothing but the database's number after the host, as in \"redis://127.0.0.1:6379/0\"",
    ),
    ("{ redis = [], KEY }", "tokens.store.redis: is empty; write one like \"redis://127.0.0.1:6379/0\""),
    (
        "{ redis = [\"redis://a\", \"redis://b\"], KEY }",
        "tokens.store.redis: lists several servers; set cluster = true, or sentinel = \"mymaster\"",
    ),
    (
        "{ redis = [\"redis://a\", \"rediss://b\"], cluster = true, KEY }",
        "tokens.store.redis: must name the same scheme, user, password and database in every URL",
    ),
    (
        "{ redis = \"redis://a/1\", cluster = true, KEY }",
        "tokens.store.redis: names a database, but a cluster has only number 0",
    ),
    (
        "{ redis = \"redis://a\", cluster = true, sentinel = \"m\", KEY }",
        "tokens.store.cluster: conflicts with sentinel; a store is one or the other",
    ),
    (
        "{ redis = \"redis://a\", sentinel = \"\", KEY }",
        "tokens.store.sentinel: must be the name under which the sentinels know the master",
    ),
    (
        "{ redis = \"redis://h\" }",
        "tokens.store.key: is missing; write one like key = { env = \"STORE_KEY\" }",
    ),
    (
        "{ redis = \"redis://h\", key = { env = \"HR\" } }",
        "tokens.store.key: is too short; it must have 32 characters or more",
    ),
    (
        "{ redis = \"redis://h\", prefix = \"{x}\", KEY }",
        "tokens.store.prefix: must be at most 64 visible ASCII characters, none of { } [ ] * ? \\",
    ),
    (
        "{ redis = \"redis://h\", user = \"wecom\", KEY }",
        "tokens.store.user: needs password beside it; write password = { env = \"NAME\" }",
    ),
    (
        "{ redsi = \"redis://h\", KEY }",
        "tokens.store.redsi: unknown key \"redsi\"; did you mean \"redis\"? allowed: redis, cluster, sentinel, sentinel_user, sentinel_password, user, password, ca_file, prefix, key, old_key",
    ),
];

#[test]
fn invalid_store_is_refused() {
    const KEY: &str = "key = { env = \"LONG\" }";
    for (store, expected) in INVALID_STORES {
        let text = format!("tokens.store = {}\n{AGENT_TABLE}", store.replace("KEY", KEY));
        assert_eq!(load_error(&[("proxy.toml", &text)]), format!("proxy.toml:1: {expected}"));
    }
}

#[test]
fn store_is_parsed_in_each_form() {
    let read = |store: &str| {
        let text = format!("tokens.store = {store}\n{AGENT_TABLE}");
        load_text(&text).unwrap_or_else(|error| panic!("{error}")).tokens.store
    };
    assert_eq!(read("\"memory\""), StoreConfig::Memory);
    let StoreConfig::Redis(redis) =
        read("{ redis = \"rediss://u%40x:p%2Fw@H:7000/3\", prefix = \"p:\", key = { env = \"LONG\" } }")
    else {
        panic!("a shared store");
    };
    assert_eq!((redis.tls, redis.database, redis.prefix.as_str()), (true, 3, "p:"));
    assert_eq!((redis.user.as_deref(), redis.password), (Some("u@x"), Some(Masked::new("p/w"))));
    assert_eq!(redis.nodes, [StoreNode { host: "h".to_owned(), port: 7000 }]);
    let StoreConfig::Redis(redis) = read(
        "{ redis = [\"redis://a\", \"redis://b:1\"], sentinel = \"m\", key = { env = \"LONG\" }, old_key = { env = \"LONG\" } }",
    ) else {
        panic!("a shared store");
    };
    assert_eq!(redis.topology, Topology::Sentinel("m".to_owned()));
    assert_eq!(redis.nodes.iter().map(|node| node.port).collect::<Vec<_>>(), [26379, 1]);
    assert_eq!(redis.prefix, "wecom-proxy:");
}

/// Checks the message only: root may read every file, so that opening one would not fail.
#[cfg(unix)]
#[test]
fn permission_denied_names_user_and_mode() {
    let directory = directory_with(&[("f", "")]);
    let path = directory.path().join("f");
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let denied = std::io::Error::from(std::io::ErrorKind::PermissionDenied);
    let message = path_error::unreadable_message(&path, &denied);
    let message = message.english();
    assert!(
        message.starts_with("cannot be read: permission denied; user ") && message.contains("mode 600"),
        "{message}"
    );
    let message = path_error::unreadable_message(&path.join("under-a-file"), &denied);
    let message = message.english();
    assert!(message.contains("each directory of the path"), "{message}");
    let missing = std::io::Error::from(std::io::ErrorKind::NotFound);
    let message = path_error::unreadable_message(std::path::Path::new("proxy.toml"), &missing);
    assert!(message.english().contains("; it was looked for in /"), "{message:?}");
}
