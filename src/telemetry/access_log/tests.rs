//! Format of lines, and buffering, dropping and flushing.

use std::{
    io::ErrorKind,
    net::Ipv6Addr,
    sync::mpsc::{self, Receiver, RecvTimeoutError, Sender},
    thread,
};

use proptest::{option, prelude::*};
use tracing_subscriber::{EnvFilter, fmt::MakeWriter, layer::SubscriberExt, reload};

use super::*;
use crate::config::{self, LoggedRequests};

/// Longer than any wait here takes on a busy machine.
const TEST_TIMEOUT: Duration = Duration::from_secs(20);

fn log_config(format: LogFormat) -> LogConfig {
    LogConfig { format, level: config::LogLevel::Info, access: LoggedRequests::All, access_file: None }
}

/// The entry of a request with this id.
fn entry(request_id: &str) -> AccessLogEntry<'_> {
    AccessLogEntry {
        request_id,
        method: "GET",
        path: "/",
        status: 200,
        complete: true,
        ..AccessLogEntry::default()
    }
}

fn format_entry(layout: Layout, entry: &AccessLogEntry<'_>) -> String {
    let mut out = Vec::new();
    layout.format(&mut out, TimestampCache::default().format(SystemTime::UNIX_EPOCH), entry);
    String::from_utf8(out).expect("UTF-8")
}

#[test]
fn format_writes_fields_in_order() {
    let entry = AccessLogEntry {
        level: Level::Warn,
        trace_id: Some("4bf92f3577b34da6a3ce929d0e0e4736"),
        peer: Some(IpAddr::from([192, 0, 2, 10])),
        client: Some("billing"),
        agent: Some("hr"),
        upstream: Some("private"),
        method: "POST",
        path: "/hr/cgi-bin/\"x\"",
        status: 502,
        errcode: Some(-1),
        is_wecom_errcode: false,
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
        "agent=\"hr\" upstream=\"private\" method=POST path=\"/hr/cgi-bin/\\\"x\\\"\" status=502 errcode=-1 retried=42001 ",
        "error=\"upstream-broke\" reason=\"WeCom said:\\n没有\" request_bytes=4096 bytes=18446744073709551615 whole=false ",
        "token_ms=0.000 upstream_ms=1.499 total_ms=61002.000\n"
    );
    assert_eq!(format_entry(Layout::Plain, &entry), text);
    let json = concat!(
        r#"{"timestamp":"1970-01-01T00:00:00.000000Z","level":"WARN","message":"request","request_id":"a-1","trace_id":"4bf92f3577b34da6a3ce929d0e0e4736","#,
        r#""peer":"192.0.2.10","client":"billing","agent":"hr","upstream":"private","method":"POST","path":"/hr/cgi-bin/\"x\"","#,
        r#""status":502,"errcode":-1,"retried":42001,"error":"upstream-broke","reason":"WeCom said:\n没有","#,
        r#""request_bytes":4096,"bytes":18446744073709551615,"whole":false,"token_ms":0.000,"upstream_ms":1.499,"#,
        r#""total_ms":61002.000,"target":"access"}"#,
        "\n"
    );
    assert_eq!(format_entry(Layout::Json, &entry), json);
}

/// An owned [`AccessLogEntry`].
#[derive(Debug)]
struct OwnedEntry {
    warn: bool,
    texts: [String; 2],
    method: String,
    names: [Option<String>; 6],
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
        let [client, agent, upstream_name, error, reason, hint] = self.names.each_ref().map(Option::as_deref);
        let [token, upstream, total] = self.micros.map(Duration::from_micros);
        AccessLogEntry {
            level: if self.warn { Level::Warn } else { Level::Info },
            ended_at: SystemTime::UNIX_EPOCH,
            request_id: &self.texts[0],
            trace_id: None,
            peer: self.peer,
            client,
            agent,
            upstream: upstream_name,
            method: &self.method,
            path: &self.texts[1],
            status: self.status,
            errcode: self.errcodes[0],
            is_wecom_errcode: false,
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
            ..AccessLogEntry::default()
        }
    }
}

