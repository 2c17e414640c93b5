//! What no honest client says in HTTP/2. The upstream gets nothing of it or one clean request, the work has a bound, and
//! others are served meanwhile.

use std::fmt::Write as _;

use super::{
    frames::{
        ACK, CONTINUATION, Client, DATA, END_HEADERS, END_STREAM, End, GOAWAY, HEADERS, PADDED, PING,
        PREFACE, PRIORITY, PUSH_PROMISE, RST_STREAM, SETTINGS, WINDOW_UPDATE, field, frame, integer, setting,
        string,
    },
    recorder::{Arrival, State, TOKEN},
    table::Scene,
    today::TODAY,
};

/// The fields of an honest request.
const HONEST: [(&str, &str); 4] =
    [(":method", "GET"), (":scheme", "http"), (":path", "/hr/cgi-bin/case"), (":authority", "proxy.test")];

/// A header block of these fields.
fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    fields.iter().flat_map(|(name, value)| field(name, value)).collect()
}

fn honest() -> Vec<u8> {
    block(&HONEST)
}

/// An honest block but for these fields, which stand in the place of those of the same name.
fn but(changed: &[(&str, &str)]) -> Vec<u8> {
    let value = |name: &str| changed.iter().find(|(other, _)| *other == name).map(|(_, value)| *value);
    let fields: Vec<_> = HONEST.iter().map(|(name, old)| (*name, value(name).unwrap_or(old))).collect();
    block(&fields)
}

/// An honest block without this field.
fn without(name: &str) -> Vec<u8> {
    block(&HONEST.into_iter().filter(|(other, _)| *other != name).collect::<Vec<_>>())
}

/// An honest block with these fields behind it.
fn plus(name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Vec<u8> {
    [honest(), field(name, value)].concat()
}

/// A request without a body on the first stream.
fn ask(block: Vec<u8>) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | END_STREAM, 1, block)
}

/// A POST with these fields and this body, in frames of the length given.
fn post(fields: &[(&str, &str)], body: &[u8], piece: usize) -> Vec<u8> {
    let block = [but(&[(":method", "POST")]), block(fields)].concat();
    let mut frames = frame(HEADERS, END_HEADERS, 1, block);
    for piece in body.chunks(piece) {
        frames.extend(frame(DATA, 0, 1, piece));
    }
    frames.extend(frame(DATA, END_STREAM, 1, ""));
    frames
}

