//! Properties of the scanners: they agree with a full parser, and chunk boundaries make no difference.

use proptest::prelude::*;

use super::generate::{
    JsonRng, JsonValue, deflate_compressed, gzip_compressed, json, random_chunks, reference_verdict, render,
    scan_chunks, scan_encoded_chunks, zlib_compressed,
};
use super::{Verdict, parse_gettoken};

/// Replaces, inserts or removes up to four bytes, preferring those with a meaning in JSON.
fn mutate(body: &mut Vec<u8>, rng: &mut JsonRng) {
    for _ in 0..=rng.below(3) {
        let byte = match rng.below(4) {
            0 => rng.below(256) as u8,
            _ => b"\"\\{}[]:,0123456789eE+-.u \n"[rng.below(26)],
        };
        let at = rng.below(body.len() + 1);
        match rng.below(3) {
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
    fn chunked_json_agrees_with_a_full_parser(json in json(), seed: u64) {
        let rng = &mut JsonRng::new(seed);
        let body = render(&json, rng);
        let expected = reference_verdict(&body);
        prop_assert!(expected.is_some(), "the generator makes only what a parser accepts");
        prop_assert_eq!(Some(scan_chunks([&body[..]])), expected);
        prop_assert_eq!(Some(scan_chunks(random_chunks(&body, rng))), expected);
    }

    #[test]
    fn mutated_json_agrees_with_a_full_parser(json in json(), seed: u64) {
        let rng = &mut JsonRng::new(seed);
        let mut body = render(&json, rng);
        mutate(&mut body, rng);
        let whole = scan_chunks([&body[..]]);
        prop_assert_eq!(scan_chunks(random_chunks(&body, rng)), whole);
        prop_assert_eq!(scan_chunks(body.chunks(1)), whole);
        if let Some(expected) = reference_verdict(&body) {
            prop_assert_eq!(whole, expected, "{}", String::from_utf8_lossy(&body));
        }
    }

    /// Single bytes never make a whole token, so feeding them bypasses the fast path: compares both paths.
    #[test]
    fn fast_path_agrees_with_single_bytes(
        items in prop::collection::vec(json(), 1..12),
        seed: u64,
    ) {
        let rng = &mut JsonRng::new(seed);
        let errcode = ("errcode".to_owned(), JsonValue::Scalar("40014"));
        let list = JsonValue::Object(vec![("list".to_owned(), JsonValue::Array(items)), errcode]);
        let mut body = render(&list, rng);
        prop_assert_eq!(scan_chunks([&body[..]]), Verdict::Found(40014));
        prop_assert_eq!(scan_chunks(random_chunks(&body, rng)), Verdict::Found(40014));
        mutate(&mut body, rng);
        let single = scan_chunks(body.chunks(1));
        prop_assert_eq!(scan_chunks([&body[..]]), single, "{}", String::from_utf8_lossy(&body));
        prop_assert_eq!(scan_chunks(random_chunks(&body, rng)), single);
    }

    #[test]
    fn arbitrary_bytes_do_not_panic(bytes: Vec<u8>, seed: u64) {
        let rng = &mut JsonRng::new(seed);
        for start in [&b""[..], b"{\"", b"{\"errcode\":", b"\x1F\x8B\x08\0\0\0\0\0\0\0"] {
            let body = [start, &bytes].concat();
            prop_assert_eq!(scan_chunks(random_chunks(&body, rng)), scan_chunks([&body[..]]));
            for encoding in ["gzip", "deflate", "br"] {
                prop_assert_eq!(scan_encoded_chunks(encoding, random_chunks(&body, rng)), scan_encoded_chunks(encoding, [&body[..]]));
            }
            let _ = parse_gettoken(&body);
        }
    }

    #[test]
    fn compression_does_not_change_the_verdict(json in json(), seed: u64) {
        let rng = &mut JsonRng::new(seed);
        let body = render(&json, rng);
        let expected = scan_chunks([&body[..]]);
        for (encoding, coded) in
            [("gzip", gzip_compressed(&body)), ("deflate", zlib_compressed(&body)), ("deflate", deflate_compressed(&body))]
        {
            prop_assert_eq!(scan_encoded_chunks(encoding, [&coded[..]]), expected);
            prop_assert_eq!(scan_encoded_chunks(encoding, random_chunks(&coded, rng)), expected);
        }
    }

    #[test]
    fn damaged_gzip_verdict_ignores_chunk_boundaries(json in json(), seed: u64) {
        let rng = &mut JsonRng::new(seed);
        let mut coded = gzip_compressed(&render(&json, rng));
        mutate(&mut coded, rng);
        let whole = scan_encoded_chunks("gzip", [&coded[..]]);
        prop_assert_eq!(scan_encoded_chunks("gzip", random_chunks(&coded, rng)), whole);
        prop_assert_eq!(scan_encoded_chunks("gzip", coded.chunks(1)), whole);
    }
}