/// Any entry whose texts match the regular expression `text`.
fn any_entry(text: &'static str, method: &'static str) -> impl Strategy<Value = OwnedEntry> {
    let peer = option::of(any::<IpAddr>());
    // tracing omits zeros at the end; with another digit there, both formats write three decimals.
    let micros = (0..1u64 << 40).prop_map(|number| number / 10 * 10 + 1 + number % 9);
    let texts = (prop::array::uniform2(text), method, prop::array::uniform6(option::of(text)), peer);
    let numbers = (
        any::<(bool, u16, bool)>(),
        prop::array::uniform2(option::of(any::<i64>())),
        any::<(Option<u64>, u64)>(),
    );
    (texts, numbers, prop::array::uniform3(micros)).prop_map(
        |(
            (texts, method, names, peer),
            ((warn, status, complete), errcodes, (request_bytes, response_bytes)),
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
            response_bytes,
            complete,
            micros,
        },
    )
}

/// Collects the output of a subscriber.
#[derive(Clone, Default)]
struct SharedOutput(Arc<Mutex<Vec<u8>>>);

impl Write for SharedOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().write(bytes)
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

/// The line as tracing-subscriber, which formats all other lines, would format it.
fn format_with_tracing(layout: Layout, entry: &AccessLogEntry<'_>) -> String {
    let output = SharedOutput::default();
    let log = tracing_subscriber::fmt().with_writer(output.clone()).with_ansi(layout == Layout::Coloured);
    let milliseconds = |duration: Duration| (duration.as_secs_f64() * 1e6).round() / 1e3;
    macro_rules! log_entry {
        ($level:ident) => {
            tracing::$level!(
                target: "access",
                request_id = entry.request_id,
                peer = entry.peer.map(tracing::field::display),
                client = entry.client,
                agent = entry.agent,
                upstream = entry.upstream,
                method = %entry.method,
                path = entry.path,
                status = entry.status,
                by = (entry.status >= 500 && entry.error.is_none()).then_some("wecom"),
                errcode = entry.errcode,
                retried = entry.retried,
                error = entry.error,
                reason = entry.reason,
                request_bytes = entry.request_bytes,
                bytes = entry.response_bytes,
                whole = entry.complete,
                token_ms = milliseconds(entry.token_time),
                upstream_ms = milliseconds(entry.upstream_time),
                total_ms = milliseconds(entry.total_time),
                hint = entry.hint,
                "request"
            )
        };
    }
    let log_entry = || match entry.level {
        Level::Info => log_entry!(info),
        Level::Warn => log_entry!(warn),
    };
    if layout == Layout::Json {
        tracing::subscriber::with_default(log.json().flatten_event(true).finish(), log_entry);
    } else {
        tracing::subscriber::with_default(log.finish(), log_entry);
    }
    String::from_utf8(output.0.lock().clone()).expect("UTF-8")
}

/// The line without its timestamp.
fn without_timestamp(line: &str) -> String {
    let year = line.find("-").expect("a date") - 4;
    format!("{}{}", &line[..year], &line[year + "1970-01-01T00:00:00.000000Z".len()..])
}

const METHOD: &str = "[A-Z!#$%&'*+.^_`|~-]{1,9}";

