//! Header lines that came before are not read again. What is answered, and what goes out, is to be the same as if they were
//! new each time.

use std::fmt::Write as _;

use crate::{
    harness::{CONFIG_WITH_CLIENTS, ECHO, OPEN_CONFIG, TestProxy, USER_GET, client_key},
    raw_http::{ManualUpstream, RawConnection},
};

/// Numbers that look random and are the same each time.
struct SeededRandom(u64);

impl SeededRandom {
    fn pick<'a, T: ?Sized>(&mut self, among: &[&'a T]) -> &'a T {
        among[self.next() % among.len()]
    }

    fn pick_cloned<T: Clone>(&mut self, among: &[T]) -> T {
        among[self.next() % among.len()].clone()
    }

    fn next(&mut self) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize
    }
}

/// A request, but for the number in its `Content-Length` and for a line that no other has.
struct RandomRequest {
    first_line: String,
    lines: String,
    length: &'static str,
    body: &'static str,
}

impl RandomRequest {
    fn random(dice: &mut SeededRandom) -> Self {
        let method = dice.pick(&["GET", "GET", "POST", "POST", "HEAD", "DELETE", "CONNECT"]);
        let target = dice.pick(&[
            "/hr/cgi-bin/simulator/echo?a=1",
            "/hr/cgi-bin/simulator/echo?a=2",
            "/cgi-bin/simulator/echo",
            "/ops/cgi-bin/simulator/echo",
            "/hr/cgi-bin/user/get?userid=zhangsan",
            "/hr/cgi-bin/message/recall",
            "/hr/cgi-bin/gettoken",
            "/nowhere",
            "http://evil.test/hr/cgi-bin/simulator/echo",
        ]);
        let version = dice.pick(&["1.1", "1.1", "1.1", "1.0"]);
        let connection = dice.pick(&["", "", "", "Connection: keep-alive\r\n", "Connection: close\r\n"]);
        let host = dice.pick(&["Host: x\r\n", "Host: x\r\n", "Host: x\r\n", "Host: y, z\r\n", ""]);
        let [billing, crm, narrow, alert] = ["billing", "crm", "narrow", "alert"].map(client_key);
        let shown = dice
            .pick(&[
                &format!("X-Api-Key: {billing}\r\n"),
                &format!("X-Api-Key: {crm}\r\n"),
                &format!("X-Api-Key: {narrow}\r\n"),
                &format!("X-Api-Key: {alert}\r\n"),
                &format!("X-Api-Key: {alert}x\r\n"),
                &format!("Authorization: Bearer {billing}\r\n"),
                &format!("Authorization: Bearer {billing}\r\nX-Api-Key: {billing}\r\n"),
                &format!("Authorization: Bearer {billing}\r\nX-Api-Key: {crm}\r\n"),
                &"Authorization: Basic YTprZXktb2YtY3JtLTAwMDAwMDAwMDA=\r\n".to_owned(),
                &"Authorization: Basic Yjo=\r\n".to_owned(),
                &String::new(),
            ])
            .clone();
        let more = dice.pick(&[
            "",
            "",
            "X-Wecom-Agent: ops\r\n",
            "Expect: 100-continue\r\n",
            "X-Wecom-Debug: 1\r\n",
        ]);
        let coded = dice.pick(&["", "", "", "", "Transfer-Encoding: chunked\r\n"]);
        let (length, body) = match *dice.pick(&[&0, &1, &2, &3, &4, &5, &6, &7, &8]) {
            0..4 => ("", ""),
            4 => ("5", "hello"),
            5 => ("0005", "hello"),
            6 => ("00000000000000000012", "GET / HTTP/1"),
            7 => (
                *dice.pick(&[&"+5", &"5,5", &"5 5", &"99999999999999999999", &"000000000000000000005"]),
                "hello",
            ),
            _ => ("0", ""),
        };
        let body = if coded.is_empty() { body } else { "5\r\nhello\r\n0\r\n\r\n" };
        Self {
            first_line: format!("{method} {target} HTTP/{version}\r\n"),
            lines: format!("{host}{connection}{shown}{more}{coded}Accept: */*\r\n"),
            length,
            body,
        }
    }

    /// What is sent; `once` is a line that makes its lines new.
    fn text(&self, once: &str) -> String {
        let Self { first_line, lines, length, body } = self;
        let mut text = format!("{first_line}{lines}");
        if !length.is_empty() {
            let _ = write!(text, "Content-Length: {length}\r\n");
        }
        text + once + "\r\n" + body
    }

    /// Its answer, but for what differs from time to time.
    async fn read_response(&self, line: &mut RawConnection) -> String {
        let mut head = line.read_head().await;
        while head.starts_with("HTTP/1.1 100 ") {
            head = line.read_head().await;
        }
        let value = |name: &str| {
            let said = head.lines().find_map(|line| line.split_once(": ").filter(|(said, _)| *said == name));
            said.map(|(_, value)| value.to_owned())
        };
        let length = value("content-length").map_or(0, |length| length.parse().expect("a number"));
        let bytes = if self.first_line.starts_with("HEAD ") { 0 } else { length };
        let body = String::from_utf8(line.read_exact(bytes).await).expect("text");
        let is_same = |line: &&str| {
            !["x-request-id:", "server-timing:", "date:"]
                .iter()
                .any(|other| line.to_ascii_lowercase().starts_with(other))
        };
        head.lines().filter(is_same).chain([&*body]).collect::<Vec<_>>().join("\n")
    }
}

