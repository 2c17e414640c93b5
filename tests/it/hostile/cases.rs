//! Cases: bytes that a client sends over a socket, and what the client and the upstream may receive.

use std::{collections::HashSet, fmt::Write as _};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{
    canonical_request::CanonicalRequest,
    known_failures::KNOWN_FAILURES,
    recorder::{ArrivalState, RecordedArrival, RecordingUpstream, TOKEN},
};
use crate::{
    harness::{CASE_TIMEOUT, OPEN_CONFIG, TestProxy},
    raw_http::RawConnection,
};

mod outcome;

use outcome::check_outcome;

/// Statuses for a malformed request.
pub const BAD_REQUEST: &[u16] = &[400];
/// Statuses for a request whose framing or version may also count as unsupported.
pub const BAD_OR_UNSUPPORTED: &[u16] = &[400, 501, 505];
/// Statuses for a head that is too long.
pub const HEAD_TOO_LONG: &[u16] = &[400, 414, 431];
/// Stands for a connection that closes without a response.
pub const CLOSED_SILENTLY: u16 = 0;
/// Path of a request inside the body of another request.
pub const SMUGGLED_PATH: &str = "/cgi-bin/hidden";
/// Path of the request after each case.
pub const CANARY_PATH: &str = "/cgi-bin/canary";
/// Path of each case.
pub const CASE_PATH: &str = "/cgi-bin/case";

/// The request that must not be smuggled.
pub fn smuggled_request() -> Vec<u8> {
    format!("GET /hr{SMUGGLED_PATH} HTTP/1.1\r\nHost: proxy.test\r\n\r\n").into_bytes()
}

/// The name of a case: a label, and at most 120 characters of the bytes that it is about.
pub fn case_name(label: &str, bytes: &[u8]) -> String {
    let escaped = bytes.escape_ascii().to_string();
    format!("{label} {}", escaped.get(..120).unwrap_or(&escaped))
}

/// A POST with these header lines, each ended by CR LF, followed by these bytes.
pub fn post(lines: impl AsRef<[u8]>, rest: impl AsRef<[u8]>) -> Vec<u8> {
    request("POST /hr/cgi-bin/case HTTP/1.1", lines, rest)
}

/// A GET with these header lines.
pub fn get(lines: impl AsRef<[u8]>) -> Vec<u8> {
    request("GET /hr/cgi-bin/case HTTP/1.1", lines, "")
}

/// A request with this request line, a valid Host and these header lines.
pub fn request(request_line: impl AsRef<[u8]>, lines: impl AsRef<[u8]>, rest: impl AsRef<[u8]>) -> Vec<u8> {
    [request_line.as_ref(), b"\r\nHost: proxy.test\r\n", lines.as_ref(), b"\r\n", rest.as_ref()].concat()
}

/// The upstream request that is expected for a case.
struct ExpectedRequest {
    method: String,
    target: String,
    body: Vec<u8>,
}

/// A case.
pub struct Case {
    name: String,
    bytes: Vec<u8>,
    expected: Option<ExpectedRequest>,
    refusal_statuses: Vec<u16>,
    /// Whether the upstream may receive an incomplete request.
    may_be_partial: bool,
    /// Paths that may be served after it, in this order; the connection may end before any of them.
    served_after: Vec<&'static str>,
    /// Whether they may also be served after a refusal.
    continues_after_refusal: bool,
    sends_canary: bool,
    /// Headers that must not be forwarded.
    absent_headers: &'static [&'static str],
    /// Headers that must be forwarded unchanged.
    present_headers: &'static [(&'static str, &'static str)],
}