proptest! {
    #[test]
    fn format_matches_tracing(generated in any_entry("[ -~]{0,40}", METHOD)) {
        for layout in [Layout::Plain, Layout::Coloured, Layout::Json] {
            let (actual, expected) = (format_entry(layout, &generated.as_entry()), format_with_tracing(layout, &generated.as_entry()));
            prop_assert_eq!(without_timestamp(&actual), without_timestamp(&expected));
        }
    }

    #[test]
    fn quoting_matches_tracing(generated in any_entry(".*|[\\x00-\\xff]{0,9}", METHOD)) {
        let (actual, expected) = (format_entry(Layout::Plain, &generated.as_entry()), format_with_tracing(Layout::Plain, &generated.as_entry()));
        prop_assert_eq!(without_timestamp(&actual), without_timestamp(&expected));
    }

    #[test]
    fn json_fields_match_tracing(generated in any_entry(".*|[\\x00-\\xff]{0,9}|\\PC*", METHOD)) {
        let [actual, expected] = [format_entry(Layout::Json, &generated.as_entry()), format_with_tracing(Layout::Json, &generated.as_entry())]
            .map(|line| serde_json::from_str::<serde_json::Map<_, _>>(&line).expect("JSON"));
        for (name, value) in expected.iter().filter(|(name, _)| *name != "timestamp") {
            prop_assert_eq!(actual.get(name), Some(value));
        }
        prop_assert_eq!(actual.len(), expected.len());
    }

    #[test]
    fn format_escapes_control_characters(generated in any_entry("(?s).*|[\\x00-\\xff]{0,9}", "(?s).*")) {
        for layout in [Layout::Plain, Layout::Json] {
            let line = format_entry(layout, &generated.as_entry());
            let body = line.strip_suffix('\n').expect("an end");
            prop_assert!(!body.contains(char::is_control), "{:?}", body);
        }
        let line = format_entry(Layout::Json, &generated.as_entry());
        let line: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        prop_assert_eq!(&line["request_id"], &generated.texts[0]);
        prop_assert_eq!(&line["method"], &generated.method);
        prop_assert_eq!(line["reason"].as_str(), generated.names[4].as_deref());
    }
}

