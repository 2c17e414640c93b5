//! Errors in the structure of a file and in the other tables, each with its line and key.

use super::{assert_refused, load_error};

/// Texts, each with the error that it causes.
const INVALID_STRUCTURES: &[(&str, &str)] = &[
    (
        "[sever]",
        r#":1: sever: unknown table "sever"; did you mean "server"? allowed: include, server, upstream, upstreams, tokens, replay, quotas, log, admin, state, agents, clients, callbacks, providers, suites"#,
    ),
    (
        "lisen = 1",
        r#":1: lisen: unknown key "lisen"; allowed: include, server, upstream, upstreams, tokens, replay, quotas, log, admin, state, agents, clients, callbacks, providers, suites"#,
    ),
    (
        "[agent.hr]",
        r#":1: agent: unknown table "agent"; did you mean "agents"? allowed: include, server, upstream, upstreams, tokens, replay, quotas, log, admin, state, agents, clients, callbacks, providers, suites"#,
    ),
    (
        "[colours]",
        r#":1: colours: unknown table "colours"; allowed: include, server, upstream, upstreams, tokens, replay, quotas, log, admin, state, agents, clients, callbacks, providers, suites"#,
    ),
    ("server = 3", ":1: server: must be a table, not a whole number"),
    ("agents = 3", ":2: is not valid TOML: cannot extend value of type integer with a dotted key"),
    ("[[agents]]", ":1: agents: must be tables like [agents.NAME], not a list"),
    ("[[server]]", ":1: server: must be a table, not a list"),
    ("clients = 3", ":1: clients: must be tables like [clients.NAME], not a whole number"),
    ("clients.a = 3", ":1: clients.a: must be a table with key_sha256 and agents, not a whole number"),
    (
        "[server]\nlisen = \"x\"",
        r#":2: server.lisen: unknown key "lisen"; did you mean "listen"? allowed: listen, tls, open, max_connections, header_timeout, idle_timeout, body_timeout, max_request_body, shutdown_grace, trusted_proxies, client_address, proxy_protocol, socket_mode, socket_group, reload"#,
    ),
    (
        "[server]\nopen = false\nOpen = true",
        r#":3: server.Open: unknown key "Open"; did you mean "open"? allowed: listen, tls, open, max_connections, header_timeout, idle_timeout, body_timeout, max_request_body, shutdown_grace, trusted_proxies, client_address, proxy_protocol, socket_mode, socket_group, reload"#,
    ),
    (
        "[log]\n\n\"a b\" = 1",
        r#":3: log."a b": unknown key "a b"; allowed: format, level, access, access_file"#,
    ),
    ("[server]\nopen = \"yes\"", ":2: server.open: must be true or false, not a string"),
    ("server.open = 1\nserver.open = 2", r#":2: "open" is a duplicate key; keep one"#),
    ("[server]\nlisten =", ":2: is not valid TOML: string values must be quoted, expected literal string"),
    ("[server]\n\nlisten = \"127.0.0.1:1", r#":3: is not valid TOML: invalid basic string, expected `"`"#),
    ("x = hunter2", ":1: is not valid TOML: string values must be quoted, expected literal string"),
    (
        "\u{feff}[server]\nlisten = 1",
        r#":2: server.listen: must be an address like "127.0.0.1:8080", "[::1]:8080", "localhost:8080" or "unix:/run/wecom-proxy.sock", or a list of them, not a whole number"#,
    ),
    (
        "[server]\r\n\r\nlisten = 1",
        r#":3: server.listen: must be an address like "127.0.0.1:8080", "[::1]:8080", "localhost:8080" or "unix:/run/wecom-proxy.sock", or a list of them, not a whole number"#,
    ),
    ("[log\n", ":1: is not valid TOML: unclosed table, expected `]`"),
    (
        "[tokens]\nstore = { redis = \"hunter2\"",
        ":3: is not valid TOML: missing key for inline table element, expected `,`",
    ),
    ("[log]\nlevel = \"info\"\n[log]", r#":3: "log" is a duplicate key; keep one"#),
];

#[test]
fn invalid_structure_is_refused() {
    assert_refused(INVALID_STRUCTURES);
}

/// Texts, each with the error that it causes.
const INVALID_OTHER_TABLES: &[(&str, &str)] = &[
    (
        "[tokens]\nrefresh_errcodes = 40014",
        ":2: tokens.refresh_errcodes: must be a list of errcodes like [40014, 42001], not a whole number",
    ),
    (
        "[tokens]\nrefresh_errcodes = [40014, 0]",
        ":2: tokens.refresh_errcodes[1]: must be a whole number from 1 to 2147483647, not 0",
    ),
    (
        "[tokens]\nrefresh_errcodes = [\"40014\"]",
        ":2: tokens.refresh_errcodes[0]: must be a whole number from 1 to 2147483647, not a string",
    ),
    (
        "[tokens]\nrenewals_per_hour = 0",
        r#":2: tokens.renewals_per_hour: must be a whole number from 1 to 10000000, not 0"#,
    ),
    (
        "[tokens]\npass_key = \"only-31-characters-of-pass-keys\"",
        ":2: tokens.pass_key: is too short; it must have 32 characters or more",
    ),
    (
        "[tokens]\npass_key = true",
        ":2: tokens.pass_key: must be { env = \"NAME\" }, { file = \"path\" } or a string, not true or false",
    ),
    ("[tokens]\nrefresh_ahead = \"2h\"", r#":2: tokens.refresh_ahead: "2h" is too long; at most "1h""#),
    (
        "[tokens]\nstore = \"redis\"",
        r#":2: tokens.store: must be "memory" or { redis = "redis://127.0.0.1:6379/0", key = { env = "STORE_KEY" } }"#,
    ),
    (
        "[tokens]\nstore = 1",
        r#":2: tokens.store: must be "memory" or { redis = "redis://127.0.0.1:6379/0", key = { env = "STORE_KEY" } }, not a whole number"#,
    ),
    (
        "[replay]\nmemory = \"lots\"",
        r#":2: replay.memory: "lots" is not a size like "64MiB" (B, KiB, MiB, GiB) or a plain number of bytes"#,
    ),
    (
        "[replay]\ndisk = \"lots\"",
        r#":2: replay.disk: "lots" is not a size like "64MiB" (B, KiB, MiB, GiB) or a plain number of bytes"#,
    ),
    (
        "[replay]\ndir = \"none\"",
        r#":2: replay.dir: "none" cannot be used: No such file or directory (os error 2)"#,
    ),
    ("[replay]\ndir = \"a.pem\"", r#":2: replay.dir: "a.pem" is not a directory"#),
    (
        "[log]\nformat = \"txt\"",
        r#":2: log.format: "txt" is not known; did you mean "text"? allowed: "text", "json""#,
    ),
    ("[log]\nformat = 1", r#":2: log.format: must be one of "text", "json", not a whole number"#),
    (
        "[log]\nlevel = \"verbose\"",
        r#":2: log.level: "verbose" is not known; allowed: "error", "warn", "info", "debug", "trace""#,
    ),
    (
        "[log]\nlevel = \"WARN\"",
        r#":2: log.level: "WARN" is not known; did you mean "warn"? allowed: "error", "warn", "info", "debug", "trace""#,
    ),
    ("[log]\naccess = \"on\"", ":2: log.access: \"on\" is not known; allowed: \"all\", \"failed\", \"slow\""),
    (
        "[log]\naccess = 1",
        ":2: log.access: must be true, false, \"all\", \"failed\" or \"slow\", not a whole number",
    ),
    (
        "[admin]\nlisten = \"0.0.0.0:9090\"",
        r#":2: admin.listen: "0.0.0.0:9090" can be reached from other machines, so admin.key_sha256 is required: put the line of that name that "wecom-proxy key NAME" prints under [admin]"#,
    ),
    (
        "[admin]\nlisten = \"127.0.0.1:8080\"",
        r#":2: admin.listen: "127.0.0.1:8080" is already used by another listener"#,
    ),
    (
        "[admin]\nkey_sha256 = \"hunter2\"",
        r#":2: admin.key_sha256: must be the key's SHA-256 in 64 hex digits, as "wecom-proxy key NAME" prints it"#,
    ),
    (
        "[admin]\nkey_sha256 = 1",
        r#":2: admin.key_sha256: must be the key's SHA-256 in 64 hex digits, as "wecom-proxy key NAME" prints it, not a whole number"#,
    ),
    (
        "[admin]\nkey_sha256 = \"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\"",
        r#":2: admin.key_sha256: is the hash of an empty key; "wecom-proxy key NAME" generates one"#,
    ),
    ("[admin]\nrecent = -1", ":2: admin.recent: must be a whole number from 0 to 100000, not -1"),
    (
        "[admin]\notlp = \"127.0.0.1:4317\"",
        r#":2: admin.otlp: must start with http:// or https://, as in "http://127.0.0.1:4317""#,
    ),
    (
        "[admin]\notlp = \"http://u:hunter2@x\"",
        ":2: admin.otlp: must contain no user or password before the host",
    ),
    (
        "[admin]\notlp = \"http://x/?a\"",
        r#":2: admin.otlp: must contain no query; write one like "http://127.0.0.1:4317""#,
    ),
];

#[test]
fn invalid_other_tables_are_refused() {
    assert_refused(INVALID_OTHER_TABLES);
}

#[test]
fn missing_agents_or_file_is_refused() {
    let message = ": agents: no agent is configured; add one like this:\n\n[agents.hr]\n\
                 corpid = \"ww1234567890abcdef\"\nsecret = { env = \"WECOM_HR_SECRET\" }";
    assert_eq!(load_error(&[("proxy.toml", "")]), format!("proxy.toml{message}"));
    assert_eq!(load_error(&[("proxy.toml", "\n[agents]")]), format!("proxy.toml:2{message}"));
    assert_eq!(
        load_error(&[]),
        "proxy.toml: cannot be read: No such file or directory (os error 2); --config FILE selects another file"
    );
}
