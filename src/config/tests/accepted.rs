//! Valid files and the resulting configuration.

use std::path::PathBuf;
use std::time::Duration;

use http::Method;
use proptest::prelude::*;

use super::{AGENT_TABLE, directory_with, load_in, load_text};
use crate::config::*;

fn load_with_agent(text: &str) -> Config {
    load_text(&format!("{text}\n{AGENT_TABLE}")).unwrap_or_else(|error| panic!("{text}: {error}"))
}

#[test]
fn agent_alone_gets_all_defaults() {
    let config = load_text(AGENT_TABLE).unwrap();
    assert_eq!(config.server.listen, [Address::Tcp("127.0.0.1:8080".parse().unwrap())]);
    assert_eq!((config.server.max_connections, config.server.max_request_body), (10_000, 64 << 20));
    assert_eq!(config.upstream.authority, "qyapi.weixin.qq.com");
    assert_eq!((config.upstream.tls, config.upstream.port, config.upstream.max_in_flight), (true, 443, 4096));
    assert_eq!(config.tokens.refresh_errcodes, [40014, 42001]);
    assert_eq!((config.tokens.renewals_per_hour, &config.tokens.pass_key), (None, &None));
    assert_eq!(
        (config.tokens.refresh_ahead, config.tokens.store),
        (Duration::from_secs(300), StoreConfig::Memory)
    );
    assert_eq!((config.replay.memory, config.replay.disk, config.replay.dir), (256 << 20, 4 << 30, None));
    let log = LogConfig {
        format: LogFormat::Text,
        level: LogLevel::Info,
        access: LoggedRequests::All,
        access_file: None,
    };
    assert_eq!(config.log, log);
    assert_eq!(config.admin, None);
    assert_eq!(config.agents["hr"].secrets[0].value.expose(), "hunter2-the-secret-of-hr");
}

#[test]
fn listen_addresses_are_parsed() {
    for (text, expected) in [
        ("\"[::1]:0\"", &["[::1]:0"][..]),
        ("\"localhost:80\"", &["127.0.0.1:80"]),
        ("[\"127.0.0.1:1\", \"unix:/run/x.sock\"]", &["127.0.0.1:1", "unix:/run/x.sock"]),
        ("[\"127.0.0.1:0\", \"127.0.0.1:0\"]", &["127.0.0.1:0", "127.0.0.1:0"]),
    ] {
        let config = load_with_agent(&format!("server.listen = {text}"));
        let listen: Vec<_> = config.server.listen.iter().map(Address::to_string).collect();
        assert_eq!(listen, expected);
    }
}

#[test]
fn upstream_url_is_parsed() {
    for (url, tls, host, port, authority) in [
        ("https://QYAPI.example/", true, "qyapi.example", 443, "qyapi.example"),
        ("https://qyapi.example:443", true, "qyapi.example", 443, "qyapi.example"),
        ("https://qyapi.example:80", true, "qyapi.example", 80, "qyapi.example:80"),
        ("http://127.0.0.1:80", false, "127.0.0.1", 80, "127.0.0.1"),
        ("http://[::1]:8081", false, "::1", 8081, "[::1]:8081"),
        ("https://[::1]", true, "::1", 443, "[::1]"),
        ("https://qyapi.weixin.qq.com.", true, "qyapi.weixin.qq.com.", 443, "qyapi.weixin.qq.com"),
    ] {
        let upstream = load_with_agent(&format!("upstream.url = {url:?}")).upstream;
        let found = (upstream.tls, upstream.host.as_str(), upstream.port, upstream.authority.as_str());
        assert_eq!(found, (tls, host, port, authority), "{url}");
    }
}

#[test]
fn via_is_parsed_with_protocol_and_login() {
    use EgressProtocol::*;
    for (via, protocol, host, port, login) in [
        ("\"http://egress\"", HttpConnect, "egress", 80, None),
        ("\"http://[::1]:3128/\"", HttpConnect, "::1", 3128, None),
        ("\"http://user@egress:1\"", HttpConnect, "egress", 1, Some(("user", ""))),
        ("\"http://user:p%40ss%3aword@egress:1\"", HttpConnect, "egress", 1, Some(("user", "p@ss:word"))),
        ("\"socks5://egress\"", Socks5, "egress", 1080, None),
        ("{ url = \"socks5h://u:p@egress:1081\" }", Socks5Hostname, "egress", 1081, Some(("u", "p"))),
        (
            "{ url = \"http://egress:3128\", user = \"robot\", password = { env = \"SHORT\" } }",
            HttpConnect,
            "egress",
            3128,
            Some(("robot", "hunter2")),
        ),
    ] {
        let found = load_with_agent(&format!("upstream.via = {via}")).upstream.via.remove(0);
        assert_eq!((found.protocol, found.host.as_str(), found.port), (protocol, host, port), "{via}");
        let found_login = found.login.as_ref().map(|login| (login.user.expose(), login.password.expose()));
        assert_eq!(found_login, login, "{via}");
    }
}

/// The sums are what hyper-util's buffer leaves beside the address.
#[test]
fn socks5_login_that_has_no_room_is_refused() {
    for (scheme, host, max_bytes) in [
        ("socks5", "127.0.0.1", 246),
        ("socks5h", "[::1]", 234),
        ("socks5", "qyapi.weixin.qq.com", 234),
        ("socks5h", "qyapi.weixin.qq.com.", 230),
    ] {
        for (bytes, expected) in [(max_bytes, None), (max_bytes + 1, Some("over"))] {
            let (user, password) = ("u".repeat(bytes / 2), "p".repeat(bytes - bytes / 2));
            let text = format!(
                "[upstream]\nurl = \"https://{host}\"\nvia = \"{scheme}://{user}:{password}@egress\"\n{AGENT_TABLE}"
            );
            let error = load_text(&text).err().map(|error| error.to_string());
            let expected = expected.map(|over| format!("{over} {max_bytes} bytes together"));
            assert_eq!(error.is_some(), expected.is_some(), "{error:?}");
            assert!(expected.is_none_or(|text| error.unwrap().contains(&text)));
        }
    }
}