/// What may come of a case.
enum Expect {
    /// Nothing that reaches the upstream.
    Refused,
    /// One request with this method, query and body.
    Served(&'static str, &'static str, &'static str),
    /// One or the other.
    Either(&'static str, &'static str, &'static str),
}

use Expect::{Either, Refused, Served};

/// One case: its name, what follows the preface and the settings, and what may come of it.
type Case = (String, Vec<u8>, Expect);

/// Whether the upstream may get a beginning of what never becomes a whole; with the streams of HTTP/2 it may come late.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Beginnings {
    Never,
    Maybe,
}

fn judge(expect: &Expect, end: &End, arrivals: &[Arrival], beginnings: Beginnings) -> Result<(), String> {
    let mut whole = Vec::new();
    for arrival in arrivals {
        match &arrival.state {
            State::Whole(seen) => whole.push(seen),
            State::Wrong(why) => return Err(format!("the upstream got what is not canonical: {why}")),
            State::Part { head: true } if beginnings == Beginnings::Maybe => {}
            State::Part { .. } => return Err("the upstream got a part of it".to_owned()),
        }
    }
    if *end == End::Hung {
        return Err("it hangs".to_owned());
    }
    match (whole.as_slice(), expect) {
        ([], Served(..)) => Err(format!("it ended with {end:?}")),
        ([], _) if *end == End::Served => {
            Err("it was answered 200, and the upstream knows nothing of it".to_owned())
        }
        ([], _) => Ok(()),
        ([seen], Served(method, query, body) | Either(method, query, body)) => {
            let target = format!("/cgi-bin/case?{query}access_token={TOKEN}");
            if (&*seen.method, &*seen.target, &*seen.body) != (*method, &*target, body.as_bytes()) {
                return Err(format!("it was served as {} {}", seen.method, seen.target));
            }
            match (end, expect) {
                (End::Served, _) | (End::Reset(_), Either(..)) => Ok(()),
                _ => Err(format!("it was served, and ended with {end:?}")),
            }
        }
        _ => Err("it was served".to_owned()),
    }
}

/// Plays each case on a connection of its own.
async fn play(beginnings: Beginnings, cases: Vec<Case>) {
    let (mut scene, mut report) = (Scene::open().await, String::new());
    for (name, bytes, expect) in &cases {
        let before = scene.recorder.len();
        let mut client = Client::to(scene.stage.address()).await;
        client.say([PREFACE, &frame(SETTINGS, 0, 0, ""), bytes].concat()).await;
        let end = client.end(1).await;
        drop(client);
        let arrivals = scene.others_since(before).await;
        let judged = judge(expect, &end, &arrivals, beginnings);
        let name = format!("h2: {name}");
        let known = TODAY.iter().find(|(known, _)| *known == name).map(|(_, why)| *why);
        match (judged, known) {
            (Ok(()), None) => {}
            (Err(why), Some(known)) if why == known => {}
            (Ok(()), Some(_)) => _ = writeln!(report, "{name}: it is right now; take it out of TODAY"),
            (Err(why), _) => _ = writeln!(report, "{name}: {why} ({end:?})"),
        }
    }
    assert!(report.is_empty(), "of {} cases\n{report}", cases.len());
}

#[tokio::test]
async fn fields_that_are_none_are_refused() {
    let mut cases: Vec<Case> = Vec::new();
    let mut refused = |name: &str, block: Vec<u8>| cases.push((name.to_owned(), ask(block), Refused));
    for (name, value) in [
        ("connection", "close"),
        ("connection", "keep-alive"),
        ("connection", "x-y"),
        ("keep-alive", "timeout=5"),
        ("proxy-connection", "keep-alive"),
        ("transfer-encoding", "chunked"),
        ("transfer-encoding", "identity"),
        ("upgrade", "h2c"),
        ("te", "gzip"),
        ("te", "trailers, gzip"),
        ("X-Y", "upper case"),
        ("Transfer-Encoding", "chunked"),
        ("", "no name"),
        ("x y", "z"),
        ("x:y", "z"),
        ("x\0y", "z"),
        ("x\r\ny", "z"),
        ("x\ny", "z"),
        ("x\u{fc}", "z"),
        ("x\u{7f}", "z"),
        ("x(y)", "z"),
        ("x\"y", "z"),
        ("\"", "z"),
        ("x-y", "a\r\nb: c"),
        ("x-y", "a\nb: c"),
        ("x-y", "a\rb"),
        ("x-y", "a\0b"),
        ("x-y", "\r\n\r\nGET /hr/cgi-bin/hidden HTTP/1.1\r\nHost: x\r\n\r\n"),
        (":method", "GET"),
        (":path", "/hr/cgi-bin/hidden"),
        (":scheme", "http"),
        (":authority", "proxy.test"),
        (":status", "200"),
        (":x", "y"),
        (":protocol", "websocket"),
        (":", "y"),
    ] {
        let shown = format!("{}: {}", name.escape_default(), value.escape_default());
        refused(&format!("behind the others, {shown}"), plus(name, value));
        refused(&format!("before the others, {shown}"), [field(name, value), honest()].concat());
    }
    for (name, value) in [
        (":path", ""),
        (":path", "hr/cgi-bin/case"),
        (":path", "*"),
        (":path", "?a=b"),
        (":path", "#x"),
        (":path", "/hr/cgi-bin/case#x"),
        (":path", "/hr/cgi-bin/case HTTP/1.1\r\nX: y"),
        (":path", "/hr/cgi-bin/case x"),
        (":path", "/hr/cgi-bin/case\0"),
        (":path", "/hr/cgi-bin/case?a=\r\nX:y"),
        (":path", "/hr/cgi-bin/\u{5f20}"),
        (":path", "/hr/cgi-bin/../case"),
        (":path", "/hr/cgi-bin/%2e%2e/case"),
        (":path", "/hr/cgi-bin/a%2fb"),
        (":path", "/hr/cgi-bin/a\\b"),
        (":path", "/hr/cgi-bin"),
        (":path", "/"),
        (":path", "http://proxy.test/hr/cgi-bin/case"),
        (":path", "http://evil.test/hr/cgi-bin/case"),
        (":path", "@evil.test/hr/cgi-bin/case"),
        (":path", " /hr/cgi-bin/case"),
        (":path", "/hr/cgi-bin/case "),
        (":method", ""),
        (":method", " "),
        (":method", "G ET"),
        (":method", "GET /hr/cgi-bin/hidden HTTP/1.1\r\nX: y\r\n\r\nGET"),
        (":method", "GET\r\n"),
        (":method", "G\0T"),
        (":method", "G\u{cb}T"),
        (":method", "CONNECT"),
        (":method", "TRACE"),
        (":method", "trace"),
        (":method", "Connect"),
        (":method", "TRACK"),
        (":method", "get"),
        (":scheme", ""),
        (":scheme", "http\r\n"),
        (":scheme", "http://evil.test/?"),
        (":scheme", "ht tp"),
        (":scheme", "ftp"),
        (":authority", "user@proxy.test"),
        (":authority", "proxy.test/hr"),
        (":authority", "proxy.test\r\nX: y"),
        (":authority", "proxy test"),
        (":authority", "a\0b"),
        (":authority", "a#b"),
        (":authority", "a?b"),
    ] {
        refused(&format!("instead, {name}: {}", value.escape_default()), but(&[(name, value)]));
    }
    for name in [":method", ":scheme", ":path"] {
        refused(&format!("without {name}"), without(name));
    }
    let late = |name: &str| {
        let value = HONEST.iter().find(|(other, _)| *other == name).map(|(_, value)| *value);
        [without(name), field("x-y", "z"), field(name, value.expect("an honest field"))].concat()
    };
    for (name, _) in HONEST {
        refused(&format!("behind a regular field, {name}"), late(name));
    }
    refused("OPTIONS *", but(&[(":method", "OPTIONS"), (":path", "*")]));
    refused("a regular CONNECT", block(&[(":method", "CONNECT"), (":authority", "proxy.test:443")]));
    refused(
        "an extended CONNECT",
        [but(&[(":method", "CONNECT")]), field(":protocol", "websocket")].concat(),
    );
    refused("no fields", Vec::new());
    refused("high bytes in a name", plus(b"x\xff", "z"));
    refused("another agent", plus("x-wecom-agent", "ops"));
    play(Beginnings::Never, cases).await;
}

#[tokio::test]
async fn what_is_odd_and_sound_goes_out_clean() {
    let mut cases: Vec<Case> = Vec::new();
    let mut served = |name: &str, block: Vec<u8>, query: &'static str| {
        cases.push((name.to_owned(), ask(block), Served("GET", query, "")));
    };
    served("nothing odd", honest(), "");
    served("te: trailers", plus("te", "trailers"), "");
    served("two cookies", [plus("cookie", "a=b"), field("cookie", "c=d")].concat(), "");
    served("credentials", [plus("authorization", "Bearer x"), field("x-api-key", "y")].concat(), "");
    served(
        "what a network tells",
        [plus("via", "1.1 x"), field("x-forwarded-for", "1"), field("forwarded", "for=1")].concat(),
        "",
    );
    served("what is said to the proxy", plus("x-wecom-debug", "1"), "");
    served("trailer", plus("trailer", "x-t"), "");
    served("expect", plus("expect", "100-continue"), "");
    served("http2-settings", plus("http2-settings", "AAMAAABk"), "");
    served("proxy-authorization", plus("proxy-authorization", "Basic eDp5"), "");
    served("a token", but(&[(":path", "/hr/cgi-bin/case?access_token=x&a=1")]), "a=1&");
    served("an encoded token", but(&[(":path", "/hr/cgi-bin/case?%61ccess%5Ftoken=x&a=1")]), "a=1&");
    served("another authority", but(&[(":authority", "evil.test")]), "");
    served("a host for an authority", [without(":authority"), field("host", "proxy.test")].concat(), "");
    served("content-length: 0", plus("content-length", "0"), "");
    served("doubled slashes", but(&[(":path", "//hr//cgi-bin/case")]), "");
    served("pseudo-fields in another order", block(&[HONEST[3], HONEST[2], HONEST[1], HONEST[0]]), "");
    for (name, block) in [
        ("another host", plus("host", "evil.test")),
        ("two hosts", [plus("host", "proxy.test"), field("host", "evil.test")].concat()),
        ("a host that is none", plus("host", "a b")),
        ("a host that is none and no authority", [without(":authority"), field("host", "a@b/c")].concat()),
        ("neither host nor authority", without(":authority")),
        ("an empty authority", but(&[(":authority", "")])),
        ("https", but(&[(":scheme", "https")])),
        ("a space before a value", plus("x-y", " z")),
        ("a space behind a value", plus("x-y", "z ")),
        ("a control character in a value", plus("x-y", "a\u{1}b")),
        ("high bytes in a value", plus("x-y", b"\xff\xfe")),
        ("te twice", [plus("te", "trailers"), field("te", "trailers")].concat()),
        ("priority", plus("priority", "u=9, i=?2")),
    ] {
        cases.push((name.to_owned(), ask(block), Either("GET", "", "")));
    }
    play(Beginnings::Never, cases).await;
}

