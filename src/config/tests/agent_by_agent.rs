//! Agents are read one by one, and not again where their text is the same; the result is that of reading whole files.

use std::fs;
use std::path::Path;

use proptest::prelude::*;
use proptest::sample::select;

use super::super::loaded_files::{Inputs, SecretMode};
use super::super::source_file::SourceFile;
use super::super::{AgentTexts, Config, Error, load_from, read_files};
use super::{directory_with, env};

/// Lines of which files are made that are easily cut in the wrong place.
const LINES: &[&str] = &[
    "[agents.a]",
    "[agents.b] ",
    "[agents.c]\r",
    "[agents.a] # a comment",
    " [agents.b]",
    "[agents.\"a\"]",
    "[agents]",
    "[[agents]]",
    "[[agents.a]]",
    "[agents.a.secret]",
    "[agents.cgi-bin]",
    "[\"agents\".b]",
    "[agents.é]",
    "agents = { d = { corpid = \"ww1\", secret = \"hunter2-1\" } }",
    "agents.d = { corpid = \"ww1\", secret = \"hunter2-1\" }",
    "corpid = \"ww1\"",
    "corpid = \"ww1\"",
    "secret = \"hunter2-1\"",
    "secret = \"hunter2-2\"",
    "secret = { env = \"HR\" }",
    "secret = { file = \"secret\" }",
    "secret = [\"hunter2-1\", { env = \"HR\" }]",
    "env = \"HR\"",
    "suite = \"crm\"",
    "upstream = \"u\"",
    "limit = \"5/m\"",
    "limit = 5",
    "plain = [",
    "\"/cgi-bin/x\"",
    "]",
    "[\"x\"]",
    "plain = \"\"\"",
    "\"\"\"",
    "'''",
    "# comment",
    "",
    "unknown = 1",
    "include = \"*.inc\"",
    "[server]",
    "open = true",
    "[upstreams.u]",
    "url = \"https://u.example\"",
    "[clients.c]",
    "key = \"hunter2-2\"",
    "agents = [\"a\"]",
    "agents = [\"*\"]",
];

fn load(path: &Path, known: &AgentTexts) -> Result<Config, Error> {
    let inputs = Inputs::new(&env, SecretMode::Required);
    load_from(path, &SourceFile::read(path, &inputs)?, &inputs, known)
}

fn load_whole(path: &Path) -> Result<Config, Error> {
    let inputs = Inputs::new(&env, SecretMode::Required);
    read_files(path, &SourceFile::read(path, &inputs)?, &inputs, None).expect("whole files")
}

fn lines() -> impl Strategy<Value = String> {
    // Agents often, so that many files are valid.
    let agent = select(&["a", "b", "c", "d"][..])
        .prop_map(|name| format!("[agents.{name}]\ncorpid = \"ww-{name}\"\nsecret = \"hunter2-{name}\""));
    let line = prop_oneof![1 => select(LINES).prop_map(str::to_owned), 1 => agent];
    prop::collection::vec(line, 0..12).prop_map(|lines| lines.join("\n"))
}

/// `[agents.NAME]` of a valid file.
fn agent_table() -> impl Strategy<Value = String> {
    let secrets = [
        "\"hunter2-1\"",
        "\"hunter2-2\"",
        "\"hunter2.3\"",
        "{ env = \"HR\" }",
        "{ file = \"secret\" }",
        "[\"hunter2-1\", \"hunter2-4\"]",
    ];
    let rest = [
        "",
        "limit = \"5/m\"\n",
        "upstream = \"u\"\n",
        "# a comment\n\n",
        "plain = [\n  \"/cgi-bin/x\",\n]\n",
    ];
    (
        select(&["a", "b", "c", "d", "e", "f"][..]),
        select(&["ww1", "ww2"][..]),
        select(secrets.to_vec()),
        select(rest.to_vec()),
    )
        .prop_map(|(name, corpid, secret, rest)| {
            format!("[agents.{name}]\ncorpid = \"{corpid}\"\n{rest}secret = {secret}\n")
        })
}

