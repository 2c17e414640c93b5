//! The parts. Each is what the proxy does for one request, unless its name says otherwise.

use std::{
    hint::black_box,
    io::{self, Write},
    net::{IpAddr, Ipv4Addr},
    time::{Duration, SystemTime},
};

use bytes::BytesMut;
use flate2::{Compression, write::GzEncoder};
use http::Method;
use tokio::time::Instant;
use wecom_proxy::{
    access::{LAST_LINES, Level, Line},
    bench::{self, Habits},
    fields::{Familiar, Fields},
    wecom::reply::{ReplyScanner, Verdict},
};

use crate::{
    count::{Counter, aside},
    stage::{KEY, Stage, TOKEN},
};

/// Rounds of a part that takes a few thousand instructions.
const MANY: u32 = 1000;
/// Rounds of one that takes far more.
const FEW: u32 = 50;

/// As a common SDK sends them, with a key.
const LINES: &str = "Host: 127.0.0.1:8080\r\n\
                     User-Agent: python-requests/2.32.3\r\n\
                     Accept-Encoding: gzip, deflate\r\n\
                     Accept: */*\r\n\
                     Connection: keep-alive\r\n";

/// Counts them all.
pub fn count(counter: &mut Counter) -> io::Result<()> {
    let stage = Stage::set()?;
    ways_in(counter, &stage);
    answers(counter, &stage)?;
    lines(counter, &stage)?;
    whole(counter, &stage)
}

/// The parts before a request leaves.
fn ways_in(counter: &mut Counter, stage: &Stage) {
    let head = format!(
        "GET /hr/cgi-bin/user/get?userid=zhangsan HTTP/1.1\r\n{LINES}Authorization: Bearer {KEY}\r\n\r\n"
    );
    counter.count("request head", MANY, || {
        let (mut buffer, mut strange) = aside(|| (BytesMut::from(&*head), Habits::default()));
        bench::request_head(&mut buffer, &mut strange).expect("a head")
    });
    let mut familiar = Habits::default();
    counter.count("request head, familiar", MANY, || {
        let mut buffer = aside(|| BytesMut::from(&*head));
        bench::request_head(&mut buffer, &mut familiar).expect("a head")
    });

    let target = |path: &str, query| bench::route(black_box(path), black_box(query)).expect("a route");
    counter.count("route", MANY, || target("/hr/cgi-bin/user/get", Some("userid=zhangsan")));
    counter.count("route, encoded", MANY, || target("/hr/cgi-bin/user%5Fx//get", Some("userid=zhangsan")));

    let path = "/cgi-bin/user/get";
    let rewrite = |query: &str| bench::rewrite(path, black_box(query), TOKEN);
    counter.count("query", MANY, || rewrite("userid=zhangsan&fetch_child=1"));
    counter
        .count("query with a token", MANY, || rewrite("access_token=abcdef&userid=zhangsan&fetch_child=1"));

    let shown = Fields::of(&[("Accept", "*/*"), ("Authorization", &format!("Bearer {KEY}"))]);
    counter
        .count("key", MANY, || bench::client_of_key(&stage.directory, black_box(&shown)).expect("a client"));

    let query = format!("access_token={}&userid=zhangsan", pass(stage));
    counter.count("pass", MANY, || {
        bench::client_of_pass(&stage.directory, black_box(&query)).expect("a client")
    });

    let client = stage.directory.client(KEY).expect("it stands in the configuration");
    let allows = |path: &str| client.may_call(black_box(&Method::GET), black_box(path));
    counter.count("allow list, its third", MANY, || assert!(allows("/cgi-bin/user/get")));
    counter.count("allow list, none", MANY, || assert!(!allows("/cgi-bin/externalcontact/get")));

    let (slot, now) = (stage.agent().slot.clone(), Instant::now());
    counter.count("token", MANY, || slot.ready(black_box(now)).expect("a token"));
}

/// A pass of the client `billing` for the agent `hr`.
fn pass(stage: &Stage) -> String {
    let client = stage.directory.client(KEY).expect("it stands in the configuration");
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    stage.agent().pass_key.issue("hr", "billing", Some(&client.key), now).expose().to_owned()
}

