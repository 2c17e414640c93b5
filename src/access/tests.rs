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
const PATIENCE: Duration = Duration::from_secs(20);

fn log(format: LogFormat) -> Log {
    Log { format, level: config::Level::Info, access: true }
}

/// A line about the request with this id.
fn about(request_id: &str) -> Line<'_> {
    Line {
        level: Level::Info,
        at: SystemTime::UNIX_EPOCH,
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
        first_try: None,
        request_bytes: None,
        bytes: 0,
        whole: true,
        token: Duration::ZERO,
        upstream: Duration::ZERO,
        total: Duration::ZERO,
        hint: None,
    }
}

fn laid_out(layout: Layout, line: &Line<'_>) -> String {
    let mut out = Vec::new();
    layout.write(&mut out, Stamp::default().at(SystemTime::UNIX_EPOCH), line);
    String::from_utf8(out).expect("UTF-8")
}

#[test]
fn a_line_has_its_fields_in_order() {
    let line = Line {
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
        bytes: 18_446_744_073_709_551_615,
        whole: false,
        upstream: Duration::from_nanos(1_499_499),
        total: Duration::from_nanos(61_001_999_500),
        ..about("a-1")
    };
    let text = concat!(
        "1970-01-01T00:00:00.000000Z  WARN access: request request_id=\"a-1\" trace_id=\"4bf92f3577b34da6a3ce929d0e0e4736\" peer=192.0.2.10 client=\"billing\" ",
        "agent=\"hr\" method=POST path=\"/hr/cgi-bin/\\\"x\\\"\" status=502 errcode=-1 retried=42001 ",
        "error=\"upstream-broke\" reason=\"WeCom said:\\n没有\" request_bytes=4096 bytes=18446744073709551615 whole=false ",
        "token_ms=0.000 upstream_ms=1.499 total_ms=61002.000\n"
    );
    assert_eq!(laid_out(Layout::Plain, &line), text);
    let json = concat!(
        r#"{"timestamp":"1970-01-01T00:00:00.000000Z","level":"WARN","message":"request","request_id":"a-1","trace_id":"4bf92f3577b34da6a3ce929d0e0e4736","#,
        r#""peer":"192.0.2.10","client":"billing","agent":"hr","method":"POST","path":"/hr/cgi-bin/\"x\"","#,
        r#""status":502,"errcode":-1,"retried":42001,"error":"upstream-broke","reason":"WeCom said:\n没有","#,
        r#""request_bytes":4096,"bytes":18446744073709551615,"whole":false,"token_ms":0.000,"upstream_ms":1.499,"#,
        r#""total_ms":61002.000,"target":"access"}"#,
        "\n"
    );
    assert_eq!(laid_out(Layout::Json, &line), json);
}

/// All that a line holds, owned.
#[derive(Debug)]
struct Told {
    warn: bool,
    texts: [String; 2],
    method: String,
    names: [Option<String>; 5],
    peer: Option<IpAddr>,
    status: u16,
    errcodes: [Option<i64>; 2],
    request_bytes: Option<u64>,
    bytes: u64,
    whole: bool,
    micros: [u64; 3],
}

impl Told {
    fn line(&self) -> Line<'_> {
        let [client, agent, error, reason, hint] = self.names.each_ref().map(Option::as_deref);
        let [token, upstream, total] = self.micros.map(Duration::from_micros);
        Line {
            level: if self.warn { Level::Warn } else { Level::Info },
            at: SystemTime::UNIX_EPOCH,
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
            first_try: None,
            request_bytes: self.request_bytes,
            bytes: self.bytes,
            whole: self.whole,
            token,
            upstream,
            total,
            hint,
        }
    }
}

/// Any line whose texts are like this.
fn told(text: &'static str, method: &'static str) -> impl Strategy<Value = Told> {
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
        )| Told {
            warn,
            texts,
            method,
            names,
            peer,
            status,
            errcodes,
            request_bytes,
            bytes,
            whole,
            micros,
        },
    )
}

/// Takes what a subscriber writes.
#[derive(Clone, Default)]
struct Page(Arc<Mutex<Vec<u8>>>);