#[test]
fn client_with_all_keys_is_parsed() {
    let text = "[clients.billing]\nkey = { env = \"KEY\" }\nagents = [\"hr\"]\nlimit = \"600/m\"\nalways_200 = true\n\
                allow = [\"POST /cgi-bin/message/send\", \"/cgi-bin/user/*\"]";
    let config = load_with_agent(text);
    let client = &config.clients["billing"];
    assert_eq!(client.keys[0].hash, KeyHash::of("hunter2-the-key-of-a-client"));
    assert!(client.agents.contains("hr") && !client.agents.contains("sales"));
    assert_eq!(client.limit, Some(RateLimit { requests: 600, per: Duration::from_secs(60) }));
    assert_eq!(client.allow[0].method, Some(Method::POST));
    assert!(client.allow[1].matches(&Method::GET, "/cgi-bin/user/get") && client.always_200);
    assert!(!config.is_open());
}

#[test]
fn client_without_allow_may_call_everything() {
    let config = load_with_agent("[clients.a]\nkey_sha256 = \"HASH\"\nagents = [\"*\"]");
    assert_eq!(config.clients["a"].allow, AllowPattern::everything());
    assert_eq!(
        (config.clients["a"].keys[0].hash, &config.clients["a"].agents),
        (KeyHash::of("abc"), &AgentSet::All)
    );
}

#[test]
fn public_address_needs_open_or_clients() {
    let open = load_with_agent("[server]\nlisten = \"0.0.0.0:8080\"\nopen = true");
    assert!(open.is_open());
    let closed = load_with_agent(
        "[server]\nlisten = \"0.0.0.0:8080\"\n[clients.a]\nkey_sha256 = \"HASH\"\nagents = [\"*\"]",
    );
    assert!(!closed.is_open());
    let both = load_with_agent("[server]\nopen = true\n[clients.a]\nkey_sha256 = \"HASH\"\nagents = [\"*\"]");
    assert!(both.is_open());
}

#[test]
fn admin_with_key_may_listen_on_public_address() {
    let text = "[admin]\nlisten = [\"0.0.0.0:9090\"]\nkey_sha256 = \"HASH\"\nrecent = 0";
    let admin = load_with_agent(text).admin.unwrap();
    assert_eq!((admin.key_sha256, admin.recent), (Some(KeyHash::of("abc")), 0));
}

#[test]
fn otlp_protocol_follows_port_or_path() {
    let grpc = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
    for (url, is_grpc, expected) in [
        ("http://127.0.0.1:4317", true, format!("http://127.0.0.1:4317{grpc}")),
        ("https://Traces:4317/", true, format!("https://traces:4317{grpc}")),
        (&format!("http://traces:5000{grpc}"), true, format!("http://traces:5000{grpc}")),
        ("http://[::1]:4318", false, "http://[::1]:4318/v1/traces".to_owned()),
        ("https://traces", false, "https://traces:443/v1/traces".to_owned()),
        ("http://traces:4317/v1/traces/", false, "http://traces:4317/v1/traces".to_owned()),
        ("https://traces:1/otlp/", false, "https://traces:1/otlp/v1/traces".to_owned()),
    ] {
        let admin = load_with_agent(&format!("[admin]\notlp = \"{url}\"")).admin.unwrap();
        let otlp = admin.otlp.unwrap();
        assert_eq!((otlp.grpc, otlp.to_string()), (is_grpc, expected), "{url}");
    }
}

#[test]
fn paths_are_relative_to_config_file() {
    let text = format!(
        "replay.dir = \"bodies\"\nserver.listen = \"unix:x.sock\"\nupstream.ca_file = \"ca/root.pem\"\n{AGENT_TABLE}"
    );
    let directory = directory_with(&[("proxy.toml", &text), ("bodies/x", ""), ("ca/root.pem", "")]);
    let config = load_in(directory.path()).unwrap();
    let within = |path: &str| directory.path().join(path);
    assert_eq!(config.replay.dir, Some(within("bodies")));
    assert_eq!(config.upstream.ca_file, Some(within("ca/root.pem")));
    assert_eq!(config.server.listen, [Address::Unix(within("x.sock"))]);
    assert_eq!(config.path, within("proxy.toml") as PathBuf);
}

proptest! {
    /// A wrong byte at any position causes no panic and no message that contains a secret.
    #[test]
    fn any_wrong_byte_never_panics_or_shows_secret(at in 0..1000usize, byte in any::<u8>()) {
        let text = "[server]\nlisten = \"127.0.0.1:0\"\nidle_timeout = \"5s\"\nmax_request_body = 5\n\
            [agents.hr]\ncorpid = \"ww1\"\nsecret = \"hunter2-the-secret-of-hr\"\nlimit = \"6/m\"\n\
            [clients.a]\nkey = \"hunter2-the-key-of-a\"\nagents = [\"*\"]\nallow = [\"GET /cgi-bin/*\"]\n";
        let mut bytes = text.as_bytes().to_vec();
        let at = at % bytes.len();
        bytes[at] = byte;
        let directory = directory_with(&[]);
        std::fs::write(directory.path().join("proxy.toml"), bytes).unwrap();
        let message = match load_in(directory.path()) {
            Ok(config) => format!("{config:?}"),
            Err(error) => format!("{error} {error:?}"),
        };
        prop_assert!(!message.contains("unter2-the-"), "{}", message);
    }
}
