//! The properties of the fuzz targets in `fuzz/`, checked briefly in every test run: on the seed corpus, on spliced and
//! mutated seeds, and on inputs built from a dictionary.

use std::{fs, path::PathBuf};

use proptest::{prelude::*, sample::Index};

#[path = "../../fuzz/src/lib.rs"]
mod checks;

/// The seed corpus of a fuzz target.
fn seeds(target: &str) -> Vec<Vec<u8>> {
    let directory: PathBuf = [env!("CARGO_MANIFEST_DIR"), "fuzz/corpus", target].iter().collect();
    let files = fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let mut paths: Vec<_> = files.map(|file| file.expect("a file").path()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "no seeds in {}", directory.display());
    paths.into_iter().map(|path| fs::read(path).expect("a seed")).collect()
}

/// One change to an input.
#[derive(Clone, Debug)]
enum Mutation {
    Insert(Index, Vec<u8>),
    Replace(Index, Vec<u8>),
    Remove(Index, usize),
    /// Replaces the rest by the rest of another seed.
    Splice(Index, Index),
}

fn mutation(dictionary: &'static [&'static str]) -> impl Strategy<Value = Mutation> {
    let text = move || {
        prop_oneof![
            3 => prop::sample::select(dictionary).prop_map(|entry| entry.as_bytes().to_vec()),
            1 => prop::collection::vec(any::<u8>(), 1..4),
        ]
    };
    prop_oneof![
        3 => (any::<Index>(), text()).prop_map(|(at, text)| Mutation::Insert(at, text)),
        2 => (any::<Index>(), text()).prop_map(|(at, text)| Mutation::Replace(at, text)),
        1 => (any::<Index>(), 1usize..8).prop_map(|(at, length)| Mutation::Remove(at, length)),
        1 => (any::<Index>(), any::<Index>()).prop_map(|(at, seed)| Mutation::Splice(at, seed)),
    ]
}

fn apply(change: &Mutation, input: &mut Vec<u8>, seeds: &[Vec<u8>]) {
    let length = input.len();
    match change {
        Mutation::Insert(at, text) => {
            let at = at.index(length + 1);
            input.splice(at..at, text.iter().copied()).for_each(drop);
        }
        Mutation::Replace(at, text) => {
            let at = at.index(length + 1);
            input.splice(at..(at + text.len()).min(length), text.iter().copied()).for_each(drop);
        }
        Mutation::Remove(at, count) => {
            let at = at.index(length + 1);
            input.drain(at..(at + count).min(length)).for_each(drop);
        }
        Mutation::Splice(at, seed) => {
            input.truncate(at.index(length + 1));
            let other = seed.get(seeds);
            input.extend_from_slice(&other[at.index(other.len() + 1)..]);
        }
    }
}

/// Runs a check on every seed and on mutated seeds.
fn check_property(target: &str, check: fn(&[u8]), dictionary: &'static [&'static str], cases: u32) {
    let seeds = seeds(target);
    seeds.iter().for_each(|seed| check(seed));
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(seed: Index, changes in prop::collection::vec(mutation(dictionary), 0..6))| {
        let mut input = seed.get(&seeds).clone();
        changes.iter().for_each(|change| apply(change, &mut input, &seeds));
        check(&input);
    });
}

#[test]
fn errcode_scan_matches_a_full_parser() {
    let dictionary = &[
        "\"errcode\"",
        ":",
        "40014",
        "-",
        "4.0e3",
        "{",
        "}",
        "[",
        "]",
        ",",
        "\"",
        "\\",
        "\\u0065",
        "null",
        "\"a\":1,",
        " ",
        "\u{feff}",
        "1e400",
        "\\ud800",
        "0",
    ];
    check_property("errcode", checks::errcode::check, dictionary, 600);
}

#[test]
fn target_is_routed_as_the_reference() {
    let dictionary = &[
        "/",
        "//",
        ".",
        "..",
        "%2e",
        "%2F",
        "%5c",
        "\\",
        "%25",
        "%00",
        ";",
        "cgi-bin",
        "hr",
        "gettoken",
        "webhook/",
        "service/",
        "license/",
        "%",
        "?",
        "a",
        "%e4%bd%a0",
        "\u{e9}",
        " ",
        "#",
    ];
    check_property("target", checks::target::check, dictionary, 3000);
}