/// What WeCom got of the last request, and how many it got.
fn forwarded_requests(stage: &TestProxy, before: usize) -> String {
    let all = stage.wecom.requests();
    let of = all[before..].iter().filter(|record| record.path != "/cgi-bin/gettoken");
    let told = of.map(|record| {
        let lines: Vec<_> = record.headers.iter().filter(|(name, _)| name != "x-request-id").collect();
        format!("{} {} {:?} {:?} {lines:?}", record.method, record.path, record.agent, record.body_sha256)
    });
    told.collect::<Vec<_>>().join("\n")
}

/// Random requests on a kept connection, and each on a connection of its own with lines that nobody has sent before, while
/// the clients change.
#[tokio::test]
async fn cached_request_headers_give_the_same_response() {
    let stage = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let swapped = CONFIG_WITH_CLIENTS
        .replace("billing-", "-")
        .replace("crm-", "billing-")
        .replace("key-of--", "key-of-crm-");
    let fewer = CONFIG_WITH_CLIENTS
        .replace("[clients.crm]", "[clients.other]")
        .replace("always_200 = true", "always_200 = false");
    let narrower = CONFIG_WITH_CLIENTS
        .replace("/cgi-bin/simulator/*", "/cgi-bin/message/*")
        .replace("agents = [\"*\"]", "agents = [\"ops\"]");
    let mut line = RawConnection::connect(stage.address()).await;
    let mut dice = SeededRandom(1);
    let mut nth = 0;
    for toml in [CONFIG_WITH_CLIENTS, &swapped, &fewer, &narrower, CONFIG_WITH_CLIENTS] {
        stage.rewrite_config(toml);
        stage.app.reload().expect("a reload");
        for _ in 0..60 {
            let asked = RandomRequest::random(&mut dice);
            for _ in 0..3 {
                nth += 1;
                let once = format!("X-Wecom-Once: {nth}\r\n");
                let before = stage.wecom.requests().len();
                let mut strange = RawConnection::connect(stage.address()).await;
                strange.send(asked.text(&once)).await.expect("it is taken");
                let expected = asked.read_response(&mut strange).await;
                let expected = (expected, forwarded_requests(&stage, before));

                let before = stage.wecom.requests().len();
                let text = asked.text("");
                line.send(&text).await.expect("it is taken");
                let answer = asked.read_response(&mut line).await;
                assert_eq!((answer.clone(), forwarded_requests(&stage, before)), expected, "{nth}: {text}");
                let keeps = match answer.starts_with("HTTP/1.1 ") {
                    true => !answer.contains("connection: close"),
                    false => answer.contains("connection: keep-alive"),
                };
                if !keeps {
                    assert_eq!(line.read_to_end().await.0, b"", "{nth}: {text}");
                    line = RawConnection::connect(stage.address()).await;
                }
            }
        }
    }
}

