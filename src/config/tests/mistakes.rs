//! Mistakes that would show only later: secrets with something beside them, encodings, listeners that overlap, proxies that
//! are trusted in vain.

use std::fs;

use super::{AGENT_TABLE, directory_with, env, load_error, load_in, warnings};
use crate::config::{ClientAddressHeader, load_with_env};

#[test]
fn secret_with_something_beside_it_is_refused() {
    const GOOD: &str = "hunter2bcdefghij0123456789-_klmnopqrstuvwx";
    let directory = directory_with(&[("proxy.toml", &AGENT_TABLE.replace("HR", "MISTAKE"))]);
    let load = |value: String| {
        let lookup = move |name: &str| (name == "MISTAKE").then(|| value.clone()).or_else(|| env(name));
        load_with_env(&directory.path().join("proxy.toml"), &lookup)
    };
    for (value, expected) in [
        (format!("\"{GOOD}\""), "quotes"),
        (format!("'{GOOD}'"), "quotes"),
        (format!("WECOM_HR_SECRET={GOOD}"), "NAME=value"),
        ("$WECOM_SECRET".to_owned(), "$NAME"),
        ("your_wecom_secret".to_owned(), "placeholder"),
        (format!("{GOOD}\r"), "visible ASCII"),
        (format!("{GOOD} "), "visible ASCII"),
        (format!("“{GOOD}”"), "visible ASCII"),
    ] {
        let error = load(value.clone()).expect_err(&value).to_string();
        assert!(error.contains(expected) && !error.contains("hunter2"), "{value}: {error}");
    }
    assert_eq!(load(GOOD.to_owned()).unwrap().warnings, []);
    let unusual = load(format!("{GOOD}%")).unwrap().warnings;
    assert!(unusual[0].message.english().contains("no secret of WeCom has"), "{unusual:?}");
}

#[test]
fn other_secret_with_something_beside_it_is_warned_of() {
    let store = "[tokens]\nstore = { redis = \"redis://r\", password = { file = \"f\" }, key = { env = \"LONG\" } }\n";
    let found = warnings(&[("proxy.toml", &format!("{store}{AGENT_TABLE}")), ("f", "\"hunter2\"\n")]);
    assert!(found.iter().any(|warning| warning.contains("has quotes around it")), "{found:?}");
}

#[test]
fn encoding_of_files_is_named() {
    let gbk = b"# \xC8\xCB\xCA\xC2\n[agents.hr]\ncorpid = \"ww1\"\nsecret = { file = \"f\" }\n";
    let utf8 = "\u{feff}# 人事\n[agents.hr]\ncorpid = \"ww1\"\nsecret = { file = \"f\" }\n";
    let utf16: Vec<u8> = utf8.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let directory = directory_with(&[("f", "\u{feff}hunter2\n")]);
    let write = |name: &str, bytes: &[u8]| fs::write(directory.path().join(name), bytes).unwrap();
    let message = || load_in(directory.path()).err().map_or("none".to_owned(), |error| error.to_string());
    write("proxy.toml", utf8.as_bytes());
    assert_eq!(message(), "none");
    write("f", b"\xFF\xFEh\0");
    assert!(message().contains("line 1: is UTF-16, not UTF-8; save it as UTF-8"), "{}", message());
    write("proxy.toml", gbk);
    assert!(message().ends_with("proxy.toml:1: is GBK, not UTF-8; save it as UTF-8"), "{}", message());
    write("proxy.toml", &utf16);
    assert!(message().ends_with("proxy.toml:1: is UTF-16, not UTF-8; save it as UTF-8"), "{}", message());
}