/// A case without expectations, followed by a canary request.
pub fn case(name: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Case {
    Case {
        name: name.into(),
        bytes: bytes.into(),
        expected: None,
        refusal_statuses: Vec::new(),
        may_be_partial: false,
        served_after: vec![CANARY_PATH],
        continues_after_refusal: false,
        sends_canary: true,
        absent_headers: &[],
        present_headers: &[],
    }
}

impl Case {
    /// May be refused with these statuses. Its end is ambiguous, so no later bytes may be parsed as a request.
    pub fn or_refused(mut self, statuses: &[u16]) -> Self {
        self.refusal_statuses.extend_from_slice(statuses);
        self
    }

    /// May be refused with these statuses. Its end is unambiguous, so the next request may be served.
    pub fn or_refused_keeping_connection(mut self, statuses: &[u16]) -> Self {
        self.continues_after_refusal = true;
        self.or_refused(statuses)
    }

    /// May be refused because of its body, of which the upstream may have received a part.
    pub fn or_aborted(mut self) -> Self {
        self.may_be_partial = true;
        self.or_refused(&[400, 413, CLOSED_SILENTLY])
    }

    /// Forwarded once, unchanged, with this body.
    pub fn forwarded(mut self, body: impl AsRef<[u8]>) -> Self {
        let request_line = self.bytes.trim_ascii_start();
        let method = request_line.split(|byte| !byte.is_ascii_graphic()).next().unwrap_or(request_line);
        let method = String::from_utf8_lossy(method).into_owned();
        let target = format!("{CASE_PATH}?access_token={TOKEN}");
        self.expected = Some(ExpectedRequest { method, target, body: body.as_ref().to_vec() });
        self
    }

    /// Forwarded with this target, in which a trailing `T` is replaced by the token.
    pub fn forwarded_to(mut self, target: &str) -> Self {
        let without_token = target.strip_suffix('T').expect("a trailing T");
        self.expected.as_mut().expect("a forwarded case").target = format!("{without_token}{TOKEN}");
        self
    }

    /// The connection closes after it.
    pub fn closes_connection(mut self) -> Self {
        self.served_after.clear();
        self
    }

    /// The smuggled request is a separate request here, and is served next.
    pub fn then_smuggled(mut self) -> Self {
        self.served_after.insert(0, SMUGGLED_PATH);
        self
    }

    /// The client shuts down its write side after it.
    pub fn half_closed(mut self) -> Self {
        self.sends_canary = false;
        self.closes_connection()
    }

    /// These headers are not forwarded.
    pub fn without_headers(mut self, names: &'static [&'static str]) -> Self {
        self.absent_headers = names;
        self
    }

    /// These headers are forwarded.
    pub fn with_headers(mut self, headers: &'static [(&'static str, &'static str)]) -> Self {
        self.present_headers = headers;
        self
    }
}

/// A proxy and a recording upstream.
pub struct CaseRunner {
    pub recorder: RecordingUpstream,
    pub proxy: TestProxy,
    marker: RawConnection,
    lines: &'static str,
}

impl CaseRunner {
    /// An open proxy.
    pub async fn start() -> Self {
        Self::start_with(OPEN_CONFIG, "").await
    }

    /// A proxy that serves valid requests with these header lines. Its time-outs are so long that a hanging case is detected.
    pub async fn start_with(toml: &str, lines: &'static str) -> Self {
        let recorder = RecordingUpstream::new().await;
        let config = toml.replace(
            "[upstream]",
            "header_timeout = \"10m\"\nbody_timeout = \"10m\"\nidle_timeout = \"10m\"\n[upstream]\nresponse_timeout = \"10m\"",
        );
        let proxy = TestProxy::start_with_upstream(recorder.address, &config).await;
        let marker = RawConnection::connect(proxy.address()).await;
        let mut runner = Self { recorder, proxy, marker, lines };
        runner.send_marker().await;
        runner
    }