#[tokio::test]
async fn a_length_that_its_data_belies_never_becomes_a_whole() {
    let mut cases: Vec<Case> = Vec::new();
    for (name, fields, body, expect) in [
        ("a right length", &[("content-length", "5")][..], "hello", Served("POST", "", "hello")),
        ("no length", &[], "hello", Served("POST", "", "hello")),
        ("too short", &[("content-length", "6")], "hello", Refused),
        ("too long", &[("content-length", "4")], "hello", Refused),
        ("nothing behind a length", &[("content-length", "5")], "", Refused),
        ("two lengths", &[("content-length", "5"), ("content-length", "6")], "hello", Refused),
        (
            "two lengths, the second is right",
            &[("content-length", "6"), ("content-length", "5")],
            "hello",
            Refused,
        ),
        ("no number", &[("content-length", "x")], "hello", Refused),
        ("an empty length", &[("content-length", "")], "hello", Refused),
        ("a negative length", &[("content-length", "-5")], "hello", Refused),
        ("a signed length", &[("content-length", "+5")], "hello", Refused),
        ("a length in hexadecimal", &[("content-length", "0x5")], "hello", Refused),
        ("a list of lengths", &[("content-length", "5, 6")], "hello", Refused),
        ("2^64 and 5", &[("content-length", "18446744073709551621")], "hello", Refused),
        ("2^63", &[("content-length", "9223372036854775808")], "hello", Refused),
        ("beyond the bound", &[("content-length", "67108865")], "hello", Refused),
        ("a list of the same", &[("content-length", "5, 5")], "hello", Either("POST", "", "hello")),
        (
            "two of the same",
            &[("content-length", "5"), ("content-length", "5")],
            "hello",
            Either("POST", "", "hello"),
        ),
        ("a leading zero", &[("content-length", "05")], "hello", Either("POST", "", "hello")),
        (
            "a request",
            &[],
            "GET /hr/cgi-bin/hidden HTTP/1.1\r\nHost: x\r\n\r\n",
            Served("POST", "", "GET /hr/cgi-bin/hidden HTTP/1.1\r\nHost: x\r\n\r\n"),
        ),
        (
            "the end of chunks",
            &[],
            "0\r\n\r\nGET / HTTP/1.1\r\n\r\n",
            Served("POST", "", "0\r\n\r\nGET / HTTP/1.1\r\n\r\n"),
        ),
    ] {
        cases.push((name.to_owned(), post(fields, body.as_bytes(), 100), expect));
    }
    let ended = |more: Vec<u8>| ask([but(&[(":method", "POST")]), more].concat());
    cases.push(("a length and the end at once".into(), ended(field("content-length", "5")), Refused));
    let head = |fields: &[(&str, &str)]| {
        frame(HEADERS, END_HEADERS, 1, [but(&[(":method", "POST")]), block(fields)].concat())
    };
    let data = frame(DATA, 0, 1, "hello");
    let trailers = |flags: u8, block: Vec<u8>| {
        [head(&[]), data.clone(), frame(HEADERS, END_HEADERS | flags, 1, block)].concat()
    };
    for (name, block, expect) in [
        ("trailers", field("x-t", "1"), Served("POST", "", "hello")),
        ("a length in the trailers", field("content-length", "50"), Either("POST", "", "hello")),
        ("credentials in the trailers", field("authorization", "Bearer x"), Either("POST", "", "hello")),
        ("an agent in the trailers", field("x-wecom-agent", "ops"), Either("POST", "", "hello")),
        ("a path in the trailers", field(":path", "/hr/cgi-bin/hidden"), Refused),
        ("a status in the trailers", field(":status", "200"), Refused),
        ("a connection in the trailers", field("connection", "close"), Refused),
        ("CR LF in the trailers", field("x-t", "a\r\nb: c"), Refused),
    ] {
        cases.push((name.to_owned(), trailers(END_STREAM, block), expect));
    }
    let more = frame(DATA, END_STREAM, 1, "!");
    cases.push((
        "trailers that do not end it".into(),
        [trailers(0, field("x-t", "1")), more].concat(),
        Refused,
    ));
    cases.push((
        "trailers too early".into(),
        [
            head(&[("content-length", "9")]),
            data.clone(),
            frame(HEADERS, END_HEADERS | END_STREAM, 1, field("x-t", "1")),
        ]
        .concat(),
        Refused,
    ));
    cases.push((
        "a reset behind half a body".into(),
        [head(&[]), data.clone(), frame(RST_STREAM, 0, 1, [0, 0, 0, 8]), frame(PING, 0, 0, [0; 7])].concat(),
        Refused,
    ));
    play(Beginnings::Maybe, cases).await;
}

