//! The header cache: a request or response whose headers hit the cache has the same outcome as one with uncached headers.

use std::fmt::Write as _;

use http::Request;

use crate::{
    harness::{CONFIG_WITH_CLIENTS, ECHO, OPEN_CONFIG, TestClient, TestProxy, USER_GET, client_key},
    raw_http::{ManualUpstream, RawConnection},
};

/// A deterministic pseudo-random number generator (LCG).
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

/// A random request. `headers` are cacheable; the `Content-Length` is kept apart.
struct RandomRequest {
    first_line: String,
    headers: String,
    length: &'static str,
    body: &'static str,
}

impl RandomRequest {
    fn random(rng: &mut SeededRandom) -> Self {
        let method = rng.pick(&["GET", "GET", "POST", "POST", "HEAD", "DELETE", "CONNECT"]);
        let target = rng.pick(&[
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
        let version = rng.pick(&["1.1", "1.1", "1.1", "1.0"]);
        let connection = rng.pick(&["", "", "", "Connection: keep-alive\r\n", "Connection: close\r\n"]);
        let host = rng.pick(&["Host: x\r\n", "Host: x\r\n", "Host: x\r\n", "Host: y, z\r\n", ""]);
        let [billing, crm, narrow, alert] = ["billing", "crm", "narrow", "alert"].map(client_key);
        let credential = rng
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
        let more =
            rng.pick(&["", "", "X-Wecom-Agent: ops\r\n", "Expect: 100-continue\r\n", "X-Wecom-Debug: 1\r\n"]);
        let transfer_encoding = rng.pick(&["", "", "", "", "Transfer-Encoding: chunked\r\n"]);
        let (length, body) = match *rng.pick(&[&0, &1, &2, &3, &4, &5, &6, &7, &8]) {
            0..4 => ("", ""),
            4 => ("5", "hello"),
            5 => ("0005", "hello"),
            6 => ("00000000000000000012", "GET / HTTP/1"),
            7 => (
                *rng.pick(&[&"+5", &"5,5", &"5 5", &"99999999999999999999", &"000000000000000000005"]),
                "hello",
            ),
            _ => ("0", ""),
        };
        let body = if transfer_encoding.is_empty() { body } else { "5\r\nhello\r\n0\r\n\r\n" };
        Self {
            first_line: format!("{method} {target} HTTP/{version}\r\n"),
            headers: format!("{host}{connection}{credential}{more}{transfer_encoding}Accept: */*\r\n"),
            length,
            body,
        }
    }

    /// The request's bytes; `unique_header` keeps the headers from hitting the cache.
    fn text(&self, unique_header: &str) -> String {
        let Self { first_line, headers, length, body } = self;
        let mut text = format!("{first_line}{headers}");
        if !length.is_empty() {
            let _ = write!(text, "Content-Length: {length}\r\n");
        }
        text + unique_header + "\r\n" + body
    }

    /// Reads the response, without the headers that differ between equal responses.
    async fn read_response(&self, connection: &mut RawConnection) -> String {
        let mut head = connection.read_head().await;
        while head.starts_with("HTTP/1.1 100 ") {
            head = connection.read_head().await;
        }
        let value = |name: &str| {
            let header =
                head.lines().find_map(|line| line.split_once(": ").filter(|(other, _)| *other == name));
            header.map(|(_, value)| value.to_owned())
        };
        let length = value("content-length").map_or(0, |length| length.parse().expect("a number"));
        let bytes = if self.first_line.starts_with("HEAD ") { 0 } else { length };
        let body = String::from_utf8(connection.read_exact(bytes).await).expect("text");
        let is_stable = |line: &&str| {
            !["x-request-id:", "server-timing:", "date:"]
                .iter()
                .any(|other| line.to_ascii_lowercase().starts_with(other))
        };
        head.lines().filter(is_stable).chain([&*body]).collect::<Vec<_>>().join("\n")
    }
}

/// The requests, without gettoken, that WeCom received after the first `before` ones, as text.
fn forwarded_requests(proxy: &TestProxy, before: usize) -> String {
    let all = proxy.wecom.requests();
    let forwarded = all[before..].iter().filter(|record| record.path != "/cgi-bin/gettoken");
    let texts = forwarded.map(|record| {
        let headers: Vec<_> = record.headers.iter().filter(|(name, _)| name != "x-request-id").collect();
        format!("{} {} {:?} {:?} {headers:?}", record.method, record.path, record.agent, record.body_sha256)
    });
    texts.collect::<Vec<_>>().join("\n")
}

/// Sends random requests on a reused connection, and each one on a new connection with unique headers, while reloads change
/// the clients.
#[tokio::test]
async fn cached_request_headers_give_the_same_response() {
    let proxy = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
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
    let mut connection = RawConnection::connect(proxy.address()).await;
    let mut rng = SeededRandom(1);
    let mut nth = 0;
    for toml in [CONFIG_WITH_CLIENTS, &swapped, &fewer, &narrower, CONFIG_WITH_CLIENTS] {
        proxy.rewrite_config(toml);
        proxy.app.reload().expect("a reload");
        for _ in 0..60 {
            let request = RandomRequest::random(&mut rng);
            for _ in 0..3 {
                nth += 1;
                let unique = format!("X-Wecom-Once: {nth}\r\n");
                let before = proxy.wecom.requests().len();
                let mut uncached = RawConnection::connect(proxy.address()).await;
                uncached.send(request.text(&unique)).await.expect("sent");
                let expected = request.read_response(&mut uncached).await;
                let expected = (expected, forwarded_requests(&proxy, before));

                let before = proxy.wecom.requests().len();
                let text = request.text("");
                connection.send(&text).await.expect("sent");
                let response = request.read_response(&mut connection).await;
                assert_eq!((response.clone(), forwarded_requests(&proxy, before)), expected, "{nth}: {text}");
                let keep_alive = match response.starts_with("HTTP/1.1 ") {
                    true => !response.contains("connection: close"),
                    false => response.contains("connection: keep-alive"),
                };
                if !keep_alive {
                    assert_eq!(connection.read_to_end().await.0, b"", "{nth}: {text}");
                    connection = RawConnection::connect(proxy.address()).await;
                }
            }
        }
    }
}

/// Request method; what the upstream sends before the repeated headers; its last header; its body; the body that the client
/// receives; whether the upstream connection is reused.
const UPSTREAM_RESPONSES: [(&str, &str, &str, &str, &str, bool); 10] = [
    ("GET", "HTTP/1.1 200 OK", "Content-Length: 5", "hello", "hello", true),
    ("HEAD", "HTTP/1.1 200 OK", "Content-Length: 5", "", "", true),
    ("GET", "HTTP/1.1 304 Not Modified", "Content-Length: 5", "", "", true),
    ("GET", "HTTP/1.1 204 No Content", "X-Last: 1", "", "", true),
    ("GET", "HTTP/1.0 200 OK", "Content-Length: 5", "hello", "hello", false),
    (
        "GET",
        "HTTP/1.1 200 OK",
        "Transfer-Encoding: chunked",
        "3\r\nabc\r\n0\r\n\r\n",
        "3\r\nabc\r\n0\r\n\r\n",
        true,
    ),
    ("HEAD", "HTTP/1.1 200 OK", "Transfer-Encoding: chunked", "", "", true),
    (
        "GET",
        "HTTP/1.1 103 Early\r\nContent-Length: 9\r\n\r\nHTTP/1.1 201 Created",
        "Content-Length: 0000012",
        "hello, world",
        "hello, world",
        true,
    ),
    ("GET", "HTTP/1.1 200 OK", "Connection: close\r\nContent-Length: 5", "hello", "hello", false),
    ("GET", "HTTP/1.1 200 OK", "Content-Length: +5", "hello", "", false),
];

/// An upstream sends the same headers with responses of every kind on reused connections.
#[tokio::test]
async fn cached_response_headers_respect_status_and_method() {
    let mut upstream = ManualUpstream::new().await;
    let proxy = TestProxy::start_with_upstream(upstream.address, OPEN_CONFIG).await;
    let headers = "Content-Type: text/plain\r\nX-Same: 1\r\n";
    let mut client = RawConnection::connect(proxy.address()).await;
    let mut upstream_connection: Option<RawConnection> = None;
    for nth in 0..40 {
        let (method, start, last_header, body, forwarded, reusable) = UPSTREAM_RESPONSES[nth * 7 % 10];
        let send = client.send(format!("{method} /hr{ECHO}?n={nth} HTTP/1.1\r\nHost: x\r\n\r\n"));
        send.await.expect("sent");
        let (head, mut connection) = match upstream_connection.take() {
            Some(mut connection) => (connection.read_head().await, connection),
            None => {
                let call = upstream.next_call().await;
                (call.head, call.connection)
            }
        };
        assert!(head.starts_with(&format!("{method} {ECHO}?n={nth}&access_token=")), "{nth}: {head}");
        connection.send(format!("{start}\r\n{headers}{last_header}\r\n\r\n{body}")).await.expect("sent");
        upstream_connection = reusable.then_some(connection);
        let head = client.read_head().await;
        let status = if last_header.ends_with("+5") {
            "502"
        } else {
            &start[start.rfind("HTTP/").expect("a version") + 9..][..3]
        };
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{nth}: {head}");
        if status == "502" {
            let length = head.split_once("content-length: ").expect("a length").1;
            let length = length[..length.find('\r').expect("a line")].parse().expect("a number");
            client.read_exact(length).await;
            continue;
        }
        assert_eq!(head.matches("X-Same: 1\r\n").count(), 1, "{nth}: {head}");
        assert_eq!(head.contains("content-length:"), last_header.contains("Length: "), "{nth}: {head}");
        assert_eq!(
            String::from_utf8_lossy(&client.read_exact(forwarded.len()).await),
            forwarded,
            "{nth}: {head}"
        );
    }
}

/// Sends one request on each of many consecutive connections, so that a pooled task serves different clients with equal or
/// similar headers.
#[tokio::test]
async fn clients_of_one_pooled_task_are_not_confused() {
    let proxy = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let [billing, crm, narrow] = ["billing", "crm", "narrow"].map(client_key);
    let credential = |key: &str| format!("X-Api-Key: {key}\r\n");
    let credentials = [
        credential(&billing),
        credential(&crm),
        credential(&narrow),
        credential("key-of-absent-0000000000"),
        String::new(),
    ];
    // Pairs of equal length, or of which one is a prefix of the other.
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
    let exchange = async |request: &RandomRequest, unique_header: &str| {
        let before = proxy.wecom.requests().len();
        let mut connection = RawConnection::connect(proxy.address()).await;
        connection.send(request.text(unique_header)).await.expect("sent");
        let response = request.read_response(&mut connection).await;
        // The pooled task is free once the connection has ended.
        assert_eq!(connection.read_to_end().await.0, b"", "{response}");
        (response, forwarded_requests(&proxy, before))
    };
    let (mut rng, mut variants) = (SeededRandom(7), Vec::<(String, String, (&str, &str))>::new());
    for nth in 0..300 {
        if nth % 3 == 0 {
            // Two variants, so that about half of the requests repeat earlier headers.
            variants = (0..2)
                .map(|_| {
                    (rng.pick_cloned(&credentials), rng.pick_cloned(&first_lines), rng.pick_cloned(&lengths))
                })
                .collect();
        }
        let (first, second) = (&variants[0], &variants[1]);
        let (credential, first_line, (length, body)) = match rng.pick_cloned(&[0, 1, 2, 3]) {
            0 => first.clone(),
            1 => (first.0.clone(), second.1.clone(), first.2),
            2 => (second.0.clone(), first.1.clone(), second.2),
            _ => second.clone(),
        };
        let headers = format!("Host: x\r\n{credential}Connection: close\r\nAccept: */*\r\n");
        let request = RandomRequest { first_line, headers, length, body };
        let expected = exchange(&request, &format!("X-Wecom-Once: {nth}\r\n")).await;
        for _ in 0..2 {
            assert_eq!(exchange(&request, "").await, expected, "{nth}: {}", request.text(""));
        }
    }
}

/// Headers that passed over HTTP/2, which has no `Host`, do not spare HTTP/1.1 its check.
#[tokio::test]
async fn headers_cached_over_http2_need_host_over_http1() {
    let proxy = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let key = client_key("billing");
    // Several connections, so that each worker has seen them.
    for _ in 0..6 {
        let mut client = TestClient::connect_http2(proxy.address()).await;
        for _ in 0..3 {
            let request = Request::get(format!("/hr{USER_GET}")).header("x-api-key", &key);
            client.request(request, "").await.assert_ok();
        }
        let mut connection = RawConnection::connect(proxy.address()).await;
        let head = format!("GET /hr{USER_GET} HTTP/1.1\r\nx-api-key: {key}\r\n\r\n");
        connection.send(head).await.expect("sent");
        let (head, body) = connection.read_response().await;
        assert!(head.starts_with("HTTP/1.1 400 ") && body.contains("missing Host"), "{head}{body}");
    }
}