/// An upstream that says the same lines with answers of every kind, one behind the other on kept connections.
#[tokio::test]
async fn cached_response_headers_respect_status_and_method() {
    let mut puppet = ManualUpstream::new().await;
    let stage = TestProxy::start_with_upstream(puppet.address, OPEN_CONFIG).await;
    let lines = "Content-Type: text/plain\r\nX-Same: 1\r\n";
    let mut caller = RawConnection::connect(stage.address()).await;
    let mut upstream: Option<RawConnection> = None;
    for nth in 0..40 {
        // Method, what comes before the lines, the line behind them, the body, what the caller gets of it, and whether the
        // upstream's connection is kept.
        let (method, first, length, body, got, kept) = match nth * 7 % 10 {
            0 => ("GET", "HTTP/1.1 200 OK", "Content-Length: 5", "hello", "hello", true),
            1 => ("HEAD", "HTTP/1.1 200 OK", "Content-Length: 5", "", "", true),
            2 => ("GET", "HTTP/1.1 304 Not Modified", "Content-Length: 5", "", "", true),
            3 => ("GET", "HTTP/1.1 204 No Content", "X-Last: 1", "", "", true),
            4 => ("GET", "HTTP/1.0 200 OK", "Content-Length: 5", "hello", "hello", false),
            5 => (
                "GET",
                "HTTP/1.1 200 OK",
                "Transfer-Encoding: chunked",
                "3\r\nabc\r\n0\r\n\r\n",
                "3\r\nabc\r\n0\r\n\r\n",
                true,
            ),
            6 => ("HEAD", "HTTP/1.1 200 OK", "Transfer-Encoding: chunked", "", "", true),
            7 => (
                "GET",
                "HTTP/1.1 103 Early\r\nContent-Length: 9\r\n\r\nHTTP/1.1 201 Created",
                "Content-Length: 0000012",
                "hello, world",
                "hello, world",
                true,
            ),
            8 => {
                ("GET", "HTTP/1.1 200 OK", "Connection: close\r\nContent-Length: 5", "hello", "hello", false)
            }
            _ => ("GET", "HTTP/1.1 200 OK", "Content-Length: +5", "hello", "", false),
        };
        let ask = caller.send(format!("{method} /hr{ECHO}?n={nth} HTTP/1.1\r\nHost: x\r\n\r\n"));
        ask.await.expect("it is taken");
        let (head, mut line) = match upstream.take() {
            Some(mut line) => (line.read_head().await, line),
            None => {
                let call = puppet.next_call().await;
                (call.head, call.connection)
            }
        };
        assert!(head.starts_with(&format!("{method} {ECHO}?n={nth}&access_token=")), "{nth}: {head}");
        line.send(format!("{first}\r\n{lines}{length}\r\n\r\n{body}")).await.expect("it is taken");
        upstream = kept.then_some(line);
        let head = caller.read_head().await;
        let status = if length.ends_with("+5") {
            "502"
        } else {
            &first[first.rfind("HTTP/").expect("a version") + 9..][..3]
        };
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{nth}: {head}");
        if status == "502" {
            let length = head.split_once("content-length: ").expect("a length").1;
            let length = length[..length.find('\r').expect("a line")].parse().expect("a number");
            caller.read_exact(length).await;
            continue;
        }
        assert_eq!(head.matches("X-Same: 1\r\n").count(), 1, "{nth}: {head}");
        assert_eq!(head.contains("content-length:"), length.contains("Length: "), "{nth}: {head}");
        assert_eq!(String::from_utf8_lossy(&caller.read_exact(got.len()).await), got, "{nth}: {head}");
    }
}

/// One connection after the other, each with one request: its task has served others before, with the same or nearly the
/// same lines.
#[tokio::test]
async fn clients_of_one_pooled_task_are_not_confused() {
    let stage = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let [billing, crm, narrow] = ["billing", "crm", "narrow"].map(client_key);
    let shown = |key: &str| format!("X-Api-Key: {key}\r\n");
    let lines =
        [shown(&billing), shown(&crm), shown(&narrow), shown("key-of-nobody-0000000000"), String::new()];
    // In twos that are equally long, or of which one begins like the other.
    let first_lines = [
        format!("GET /hr{ECHO}?a=1 HTTP/1.1\r\n"),
        format!("GET /hr{ECHO}?a=2 HTTP/1.1\r\n"),
        format!("GET /hr{ECHO}?a=12 HTTP/1.1\r\n"),
        format!("GET /ops{ECHO}?a=1 HTTP/1.1\r\n"),
        format!("PUT /hr{ECHO}?a=1 HTTP/1.1\r\n"),
        format!("HEAD /hr{ECHO}?a=1 HTTP/1.1\r\n"),
        format!("GET /hr{ECHO}?a=1 HTTP/1.0\r\n"),
        format!("GET http://evil.test/hr{ECHO}?a=1 HTTP/1.1\r\n"),
        format!("GET /hr{USER_GET}&a=1 HTTP/1.1\r\n"),
    ];
    let lengths = [("", ""), ("", ""), ("5", "hello"), ("7", "hello, ")];
    let ask = async |asked: &RandomRequest, once: &str| {
        let before = stage.wecom.requests().len();
        let mut line = RawConnection::connect(stage.address()).await;
        line.send(asked.text(once)).await.expect("it is taken");
        let answer = asked.read_response(&mut line).await;
        // The table is free when the connection has ended.
        assert_eq!(line.read_to_end().await.0, b"", "{answer}");
        (answer, forwarded_requests(&stage, before))
    };
    let (mut dice, mut table) = (SeededRandom(7), Vec::<(String, String, (&str, &str))>::new());
    for nth in 0..300 {
        if nth % 3 == 0 {
            // Two of either, so that what was is often the same, and as often not.
            table = (0..2)
                .map(|_| {
                    (dice.pick_cloned(&lines), dice.pick_cloned(&first_lines), dice.pick_cloned(&lengths))
                })
                .collect();
        }
        let (first, second) = (&table[0], &table[1]);
        let (lines, first_line, (length, body)) = match dice.pick_cloned(&[0, 1, 2, 3]) {
            0 => first.clone(),
            1 => (first.0.clone(), second.1.clone(), first.2),
            2 => (second.0.clone(), first.1.clone(), second.2),
            _ => second.clone(),
        };
        let lines = format!("Host: x\r\n{lines}Connection: close\r\nAccept: */*\r\n");
        let asked = RandomRequest { first_line, lines, length, body };
        let expected = ask(&asked, &format!("X-Wecom-Once: {nth}\r\n")).await;
        for _ in 0..2 {
            assert_eq!(ask(&asked, "").await, expected, "{nth}: {}", asked.text(""));
        }
    }
}