#[test]
fn format_writes_ipv6_peer() {
    let entry = AccessLogEntry { peer: Some(Ipv6Addr::LOCALHOST.into()), ..entry("a-1") };
    assert!(format_entry(Layout::Plain, &entry).contains(" peer=::1 "));
    assert!(format_entry(Layout::Json, &entry).contains(r#","peer":"::1","#));
}

/// An output whose every write blocks until the test completes it with a result, or ends.
struct BlockingOutput(Sender<(String, Sender<io::Result<usize>>)>);

impl Write for BlockingOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let (result, results) = mpsc::channel();
        let text = String::from_utf8(bytes.to_vec()).expect("complete lines");
        if self.0.send((text, result)).is_ok()
            && let Ok(result) = results.recv()
        {
            return result;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The test's end of a [`BlockingOutput`].
struct OutputReader(Receiver<(String, Sender<io::Result<usize>>)>);

impl OutputReader {
    /// The next write, which stays blocked.
    #[track_caller]
    fn next_write(&self) -> (String, Sender<io::Result<usize>>) {
        self.0.recv_timeout(TEST_TIMEOUT).expect("a write")
    }

    /// Completes the next write with all its bytes.
    #[track_caller]
    fn accept_write(&self) -> String {
        self.complete_write(|text| Ok(text.len()))
    }

    #[track_caller]
    fn complete_write(&self, result: impl FnOnce(&str) -> io::Result<usize>) -> String {
        let (text, results) = self.next_write();
        results.send(result(&text)).expect("a blocked write");
        text
    }

    /// Completes every write until the writer ends; returns their text.
    fn read_to_end(self) -> String {
        let mut rest = String::new();
        loop {
            match self.0.recv_timeout(TEST_TIMEOUT) {
                Ok((text, results)) => {
                    rest.push_str(&text);
                    results.send(Ok(text.len())).expect("a blocked write");
                }
                Err(RecvTimeoutError::Disconnected) => return rest,
                Err(RecvTimeoutError::Timeout) => panic!("the writer does not end"),
            }
        }
    }
}

fn start_log(workers: usize) -> (AccessLog, OutputReader) {
    let (sender, receiver) = mpsc::channel();
    let log =
        AccessLog::start(&log_config(LogFormat::Text), workers, false, Box::new(BlockingOutput(sender)));
    (log.expect("a thread"), OutputReader(receiver))
}

/// The ids on these lines.
fn request_ids(lines: &str) -> Vec<&str> {
    let id = |line| str::split(line, '"').nth(1).expect("an id");
    lines.lines().map(id).collect()
}

fn numbered_ids(numbers: impl IntoIterator<Item = usize>) -> Vec<String> {
    numbers.into_iter().map(|number| number.to_string()).collect()
}

fn write_numbered(log: &AccessLog, numbers: std::ops::Range<usize>) {
    for id in numbered_ids(numbers) {
        log.write(&entry(&id));
    }
}

#[test]
fn writer_sends_first_line_at_once_then_batches() {
    let (log, output) = start_log(1);
    log.write(&entry("first"));
    let (first, results) = output.next_write();
    assert_eq!(request_ids(&first), ["first"]);
    write_numbered(&log, 0..100);
    results.send(Ok(first.len())).expect("a blocked write");
    assert_eq!(request_ids(&output.accept_write()), numbered_ids(0..100), "in one write");
}

#[test]
fn flush_writes_all_lines_in_order_per_worker() {
    const LINES_PER_WORKER: usize = 1000;
    let output = SharedOutput::default();
    let log =
        AccessLog::start(&log_config(LogFormat::Text), 4, false, Box::new(output.clone())).expect("a thread");
    let workers: Vec<_> = (0..4)
        .map(|nth| {
            let log = log.for_worker();
            thread::spawn(move || write_numbered(&log, nth * LINES_PER_WORKER..(nth + 1) * LINES_PER_WORKER))
        })
        .collect();
    for worker in workers {
        worker.join().expect("no panic");
    }
    assert!(log.flush(TEST_TIMEOUT));
    let written = String::from_utf8(output.0.lock().clone()).expect("UTF-8");
    let numbers: Vec<usize> = request_ids(&written).iter().map(|id| id.parse().expect("a number")).collect();
    for nth in 0..4 {
        let of_worker = numbers.iter().copied().filter(|number| number / LINES_PER_WORKER == nth);
        assert!(of_worker.eq(nth * LINES_PER_WORKER..(nth + 1) * LINES_PER_WORKER), "worker {nth}");
    }
    assert_eq!((numbers.len(), log.dropped()), (4 * LINES_PER_WORKER, 0));
}

#[test]
fn blocked_output_drops_lines_without_blocking() {
    const LINES: usize = 20_000;
    let (log, output) = start_log(8);
    write_numbered(&log, 0..1);
    let (first, results) = output.next_write();
    write_numbered(&log, 1..LINES);
    assert!(!log.flush(Duration::from_millis(10)), "the first write is blocked");
    let dropped = log.dropped() as usize;
    results.send(Ok(first.len())).expect("a blocked write");
    let second = output.accept_write();
    assert_eq!(request_ids(&second), numbered_ids(1..LINES - dropped), "the first lines are kept");
    assert!(
        (MIN_WORKER_BUFFER_BYTES..MIN_WORKER_BUFFER_BYTES * 3).contains(&second.len()),
        "{}",
        second.len()
    );
    write_numbered(&log, LINES..LINES + 1);
    assert_eq!(request_ids(&output.accept_write()), numbered_ids([LINES]), "lines are written again");
    assert_eq!(log.dropped() as usize, dropped);
}

#[test]
fn failed_output_counts_partial_lines_as_dropped() {
    let (log, output) = start_log(1);
    write_numbered(&log, 0..1);
    let (first, results) = output.next_write();
    write_numbered(&log, 1..4);
    results.send(Ok(first.len())).expect("a blocked write");
    // The output accepts one line and the start of the next, then fails.
    output.complete_write(|_| Ok(first.len() + 9));
    output.complete_write(|_| Err(ErrorKind::BrokenPipe.into()));
    assert!(log.flush(TEST_TIMEOUT));
    assert_eq!(log.dropped(), 2);
}

#[test]
fn would_block_and_interrupted_are_retried() {
    let (log, output) = start_log(1);
    log.write(&entry("only"));
    for kind in [ErrorKind::Interrupted, ErrorKind::WouldBlock] {
        output.complete_write(|_| Err(kind.into()));
    }
    assert_eq!(request_ids(&output.accept_write()), ["only"]);
    assert_eq!(log.dropped(), 0);
}

#[test]
fn drop_of_last_handle_writes_buffered_lines() {
    let (log, output) = start_log(1);
    let clone = log.clone();
    write_numbered(&log, 0..1);
    let (first, results) = output.next_write();
    write_numbered(&log, 1..10);
    drop(log);
    write_numbered(&clone, 10..20);
    drop(clone);
    results.send(Ok(first.len())).expect("a blocked write");
    assert_eq!(request_ids(&output.read_to_end()), numbered_ids(1..20));
}

#[test]
fn is_enabled_follows_reloaded_filter() {
    let start = |access| {
        let config = LogConfig { access, ..log_config(LogFormat::Text) };
        AccessLog::start(&config, 1, false, Box::new(io::sink())).expect("a thread")
    };
    let enabled = |log: &AccessLog| [Level::Info, Level::Warn].map(|level| log.is_enabled(level));
    let (every, failures) = (start(LoggedRequests::All), start(LoggedRequests::None));
    tracing::subscriber::with_default(tracing::subscriber::NoSubscriber::new(), || {
        assert_eq!(enabled(&every), [false, false]);
    });
    let (filter, handle) = reload::Layer::new(EnvFilter::new("error,access=info"));
    tracing::subscriber::with_default(tracing_subscriber::registry().with(filter), || {
        assert_eq!((enabled(&every), enabled(&failures)), ([true, true], [false, true]));
        for (directives, expected) in
            [("error", [false, false]), ("warn", [false, true]), ("info", [true, true])]
        {
            handle.reload(EnvFilter::new(directives)).expect("an installed filter");
            assert_eq!(enabled(&every), expected, "{directives}");
        }
    });
}

#[test]
fn is_logged_selects_by_outcome_or_duration() {
    let subscriber = tracing_subscriber::registry().with(EnvFilter::new("access=info"));
    tracing::subscriber::with_default(subscriber, || {
        let complete = AccessLogEntry { status: 200, errcode: Some(0), complete: true, ..entry("a") };
        let second = Duration::from_secs(1);
        for (entry, is_failed, is_slow) in [
            (complete, false, false),
            (AccessLogEntry { errcode: None, retried: Some(42001), ..complete }, false, false),
            (AccessLogEntry { status: 404, ..complete }, true, false),
            (AccessLogEntry { errcode: Some(60020), ..complete }, true, false),
            (AccessLogEntry { complete: false, ..complete }, true, false),
            (AccessLogEntry { total_time: second - Duration::from_nanos(1), ..complete }, false, false),
            (AccessLogEntry { total_time: second, ..complete }, false, true),
            (AccessLogEntry { level: Level::Warn, status: 502, ..complete }, true, true),
        ] {
            let is_logged = |access| {
                let config = LogConfig { access, ..log_config(LogFormat::Text) };
                let log = AccessLog::start(&config, 1, false, Box::new(io::sink())).expect("a thread");
                log.is_logged(&entry)
            };
            let logged = [LoggedRequests::Failed, LoggedRequests::Slow].map(is_logged);
            assert_eq!(logged, [is_failed, is_slow], "{entry:?}");
            assert!(is_logged(LoggedRequests::All));
            assert_eq!(is_logged(LoggedRequests::None), entry.level == Level::Warn);
        }
    });
}
