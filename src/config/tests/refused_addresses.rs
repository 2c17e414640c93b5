//! Errors in `[server]` and `[upstream]`, each with its line and key.

use super::assert_refused;

/// Texts, each with the error that it causes.
const INVALID_SERVER_TABLES: &[(&str, &str)] = &[
    (
        "[server]\nlisten = 8080",
        r#":2: server.listen: must be an address like "127.0.0.1:8080", "[::1]:8080", "localhost:8080" or "unix:/run/wecom-proxy.sock", or a list of them, not a whole number"#,
    ),
    (
        "[server]\nlisten = \":8080\"",
        r#":2: server.listen: ":8080" names no address; write "127.0.0.1:8080" for this machine only, or "0.0.0.0:8080" for every interface"#,
    ),
    (
        "[server]\nlisten = \"*:8080\"",
        r#":2: server.listen: "*:8080" names no address; write "127.0.0.1:8080" for this machine only, or "0.0.0.0:8080" for every interface"#,
    ),
    (
        "[server]\nlisten = \"127.0.0.1\"",
        r#":2: server.listen: "127.0.0.1" is not an address; write one like "127.0.0.1:8080", "[::1]:8080", "localhost:8080" or "unix:/run/wecom-proxy.sock""#,
    ),
    (
        "[server]\nlisten = \"127.0.0.1:99999\"",
        r#":2: server.listen: "127.0.0.1:99999" has no port from 0 to 65535 after its last colon"#,
    ),
    (
        "[server]\nlisten = \"127.0.0.1:+1\"",
        r#":2: server.listen: "127.0.0.1:+1" has no port from 0 to 65535 after its last colon"#,
    ),
    (
        "[server]\nlisten = \"proxy.internal:80\"",
        r#":2: server.listen: "proxy.internal:80" does not start with an IP address or localhost; write one like "127.0.0.1:8080", "[::1]:8080", "localhost:8080" or "unix:/run/wecom-proxy.sock""#,
    ),
    (
        "[server]\nlisten = \"::1:80\"",
        r#":2: server.listen: "::1:80" is not an address; write one like "127.0.0.1:8080", "[::1]:8080", "localhost:8080" or "unix:/run/wecom-proxy.sock""#,
    ),
    (
        "[server]\nlisten = \"unix:\"",
        r#":2: server.listen: has no path after "unix:"; write one like "unix:/run/wecom-proxy.sock""#,
    ),
    (
        "[server]\nlisten = []",
        r#":2: server.listen: is empty; name at least one address like "127.0.0.1:8080", "[::1]:8080", "localhost:8080" or "unix:/run/wecom-proxy.sock""#,
    ),
    (
        "[server]\nlisten = [\"127.0.0.1:1\", 7]",
        r#":2: server.listen[1]: must be an address like "127.0.0.1:8080", "[::1]:8080", "localhost:8080" or "unix:/run/wecom-proxy.sock", not a whole number"#,
    ),
    (
        "[server]\nlisten = [\n  \"127.0.0.1:1\",\n  \"127.0.0.1:1\",\n]",
        r#":4: server.listen[1]: "127.0.0.1:1" is already used by another listener"#,
    ),
    (
        "[server]\nlisten = \"0.0.0.0:80\"",
        r#":2: server.listen: "0.0.0.0:80" can be reached from other machines, and without [clients.*] any of them could use the agents; add a client ("wecom-proxy key NAME" prints the lines), or set server.open = true to allow it"#,
    ),
    (
        "[server]\nlisten = \"http://127.0.0.1:80\"",
        r#":2: server.listen: "http://127.0.0.1:80" is not an address; write one like "127.0.0.1:8080", "[::1]:8080", "localhost:8080" or "unix:/run/wecom-proxy.sock""#,
    ),
    (
        "[server]\nlisten = [\"unix:a\", \"[::]:80\"]",
        r#":2: server.listen: "[::]:80" can be reached from other machines, and without [clients.*] any of them could use the agents; add a client ("wecom-proxy key NAME" prints the lines), or set server.open = true to allow it"#,
    ),
    (
        "[server]\nlisten = \"unix:xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\"",
        ":2: server.listen: is too long for a unix socket; at most 107 bytes",
    ),
    (
        "[server]\nidle_timeout = \"75 seconds\"",
        r#":2: server.idle_timeout: "75 seconds" is not a duration; write one like "75s" (ms, s, m, h)"#,
    ),
    (
        "[server]\nidle_timeout = 75",
        r#":2: server.idle_timeout: must be a duration like "75s" (ms, s, m, h), not a whole number"#,
    ),
    ("[server]\nidle_timeout = \"0s\"", r#":2: server.idle_timeout: "0s" is too short; at least "1ms""#),
    (
        "[server]\nidle_timeout = \"99999999999999999999h\"",
        r#":2: server.idle_timeout: "99999999999999999999h" is too long; at most "720h""#,
    ),
    (
        "[server]\nidle_timeout = \"1.5s\"",
        r#":2: server.idle_timeout: "1.5s" is not a duration; write one like "75s" (ms, s, m, h)"#,
    ),
    (
        "[server]\nshutdown_grace = \"721h\"",
        r#":2: server.shutdown_grace: "721h" is too long; at most "720h""#,
    ),
    (
        "[server]\nmax_connections = 0",
        ":2: server.max_connections: must be a whole number from 1 to 1000000, not 0",
    ),
    (
        "[server]\nmax_connections = -1",
        ":2: server.max_connections: must be a whole number from 1 to 1000000, not -1",
    ),
    (
        "[server]\nmax_connections = 1_000_001",
        ":2: server.max_connections: must be a whole number from 1 to 1000000, not 1000001",
    ),
    (
        "[server]\nmax_connections = \"many\"",
        ":2: server.max_connections: must be a whole number from 1 to 1000000, not a string",
    ),
    (
        "[server]\nmax_connections = 1e3",
        ":2: server.max_connections: must be a whole number from 1 to 1000000, not a fraction",
    ),
    (
        "[server]\nmax_request_body = \"64MB\"",
        r#":2: server.max_request_body: "64MB" is not a size like "64MiB" (B, KiB, MiB, GiB) or a plain number of bytes"#,
    ),
    (
        "[server]\nmax_request_body = 0",
        ":2: server.max_request_body: must be a whole number from 1 to 9223372036854775807, not 0",
    ),
    (
        "[server]\nmax_request_body = -5",
        ":2: server.max_request_body: must be a whole number from 1 to 9223372036854775807, not -5",
    ),
    (
        "[server]\nmax_request_body = \"0B\"",
        r#":2: server.max_request_body: "0B" is too small; at least "1B""#,
    ),
    (
        "[server]\nmax_connections = 9999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999",
        ":2: server.max_connections: must be a whole number from 1 to 1000000, not 99999999999999999999999999999999999999999999999999999999999999999999999999999999…",
    ),
    (
        "[server]\nmax_request_body = \"99999999999GiB\"",
        r#":2: server.max_request_body: "99999999999GiB" is too large"#,
    ),
    (
        "[server]\nmax_request_body = 1.5",
        r#":2: server.max_request_body: must be a size like "64MiB" (B, KiB, MiB, GiB) or a plain number of bytes, not a fraction"#,
    ),
    (
        "[server]\ntls = true",
        r#":2: server.tls: must be a table like { cert = "server.pem", key = "server.key" }, not true or false"#,
    ),
    (
        "[server]\ntls = { cert = \"a.pem\" }",
        r#":2: server.tls.key: is missing; write one like key = "server.key""#,
    ),
    (
        "[server]\ntls = { key = \"a.pem\" }",
        r#":2: server.tls.cert: is missing; write one like cert = "server.pem""#,
    ),
    (
        "[server]\ntls = { cert = \"none.pem\", key = \"a.pem\" }",
        r#":2: server.tls.cert: "none.pem" cannot be read: No such file or directory (os error 2)"#,
    ),
    ("[server]\ntls = { cert = \"a.pem\", key = \".\" }", r#":2: server.tls.key: "." is not a file"#),
    (
        "[server]\ntls = { cert = \"a.pem\", key = \"a.pem\", client-ca = \"a.pem\" }",
        r#":2: server.tls.client-ca: unknown key "client-ca"; did you mean "client_ca"? allowed: cert, key, client_ca"#,
    ),
];

#[test]
fn invalid_server_table_is_refused() {
    assert_refused(INVALID_SERVER_TABLES);
}

/// Texts, each with the error that it causes.
const INVALID_UPSTREAM_TABLES: &[(&str, &str)] = &[
    (
        "[upstream]\nurl = 1",
        r#":2: upstream.url: must be a URL like "https://qyapi.weixin.qq.com", not a whole number"#,
    ),
    (
        "[upstream]\nurl = \"qyapi.weixin.qq.com\"",
        r#":2: upstream.url: must start with https:// or http://, as in "https://qyapi.weixin.qq.com""#,
    ),
    (
        "[upstream]\nurl = \"ftp://x\"",
        r#":2: upstream.url: must start with https:// or http://, as in "https://qyapi.weixin.qq.com""#,
    ),
    (
        "[upstream]\nurl = \"https://qyapi.weixin.qq.com/cgi-bin\"",
        ":2: upstream.url: must end before /cgi-bin, which each request has",
    ),
    (
        "[upstream]\nurl = \"https://x?y=hunter2\"",
        ":2: upstream.url: may have a path like /prefix after the host and port: no query, no %, no empty or dot segments",
    ),
    (
        "[upstream]\nurl = \"https://hunter2@x\"",
        ":2: upstream.url: must contain no user or password before the host",
    ),
    (
        "[upstream]\nurl = \"https://x:99999\"",
        r#":2: upstream.url: must have a port from 1 to 65535 after the host; write one like "https://qyapi.weixin.qq.com""#,
    ),
    (
        "[upstream]\nurl = \"https://qyapi-.weixin.qq.com\"",
        ":2: upstream.url: has a host that is no valid TLS server name: no label may begin or end with a hyphen",
    ),
    (
        "[upstream]\nurl = \"https://\"",
        r#":2: upstream.url: has no host, or one that is neither a name nor an address; write one like "https://qyapi.weixin.qq.com""#,
    ),
    (
        "[upstream]\nurl = \"https://1.2.3\"",
        r#":2: upstream.url: has a host that looks like an IPv4 address but is not one; write one like "https://qyapi.weixin.qq.com""#,
    ),
    (
        "[upstream]\nurl = \"https://a b\"",
        r#":2: upstream.url: contains a space or a character that is not ASCII; write one like "https://qyapi.weixin.qq.com""#,
    ),
    (
        "[upstream]\nvia = \"https://x:1\"",
        r#":2: upstream.via: must start with http:// or socks5:// or socks5h://, as in "http://egress:3128""#,
    ),
    (
        "[upstream]\nvia = { url = \"http://u:hunter2@x\", user = \"v\", password = { env = \"HR\" } }",
        ":2: upstream.via.user: stands in the url too; keep one of the two",
    ),
    (
        "[upstream]\nvia = { url = \"http://x\", password = { env = \"HR\" } }",
        ":2: upstream.via.password: needs a user beside it",
    ),
    (
        "[upstream]\nvia = { url = \"http://x\", user = \"u:v\", password = { env = \"HR\" } }",
        ":2: upstream.via.user: must be a user's name without a colon",
    ),
    (
        "[upstream]\nvia = { url = \"http://x\", user = \"u\" }",
        r#":2: upstream.via.password: is missing; write one like password = { env = "NAME" }"#,
    ),
    (
        "[upstream]\nvia = { user = \"u\" }",
        r#":2: upstream.via.url: is missing; write one like url = "http://egress:3128""#,
    ),
    (
        "[upstream]\nvia = \"http://:hunter2@x\"",
        r#":2: upstream.via: must name a user without a colon before the "@", as in "http://user:password@egress:3128""#,
    ),
    (
        "[upstream]\nvia = \"http://u:hunter2@x/path\"",
        ":2: upstream.via: must contain nothing after the host and port: no path, no query",
    ),
    (
        "[upstream]\nca_file = \"none.pem\"",
        r#":2: upstream.ca_file: "none.pem" cannot be read: No such file or directory (os error 2)"#,
    ),
    (
        "[upstream]\nconnect_timeout = \"0s\"",
        r#":2: upstream.connect_timeout: "0s" is too short; at least "1ms""#,
    ),
    (
        "[upstream]\nqueue_timeout = \"-1s\"",
        r#":2: upstream.queue_timeout: "-1s" is not a duration; write one like "75s" (ms, s, m, h)"#,
    ),
    (
        "[upstream]\nmax_in_flight = 0",
        ":2: upstream.max_in_flight: must be a whole number from 1 to 1000000, not 0",
    ),
];

#[test]
fn invalid_upstream_table_is_refused() {
    assert_refused(INVALID_UPSTREAM_TABLES);
}