fn valid_file() -> impl Strategy<Value = String> {
    let start = "[server]\nopen = true\n[upstreams.u]\nurl = \"https://u.example\"\n";
    let end = "[clients.c]\nkey = \"hunter2-2\"\nagents = [\"*\"]\n";
    (prop::collection::vec(agent_table(), 1..6), any::<bool>()).prop_map(move |(mut agents, has_client)| {
        let name = |agent: &String| agent.lines().next().map(str::to_owned);
        agents.sort_by_key(name);
        agents.dedup_by_key(|agent| name(agent));
        // The order in the file is another one than that of the names.
        agents.reverse();
        format!("{start}{}{}", agents.concat(), if has_client { end } else { "" })
    })
}

fn assert_same_files(files: &[(&str, &str)]) -> Result<(), TestCaseError> {
    let directory = directory_with(files);
    let path = directory.path().join("proxy.toml");
    prop_assert_eq!(load(&path, &AgentTexts::default()), load_whole(&path));
    Ok(())
}

proptest! {
    #[test]
    fn agents_read_one_by_one_are_those_of_the_whole_file(text in lines()) {
        assert_same_files(&[("proxy.toml", &text), ("secret", "hunter2-3")])?;
    }

    #[test]
    fn included_agents_are_those_of_the_whole_files(main in valid_file(), included in lines()) {
        let main = format!("include = \"*.inc\"\n{main}");
        assert_same_files(&[("proxy.toml", &main), ("a.inc", &included), ("secret", "hunter2-3")])?;
    }

    #[test]
    fn what_is_not_read_again_is_as_before(before in valid_file(), after in valid_file()) {
        let directory = directory_with(&[("proxy.toml", &before), ("secret", "hunter2-3")]);
        let path = directory.path().join("proxy.toml");
        let known = load(&path, &AgentTexts::default()).expect("a valid file");
        fs::write(&path, &after).expect("a file");
        let (mut partial, full) = (load(&path, &known.agent_texts).expect("valid"), load_whole(&path).expect("valid"));
        prop_assert_eq!(&partial.warnings, &full.warnings);
        let is_unchanged = partial.agent_texts.unchanged_names();
        let unchanged = full.agents.values().filter(|agent| is_unchanged(&agent.name));
        prop_assert_eq!(unchanged.count(), partial.agent_texts.unchanged_count());
        for (name, agent) in &full.agents {
            match partial.agents.get(name) {
                Some(read) => prop_assert!(read == agent && !is_unchanged(name)),
                None => {
                    let before = &known.agents[name];
                    prop_assert!(is_unchanged(name) && before.origin.follow(&agent.origin) && before == agent);
                }
            }
        }
        let moved: Vec<_> = partial.agent_texts.moved().map(|(name, line)| (name.to_owned(), line)).collect();
        for (name, line) in moved {
            let origin = full.agents[name.as_str()].origin.to_string();
            prop_assert!(origin.ends_with(&format!(":{line}")), "{origin} {line}");
        }
        partial.agents.clone_from(&full.agents);
        prop_assert_eq!(&partial, &full);
        // The load after that finds what this one left out.
        let again = load(&path, &partial.agent_texts).expect("a valid file");
        prop_assert!(again.agent_texts.unchanged_count() >= partial.agent_texts.unchanged_count());
        prop_assert_eq!(again.agent_texts.moved().count(), 0);
    }
}

#[test]
fn only_what_has_changed_is_read_again() {
    let agent = |nth: u32, secret: &str| format!("[agents.a{nth}]\ncorpid = \"ww1\"\nsecret = {secret}\n");
    let text = |third: &str| -> String {
        (0..9)
            .map(|nth| agent(nth, &if nth == 3 { third.to_owned() } else { format!("\"hunter2-{nth}\"") }))
            .collect()
    };
    let directory = directory_with(&[("proxy.toml", &text("\"hunter2-3\""))]);
    let path = directory.path().join("proxy.toml");
    let known = load(&path, &AgentTexts::default()).expect("a valid file").agent_texts;
    let names = |config: &Config| config.agents.keys().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(names(&load(&path, &known).expect("a valid file")), [] as [&str; 0]);
    fs::write(&path, format!("# moved\n{}", text("{ env = \"HR\" }"))).expect("a file");
    let loaded = load(&path, &known).expect("a valid file");
    assert_eq!((names(&loaded), loaded.agent_texts.unchanged_count()), (vec!["a3".to_owned()], 8));
    assert_eq!(loaded.agent_texts.moved().next(), Some(("a0", 2)));
}
