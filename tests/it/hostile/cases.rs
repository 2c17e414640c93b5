//! A case of the tables: bytes in over a socket, and what the client and the upstream may get of them.

use std::{collections::HashSet, fmt::Write as _, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{
    canonical_request::{CanonicalRequest, find},
    known_failures::KNOWN_FAILURES,
    recorder::{ArrivalState, RecordedArrival, RecordingUpstream, TOKEN},
};
use crate::{
    harness::{OPEN_CONFIG, TestProxy},
    raw_http::RawConnection,
};

/// The statuses of a malformed request.
pub const BAD_REQUEST: &[u16] = &[400];
/// Of one with a framing or a version that may also be called unknown.
pub const BAD_OR_UNSUPPORTED: &[u16] = &[400, 501, 505];
/// Of a head that is too long.
pub const HEAD_TOO_LONG: &[u16] = &[400, 414, 431];
/// The connection may be closed without a word.
pub const CLOSED_SILENTLY: u16 = 0;
/// What a request that is wrapped in another one is for.
pub const SMUGGLED_PATH: &str = "/cgi-bin/hidden";
/// What the request behind each case is for.
pub const CANARY_PATH: &str = "/cgi-bin/canary";
/// What each case is for.
pub const CASE_PATH: &str = "/cgi-bin/case";

/// What takes longer hangs: a flood of frames is much work without optimization, on a machine that has other work.
pub const CASE_TIMEOUT: Duration = Duration::from_secs(120);

/// The wrapped request, with which a smuggler wants to be served.
pub fn smuggled_request() -> Vec<u8> {
    format!("GET /hr{SMUGGLED_PATH} HTTP/1.1\r\nHost: proxy.test\r\n\r\n").into_bytes()
}

/// A POST with these header lines, each ended by CR LF, and with these bytes behind its head.
pub fn post(lines: impl AsRef<[u8]>, rest: impl AsRef<[u8]>) -> Vec<u8> {
    request("POST /hr/cgi-bin/case HTTP/1.1", lines, rest)
}

/// A GET with these header lines.
pub fn get(lines: impl AsRef<[u8]>) -> Vec<u8> {
    request("GET /hr/cgi-bin/case HTTP/1.1", lines, "")
}

/// A request with this first line, a good Host and these header lines.
pub fn request(first: impl AsRef<[u8]>, lines: impl AsRef<[u8]>, rest: impl AsRef<[u8]>) -> Vec<u8> {
    [first.as_ref(), b"\r\nHost: proxy.test\r\n", lines.as_ref(), b"\r\n", rest.as_ref()].concat()
}

/// What goes out for a case.
struct ExpectedRequest {
    method: String,
    target: String,
    body: Vec<u8>,
}

/// One case.
pub struct Case {
    name: String,
    bytes: Vec<u8>,
    expected: Option<ExpectedRequest>,
    refusal_statuses: Vec<u16>,
    /// The upstream may get a beginning of it, which never becomes a whole.
    may_be_partial: bool,
    /// What may be served after it, in this order; the connection may end before any of it.
    served_after: Vec<&'static str>,
    /// Whether that holds where it is refused.
    continues_after_refusal: bool,
    sends_canary: bool,
    /// Headers that must not go out.
    absent_headers: &'static [&'static str],
    /// Headers that must go out as they are.
    present_headers: &'static [(&'static str, &'static str)],
}

