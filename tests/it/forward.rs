//! §5: what goes out is what came in, less what must not leave, plus the token.

use http::Request;
use wecom_proxy::simulator::{Fault, Settings, generated};

use crate::{
    stage::{Caller, ECHO, KEYED, OPEN, Stage, USER_GET, agent_section, key, method},
    wire::Line,
};

/// A request by hand to the echo, with these header lines and this body.
fn by_hand(start: &str, lines: &str, body: &str) -> String {
    format!("{start}\r\nHost: proxy.test\r\nConnection: close\r\n{lines}\r\n{body}")
}

#[tokio::test]
async fn every_method_goes_through() {
    let stage = Stage::open().await;
    for name in ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"] {
        let request = Request::builder().method(method(name)).uri(format!("/hr{ECHO}"));
        let reply = stage.call(request, "").await;
        assert_eq!(reply.status, 200, "{name}");
        assert_eq!(stage.last_seen(ECHO).method, name);
    }
}

/// A lenient upstream reads `trace` as TRACE and reflects the token.
#[tokio::test]
async fn a_method_in_other_letters_is_refused_and_not_sent() {
    let stage = Stage::with(KEYED).await;
    let gettoken = format!("/cgi-bin/gettoken?corpid=ww1234567890abcdef&corpsecret={}", key("billing"));
    let paths = [
        USER_GET,
        ECHO,
        &gettoken,
        "/cgi-bin/get_jsapi_ticket",
        "/cgi-bin/webhook/send?key=00000000-1111",
        "/cgi-bin/service/get_login_info",
    ];
    for http2 in [false, true] {
        for name in ["trace", "Trace", "TRACE", "TRACK", "connect", "get", "Post", "PROPFIND", "QUERY", "X"] {
            for path in paths {
                let mut caller = match http2 {
                    false => Caller::http1(stage.address()).await,
                    true => Caller::http2(stage.address()).await,
                };
                let request = Request::builder().method(method(name)).uri(format!("/hr{path}"));
                let request = request.header("x-api-key", key("billing"));
                let reply = caller.call(request, "").await;
                assert!(reply.is_own("bad-request", 400, 40035).text().contains("method"), "{name} {path}");
            }
        }
    }
    assert_eq!(stage.wecom.requests().len(), 0);
}

#[tokio::test]
async fn the_query_goes_through_byte_for_byte() {
    let stage = Stage::open().await;
    for (given, seen) in [
        ("", "?access_token=token#1"),
        ("?", "?access_token=token#1"),
        ("?&a=1", "?&a=1&access_token=token#1"),
        ("?a=1&&b=2", "?a=1&&b=2&access_token=token#1"),
        ("?b=2&a=1&a=0", "?b=2&a=1&a=0&access_token=token#1"),
        ("?a=%E5%bc%A0+%20~!*'()", "?a=%E5%bc%A0+%20~!*'()&access_token=token#1"),
        ("?a=/x//../y?z=1:@", "?a=/x//../y?z=1:@&access_token=token#1"),
        ("?a&b=&=c&=", "?a&b=&=c&=&access_token=token#1"),
        ("?a={'b':[1,2]}|^`\\", "?a={'b':[1,2]}|^`\\&access_token=token#1"),
        ("?a=%&b=%zz&c=%2", "?a=%&b=%zz&c=%2&access_token=token#1"),
        ("?a=1;b=2", "?a=1;b=2&access_token=token#1"),
        ("?media_id=1&debug=1&access_token=", "?media_id=1&debug=1&access_token=token#1"),
        ("?a=\u{5f20}", "?a=\u{5f20}&access_token=token#1"),
    ] {
        let mut line = Line::to(stage.address()).await;
        let request = by_hand(&format!("GET /hr{ECHO}{given} HTTP/1.1"), "", "");
        line.say(request).await.expect("it is taken");
        let (head, _) = line.answer().await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{given}: {head}");
        assert_eq!(format!("?{}", stage.last_seen(ECHO).query), seen, "{given}");
    }
}