impl Write for Page {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        lock(&self.0).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Page {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

/// The line as the subscriber of all other lines would lay it out.
fn by_tracing(layout: Layout, line: &Line<'_>) -> String {
    let page = Page::default();
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
                bytes = line.bytes,
                whole = line.whole,
                token_ms = milliseconds(line.token),
                upstream_ms = milliseconds(line.upstream),
                total_ms = milliseconds(line.total),
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
fn timeless(line: &str) -> String {
    let year = line.find("-").expect("a date") - 4;
    format!("{}{}", &line[..year], &line[year + "1970-01-01T00:00:00.000000Z".len()..])
}

const METHOD: &str = "[A-Z!#$%&'*+.^_`|~-]{1,9}";

proptest! {
    #[test]
    fn a_line_looks_as_tracing_would_have_it(told in told("[ -~]{0,40}", METHOD)) {
        for layout in [Layout::Plain, Layout::Coloured, Layout::Json] {
            let (ours, theirs) = (laid_out(layout, &told.line()), by_tracing(layout, &told.line()));
            prop_assert_eq!(timeless(&ours), timeless(&theirs));
        }
    }

    #[test]
    fn text_is_quoted_as_tracing_would_quote_it(told in told(".*|[\\x00-\\xff]{0,9}", METHOD)) {
        let (ours, theirs) = (laid_out(Layout::Plain, &told.line()), by_tracing(Layout::Plain, &told.line()));
        prop_assert_eq!(timeless(&ours), timeless(&theirs));
    }

    #[test]
    fn json_holds_what_tracing_would_write(told in told(".*|[\\x00-\\xff]{0,9}|\\PC*", METHOD)) {
        let [ours, theirs] = [laid_out(Layout::Json, &told.line()), by_tracing(Layout::Json, &told.line())]
            .map(|line| serde_json::from_str::<serde_json::Map<_, _>>(&line).expect("JSON"));
        for (name, value) in theirs.iter().filter(|(name, _)| *name != "timestamp") {
            prop_assert_eq!(ours.get(name), Some(value));
        }
        prop_assert_eq!(ours.len(), theirs.len());
    }

    #[test]
    fn nothing_can_break_out_of_its_line(told in told("(?s).*|[\\x00-\\xff]{0,9}", "(?s).*")) {
        for layout in [Layout::Plain, Layout::Json] {
            let line = laid_out(layout, &told.line());
            let body = line.strip_suffix('\n').expect("an end");
            prop_assert!(!body.contains(char::is_control), "{:?}", body);
        }
        let line = laid_out(Layout::Json, &told.line());
        let line: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        prop_assert_eq!(&line["request_id"], &told.texts[0]);
        prop_assert_eq!(&line["method"], &told.method);
        prop_assert_eq!(line["reason"].as_str(), told.names[3].as_deref());
    }
}

#[test]
fn a_peer_over_ipv6_is_shown() {
    let line = Line { peer: Some(Ipv6Addr::LOCALHOST.into()), ..about("a-1") };
    assert!(laid_out(Layout::Plain, &line).contains(" peer=::1 "));
    assert!(laid_out(Layout::Json, &line).contains(r#","peer":"::1","#));
}

/// An output whose every write waits until the test takes it or is gone; each is answered as the test wants.
struct Output(Sender<(String, Sender<io::Result<usize>>)>);

impl Write for Output {
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
struct Taker(Receiver<(String, Sender<io::Result<usize>>)>);

impl Taker {
    /// The next write, which goes on waiting.
    #[track_caller]
    fn held(&self) -> (String, Sender<io::Result<usize>>) {
        self.0.recv_timeout(PATIENCE).expect("a write")
    }

    /// The next write, which is taken whole.
    #[track_caller]
    fn take(&self) -> String {
        self.answer(|text| Ok(text.len()))
    }

    #[track_caller]
    fn answer(&self, answer: impl FnOnce(&str) -> io::Result<usize>) -> String {
        let (text, answered) = self.held();
        answered.send(answer(&text)).expect("it waits");
        text
    }

    /// All that is written from now on, until the writer ends.
    fn rest(self) -> String {
        let mut rest = String::new();
        loop {
            match self.0.recv_timeout(PATIENCE) {
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

fn running(workers: usize) -> (AccessLog, Taker) {
    let (sender, receiver) = mpsc::channel();
    let access = AccessLog::start(log(LogFormat::Text), workers, false, Box::new(Output(sender)));
    (access.expect("a thread"), Taker(receiver))
}

/// The ids on these lines.
fn ids(lines: &str) -> Vec<&str> {
    let id = |line| str::split(line, '"').nth(1).expect("an id");
    lines.lines().map(id).collect()
}

fn numbered(numbers: impl IntoIterator<Item = usize>) -> Vec<String> {
    numbers.into_iter().map(|number| number.to_string()).collect()
}

fn write_numbered(access: &AccessLog, numbers: std::ops::Range<usize>) {
    for id in numbered(numbers) {
        access.write(&about(&id));
    }
}

#[test]
fn a_line_comes_by_itself_and_others_come_together() {
    let (access, taker) = running(1);
    access.write(&about("first"));
    let (first, answered) = taker.held();
    assert_eq!(ids(&first), ["first"]);
    write_numbered(&access, 0..100);
    answered.send(Ok(first.len())).expect("it waits");
    assert_eq!(ids(&taker.take()), numbered(0..100), "in one write");
}

#[test]
fn every_worker_s_lines_stay_in_order_and_none_is_missing_after_a_flush() {
    const EACH: usize = 1000;
    let page = Page::default();
    let access = AccessLog::start(log(LogFormat::Text), 4, false, Box::new(page.clone())).expect("a thread");
    let workers: Vec<_> = (0..4)
        .map(|nth| {
            let access = access.for_worker();
            thread::spawn(move || write_numbered(&access, nth * EACH..(nth + 1) * EACH))
        })
        .collect();
    for worker in workers {
        worker.join().expect("no panic");
    }
    assert!(access.flush(PATIENCE));
    let written = String::from_utf8(lock(&page.0).clone()).expect("UTF-8");
    let numbers: Vec<usize> = ids(&written).iter().map(|id| id.parse().expect("a number")).collect();
    for nth in 0..4 {
        let of_one = numbers.iter().copied().filter(|number| number / EACH == nth);
        assert!(of_one.eq(nth * EACH..(nth + 1) * EACH), "worker {nth}");
    }
    assert_eq!((numbers.len(), access.dropped()), (4 * EACH, 0));
}

#[test]
fn an_output_that_takes_nothing_costs_lines_and_no_time() {
    const LINES: usize = 20_000;
    let (access, taker) = running(8);
    write_numbered(&access, 0..1);
    let (first, answered) = taker.held();
    write_numbered(&access, 1..LINES);
    assert!(!access.flush(Duration::from_millis(10)), "the first is still held");
    let dropped = access.dropped() as usize;
    answered.send(Ok(first.len())).expect("it waits");
    let second = taker.take();
    assert_eq!(ids(&second), numbered(1..LINES - dropped), "the first of them are kept");
    assert!((LEAST_SHARE..LEAST_SHARE * 3).contains(&second.len()), "{}", second.len());
    write_numbered(&access, LINES..LINES + 1);
    assert_eq!(ids(&taker.take()), numbered([LINES]), "it goes on");
    assert_eq!(access.dropped() as usize, dropped);
}

#[test]
fn lines_that_are_not_taken_whole_are_counted() {
    let (access, taker) = running(1);
    write_numbered(&access, 0..1);
    let (first, answered) = taker.held();
    write_numbered(&access, 1..4);
    answered.send(Ok(first.len())).expect("it waits");
    // One line and the beginning of the next are taken, then there is nobody any more.
    taker.answer(|_| Ok(first.len() + 9));
    taker.answer(|_| Err(ErrorKind::BrokenPipe.into()));
    assert!(access.flush(PATIENCE));
    assert_eq!(access.dropped(), 2);
}

#[test]
fn an_output_that_does_not_wait_is_asked_again() {
    let (access, taker) = running(1);
    access.write(&about("only"));
    for kind in [ErrorKind::Interrupted, ErrorKind::WouldBlock] {
        taker.answer(|_| Err(kind.into()));
    }
    assert_eq!(ids(&taker.take()), ["only"]);
    assert_eq!(access.dropped(), 0);
}

#[test]
fn what_was_written_goes_out_after_the_last_handle_has_gone() {
    let (access, taker) = running(1);
    let clone = access.clone();
    write_numbered(&access, 0..1);
    let (first, answered) = taker.held();
    write_numbered(&access, 1..10);
    drop(access);
    write_numbered(&clone, 10..20);
    drop(clone);
    answered.send(Ok(first.len())).expect("it waits");
    assert_eq!(ids(&taker.rest()), numbered(1..20));
}

#[test]
fn lines_are_wanted_as_the_running_log_s_filter_says() {
    let start = |every_request| {
        let log = Log { access: every_request, ..log(LogFormat::Text) };
        AccessLog::start(log, 1, false, Box::new(io::sink())).expect("a thread")
    };
    let wanted = |access: &AccessLog| [Level::Info, Level::Warn].map(|level| access.wants(level));
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