/// A case of which nothing is known yet but its bytes. A canary follows them.
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
    /// Refused; where it ends is in doubt, so nothing behind it may be taken for a request.
    pub fn or_refused(mut self, statuses: &[u16]) -> Self {
        self.refusal_statuses.extend_from_slice(statuses);
        self
    }

    /// Refused; where it ends is beyond doubt, so what follows may be served.
    pub fn or_refused_keeping_connection(mut self, statuses: &[u16]) -> Self {
        self.continues_after_refusal = true;
        self.or_refused(statuses)
    }

    /// Refused for its body, of which the upstream may have got a beginning.
    pub fn or_aborted(mut self) -> Self {
        self.may_be_partial = true;
        self.or_refused(&[400, 413, CLOSED_SILENTLY])
    }

    /// Goes out once, as it came, with this body.
    pub fn forwarded(mut self, body: impl AsRef<[u8]>) -> Self {
        let first = self.bytes.trim_ascii_start();
        let method = first.split(|byte| !byte.is_ascii_graphic()).next().unwrap_or(first);
        let method = String::from_utf8_lossy(method).into_owned();
        let target = format!("{CASE_PATH}?access_token={TOKEN}");
        self.expected = Some(ExpectedRequest { method, target, body: body.as_ref().to_vec() });
        self
    }

    /// Goes out with this target, in which `T` at the end stands for the token.
    pub fn forwarded_to(mut self, target: &str) -> Self {
        let bare = target.strip_suffix('T').expect("the token's place");
        self.expected.as_mut().expect("a case that is served").target = format!("{bare}{TOKEN}");
        self
    }

    /// The connection ends after it.
    pub fn closes_connection(mut self) -> Self {
        self.served_after.clear();
        self
    }

    /// The wrapped request is one of its own here, and comes next.
    pub fn then_smuggled(mut self) -> Self {
        self.served_after.insert(0, SMUGGLED_PATH);
        self
    }

    /// Nothing follows, and the client closes its side.
    pub fn half_closed(mut self) -> Self {
        self.sends_canary = false;
        self.closes_connection()
    }

    /// These headers stay here.
    pub fn without_headers(mut self, names: &'static [&'static str]) -> Self {
        self.absent_headers = names;
        self
    }

    /// These headers go out.
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

    /// A proxy that serves honest requests with these header lines. No time-out of its own ends anything: what hangs, hangs.
    pub async fn start_with(toml: &str, lines: &'static str) -> Self {
        let recorder = RecordingUpstream::new().await;
        let patient = toml.replace(
            "[upstream]",
            "header_timeout = \"10m\"\nbody_timeout = \"10m\"\nidle_timeout = \"10m\"\n[upstream]\nresponse_timeout = \"10m\"",
        );
        let stage = TestProxy::start_with_upstream(recorder.address, &patient).await;
        let marker = RawConnection::connect(stage.address()).await;
        let mut scene = Self { recorder, proxy: stage, marker, lines };
        scene.send_marker().await;
        scene
    }

    /// Has an honest request served on another connection.
    pub async fn send_marker(&mut self) {
        let lines = self.lines;
        let request = format!("GET /hr/cgi-bin/marker HTTP/1.1\r\nHost: proxy.test\r\n{lines}\r\n");
        self.marker.send(request).await.expect("it is taken");
        let (head, body) = self.marker.read_response().await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}{body}");
    }

    /// What arrived after the first `count`. An honest request behind it shows that the proxy goes on.
    pub async fn arrivals_before_marker(&mut self, count: usize) -> Vec<RecordedArrival> {
        self.send_marker().await;
        let mut arrivals = self.recorder.arrivals_since(count).await;
        let last = arrivals.pop().expect("the marker");
        assert!(is_marker(&last), "something came after the marker: {last:?}");
        arrivals
    }

    /// The same where streams of HTTP/2, which outlive what ended them by a moment, may come after the honest request.
    pub async fn arrivals_without_marker(&mut self, count: usize) -> Vec<RecordedArrival> {
        self.send_marker().await;
        let mut arrivals = self.recorder.arrivals_since(count).await;
        arrivals.retain(|arrival| !is_marker(arrival));
        arrivals
    }

    /// Plays all cases, one after the other, and fails with the list of those that went wrong.
    pub async fn run(&mut self, cases: Vec<Case>) {
        let names: HashSet<&str> = cases.iter().map(|case| case.name.as_str()).collect();
        assert_eq!(names.len(), cases.len(), "two cases have one name");
        let mut report = String::new();
        for case in &cases {
            let count = self.recorder.arrival_count();
            let heard = self.exchange(case).await;
            let arrivals = self.arrivals_before_marker(count).await;
            let judged = check_outcome(case, &heard, &arrivals);
            let known = KNOWN_FAILURES.iter().find(|(name, _)| *name == case.name).map(|(_, why)| *why);
            match (&judged, known) {
                (Ok(()), None) => {}
                (Err(why), Some(known)) if why == known => {}
                (Ok(()), Some(_)) => {
                    _ = writeln!(report, "{}: it is right now; take it out of TODAY", case.name)
                }
                (Err(why), _) => {
                    let (given, heard) = (case.bytes.escape_ascii(), heard.bytes.escape_ascii());
                    let given: String = given.to_string().chars().take(400).collect();
                    _ = writeln!(report, "{}: {why}\n    given {given}\n    heard {heard}", case.name);
                }
            }
        }
        assert!(report.is_empty(), "of {} cases\n{report}", cases.len());
    }

    /// Sends a case, and takes what comes until the connection ends.
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
        let (mut reading, mut writing) = stream.into_split();
        let write = async {
            // A proxy that refuses early may close before all was sent.
            let _ = writing.write_all(&bytes).await;
            if !case.sends_canary {
                let _ = writing.shutdown().await;
            }
        };
        let mut heard = Vec::new();
        let read = async { while reading.read_buf(&mut heard).await.is_ok_and(|read| read > 0) {} };
        let ended = tokio::time::timeout(CASE_TIMEOUT, async { tokio::join!(write, read) }).await.is_ok();
        ClientOutput { bytes: heard, ended }
    }
}

/// What the client got.
struct ClientOutput {
    bytes: Vec<u8>,
    ended: bool,
}

/// Whether it is an honest request of the story's own.
fn is_marker(arrival: &RecordedArrival) -> bool {
    matches!(&arrival.state, ArrivalState::Complete(seen) if path(seen) == "/cgi-bin/marker")
}

fn path(seen: &CanonicalRequest) -> &str {
    seen.target.split('?').next().unwrap_or_default()
}