#[tokio::test]
async fn a_token_of_the_callers_own_is_taken_out_under_every_encoded_name() {
    let stage = Stage::open().await;
    for theirs in [
        "access_token=theirs",
        "%61ccess_token=theirs",
        "access%5Ftoken=theirs",
        "access%5ftoken=theirs",
        "%61%63%63%65%73%73%5f%74%6f%6b%65%6e=theirs",
        "access_token",
        "access_token=",
        "access_token=theirs=theirs",
        "access_token=a&%61ccess_token=b&access%5Ftoken",
    ] {
        for (given, kept) in
            [(theirs.to_owned(), ""), (format!("{theirs}&a=1"), "a=1&"), (format!("a=1&{theirs}"), "a=1&")]
        {
            stage.get(&format!("{ECHO}?{given}")).await.is_ok();
            assert_eq!(stage.last_seen(ECHO).query, format!("{kept}access_token=token#1"), "{given}");
        }
    }
}

#[tokio::test]
async fn odd_but_legal_paths_stay_as_they_came() {
    let stage = Stage::open().await;
    for path in [
        "/cgi-bin/oa/meetingroom//book_by_meeting",
        "/cgi-bin/user/%67et",
        "/cgi-bin/user/get/",
        "/cgi-bin/user/get;v=1",
        "/cgi-bin/%E5%BC%A0",
        "/cgi-bin/a.b/c..d/...",
        "/cgi-bin/a:b@c!$&'()*+,=~",
    ] {
        let reply = stage.get(path).await;
        assert_eq!((reply.status.as_u16(), reply.text()), (404, ""), "{path}");
        assert_eq!(reply.header("x-wecom-proxy-error"), "");
        assert_eq!(stage.last_seen(path).query, "access_token=token#1");
    }
}

#[tokio::test]
async fn a_post_without_a_body_says_so() {
    let stage = Stage::open().await;
    for lines in ["", "Content-Length: 0\r\n"] {
        let mut line = Line::to(stage.address()).await;
        line.say(by_hand(&format!("POST /hr{ECHO} HTTP/1.1"), lines, "")).await.expect("it is taken");
        assert!(line.answer().await.0.starts_with("HTTP/1.1 200 "));
        let record = stage.last_seen(ECHO);
        assert_eq!(record.header("content-length"), ["0"]);
        assert!(record.header("transfer-encoding").is_empty());
    }
    stage.get(ECHO).await.is_ok();
    assert!(stage.last_seen(ECHO).header("content-length").is_empty());
}

#[tokio::test]
async fn a_body_keeps_its_framing_and_its_bytes() {
    let stage = Stage::open().await;
    let sum = |stage: &Stage| stage.last_seen(ECHO).body_sha256;
    stage.post(ECHO, "twelve bytes").await.is_ok();
    assert_eq!(stage.last_seen(ECHO).header("content-length"), ["12"]);
    let known = sum(&stage);

    let mut line = Line::to(stage.address()).await;
    let chunks = "6;ext=1\r\ntwelve\r\n6\r\n bytes\r\n0\r\nTrailing: 1\r\n\r\n";
    let request = by_hand(&format!("POST /hr{ECHO} HTTP/1.1"), "Transfer-Encoding: Chunked\r\n", chunks);
    line.say(request).await.expect("it is taken");
    assert!(line.answer().await.0.starts_with("HTTP/1.1 200 "));
    let record = stage.last_seen(ECHO);
    assert_eq!(record.header("transfer-encoding"), ["chunked"]);
    assert!(record.header("content-length").is_empty() && record.header("trailing").is_empty());
    assert_eq!(sum(&stage), known);

    Caller::http2(stage.address())
        .await
        .call(Request::post(format!("/hr{ECHO}")), "twelve bytes")
        .await
        .is_ok();
    assert_eq!(stage.last_seen(ECHO).header("content-length"), ["12"]);
    assert_eq!(sum(&stage), known);
}

#[tokio::test]
async fn who_expects_100_continue_gets_it_from_the_proxy() {
    let stage = Stage::open().await;
    let mut line = Line::to(stage.address()).await;
    let lines = "Expect: 100-continue\r\nContent-Length: 4\r\n";
    line.say(by_hand(&format!("POST /hr{ECHO} HTTP/1.1"), lines, "")).await.expect("it is taken");
    assert!(line.head().await.starts_with("HTTP/1.1 100 "));
    line.say("body").await.expect("it is taken");
    assert!(line.answer().await.0.starts_with("HTTP/1.1 200 "));
    let record = stage.last_seen(ECHO);
    assert_eq!(record.body_bytes, 4);
    assert!(record.header("expect").is_empty());
}

