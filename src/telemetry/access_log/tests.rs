//! What lines look like, and how they get out.

use std::{
    io::ErrorKind,
    net::Ipv6Addr,
    sync::mpsc::{self, Receiver, RecvTimeoutError, Sender},
    thread,
};

use proptest::{option, prelude::*};
use tracing_subscriber::{EnvFilter, fmt::MakeWriter, layer::SubscriberExt, reload};

use super::*;
use crate::config;

/// Longer than anything here takes on a busy machine.
const TEST_TIMEOUT: Duration = Duration::from_secs(20);

fn log_config(format: LogFormat) -> LogConfig {
    LogConfig { format, level: config::LogLevel::Info, access: true }
}

/// A line about the request with this id.
fn entry(request_id: &str) -> AccessLogEntry<'_> {
    AccessLogEntry {
        level: Level::Info,
        ended_at: SystemTime::UNIX_EPOCH,
        request_id,
        trace_id: None,
        peer: None,
        client: None,
        agent: None,
        method: "GET",
        path: "/",
        status: 200,
        errcode: None,
        retried: None,
        error: None,
        reason: None,
        first_attempt: None,
        request_bytes: None,
        response_bytes: 0,
        complete: true,
        token_time: Duration::ZERO,
        upstream_time: Duration::ZERO,
        total_time: Duration::ZERO,
        hint: None,
    }
}

fn format_entry(layout: Layout, line: &AccessLogEntry<'_>) -> String {
    let mut out = Vec::new();
    layout.format(&mut out, TimestampCache::default().format(SystemTime::UNIX_EPOCH), line);
    String::from_utf8(out).expect("UTF-8")
}

#[test]
fn format_writes_fields_in_order() {
    let line = AccessLogEntry {
        level: Level::Warn,
        trace_id: Some("4bf92f3577b34da6a3ce929d0e0e4736"),
        peer: Some(IpAddr::from([192, 0, 2, 10])),
        client: Some("billing"),
        agent: Some("hr"),
        method: "POST",
        path: "/hr/cgi-bin/\"x\"",
        status: 502,
        errcode: Some(-1),
        retried: Some(42001),
        error: Some("upstream-broke"),
        reason: Some("WeCom said:\n没有"),
        request_bytes: Some(4096),
        response_bytes: 18_446_744_073_709_551_615,
        complete: false,
        upstream_time: Duration::from_nanos(1_499_499),
        total_time: Duration::from_nanos(61_001_999_500),
        ..entry("a-1")
    };
    let text = concat!(
        "1970-01-01T00:00:00.000000Z  WARN access: request request_id=\"a-1\" trace_id=\"4bf92f3577b34da6a3ce929d0e0e4736\" peer=192.0.2.10 client=\"billing\" ",
        "agent=\"hr\" method=POST path=\"/hr/cgi-bin/\\\"x\\\"\" status=502 errcode=-1 retried=42001 ",
        "error=\"upstream-broke\" reason=\"WeCom said:\\n没有\" request_bytes=4096 bytes=18446744073709551615 whole=false ",
        "token_ms=0.000 upstream_ms=1.499 total_ms=61002.000\n"
    );
    assert_eq!(format_entry(Layout::Plain, &line), text);
    let json = concat!(
        r#"{"timestamp":"1970-01-01T00:00:00.000000Z","level":"WARN","message":"request","request_id":"a-1","trace_id":"4bf92f3577b34da6a3ce929d0e0e4736","#,
        r#""peer":"192.0.2.10","client":"billing","agent":"hr","method":"POST","path":"/hr/cgi-bin/\"x\"","#,
        r#""status":502,"errcode":-1,"retried":42001,"error":"upstream-broke","reason":"WeCom said:\n没有","#,
        r#""request_bytes":4096,"bytes":18446744073709551615,"whole":false,"token_ms":0.000,"upstream_ms":1.499,"#,
        r#""total_ms":61002.000,"target":"access"}"#,
        "\n"
    );
    assert_eq!(format_entry(Layout::Json, &line), json);
}

/// All that a line holds, owned.
#[derive(Debug)]
struct OwnedEntry {
    warn: bool,
    texts: [String; 2],
    method: String,
    names: [Option<String>; 5],
    peer: Option<IpAddr>,
    status: u16,
    errcodes: [Option<i64>; 2],
    request_bytes: Option<u64>,
    response_bytes: u64,
    complete: bool,
    micros: [u64; 3],
}