/// The parts after an answer came.
fn answers(counter: &mut Counter, stage: &Stage) -> io::Result<()> {
    let head = answer_head(r#"{"errcode":0}"#.len());
    counter.count("answer head", MANY, || {
        let (mut buffer, mut strange) = aside(|| (BytesMut::from(&*head), Familiar::default()));
        bench::answer_head(&mut buffer, &mut strange).expect("a head")
    });
    let mut familiar = Familiar::default();
    counter.count("answer head, familiar", MANY, || {
        let mut buffer = aside(|| BytesMut::from(&*head));
        bench::answer_head(&mut buffer, &mut familiar).expect("a head")
    });

    let head =
        |text: &str| bench::answer_head(&mut BytesMut::from(text), &mut Familiar::default()).expect("a head");
    let fields = head(&answer_head(300));
    let mut request = BytesMut::from("GET /cgi-bin/user/get HTTP/1.1\r\nHost: x\r\n\r\n");
    let request = bench::request_head(&mut request, &mut Habits::default()).expect("a head");
    let signer = bench::Signer::new(&request, stage.agent(), stage.books.clone());
    let token = stage.token();
    counter.count("answer lines", MANY, || signer.lines(black_box(&fields), &token));

    let coded = head("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Encoding: gzip\r\n\r\n");
    let mut scan = |name, rounds, fields: &Fields, body: &[u8]| {
        counter.count(name, rounds, || {
            let verdict = ReplyScanner::new(fields).feed(black_box(body));
            assert_eq!(verdict, Verdict::Found(0));
        });
    };
    let [first, last, large] = [errcode_first(), errcode_last(300), errcode_last(64 * 1024)];
    scan("errcode first in 300 B", MANY, &fields, first.as_bytes());
    scan("errcode last in 300 B", MANY, &fields, last.as_bytes());
    scan("errcode last in 64 KiB", FEW, &fields, large.as_bytes());
    let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
    gzip.write_all(last.as_bytes())?;
    scan("errcode last in 300 B, gzip", FEW, &coded, &gzip.finish()?);
    Ok(())
}

/// An answer's head as WeCom sends it.
fn answer_head(length: usize) -> String {
    format!(
        "HTTP/1.1 200 OK\r\n\
         Server: nginx\r\n\
         Date: Mon, 01 Jan 2024 00:00:00 GMT\r\n\
         Content-Type: application/json; charset=UTF-8\r\n\
         Content-Length: {length}\r\n\
         Connection: keep-alive\r\n\
         Error-Code: 0\r\n\
         Error-Msg: ok\r\n\
         X-W-No: 4\r\n\r\n"
    )
}

/// Most answers begin with it.
fn errcode_first() -> String {
    let rest = errcode_last(270);
    format!(r#"{{"errcode":0,"errmsg":"ok",{}"#, &rest[1..])
}

/// A list of people with the errcode behind it, of about this length.
fn errcode_last(length: usize) -> String {
    let mut text = r#"{"userlist":["#.to_owned();
    for nth in 0.. {
        text.push_str(&format!(
            r#"{{"userid":"user{nth:05}","name":"张三","department":[1,2],"mobile":"138{nth:08}"}}"#
        ));
        if text.len() + 110 > length {
            break;
        }
        text.push(',');
    }
    text.push_str(r#"],"errcode":0,"errmsg":"ok"}"#);
    text
}

/// The access log.
fn lines(counter: &mut Counter, stage: &Stage) -> io::Result<()> {
    let line = Line {
        level: Level::Info,
        at: SystemTime::now(),
        request_id: "0123456789abcdef00000001",
        trace_id: None,
        peer: Some(IpAddr::V4(Ipv4Addr::new(192, 168, 12, 34))),
        client: Some("billing"),
        agent: Some("hr"),
        method: "GET",
        path: "/hr/cgi-bin/user/get",
        status: 200,
        errcode: Some(0),
        retried: None,
        first_try: None,
        request_bytes: None,
        error: None,
        reason: None,
        bytes: 314,
        whole: true,
        token: Duration::ZERO,
        upstream: Duration::from_micros(23_456),
        total: Duration::from_micros(24_567),
        hint: None,
    };
    let json = stage.json_log()?;
    for (name, log) in [("access line, text", &stage.access), ("access line, JSON", &json)] {
        counter.count(name, MANY, || {
            // When lines leave the buffer, and how far it has grown by then, is the writer's affair.
            aside(|| log.flush(LAST_LINES));
            log.write(black_box(&line));
        });
    }
    Ok(())
}

/// Whole requests: accepted, answered by the upstream, handed over, logged, and the connections kept.
fn whole(counter: &mut Counter, stage: &Stage) -> io::Result<()> {
    let body = errcode_first();
    let mut play = stage.play(format!("{}{body}", answer_head(body.len())))?;

    let get = format!(
        "GET /hr/cgi-bin/user/get?userid=zhangsan HTTP/1.1\r\n{LINES}Authorization: Bearer {KEY}\r\n\r\n"
    );
    counter.count("whole GET with a key", MANY, || play.request(&get));

    let message = r#"{"touser":"zhangsan","msgtype":"text","agentid":1000002,"text":{"content":"你好"}}"#;
    let post = format!(
        "POST /cgi-bin/message/send?access_token={} HTTP/1.1\r\n{LINES}\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{message}",
        pass(stage),
        message.len()
    );
    counter.count("whole POST with a pass", MANY, || play.request(&post));

    let traced = Stage::set_traced()?;
    let mut play = traced.play(format!("{}{body}", answer_head(body.len())))?;
    counter.count("whole GET with a key, traced", MANY, || play.request(&get));
    Ok(())
}