#[tokio::test]
async fn data_behind_the_end_is_no_part_of_anything() {
    let mut scene = Scene::open().await;
    // What was announced may be gone before more comes, and then it was whole.
    for (length, data) in [("5", "hello"), ("0", "")] {
        let before = scene.recorder.len();
        let mut client = Client::to(scene.stage.address()).await;
        let block = [but(&[(":method", "POST")]), field("content-length", length)].concat();
        let bytes =
            [frame(HEADERS, END_HEADERS, 1, block), frame(DATA, 0, 1, data), frame(DATA, END_STREAM, 1, "!")];
        client.say([PREFACE, &frame(SETTINGS, 0, 0, ""), &bytes.concat()].concat()).await;
        assert_ne!(client.end(1).await, End::Hung);
        drop(client);
        for arrival in scene.others_since(before).await {
            match &arrival.state {
                State::Part { head: true } => {}
                State::Whole(seen) => {
                    assert!(seen.body == data.as_bytes(), "{seen:?}")
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

#[tokio::test]
async fn frames_that_are_none_end_the_connection() {
    let mut cases: Vec<Case> = Vec::new();
    let good = ask(honest());
    let half = frame(HEADERS, END_STREAM, 1, honest());
    let padded = |length: u8, flags: u8, payload: &[u8]| {
        frame(HEADERS, END_HEADERS | END_STREAM | PADDED | flags, 1, [&[length], payload].concat())
    };
    // What is wrong on its own; an honest request behind it is not served.
    for (name, bytes) in [
        ("DATA on stream 0", frame(DATA, 0, 0, "x")),
        ("DATA on a stream that is not open", frame(DATA, 0, 1, "x")),
        ("HEADERS on stream 0", frame(HEADERS, END_HEADERS | END_STREAM, 0, honest())),
        ("HEADERS on an even stream", frame(HEADERS, END_HEADERS | END_STREAM, 2, honest())),
        ("PUSH_PROMISE", frame(PUSH_PROMISE, END_HEADERS, 1, [&[0, 0, 0, 2][..], &honest()].concat())),
        ("RST_STREAM on stream 0", frame(RST_STREAM, 0, 0, [0; 4])),
        ("RST_STREAM on an idle stream", frame(RST_STREAM, 0, 1, [0; 4])),
        ("RST_STREAM of three bytes", frame(RST_STREAM, 0, 1, [0; 3])),
        ("PRIORITY on stream 0", frame(PRIORITY, 0, 0, [0; 5])),
        ("SETTINGS on a stream", frame(SETTINGS, 0, 1, "")),
        ("SETTINGS of five bytes", frame(SETTINGS, 0, 0, [0; 5])),
        ("an ACK of settings with a setting", frame(SETTINGS, ACK, 0, setting(4, 1))),
        ("ENABLE_PUSH of 2", frame(SETTINGS, 0, 0, setting(2, 2))),
        ("a window of 2^31", frame(SETTINGS, 0, 0, setting(4, 1 << 31))),
        ("frames of 100 bytes", frame(SETTINGS, 0, 0, setting(5, 100))),
        ("frames of 2^24", frame(SETTINGS, 0, 0, setting(5, 1 << 24))),
        ("PING of seven bytes", frame(PING, 0, 0, [0; 7])),
        ("PING on a stream", frame(PING, 0, 1, [0; 8])),
        ("GOAWAY on a stream", frame(GOAWAY, 0, 1, [0; 8])),
        ("GOAWAY of seven bytes", frame(GOAWAY, 0, 0, [0; 7])),
        ("WINDOW_UPDATE by 0", frame(WINDOW_UPDATE, 0, 0, [0; 4])),
        ("WINDOW_UPDATE of three bytes", frame(WINDOW_UPDATE, 0, 0, [0; 3])),
        ("WINDOW_UPDATE on an idle stream", frame(WINDOW_UPDATE, 0, 1, [0, 0, 0, 1])),
        ("WINDOW_UPDATE beyond 2^31", frame(WINDOW_UPDATE, 0, 0, [0x7f, 255, 255, 255]).repeat(2)),
        ("CONTINUATION of nothing", frame(CONTINUATION, END_HEADERS, 1, honest())),
        (
            "a frame that is too long",
            frame(HEADERS, END_HEADERS | END_STREAM, 1, [honest(), field("x", "y".repeat(20_000))].concat()),
        ),
        ("an unknown frame that is too long", frame(0x42, 0, 0, [0; 20_000])),
        ("DATA within a head", [&half[..], &frame(DATA, 0, 1, "x")].concat()),
        ("PING within a head", [&half[..], &frame(PING, 0, 0, [0; 8])].concat()),
        ("an unknown frame within a head", [&half[..], &frame(0x42, 0, 0, "")].concat()),
        (
            "another head within a head",
            [&half[..], &frame(HEADERS, END_HEADERS | END_STREAM, 3, honest())].concat(),
        ),
        ("CONTINUATION of another stream", [&half[..], &frame(CONTINUATION, END_HEADERS, 3, "")].concat()),
        ("more padding than payload", padded(255, 0, &honest())),
        ("padding without a payload", frame(HEADERS, END_HEADERS | END_STREAM | PADDED, 1, "")),
        ("half a priority", frame(HEADERS, END_HEADERS | END_STREAM | 0x20, 1, [0; 4])),
        (
            "a stream that depends on itself",
            frame(HEADERS, END_HEADERS | END_STREAM | 0x20, 1, [&[0, 0, 0, 1, 0][..], &honest()].concat()),
        ),
        ("an index of 0", ask(vec![0x80])),
        ("an index beyond the table", ask([honest(), vec![0xff, 0x7f]].concat())),
        ("a name beyond the table", ask([honest(), integer(500, 4, 0), string(b"x")].concat())),
        ("an integer without an end", ask([honest(), vec![0xff; 30]].concat())),
        (
            "an integer of 2^64",
            ask([honest(), vec![0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]].concat()),
        ),
        ("half a literal", ask([honest(), vec![0, 5, b'x']].concat())),
        ("a literal of 2^31", ask([honest(), vec![0], integer(1 << 31, 7, 0)].concat())),
        ("a table of 2^30", ask([integer(1 << 30, 5, 0x20), honest()].concat())),
        ("a size of the table behind a field", ask([honest(), integer(0, 5, 0x20)].concat())),
        ("Huffman code of its end", ask([honest(), vec![0, 1, b'x', 0x84, 255, 255, 255, 255]].concat())),
        ("Huffman code with long padding", ask([honest(), vec![0, 1, b'x', 0x82, 255, 255]].concat())),
    ] {
        cases.push((name.to_owned(), [&bytes[..], &good].concat(), Refused));
    }
    for (name, bytes) in [
        ("SETTINGS that are no ACK to anything", frame(SETTINGS, ACK, 0, "")),
        ("an unknown setting", frame(SETTINGS, 0, 0, setting(0x4242, 7))),
        ("an unknown frame", frame(0x42, 255, 7, "x")),
        ("PRIORITY", frame(PRIORITY, 0, 1, [0, 0, 0, 3, 1])),
        ("PING", frame(PING, 0, 0, [7; 8])),
        ("an answer to no PING", frame(PING, ACK, 0, [7; 8])),
    ] {
        cases.push((name.to_owned(), [&bytes[..], &good].concat(), Either("GET", "", "")));
    }
    for (name, bytes) in [
        ("padding", padded(3, 0, &[&honest()[..], &[0; 3]].concat())),
        (
            "a head in two frames",
            [
                frame(HEADERS, END_STREAM, 1, &honest()[..20]),
                frame(CONTINUATION, END_HEADERS, 1, &honest()[20..]),
            ]
            .concat(),
        ),
        ("a size of the table", ask([integer(0, 5, 0x20), honest()].concat())),
    ] {
        cases.push((name.to_owned(), bytes, Served("GET", "", "")));
    }
    let one_by_one: Vec<u8> = honest().iter().flat_map(|byte| frame(CONTINUATION, 0, 1, [*byte])).collect();
    let drip =
        [frame(HEADERS, END_STREAM, 1, ""), one_by_one, frame(CONTINUATION, END_HEADERS, 1, "")].concat();
    cases.push(("a head byte by byte".into(), drip, Either("GET", "", "")));
    play(Beginnings::Never, cases).await;
}

#[tokio::test]
async fn a_preface_without_settings_ends_or_is_let_pass() {
    let mut scene = Scene::open().await;
    let ping = frame(PING, 0, 0, [0; 8]);
    for first in [ask(honest()), [ping, ask(honest())].concat(), frame(SETTINGS, ACK, 0, "")] {
        let before = scene.recorder.len();
        let mut client = Client::to(scene.stage.address()).await;
        client.say([PREFACE, &first[..], &frame(GOAWAY, 0, 0, [0; 8])].concat()).await;
        let end = client.end(1).await;
        assert!(end != End::Hung && scene.others_since(before).await.len() <= 1, "{end:?}");
    }
}

#[tokio::test]
async fn frames_that_are_none_within_a_request_end_it() {
    let mut cases: Vec<Case> = Vec::new();
    let good = ask(honest());
    let begun = frame(HEADERS, END_HEADERS, 1, but(&[(":method", "POST")]));
    cases.push(("a second head on the same stream".into(), [&begun[..], &begun, &good].concat(), Refused));
    cases.push((
        "more padding than DATA".into(),
        [&begun[..], &frame(DATA, END_STREAM | PADDED, 1, [9, 1])].concat(),
        Refused,
    ));
    cases.push((
        "a window of a stream beyond 2^31".into(),
        [&begun[..], &frame(WINDOW_UPDATE, 0, 1, [0x7f, 255, 255, 255])].concat(),
        Refused,
    ));
    cases.push((
        "a window of a stream by 0".into(),
        [&begun[..], &frame(WINDOW_UPDATE, 0, 1, [0; 4])].concat(),
        Refused,
    ));
    play(Beginnings::Maybe, cases).await;
}