#[test]
fn query_loses_only_its_access_tokens() {
    let dictionary =
        &["&", "=", "access_token", "%61", "access%5ftoken", "a=1", "%", "%5", "+", "?", "#", " ", "_"];
    check_property("query", checks::query::check, dictionary, 2000);
}

#[test]
fn only_genuine_passes_are_accepted() {
    check_property("pass", checks::pass::check, &["wp1-", "A", "=", "-", "_", "\0", "AAAAAGqxO4AB"], 600);
}

#[test]
fn any_configuration_loads_without_panic_or_leak() {
    let dictionary = &[
        "secret",
        "key",
        " = ",
        "\"",
        "s3cret-of-the-agent-0001",
        "{ env = \"UNSET\" }",
        "[",
        "]",
        "\n",
        "[agents.hr]",
        "[clients.a]",
        "include = ",
        "\"*\"",
        "via",
        "url",
        "http://",
        "@",
        ":",
        "'",
        "#",
        "1",
        "\"\"\"",
        "k3y-of-the-client-000002",
        "listen",
        "[log]",
        "passw0rd-of-the-proxy-03",
        " ",
        "\u{e9}",
    ];
    check_property("config", checks::config::check, dictionary, 600);
}

const HEAD_DICTIONARY: &[&str] = &[
    "\r\n",
    "\n",
    "\r",
    ":",
    " ",
    "\t",
    "Content-Length: 5\r\n",
    "Transfer-Encoding: chunked\r\n",
    ", chunked",
    "Connection: close\r\n",
    "HTTP/1.1",
    "HTTP/1.0",
    "\0",
    "\u{e9}",
    "Host: x\r\n",
    "0",
    "http://",
    "//",
    "?",
    "A: ",
    "100",
    "204",
];

#[test]
fn request_head_parses_as_the_reference() {
    check_property("request_head", checks::request_head::check, HEAD_DICTIONARY, 2000);
}

#[test]
fn response_head_parses_as_the_reference() {
    check_property("response_head", checks::response_head::check, HEAD_DICTIONARY, 2000);
}

#[test]
fn replay_bodies_stay_in_budget_and_replay_exactly() {
    let dictionary = &[
        "\0", "\u{1}", "\u{2}", "\u{3}", "\u{4}", "\u{6}", "\u{8}", "\u{f}", "\u{10}", "\u{16}", " ", "&",
        "6", "?",
    ];
    check_property("replay", checks::replay::check, dictionary, 300);
}

#[test]
fn chunked_bodies_decode_as_the_reference() {
    let dictionary =
        &["\r\n", "\n", "\r", "0", "5", "a", "F", ";", " ", "\t", "x=\"\r\n\"", "A: b\r\n", "0\r\n\r\n"];
    check_property("chunks", checks::chunks::check, dictionary, 2000);
}

#[test]
fn http2_frames_end_in_time_and_forward_only_complete_requests() {
    let dictionary = &[
        "\0\0",
        "\u{3}\0",
        "\u{6}\0A",
        "\u{6}\0 ",
        "\u{8}\0",
        "\t\0\u{3}",
        "\n\u{4}\0",
        "\u{c}\t",
        "\r\0\u{5}",
    ];
    check_property("http2_frames", checks::http2_frames::check, dictionary, 150);
}

#[test]
fn pushed_bodies_never_panic_and_decrypt_again() {
    let dictionary = &[
        "<xml>",
        "</xml>",
        "<Encrypt>",
        "</Encrypt>",
        "<![CDATA[",
        "]]>",
        "<!DOCTYPE ",
        "<!ENTITY ",
        "&",
        ";",
        "&#x41;",
        "&amp;",
        "<a/>",
        "<!--",
        "-->",
        "<?xml?>",
        "{",
        "}",
        "\"encrypt\"",
        ":",
        "\"",
        "\\u0000",
        "=",
        "\u{feff}",
    ];
    check_property("callback", checks::callback::check, dictionary, 1000);
}
