//! Several mistakes at once: all are named, and none that only follows from another.

use super::{AGENT_TABLE, directory_with, load_errors, warnings};
use crate::config::{Error, SecretMode, is_unread, load_input, load_with, summarize_warnings};
use crate::text::Text;

/// The file, line and key of each mistake.
fn places(files: &[(&str, &str)]) -> Vec<String> {
    let place = |error: String| error.split(": ").take(2).collect::<Vec<_>>().join(" ");
    load_errors(files).into_iter().map(place).collect()
}

#[test]
fn all_mistakes_are_named_in_the_order_of_the_lines() {
    let text = "include = \"more.toml\"
[server]
idle_timeout = \"75\"
max_conections = 5
[upstream]
url = \"ftp://host\"
[tokens]
refresh_errcodes = [0]
[agents.hr]
corpid = \"your-corpid\"
secret = { env = \"NOT_SET\" }
agentid = \"x\"
[agents.cgi-bin]
[clients.a]
agents = [\"hr\", \"hrr\"]
limit = \"10\"
";
    let more = "[agents.it]\ncorpid = \"ww1\"\nsecrt = \"x\"\n[server]\nopen = true\n";
    assert_eq!(
        places(&[("proxy.toml", text), ("more.toml", more)]),
        [
            "proxy.toml:3 server.idle_timeout",
            "proxy.toml:4 server.max_conections",
            "proxy.toml:6 upstream.url",
            "proxy.toml:8 tokens.refresh_errcodes[0]",
            "proxy.toml:10 agents.hr.corpid",
            "proxy.toml:11 agents.hr.secret.env",
            "proxy.toml:12 agents.hr.agentid",
            "proxy.toml:13 agents.cgi-bin",
            "proxy.toml:14 clients.a",
            "proxy.toml:15 clients.a.agents[1]",
            "proxy.toml:16 clients.a.limit",
            "more.toml:3 agents.it.secrt",
            "more.toml:4 server",
        ]
    );
}

#[test]
fn mistake_that_follows_from_another_is_not_named() {
    for (text, expected) in [
        // The agent, the upstream, the suite and the store exist; they are only wrong.
        (
            "[agents.x]\ncorpid = 1\nsecret = \"s\"\n[clients.a]\nkey = { env = \"KEY\" }\nagents = [\"x\"]",
            "agents.x.corpid",
        ),
        (
            "[upstreams.u]\nurl = 1\n[agents.x]\ncorpid = \"ww2\"\nsecret = { env = \"HR\" }\nupstream = \"u\"",
            "upstreams.u.url",
        ),
        ("[tokens]\nstore = 7\n[state]\nshared = true", "tokens.store"),
        (
            "[state]\npath = 1\nkey = { env = \"LONG\" }\n[callbacks.c]\nagent = \"hr\"\ntoken = \"t\"\n\
             aes_key = { env = \"HR_CALLBACK_AES_KEY\" }",
            "state.path",
        ),
        ("[server]\nlisten = \"0.0.0.0:1\"\n[clients.a]\nkey = 1\nagents = [\"*\"]", "clients.a.key"),
        ("[admin]\nlisten = \"0.0.0.0:1\"\nkey_sha256 = \"x\"", "admin.key_sha256"),
    ] {
        let found = load_errors(&[("proxy.toml", &format!("{text}\n{AGENT_TABLE}"))]);
        assert_eq!(found.len(), 1, "{text}: {found:#?}");
        assert!(found[0].contains(expected), "{text}: {found:#?}");
    }
}

/// What the broken file defines is not known, so that an unknown agent is no mistake of the main file.
#[test]
fn wrong_syntax_of_an_included_file_hides_no_other_mistake() {
    let main = "include = [\"a.toml\", \"b.toml\"]\n[server]\nlisten = \"0.0.0.0:1\"\nopen = 1\n[clients.x]\n\
        key = { env = \"KEY\" }\nagents = [\"of-a\"]\nlimit = \"10\"\n";
    let files =
        [("proxy.toml", main), ("a.toml", "[agents.of-a\n"), ("b.toml", "[agents.of-b]\ncorpid = 1\n")];
    assert_eq!(
        places(&files),
        [
            "proxy.toml:4 server.open",
            "proxy.toml:8 clients.x.limit",
            "a.toml:1 is not valid TOML",
            "b.toml:1 agents.of-b.secret",
            "b.toml:2 agents.of-b.corpid",
        ]
    );
}

#[test]
fn each_wrong_item_of_a_list_is_named() {
    let text = "[server]
listen = [\"x\", \"127.0.0.1:1\", \"y\"]
trusted_proxies = [\"a\", \"unix\", \"b\"]
[tokens]
refresh_errcodes = [0, 1, -1]
[[quotas.limit]]
path = \"/x\"
per = \"day\"
limit = \"10\"
[[quotas.limit]]
path = \"/cgi-bin/x\"
per = \"corp\"
[agents.hr]
corpid = \"ww1\"
secret = [{ env = \"NOT\" }, { env = \"SET\" }]
plain = [\"/a\", \"/b\"]
[clients.a]
key_sha256 = [\"1\", \"2\"]
agents = [\"x\", \"hr\", \"y\"]
allow = [\"/a\", \"GTE /cgi-bin/b\"]
";
    assert_eq!(
        places(&[("proxy.toml", text)]),
        [
            "proxy.toml:2 server.listen[0]",
            "proxy.toml:2 server.listen[2]",
            "proxy.toml:3 server.trusted_proxies[0]",
            "proxy.toml:3 server.trusted_proxies[2]",
            "proxy.toml:5 tokens.refresh_errcodes[0]",
            "proxy.toml:5 tokens.refresh_errcodes[2]",
            "proxy.toml:7 quotas.limit[0].path",
            "proxy.toml:8 quotas.limit[0].per",
            "proxy.toml:9 quotas.limit[0].limit",
            "proxy.toml:10 quotas.limit[1].limit",
            "proxy.toml:15 agents.hr.secret[0].env",
            "proxy.toml:15 agents.hr.secret[1].env",
            "proxy.toml:16 agents.hr.plain[0]",
            "proxy.toml:16 agents.hr.plain[1]",
            "proxy.toml:18 clients.a.key_sha256[0]",
            "proxy.toml:18 clients.a.key_sha256[1]",
            "proxy.toml:19 clients.a.agents[0]",
            "proxy.toml:19 clients.a.agents[2]",
            "proxy.toml:20 clients.a.allow[0]",
            "proxy.toml:20 clients.a.allow[1]",
        ]
    );
}

#[test]
fn very_many_mistakes_are_counted() {
    let agents: String =
        (0..150).map(|nth| format!("[agents.a{nth}]\ncorpid = 1\nsecret = \"s\"\n")).collect();
    let error = super::load_text(&agents).unwrap_err();
    assert_eq!(error.all().count(), 150);
    let text = error.to_string();
    assert_eq!(text.lines().count(), 101);
    assert!(text.ends_with("and 50 more mistakes"), "{text}");
}

#[test]
fn repeated_warnings_are_summed_up() {
    let agents: String = (0..1000)
        .map(|nth| format!("[agents.a{nth:04}]\ncorpid = \"ww1\"\nsecret = \"hunter2-{nth}\"\n"))
        .collect();
    let other = "[server]\ntrusted_proxies = [\"127.0.0.1\"]\n";
    let directory = directory_with(&[("proxy.toml", &format!("{other}{agents}"))]);
    let config = super::load_in(directory.path()).unwrap();
    assert_eq!(config.warnings.len(), 1001);
    let texts = summarize_warnings(&config.warnings);
    let texts: Vec<_> = texts.iter().map(Text::english).collect();
    assert_eq!(texts.len(), 2, "{texts:#?}");
    assert!(texts[0].contains("this proxy is open"), "{texts:#?}");
    let expected = "(and 999 more, the last of them agents.a0999.secret)";
    assert!(texts[1].contains("agents.a0000.secret") && texts[1].ends_with(expected), "{texts:#?}");
    assert_eq!(warnings(&[("proxy.toml", AGENT_TABLE)]), [] as [&str; 0]);
}

#[test]
fn secrets_need_not_be_there() {
    let text = "[server]\nopen = true\ntls = { cert = \"no.pem\", key = \"no.key\" }
[tokens]
store = { redis = \"redis://r\", key = { env = \"NO\" } }
[agents.hr]
corpid = \"ww1\"
secret = [{ env = \"NO\" }, { file = \"no\" }]
[clients.a]
key = { env = \"NO_A\" }
agents = [\"hr\"]
[clients.b]
key = { env = \"NO_B\" }
agents = [\"hr\"]
[state]
shared = true
[callbacks.hr]
agent = \"hr\"
token = { env = \"NO\" }
aes_key = { file = \"no\" }
";
    let load = |secrets| {
        let directory = directory_with(&[("proxy.toml", text)]);
        load_with(&directory.path().join("proxy.toml"), &super::env, secrets)
    };
    let config = load(SecretMode::Unread).unwrap_or_else(|error| panic!("{error}"));
    assert!(config.agents["hr"].secrets.iter().all(|secret| is_unread(&secret.value)));
    let missing: Vec<_> = config.warnings.iter().map(|warning| warning.key.as_deref()).collect();
    assert_eq!(missing, [Some("server.tls.cert")], "what is no secret is warned of: {:?}", config.warnings);
    assert!(load(SecretMode::Required).is_err_and(|error: Error| error.all().count() == 9));
    // Other mistakes are errors still, and two clients with one key are one of them.
    let same = text.replace("NO_B", "NO_A").replace("ww1", "");
    let error = load_input("stdin", same.as_bytes(), &super::env, SecretMode::Unread).unwrap_err();
    let keys: Vec<_> = error.all().map(|error| error.key.clone().unwrap_or_default()).collect();
    assert_eq!(keys, ["agents.hr.corpid", "clients.b.key"], "{error}");
    assert!(error.to_string().starts_with("stdin:"), "{error}");
}
