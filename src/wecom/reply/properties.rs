//! Properties of the scanners: they agree with a full parser, and where a body is cut makes no difference.

use proptest::prelude::*;

use super::generate::{
    Chance, Json, deflated, gzipped, json, oracle, pieces, raw_deflated, scanned, scanned_as, written,
};
use super::{Verdict, parse_grant};

/// A few bytes replaced, inserted or removed, with a liking for those that matter.
fn mutate(body: &mut Vec<u8>, chance: &mut Chance) {
    for _ in 0..=chance.below(3) {
        let byte = match chance.below(4) {
            0 => chance.below(256) as u8,
            _ => b"\"\\{}[]:,0123456789eE+-.u \n"[chance.below(26)],
        };
        let at = chance.below(body.len() + 1);
        match chance.below(3) {
            0 => body.insert(at, byte),
            1 if at < body.len() => body[at] = byte,
            2 if at < body.len() => drop(body.remove(at)),
            _ => body.truncate(at),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_spelling_cut_anywhere_is_what_a_full_parser_says(json in json(), seed: u64) {
        let chance = &mut Chance::new(seed);
        let body = written(&json, chance);
        let expected = oracle(&body);
        prop_assert!(expected.is_some(), "the generator makes only what a parser accepts");
        prop_assert_eq!(Some(scanned([&body[..]])), expected);
        prop_assert_eq!(Some(scanned(pieces(&body, chance))), expected);
    }

    #[test]
    fn mutated_json_is_what_a_full_parser_says_if_it_accepts_it(json in json(), seed: u64) {
        let chance = &mut Chance::new(seed);
        let mut body = written(&json, chance);
        mutate(&mut body, chance);
        let whole = scanned([&body[..]]);
        prop_assert_eq!(scanned(pieces(&body, chance)), whole);
        prop_assert_eq!(scanned(body.chunks(1)), whole);
        if let Some(expected) = oracle(&body) {
            prop_assert_eq!(whole, expected, "{}", String::from_utf8_lossy(&body));
        }
    }

    /// Single bytes never make a whole key or value, so that what goes over these at a time is held against what does not.
    #[test]
    fn a_long_list_mutated_is_the_same_whole_and_in_single_bytes(
        items in prop::collection::vec(json(), 1..12),
        seed: u64,
    ) {
        let chance = &mut Chance::new(seed);
        let errcode = ("errcode".to_owned(), Json::Bare("40014"));
        let list = Json::Object(vec![("list".to_owned(), Json::Array(items)), errcode]);
        let mut body = written(&list, chance);
        prop_assert_eq!(scanned([&body[..]]), Verdict::Found(40014));
        prop_assert_eq!(scanned(pieces(&body, chance)), Verdict::Found(40014));
        mutate(&mut body, chance);
        let single = scanned(body.chunks(1));
        prop_assert_eq!(scanned([&body[..]]), single, "{}", String::from_utf8_lossy(&body));
        prop_assert_eq!(scanned(pieces(&body, chance)), single);
    }

    #[test]
    fn arbitrary_bytes_are_survived(bytes: Vec<u8>, seed: u64) {
        let chance = &mut Chance::new(seed);
        for start in [&b""[..], b"{\"", b"{\"errcode\":", b"\x1F\x8B\x08\0\0\0\0\0\0\0"] {
            let body = [start, &bytes].concat();
            prop_assert_eq!(scanned(pieces(&body, chance)), scanned([&body[..]]));
            for encoding in ["gzip", "deflate", "br"] {
                prop_assert_eq!(scanned_as(encoding, pieces(&body, chance)), scanned_as(encoding, [&body[..]]));
            }
            let _ = parse_grant(&body);
        }
    }

    #[test]
    fn compression_changes_nothing(json in json(), seed: u64) {
        let chance = &mut Chance::new(seed);
        let body = written(&json, chance);
        let expected = scanned([&body[..]]);
        for (encoding, coded) in
            [("gzip", gzipped(&body)), ("deflate", deflated(&body)), ("deflate", raw_deflated(&body))]
        {
            prop_assert_eq!(scanned_as(encoding, [&coded[..]]), expected);
            prop_assert_eq!(scanned_as(encoding, pieces(&coded, chance)), expected);
        }
    }

    #[test]
    fn damaged_compression_is_survived_however_it_is_cut(json in json(), seed: u64) {
        let chance = &mut Chance::new(seed);
        let mut coded = gzipped(&written(&json, chance));
        mutate(&mut coded, chance);
        let whole = scanned_as("gzip", [&coded[..]]);
        prop_assert_eq!(scanned_as("gzip", pieces(&coded, chance)), whole);
        prop_assert_eq!(scanned_as("gzip", coded.chunks(1)), whole);
    }
}