#[tokio::test]
async fn json_without_a_content_type_stays_without() {
    let stage = Stage::open().await;
    let message = r#"{"touser":"zhangsan","msgtype":"text","agentid":1000002,"text":{"content":"hi"}}"#;
    stage.post("/cgi-bin/message/send", message).await.is_ok();
    assert!(stage.last_seen("/cgi-bin/message/send").header("content-type").is_empty());
    assert_eq!(stage.wecom.messages()[0].body["text"]["content"], "hi");
}

#[tokio::test]
async fn a_call_with_a_credential_of_its_own_goes_through_as_it_came() {
    let stage = Stage::open().await;
    for (path, query) in [
        ("/cgi-bin/service/echo", "?provider_access_token=P&x=%20+"),
        ("/cgi-bin/service/echo", "?access_token=theirs"),
        ("/cgi-bin/license/echo", "?&suite_access_token=S&%61ccess_token=theirs&access_token"),
        ("/cgi-bin/license/echo", ""),
        ("/cgi-bin/service/echo", "?"),
        ("/cgi-bin/webhook/send", "?key=not-a-key"),
    ] {
        for prefix in ["", "/hr"] {
            stage.call(Request::post(format!("{prefix}{path}{query}")), "{}").await;
            let seen = stage.last_seen(path).query;
            assert_eq!(
                seen,
                query.trim_start_matches('?').replace("theirs", "token#?"),
                "{prefix}{path}{query}"
            );
        }
    }
    assert_eq!(stage.wecom.look(|seen| seen.gettokens()), 0);
}