/// Says in a few words what is wrong.
fn check_outcome(case: &Case, heard: &ClientOutput, arrivals: &[RecordedArrival]) -> Result<(), String> {
    let mut whole = Vec::new();
    for arrival in arrivals {
        match &arrival.state {
            ArrivalState::Complete(seen) => whole.push((arrival.nth, seen)),
            ArrivalState::NotCanonical(why) => {
                return Err(format!("the upstream got what is not canonical: {why}"));
            }
            ArrivalState::Partial { head: true } if case.may_be_partial && arrival.closed => {}
            ArrivalState::Partial { .. } => return Err("the upstream got a part of it".to_owned()),
        }
    }
    if !heard.ended {
        return Err("the connection hangs".to_owned());
    }
    let answers = parse_responses(&heard.bytes, case.bytes.trim_ascii_start().starts_with(b"HEAD "))?;
    let mut answers = answers.into_iter();
    let mut whole = whole.into_iter().peekable();

    let first = answers.next();
    let is_main = |seen: &CanonicalRequest| ![SMUGGLED_PATH, CANARY_PATH].contains(&path(seen));
    let served = whole.next_if(|(_, seen)| is_main(seen));
    match (&served, &case.expected) {
        (Some((nth, seen)), Some(out)) => {
            check_request(seen, out, case)?;
            match &first {
                Some((200, body)) if body.is_empty() || contains_nth(body, *nth) => {}
                _ => {
                    return Err(format!("it was served, and answered {:?}", first.map(|(status, _)| status)));
                }
            }
        }
        (Some((_, seen)), None) => return Err(format!("it was served as {}", seen.method)),
        (None, _) => {
            let status = first.as_ref().map_or(CLOSED_SILENTLY, |(status, _)| *status);
            if !case.refusal_statuses.contains(&status) {
                return Err(format!("it was answered {status}"));
            }
        }
    }
    let then = if served.is_some() || case.continues_after_refusal { &case.served_after[..] } else { &[] };
    for (at, (nth, seen)) in whole.enumerate() {
        let honest = seen.method == "GET" && seen.body.is_empty();
        if !honest || then.get(at) != Some(&path(seen)) {
            return Err(format!("{} {} was served behind it", seen.method, path(seen)));
        }
        match answers.next() {
            Some((200, body)) if contains_nth(&body, nth) => {}
            other => {
                return Err(format!("what is behind it was answered {:?}", other.map(|(status, _)| status)));
            }
        }
    }
    // What is behind a request may be refused in its turn, and then it is over.
    match (answers.next(), answers.next()) {
        (Some((status, _)), None) if status < 400 => Err(format!("one answer too many: {status}")),
        (_, Some((status, _))) => Err(format!("one answer too many: {status}")),
        (Some((status, _)), None) if then.is_empty() => Err(format!("it goes on with {status}")),
        _ => Ok(()),
    }
}

fn check_request(seen: &CanonicalRequest, out: &ExpectedRequest, case: &Case) -> Result<(), String> {
    if (&seen.method, &seen.target) != (&out.method, &out.target) {
        return Err(format!("it was served as {} {}", seen.method, seen.target));
    }
    if seen.body != out.body {
        return Err(format!("it was served with the body {:?}", seen.body.escape_ascii().to_string()));
    }
    let carried = |name: &str| seen.headers.iter().find(|(found, _)| found == name);
    if let Some((name, _)) = case.absent_headers.iter().find_map(|name| carried(name)) {
        return Err(format!("it was served with {name}"));
    }
    match case
        .present_headers
        .iter()
        .find(|(name, value)| carried(name).is_none_or(|(_, found)| found != value))
    {
        Some((name, _)) => {
            Err(format!("it was served with {name} {:?}", carried(name).map(|(_, value)| value)))
        }
        None => Ok(()),
    }
}

fn contains_nth(body: &[u8], nth: usize) -> bool {
    find(body, format!("\"nth\":{nth}}}").as_bytes()).is_some()
}

/// The final answers, status and body; interim ones are passed over.
fn parse_responses(bytes: &[u8], mut of_head: bool) -> Result<Vec<(u16, Vec<u8>)>, String> {
    let (mut found, mut rest) = (Vec::new(), bytes);
    while !rest.is_empty() {
        let end = find(rest, b"\r\n\r\n").ok_or("the last answer has no whole head")?;
        let head = String::from_utf8_lossy(&rest[..end]).to_ascii_lowercase();
        rest = &rest[end + 4..];
        let status =
            head.strip_prefix("http/1.").and_then(|head| head.get(2..5)).and_then(|code| code.parse().ok());
        let status: u16 = status.ok_or("there is something between two answers")?;
        if status < 200 {
            continue;
        }
        let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
        let length = length.map_or(Ok(rest.len()), |length| length.trim().parse::<usize>());
        let length = length.map_err(|_| "an answer's length is none".to_owned())?;
        // Only the first request of a case may be a HEAD.
        let length = if std::mem::take(&mut of_head) { 0 } else { length };
        if length > rest.len() {
            return Err("the last answer has no whole body".to_owned());
        }
        found.push((status, rest[..length].to_vec()));
        rest = &rest[length..];
    }
    Ok(found)
}
