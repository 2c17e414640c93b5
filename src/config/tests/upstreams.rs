//! `[upstreams.*]`, the agents that name one, path prefixes, and lists of egress proxies.

use proptest::prelude::*;

use super::{AGENT_TABLE, assert_refused, load_text, warnings};
use crate::config::*;

const PRIVATE: &str = "[upstreams.private]\nurl = \"https://wecom.corp.example:8443/a/b-1/\"\n";

fn load(text: &str) -> Config {
    load_text(&format!("{text}\n{AGENT_TABLE}")).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn agent_uses_the_upstream_that_it_names() {
    let config = load(&format!(
        "{PRIVATE}[upstreams.another]\nurl = \"https://a.example\"\n\
         [agents.x]\ncorpid = \"ww1\"\nsecret = {{ env = \"HR\" }}\nupstream = \"private\"\n"
    ));
    let (private, default) = (&config.agents["x"], &config.agents["hr"]);
    assert_eq!((private.upstream.index(), private.upstream.name()), (2, Some("private")));
    assert_eq!((default.upstream.index(), default.upstream.name()), (0, None));
    assert_eq!(config.upstream_of(private).base_url(), "https://wecom.corp.example:8443/a/b-1");
    assert_eq!(config.upstream_of(default).base_url(), "https://qyapi.weixin.qq.com");
    let order: Vec<_> = config.all_upstreams().map(|(id, _)| (id.index(), id.label().to_owned())).collect();
    assert_eq!(order, [(0, "default".to_owned()), (1, "another".to_owned()), (2, "private".to_owned())]);
}

#[test]
fn omitted_keys_have_the_defaults_and_not_the_values_of_upstream() {
    let config = load(&format!(
        "[upstream]\nmax_in_flight = 7\nconnect_timeout = \"1s\"\nvia = \"http://egress\"\n{PRIVATE}queue_timeout = \"9s\"\n"
    ));
    let (private, defaults) = (config.upstreams["private"].clone(), load("").upstream);
    let UpstreamConfig { tls, host, port, authority, path_prefix, queue_timeout, .. } = private.clone();
    assert_eq!(queue_timeout, std::time::Duration::from_secs(9));
    let expected = UpstreamConfig { tls, host, port, authority, path_prefix, queue_timeout, ..defaults };
    assert_eq!(private, expected);
}

/// They share a token only at one upstream.
#[test]
fn equal_credentials_on_two_upstreams_cause_no_warning() {
    let agent = |name: &str, more: &str| {
        format!("[agents.{name}]\ncorpid = \"ww1\"\nsecret = {{ env = \"HR\" }}\n{more}\n")
    };
    for (more, expected) in [("upstream = \"private\"", 0), ("", 1)] {
        let text = format!("{PRIVATE}{}{}", agent("x", more), agent("y", ""));
        assert_eq!(warnings(&[("proxy.toml", &text)]).len(), expected, "{more}");
    }
}

/// Texts, each with the error that it causes.
const INVALID: &[(&str, &str)] = &[
    (
        "[upstreams.private]\nca_file = \"a.pem\"",
        r#":1: upstreams.private.url: is missing; write one like url = "https://wecom.corp.example""#,
    ),
    (
        "[upstreams.default]\nurl = \"https://x\"",
        ":1: upstreams.default: cannot be an upstream's name, since metrics call [upstream] so",
    ),
    (
        "[upstreams.\"a b\"]\nurl = \"https://x\"",
        ":1: upstreams.\"a b\": is not a name; use letters, digits, _ and -",
    ),
    (
        "[upstreams.x]\nurl = \"https://x\"\nmax_inflight = 1",
        r#":3: upstreams.x.max_inflight: unknown key "max_inflight"; did you mean "max_in_flight"? allowed: url, ca_file, via, connect_timeout, response_timeout, body_timeout, idle_timeout, tcp_keepalive, max_age, max_in_flight, queue_timeout, require_length"#,
    ),
    (
        "[agents.x]\ncorpid = \"ww1\"\nsecret = { env = \"HR\" }\nupstream = \"private\"",
        r#":4: agents.x.upstream: "private" does not exist; there is no table [upstreams.NAME]"#,
    ),
    (
        "[upstreams.private]\nurl = \"https://x\"\n[upstreams.other]\nurl = \"https://y\"\n[agents.x]\ncorpid = \"ww1\"\nsecret = { env = \"HR\" }\nupstream = \"privat\"",
        r#":8: agents.x.upstream: "privat" does not exist; did you mean "private"? there are: other, private; without this key, [upstream] is used"#,
    ),
    (
        "[upstream]\nvia = []",
        ":2: upstream.via: must list from 1 to 16 egress proxies; leave it out to connect without one",
    ),
    (
        "[upstream]\nvia = [\"http://egress\", { url = \"http://EGRESS:80\" }]",
        r#":2: upstream.via[1]: lists "egress:80" twice"#,
    ),
    (
        "[upstream]\nvia = [\"http://a\", \"ftp://hunter2@b\"]",
        r#":2: upstream.via[1]: must start with http:// or socks5:// or socks5h://, as in "http://egress:3128""#,
    ),
    (
        "[upstream]\nvia = [[\"http://a\"]]",
        r#":2: upstream.via[0]: must be a URL like "http://egress:3128", a table like { url = "http://egress:3128", user = "…", password = { env = "NAME" } }, or a list of these, not a list"#,
    ),
];

#[test]
fn invalid_upstreams_are_refused() {
    assert_refused(INVALID);
}

#[test]
fn via_may_be_a_list_of_urls_and_tables() {
    let config = load(
        "[upstream]\nvia = [\"http://a:3128\", { url = \"socks5://b\", user = \"u\", password = { env = \"SHORT\" } }]",
    );
    let found: Vec<_> =
        config.upstream.via.iter().map(|via| (via.authority(), via.login.is_some())).collect();
    assert_eq!(found, [("a:3128".to_owned(), false), ("b:1080".to_owned(), true)]);
}

proptest! {
    /// Whatever prefix is accepted, it can be read in one way only.
    #[test]
    fn path_prefix_is_plain_or_refused(rest in "[/?#.%a-c;\\\\-]{0,12}") {
        let text = format!("upstream.url = 'https://wecom.example{rest}'\n{AGENT_TABLE}");
        let Ok(config) = load_text(&text) else { return Ok(()) };
        let prefix = config.upstream.path_prefix;
        prop_assert!(prefix.is_empty() || prefix.starts_with('/') && !prefix.ends_with('/'), "{}", prefix);
        prop_assert!(!prefix.contains(['?', '#', '%', '\\', ';']) && !prefix.contains("//"), "{}", prefix);
        prop_assert!(prefix.split('/').all(|segment| segment != "." && segment != ".."), "{}", prefix);
    }
}