#[tokio::test]
async fn a_call_with_a_credential_of_its_own_is_never_sent_again() {
    let stage = Stage::open().await;
    for errcode in [40014, 42001] {
        stage.wecom.reset();
        let refusal = format!(r#"{{"errcode":{errcode},"errmsg":"theirs"}}"#);
        stage.wecom.inject(Fault::answer(200, "application/json", refusal)).expect("a fault");
        for path in ["/hr/cgi-bin/webhook/send?key=1", "/cgi-bin/service/echo", "/cgi-bin/license/echo"] {
            let reply = stage.call(Request::post(path), "{}").await;
            assert_eq!((reply.errcode(), reply.header("x-wecom-retried")), (errcode, ""));
        }
        assert_eq!(stage.wecom.requests().len(), 3);
    }
}

#[tokio::test]
async fn an_agents_plain_paths_are_its_own_business() {
    let hr = &Settings::default().agents[0];
    let toml = OPEN.replace("{agents}", &agent_section(hr, "plain = [\"/cgi-bin/simulator/*\"]"));
    let stage = Stage::with(&toml).await;
    let reply = stage.get(&format!("{ECHO}?access_token=theirs&a=1")).await;
    assert_eq!(reply.errcode(), 40014);
    assert_eq!(stage.last_seen(ECHO).query, "access_token=token#?&a=1");
    assert_eq!(stage.got_through(), 1);
    assert_eq!(stage.wecom.gettoken_count("hr").expect("an agent"), 0);
    stage.get(USER_GET).await.is_ok();
}

#[tokio::test]
async fn gettoken_never_goes_out() {
    let stage = Stage::open().await;
    for path in [
        "/cgi-bin/gettoken?corpid=ww1234567890abcdef&corpsecret=S",
        "/hr/cgi-bin/gettoken?corpid=ww1234567890abcdef&corpsecret=S",
        "/hr/cgi-bin//gettoken?corpsecret=S",
        "/hr/cgi-bin/%67ettoken?corpsecret=S",
        "/hr/cgi-bin/GetToken/?corpsecret=S",
        "/hr/cgi-bin/gettoken;x?corpsecret=S",
    ] {
        for name in ["GET", "POST"] {
            let reply = stage.call(Request::builder().method(method(name)).uri(path), "").await;
            assert!(!reply.text().contains("TOKEN") && !reply.text().contains("corpsecret=S"), "{reply:?}");
        }
    }
    assert_eq!(stage.wecom.requests().len(), 0);
}

#[tokio::test]
async fn http_1_0_is_spoken_and_never_answered_in_chunks() {
    let stage = Stage::open().await;
    let media = "/cgi-bin/media/get?media_id=generated-1000";
    for pieces in [false, true] {
        if pieces {
            stage.wecom.inject(Fault::pieces(100).on("/cgi-bin/media/get")).expect("a fault");
        }
        let mut line = Line::to(stage.address()).await;
        line.say(format!("GET /hr{media} HTTP/1.0\r\n\r\n")).await.expect("it is taken");
        let head = line.head().await.to_ascii_lowercase();
        assert!(head.starts_with("http/1.0 200 ") && !head.contains("transfer-encoding"), "{head}");
        let (body, end) = line.rest().await;
        end.expect("an orderly close");
        assert_eq!(body, generated(0, 1000));
    }
    assert_eq!(stage.last_seen("/cgi-bin/media/get").version, "HTTP/1.1");
}

#[tokio::test]
async fn http_2_is_spoken_without_tls() {
    let stage = Stage::open().await;
    let mut caller = Caller::http2(stage.address()).await;
    caller.get(USER_GET).await.is_ok();
    caller.call(Request::post(format!("/hr{ECHO}")), vec![7; 300_000]).await.is_ok();
    assert_eq!(stage.last_seen(ECHO).body_bytes, 300_000);
    assert_eq!(stage.last_seen(ECHO).header("host"), [stage.wecom.api_addr().to_string()]);
    stage.wecom.inject(Fault::pieces(100).on("/cgi-bin/media/get")).expect("a fault");
    let reply = caller.get("/cgi-bin/media/get?media_id=generated-1000").await;
    assert_eq!(reply.body, generated(0, 1000));
    assert_eq!(reply.header("transfer-encoding"), "");
}

#[tokio::test]
async fn a_unix_socket_is_an_address_too() {
    let toml = OPEN.replacen(r#""127.0.0.1:0""#, r#"["127.0.0.1:0", "unix:{dir}/proxy.sock"]"#, 1);
    let stage = Stage::with(&toml).await;
    let socket = stage.dir.path().join("proxy.sock");
    let stream = tokio::net::UnixStream::connect(&socket).await.expect("a connection");
    Caller::http1_over(stream).await.get(USER_GET).await.is_ok();
    let stream = tokio::net::UnixStream::connect(&socket).await.expect("a connection");
    Caller::http2_over(stream).await.get(USER_GET).await.is_ok();
}

/// The same lines again and again on one connection, with bodies of every length; and then others.
#[tokio::test]
async fn what_is_the_same_as_before_is_not_taken_for_more_than_that() {
    let stage = Stage::open().await;
    let mut line = Line::to(stage.address()).await;
    let post = |lines: &str, body: &str| {
        let length = body.len();
        let head =
            format!("POST /hr{ECHO} HTTP/1.1\r\nHost: proxy.test\r\n{lines}Content-Length: {length}\r\n");
        format!("{head}X-Last: 1\r\n\r\n{body}")
    };
    for length in [3, 3, 3, 0, 1, 12, 3, 5000, 70_000, 3] {
        for lines in ["X-Mine: a\r\n", "X-Mine: b\r\n"] {
            let body = "x".repeat(length);
            line.say(post(lines, &body)).await.expect("it is taken");
            let (head, _) = line.answer().await;
            assert!(head.starts_with("HTTP/1.1 200 "), "{length}: {head}");
            let seen = stage.last_seen(ECHO);
            assert_eq!((seen.body_bytes, seen.header("x-mine")), (length as u64, vec![&lines[8..9]]));
            assert_eq!(seen.header("x-last"), ["1"]);
        }
    }
    // Two requests in one piece, cut anywhere.
    let two = post("X-Mine: a\r\n", "abc") + &post("X-Mine: a\r\n", "defg");
    for cut in (0..two.len()).step_by(7) {
        let before = stage.wecom.requests().len();
        line.say(&two[..cut]).await.expect("it is taken");
        line.say(&two[cut..]).await.expect("it is taken");
        for _ in 0..2 {
            assert!(line.answer().await.0.starts_with("HTTP/1.1 200 "), "cut at {cut}");
        }
        assert_eq!(stage.wecom.requests().len(), before + 2);
        assert_eq!(stage.last_seen(ECHO).body_bytes, 4);
    }
}

/// What HTTP/1.0 may leave out HTTP/1.1 may not, though everything else was the same before.
#[tokio::test]
async fn a_host_that_was_not_needed_before_is_needed_now() {
    let stage = Stage::open().await;
    let mut line = Line::to(stage.address()).await;
    let get = |version: &str| format!("GET /hr{USER_GET} HTTP/{version}\r\nConnection: keep-alive\r\n\r\n");
    for _ in 0..4 {
        line.say(get("1.0")).await.expect("it is taken");
        assert!(line.answer().await.0.starts_with("HTTP/1.0 200 "));
    }
    line.say(get("1.1")).await.expect("it is taken");
    assert!(line.answer().await.0.starts_with("HTTP/1.1 400 "));
}