#[test]
fn overlapping_listeners_are_found() {
    for (text, expected) in [
        (
            "[server]\nlisten = [\"127.0.0.1:1\", \"0.0.0.0:1\"]\nopen = true",
            r#"proxy.toml:2: server.listen[1]: "0.0.0.0:1" is already used by another listener, "127.0.0.1:1""#,
        ),
        (
            "[server]\nlisten = \"[::]:1\"\nopen = true\n[admin]\nlisten = \"[::1]:1\"",
            r#"proxy.toml:5: admin.listen: "[::1]:1" is already used by another listener, "[::]:1""#,
        ),
    ] {
        assert_eq!(load_error(&[("proxy.toml", &format!("{text}\n{AGENT_TABLE}"))]), expected);
    }
    let both = "[server]\nlisten = [\"0.0.0.0:1\", \"[::]:1\"]\nopen = true\n";
    let found = warnings(&[("proxy.toml", &format!("{both}{AGENT_TABLE}"))]);
    assert!(found[0].contains("\"[::]:1\" overlaps with \"0.0.0.0:1\""), "{found:?}");
}

#[test]
fn trusted_proxies_are_read_and_doubted() {
    let text = "[server]\ntrusted_proxies = [\"127.0.0.1\", \"10.0.0.0/8\", \"unix\"]\nclient_address = \"forwarded\"\n\
                proxy_protocol = true\n[clients.a]\nkey = { env = \"KEY\" }\nagents = [\"hr\"]\n";
    let directory = directory_with(&[("proxy.toml", &format!("{text}{AGENT_TABLE}"))]);
    let config = load_in(directory.path()).unwrap();
    assert_eq!(config.warnings, []);
    let trusted = config.server.trusted;
    assert_eq!((trusted.header, trusted.proxy_protocol), (ClientAddressHeader::Forwarded, true));
    for (peer, expected) in
        [(Some("10.1.1.1"), true), (Some("127.0.0.1"), true), (Some("11.1.1.1"), false), (None, true)]
    {
        assert_eq!(trusted.trusts(peer.map(|peer| peer.parse().unwrap())), expected, "{peer:?}");
    }
    for (text, expected) in [
        ("trusted_proxies = [\"127.0.0.1\"]", "this proxy is open"),
        ("trusted_proxies = [\"0.0.0.0/0\"]", "trusts every peer"),
        ("proxy_protocol = true", "has no effect"),
    ] {
        let found = warnings(&[("proxy.toml", &format!("[server]\n{text}\n{AGENT_TABLE}"))]);
        assert!(found.iter().any(|warning| warning.contains(expected)), "{text}: {found:?}");
    }
    for (text, expected) in [
        (
            "trusted_proxies = [\"localhost\"]",
            "server.trusted_proxies[0]: \"localhost\" is neither an address",
        ),
        ("trusted_proxies = \"127.0.0.1\"", "server.trusted_proxies: must be a list like"),
        ("client_address = \"x-real-ip\"", "server.client_address: \"x-real-ip\" is not known"),
        ("socket_mode = 660", "server.socket_mode: must be octal digits in quotes"),
        ("socket_mode = \"0o660\"", "server.socket_mode: \"0o660\" is not a mode"),
        ("socket_group = \"no such group\"", "server.socket_group: there is no group \"no such group\""),
    ] {
        let error = load_error(&[("proxy.toml", &format!("[server]\n{text}\n{AGENT_TABLE}"))]);
        assert!(error.contains(expected), "{text}: {error}");
    }
}

#[test]
fn key_in_the_path_is_warned_of() {
    let client = "[clients.a]\nkey = { env = \"KEY\" }\nkey_in = \"path\"\nagents = [\"hr\"]\n";
    let found = warnings(&[("proxy.toml", &format!("{client}{AGENT_TABLE}"))]);
    assert!(found[0].contains("clients.a.key_in: puts the key into URLs"), "{found:?}");
    let odd = client.replace("{ env = \"KEY\" }", "\"hunter2/of-a-client\"");
    let error = load_error(&[("proxy.toml", &format!("{odd}{AGENT_TABLE}"))]);
    assert!(error.contains("needs a key of letters, digits, - and _ only"), "{error}");
}