impl OwnedEntry {
    fn as_entry(&self) -> AccessLogEntry<'_> {
        let [client, agent, error, reason, hint] = self.names.each_ref().map(Option::as_deref);
        let [token, upstream, total] = self.micros.map(Duration::from_micros);
        AccessLogEntry {
            level: if self.warn { Level::Warn } else { Level::Info },
            ended_at: SystemTime::UNIX_EPOCH,
            request_id: &self.texts[0],
            trace_id: None,
            peer: self.peer,
            client,
            agent,
            method: &self.method,
            path: &self.texts[1],
            status: self.status,
            errcode: self.errcodes[0],
            retried: self.errcodes[1],
            error,
            reason,
            first_attempt: None,
            request_bytes: self.request_bytes,
            response_bytes: self.response_bytes,
            complete: self.complete,
            token_time: token,
            upstream_time: upstream,
            total_time: total,
            hint,
        }
    }
}

/// Any line whose texts are like this.
fn any_entry(text: &'static str, method: &'static str) -> impl Strategy<Value = OwnedEntry> {
    let peer = option::of(any::<IpAddr>());
    // tracing shows no zeros at the end; with another digit there, both show three.
    let micros = (0..1u64 << 40).prop_map(|number| number / 10 * 10 + 1 + number % 9);
    let texts = (prop::array::uniform2(text), method, prop::array::uniform5(option::of(text)), peer);
    let numbers = (
        any::<(bool, u16, bool)>(),
        prop::array::uniform2(option::of(any::<i64>())),
        any::<(Option<u64>, u64)>(),
    );
    (texts, numbers, prop::array::uniform3(micros)).prop_map(
        |(
            (texts, method, names, peer),
            ((warn, status, whole), errcodes, (request_bytes, bytes)),
            micros,
        )| OwnedEntry {
            warn,
            texts,
            method,
            names,
            peer,
            status,
            errcodes,
            request_bytes,
            response_bytes: bytes,
            complete: whole,
            micros,
        },
    )
}

/// Takes what a subscriber writes.
#[derive(Clone, Default)]
struct SharedOutput(Arc<Mutex<Vec<u8>>>);