    /// Sends a valid request, the marker, on another connection.
    pub async fn send_marker(&mut self) {
        let lines = self.lines;
        let request = format!("GET /hr/cgi-bin/marker HTTP/1.1\r\nHost: proxy.test\r\n{lines}\r\n");
        self.marker.send(request).await.expect("sent");
        let (head, body) = self.marker.read_response().await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}{body}");
    }

    /// The arrivals after the first `count`. A marker after them shows that the proxy still serves.
    pub async fn arrivals_before_marker(&mut self, count: usize) -> Vec<RecordedArrival> {
        self.send_marker().await;
        let mut arrivals = self.recorder.arrivals_since(count).await;
        let last = arrivals.pop().expect("the marker");
        assert!(is_marker(&last), "an arrival after the marker: {last:?}");
        arrivals
    }

    /// As [`arrivals_before_marker`](Self::arrivals_before_marker), for HTTP/2, whose aborted streams may arrive
    /// after the marker.
    pub async fn arrivals_without_marker(&mut self, count: usize) -> Vec<RecordedArrival> {
        self.send_marker().await;
        let mut arrivals = self.recorder.arrivals_since(count).await;
        arrivals.retain(|arrival| !is_marker(arrival));
        arrivals
    }

    /// Runs all cases sequentially; panics with a list of the failed ones.
    pub async fn run(&mut self, cases: Vec<Case>) {
        let names: HashSet<&str> = cases.iter().map(|case| case.name.as_str()).collect();
        assert_eq!(names.len(), cases.len(), "duplicate case name");
        let mut report = String::new();
        for case in &cases {
            let count = self.recorder.arrival_count();
            let output = self.exchange(case).await;
            let arrivals = self.arrivals_before_marker(count).await;
            let outcome = check_outcome(case, &output, &arrivals);
            let known_failure =
                KNOWN_FAILURES.iter().find(|(name, _)| *name == case.name).map(|(_, why)| *why);
            match (&outcome, known_failure) {
                (Ok(()), None) => {}
                (Err(why), Some(known_failure)) if why == known_failure => {}
                (Ok(()), Some(_)) => {
                    _ = writeln!(report, "{}: passes; remove it from KNOWN_FAILURES", case.name)
                }
                (Err(why), _) => {
                    let (sent, output) = (case.bytes.escape_ascii(), output.bytes.escape_ascii());
                    let sent: String = sent.to_string().chars().take(400).collect();
                    _ = writeln!(report, "{}: {why}\n    sent {sent}\n    received {output}", case.name);
                }
            }
        }
        assert!(report.is_empty(), "of {} cases\n{report}", cases.len());
    }

    /// Sends a case, and reads until the connection ends.
    async fn exchange(&self, case: &Case) -> ClientOutput {
        let mut bytes = case.bytes.clone();
        if case.sends_canary {
            let lines = self.lines;
            let canary = format!(
                "GET /hr{CANARY_PATH} HTTP/1.1\r\nHost: proxy.test\r\nConnection: close\r\n{lines}\r\n"
            );
            bytes.extend_from_slice(canary.as_bytes());
        }
        let stream = TcpStream::connect(self.proxy.address()).await.expect("a connection");
        let (mut reader, mut writer) = stream.into_split();
        let write = async {
            // A proxy that refuses early may close before all is sent.
            let _ = writer.write_all(&bytes).await;
            if !case.sends_canary {
                let _ = writer.shutdown().await;
            }
        };
        let mut received = Vec::new();
        let read = async { while reader.read_buf(&mut received).await.is_ok_and(|read| read > 0) {} };
        let ended = tokio::time::timeout(CASE_TIMEOUT, async { tokio::join!(write, read) }).await.is_ok();
        ClientOutput { bytes: received, ended }
    }
}

/// The bytes that the client received, and whether the connection ended.
struct ClientOutput {
    bytes: Vec<u8>,
    ended: bool,
}

/// Whether an arrival is a marker request.
fn is_marker(arrival: &RecordedArrival) -> bool {
    matches!(&arrival.state, ArrivalState::Complete(request) if path(request) == "/cgi-bin/marker")
}

fn path(request: &CanonicalRequest) -> &str {
    request.target.split('?').next().unwrap_or_default()
}
