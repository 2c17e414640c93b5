//! Files that include other files.

use super::{AGENT_TABLE, directory_with, load_error, load_in};

const SALES_TABLE: &str = "[agents.sales]\ncorpid = \"ww1\"\nsecret = { file = \"sales.secret\" }\n";

#[test]
fn included_files_are_read_once_in_order() {
    let main = format!("include = [\"d/*.toml\", \"d/b.toml\", \"*.toml\"]\n{AGENT_TABLE}");
    let billing = "[clients.billing]\nkey_sha256 = \"HASH\"\nagents = [\"sales\"]\n";
    let directory = directory_with(&[
        ("proxy.toml", &main),
        ("d/a.toml", billing),
        ("d/b.toml", SALES_TABLE),
        ("d/sales.secret", "hunter2\r\n"),
        ("d/.hidden.toml", "not TOML"),
        ("d/notes.txt", "not TOML"),
        ("d/x.toml/y", "a directory"),
    ]);
    let config = load_in(directory.path()).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(config.agents.keys().collect::<Vec<_>>(), ["hr", "sales"]);
    assert_eq!(config.agents["sales"].secrets[0].value.expose(), "hunter2");
    assert_eq!(config.clients.keys().collect::<Vec<_>>(), ["billing"]);
}

#[test]
fn include_pattern_may_match_no_file() {
    let main = format!("include = \"nowhere/*.toml\"\n{AGENT_TABLE}");
    assert_eq!(super::warnings(&[("proxy.toml", &main)]), ["proxy.toml:1: include: matches no file"]);
}

#[test]
fn include_error_names_included_file() {
    let main = format!("include = [\n  \"d/*.toml\",\n]\n{AGENT_TABLE}");
    for (included, expected) in [
        ("x = 1", "d/a.toml:1: x: unknown key \"x\"; allowed: agents, clients"),
        (
            "[client.a]",
            "d/a.toml:1: client: unknown table \"client\"; did you mean \"clients\"? allowed: agents, clients",
        ),
        (
            "\n[log]",
            "d/a.toml:2: log: belongs in the main file; an included file contains only [agents.*] and [clients.*]",
        ),
        (
            "include = []",
            "d/a.toml:1: include: belongs in the main file; an included file contains only [agents.*] and [clients.*]",
        ),
        ("\n[agents.hr]", "d/a.toml:2: agents.hr: is already defined in proxy.toml:4; rename one of them"),
        (
            "[agents.x]",
            "d/a.toml:1: agents.x.corpid: is missing; write one like corpid = \"ww1234567890abcdef\"\nd/a.toml:1: agents.x.secret: \
             is missing; write one like secret = { env = \"WECOM_HR_SECRET\" }",
        ),
        (
            "= hunter2",
            "d/a.toml:1: is not valid TOML: unquoted keys cannot be empty, expected letters, numbers, `-`, `_`",
        ),
    ] {
        assert_eq!(load_error(&[("proxy.toml", &main), ("d/a.toml", included)]), expected);
    }
}

#[test]
fn missing_or_invalid_include_is_refused() {
    for (include, expected) in [
        ("\"d/a.toml\"", "proxy.toml:1: include: there is no file \"d/a.toml\""),
        ("[\"d\"]", "proxy.toml:1: include[0]: d: is not a file"),
        (
            "[\"*/a.toml\"]",
            "proxy.toml:1: include[0]: \"*/a.toml\" is not supported; only the file name may contain a *",
        ),
        (
            "[\"d/**\"]",
            "proxy.toml:1: include[0]: \"d/**\" is not supported; only the file name may contain a *",
        ),
        (
            "7",
            "proxy.toml:1: include: must be a path like \"agents.d/*.toml\", or a list of them, not a whole number",
        ),
    ] {
        let main = format!("include = {include}\n{AGENT_TABLE}");
        assert_eq!(load_error(&[("proxy.toml", &main), ("d/x", "")]), expected);
    }
}