impl Write for SharedOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        lock(&self.0).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for SharedOutput {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

/// The line as the subscriber of all other lines would lay it out.
fn format_with_tracing(layout: Layout, line: &AccessLogEntry<'_>) -> String {
    let page = SharedOutput::default();
    let log = tracing_subscriber::fmt().with_writer(page.clone()).with_ansi(layout == Layout::Coloured);
    let milliseconds = |duration: Duration| (duration.as_secs_f64() * 1e6).round() / 1e3;
    macro_rules! tell {
        ($level:ident) => {
            tracing::$level!(
                target: "access",
                request_id = line.request_id,
                peer = line.peer.map(tracing::field::display),
                client = line.client,
                agent = line.agent,
                method = %line.method,
                path = line.path,
                status = line.status,
                errcode = line.errcode,
                retried = line.retried,
                error = line.error,
                reason = line.reason,
                request_bytes = line.request_bytes,
                bytes = line.response_bytes,
                whole = line.complete,
                token_ms = milliseconds(line.token_time),
                upstream_ms = milliseconds(line.upstream_time),
                total_ms = milliseconds(line.total_time),
                hint = line.hint,
                "request"
            )
        };
    }
    let tell = || match line.level {
        Level::Info => tell!(info),
        Level::Warn => tell!(warn),
    };
    if layout == Layout::Json {
        tracing::subscriber::with_default(log.json().flatten_event(true).finish(), tell);
    } else {
        tracing::subscriber::with_default(log.finish(), tell);
    }
    String::from_utf8(lock(&page.0).clone()).expect("UTF-8")
}

/// A line without its time, which stands between the same characters in ours and in theirs.
fn without_timestamp(line: &str) -> String {
    let year = line.find("-").expect("a date") - 4;
    format!("{}{}", &line[..year], &line[year + "1970-01-01T00:00:00.000000Z".len()..])
}

const METHOD: &str = "[A-Z!#$%&'*+.^_`|~-]{1,9}";

proptest! {
    #[test]
    fn format_matches_tracing(told in any_entry("[ -~]{0,40}", METHOD)) {
        for layout in [Layout::Plain, Layout::Coloured, Layout::Json] {
            let (ours, theirs) = (format_entry(layout, &told.as_entry()), format_with_tracing(layout, &told.as_entry()));
            prop_assert_eq!(without_timestamp(&ours), without_timestamp(&theirs));
        }
    }

    #[test]
    fn quoting_matches_tracing(told in any_entry(".*|[\\x00-\\xff]{0,9}", METHOD)) {
        let (ours, theirs) = (format_entry(Layout::Plain, &told.as_entry()), format_with_tracing(Layout::Plain, &told.as_entry()));
        prop_assert_eq!(without_timestamp(&ours), without_timestamp(&theirs));
    }

    #[test]
    fn json_fields_match_tracing(told in any_entry(".*|[\\x00-\\xff]{0,9}|\\PC*", METHOD)) {
        let [ours, theirs] = [format_entry(Layout::Json, &told.as_entry()), format_with_tracing(Layout::Json, &told.as_entry())]
            .map(|line| serde_json::from_str::<serde_json::Map<_, _>>(&line).expect("JSON"));
        for (name, value) in theirs.iter().filter(|(name, _)| *name != "timestamp") {
            prop_assert_eq!(ours.get(name), Some(value));
        }
        prop_assert_eq!(ours.len(), theirs.len());
    }

    #[test]
    fn format_escapes_control_characters(told in any_entry("(?s).*|[\\x00-\\xff]{0,9}", "(?s).*")) {
        for layout in [Layout::Plain, Layout::Json] {
            let line = format_entry(layout, &told.as_entry());
            let body = line.strip_suffix('\n').expect("an end");
            prop_assert!(!body.contains(char::is_control), "{:?}", body);
        }
        let line = format_entry(Layout::Json, &told.as_entry());
        let line: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        prop_assert_eq!(&line["request_id"], &told.texts[0]);
        prop_assert_eq!(&line["method"], &told.method);
        prop_assert_eq!(line["reason"].as_str(), told.names[3].as_deref());
    }
}

#[test]
fn format_writes_ipv6_peer() {
    let line = AccessLogEntry { peer: Some(Ipv6Addr::LOCALHOST.into()), ..entry("a-1") };
    assert!(format_entry(Layout::Plain, &line).contains(" peer=::1 "));
    assert!(format_entry(Layout::Json, &line).contains(r#","peer":"::1","#));
}

/// An output whose every write waits until the test takes it or is gone; each is answered as the test wants.
struct BlockingOutput(Sender<(String, Sender<io::Result<usize>>)>);

impl Write for BlockingOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let (answer, answered) = mpsc::channel();
        let text = String::from_utf8(bytes.to_vec()).expect("whole lines");
        if self.0.send((text, answer)).is_ok()
            && let Ok(answer) = answered.recv()
        {
            return answer;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The other end of an [`Output`].
struct OutputReader(Receiver<(String, Sender<io::Result<usize>>)>);

impl OutputReader {
    /// The next write, which goes on waiting.
    #[track_caller]
    fn next_write(&self) -> (String, Sender<io::Result<usize>>) {
        self.0.recv_timeout(TEST_TIMEOUT).expect("a write")
    }

    /// The next write, which is taken whole.
    #[track_caller]
    fn accept_write(&self) -> String {
        self.complete_write(|text| Ok(text.len()))
    }

    #[track_caller]
    fn complete_write(&self, answer: impl FnOnce(&str) -> io::Result<usize>) -> String {
        let (text, answered) = self.next_write();
        answered.send(answer(&text)).expect("it waits");
        text
    }

    /// All that is written from now on, until the writer ends.
    fn read_to_end(self) -> String {
        let mut rest = String::new();
        loop {
            match self.0.recv_timeout(TEST_TIMEOUT) {
                Ok((text, answered)) => {
                    rest.push_str(&text);
                    answered.send(Ok(text.len())).expect("it waits");
                }
                Err(RecvTimeoutError::Disconnected) => return rest,
                Err(RecvTimeoutError::Timeout) => panic!("the writer does not end"),
            }
        }
    }
}

fn start_log(workers: usize) -> (AccessLog, OutputReader) {
    let (sender, receiver) = mpsc::channel();
    let access =
        AccessLog::start(log_config(LogFormat::Text), workers, false, Box::new(BlockingOutput(sender)));
    (access.expect("a thread"), OutputReader(receiver))
}

/// The ids on these lines.
fn request_ids(lines: &str) -> Vec<&str> {
    let id = |line| str::split(line, '"').nth(1).expect("an id");
    lines.lines().map(id).collect()
}

fn numbered_ids(numbers: impl IntoIterator<Item = usize>) -> Vec<String> {
    numbers.into_iter().map(|number| number.to_string()).collect()
}

fn write_numbered(access: &AccessLog, numbers: std::ops::Range<usize>) {
    for id in numbered_ids(numbers) {
        access.write(&entry(&id));
    }
}

#[test]
fn writer_sends_first_line_at_once_then_batches() {
    let (access, taker) = start_log(1);
    access.write(&entry("first"));
    let (first, answered) = taker.next_write();
    assert_eq!(request_ids(&first), ["first"]);
    write_numbered(&access, 0..100);
    answered.send(Ok(first.len())).expect("it waits");
    assert_eq!(request_ids(&taker.accept_write()), numbered_ids(0..100), "in one write");
}

#[test]
fn flush_writes_all_lines_in_order_per_worker() {
    const LINES_PER_WORKER: usize = 1000;
    let page = SharedOutput::default();
    let access =
        AccessLog::start(log_config(LogFormat::Text), 4, false, Box::new(page.clone())).expect("a thread");
    let workers: Vec<_> = (0..4)
        .map(|nth| {
            let access = access.for_worker();
            thread::spawn(move || {
                write_numbered(&access, nth * LINES_PER_WORKER..(nth + 1) * LINES_PER_WORKER)
            })
        })
        .collect();
    for worker in workers {
        worker.join().expect("no panic");
    }
    assert!(access.flush(TEST_TIMEOUT));
    let written = String::from_utf8(lock(&page.0).clone()).expect("UTF-8");
    let numbers: Vec<usize> = request_ids(&written).iter().map(|id| id.parse().expect("a number")).collect();
    for nth in 0..4 {
        let of_one = numbers.iter().copied().filter(|number| number / LINES_PER_WORKER == nth);
        assert!(of_one.eq(nth * LINES_PER_WORKER..(nth + 1) * LINES_PER_WORKER), "worker {nth}");
    }
    assert_eq!((numbers.len(), access.dropped()), (4 * LINES_PER_WORKER, 0));
}

#[test]
fn blocked_output_drops_lines_without_blocking() {
    const LINES: usize = 20_000;
    let (access, taker) = start_log(8);
    write_numbered(&access, 0..1);
    let (first, answered) = taker.next_write();
    write_numbered(&access, 1..LINES);
    assert!(!access.flush(Duration::from_millis(10)), "the first is still held");
    let dropped = access.dropped() as usize;
    answered.send(Ok(first.len())).expect("it waits");
    let second = taker.accept_write();
    assert_eq!(request_ids(&second), numbered_ids(1..LINES - dropped), "the first of them are kept");
    assert!(
        (MIN_WORKER_BUFFER_BYTES..MIN_WORKER_BUFFER_BYTES * 3).contains(&second.len()),
        "{}",
        second.len()
    );
    write_numbered(&access, LINES..LINES + 1);
    assert_eq!(request_ids(&taker.accept_write()), numbered_ids([LINES]), "it goes on");
    assert_eq!(access.dropped() as usize, dropped);
}

#[test]
fn failed_output_counts_partial_lines_as_dropped() {
    let (access, taker) = start_log(1);
    write_numbered(&access, 0..1);
    let (first, answered) = taker.next_write();
    write_numbered(&access, 1..4);
    answered.send(Ok(first.len())).expect("it waits");
    // One line and the beginning of the next are taken, then there is nobody any more.
    taker.complete_write(|_| Ok(first.len() + 9));
    taker.complete_write(|_| Err(ErrorKind::BrokenPipe.into()));
    assert!(access.flush(TEST_TIMEOUT));
    assert_eq!(access.dropped(), 2);
}

#[test]
fn would_block_and_interrupted_are_retried() {
    let (access, taker) = start_log(1);
    access.write(&entry("only"));
    for kind in [ErrorKind::Interrupted, ErrorKind::WouldBlock] {
        taker.complete_write(|_| Err(kind.into()));
    }
    assert_eq!(request_ids(&taker.accept_write()), ["only"]);
    assert_eq!(access.dropped(), 0);
}

#[test]
fn drop_of_last_handle_writes_buffered_lines() {
    let (access, taker) = start_log(1);
    let clone = access.clone();
    write_numbered(&access, 0..1);
    let (first, answered) = taker.next_write();
    write_numbered(&access, 1..10);
    drop(access);
    write_numbered(&clone, 10..20);
    drop(clone);
    answered.send(Ok(first.len())).expect("it waits");
    assert_eq!(request_ids(&taker.read_to_end()), numbered_ids(1..20));
}

#[test]
fn is_enabled_follows_reloaded_filter() {
    let start = |every_request| {
        let log = LogConfig { access: every_request, ..log_config(LogFormat::Text) };
        AccessLog::start(log, 1, false, Box::new(io::sink())).expect("a thread")
    };
    let wanted = |access: &AccessLog| [Level::Info, Level::Warn].map(|level| access.is_enabled(level));
    let (every, failures) = (start(true), start(false));
    tracing::subscriber::with_default(tracing::subscriber::NoSubscriber::new(), || {
        assert_eq!(wanted(&every), [false, false]);
    });
    let (filter, handle) = reload::Layer::new(EnvFilter::new("error,access=info"));
    tracing::subscriber::with_default(tracing_subscriber::registry().with(filter), || {
        assert_eq!((wanted(&every), wanted(&failures)), ([true, true], [false, true]));
        for (directives, wanted_then) in
            [("error", [false, false]), ("warn", [false, true]), ("info", [true, true])]
        {
            handle.reload(EnvFilter::new(directives)).expect("it is there");
            assert_eq!(wanted(&every), wanted_then, "{directives}");
        }
    });
}
