//! Watches over what no story may tell. It knows the secrets and keys of every configuration that a proxy was started
//! with, the tokens that every simulator issued, the passes that were handed out and the credentials that callers
//! showed; it is told every line that a proxy logs, every answer of an admin listener and every error of a proxy's own.
//! When a story's proxy ends, the one is searched for in the other.

use std::{
    collections::HashSet,
    ffi::OsStr,
    fs, io,
    path::{Path, PathBuf},
    process::Command,
    sync::{LazyLock, Mutex, MutexGuard, PoisonError},
};

use base64::{Engine, prelude::BASE64_STANDARD_NO_PAD};
use http::Request;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use wecom_proxy::{
    app::{App, PreparedConfig, StartOptions},
    config::{LogConfig, LogFormat, LogLevel},
    simulator::{IssuedTokens, Settings, Simulator},
    telemetry::{access_log::AccessLog, logs::LogHandle},
};

use self::pattern_search::PatternSearch;
use crate::harness::{TestClient, TestProxy, USER_GET, WAIT_TIMEOUT};

mod pattern_search;

/// Shorter ones could be a part of anything; no story's secret is worth looking for that is.
const MIN_SECRET_BYTES: usize = 12;
/// What many programs leave as it is beside letters and digits.
const ALL_BUT_UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

static DETECTOR: LazyLock<Mutex<LeakDetector>> = LazyLock::new(Mutex::default);

/// What is known, and what was told.
#[derive(Default)]
struct LeakDetector {
    secrets: HashSet<String>,
    search: PatternSearch,
    issued: Vec<(IssuedTokens, usize)>,
    output: Vec<u8>,
}

impl LeakDetector {
    fn add_secret(&mut self, secret: &str) {
        if secret.len() >= MIN_SECRET_BYTES && !self.secrets.contains(secret) {
            self.secrets.insert(secret.to_owned());
            encoded_forms(secret).into_iter().for_each(|guise| self.search.add(guise, secret));
        }
    }

    /// What of all that is known was told from there on.
    fn find_leak(&mut self, from: usize) -> Option<String> {
        self.add_issued_tokens();
        self.search.find(&self.output[from..])
    }

    /// What the simulators have issued since it was last asked.
    fn add_issued_tokens(&mut self) {
        for nth in 0..self.issued.len() {
            let (issued, seen) = &mut self.issued[nth];
            let fresh = issued.since(*seen);
            *seen += fresh.len();
            fresh.iter().for_each(|token| self.add_secret(token));
        }
    }

    fn add_passes(&mut self, text: &str) {
        for (at, mark) in text.match_indices("wp1-") {
            let rest = &text[at..];
            let is_letter = |letter: char| letter.is_ascii_alphanumeric() || "-_".contains(letter);
            let end = rest[mark.len()..].find(|letter| !is_letter(letter));
            self.add_secret(&rest[..end.map_or(rest.len(), |end| mark.len() + end)]);
        }
    }

    /// The values of a file that belong to nobody else, wherever they come from.
    fn add_config_secrets(&mut self, path: &Path, env: &dyn Fn(&str) -> Option<String>) {
        let table = fs::read_to_string(path).ok().and_then(|text| text.parse::<toml::Table>().ok());
        let directory = path.parent().unwrap_or(Path::new(""));
        let mut found = Vec::new();
        let table = toml::Value::Table(table.unwrap_or_default());
        visit_secrets(&table, "", &mut |value| {
            let named = |name: &str| value.get(name).and_then(toml::Value::as_str);
            let text = value.as_str().map(str::to_owned);
            let text = text.or_else(|| named("env").and_then(env));
            found.extend(text.or_else(|| fs::read_to_string(directory.join(named("file")?)).ok()));
        });
        found.iter().for_each(|secret| self.add_secret(secret.trim_end()));
    }
}

/// Every value that is a secret by its key, and the password of every URL that has one.
fn visit_secrets(value: &toml::Value, key: &str, found: &mut dyn FnMut(&toml::Value)) {
    match value {
        // A file of TLS, and not what is in it.
        toml::Value::Table(table) if table.contains_key("cert") => {}
        _ if matches!(key, "secret" | "key") => found(value),
        toml::Value::Table(table) => table.iter().for_each(|(key, value)| visit_secrets(value, key, found)),
        toml::Value::Array(items) => items.iter().for_each(|item| visit_secrets(item, "", found)),
        toml::Value::String(text) => {
            let login = text.split_once("://").and_then(|(_, rest)| rest.split_once('@'));
            if let Some((_, password)) = login.and_then(|(login, _)| login.split_once(':')) {
                found(&toml::Value::String(percent_decode_str(password).decode_utf8_lossy().into_owned()));
            }
        }
        _ => {}
    }
}

/// A secret as it is, encoded for URLs, and in base64 wherever in a longer text it begins.
fn encoded_forms(secret: &str) -> HashSet<String> {
    let encoded =
        [NON_ALPHANUMERIC, ALL_BUT_UNRESERVED].map(|set| utf8_percent_encode(secret, set).to_string());
    let mut guises: HashSet<_> =
        encoded.iter().flat_map(|text| [text.clone(), text.to_lowercase()]).collect();
    guises.insert(secret.to_owned());
    for text in base64_forms(secret) {
        guises.insert(text.replace('+', "-").replace('/', "_"));
        guises.insert(text);
    }
    guises
}

/// What base64 makes of a secret at each of the three alignments, without the digits that depend on its neighbours.
fn base64_forms(secret: &str) -> [String; 3] {
    [0, 1, 2].map(|shift| {
        let whole = BASE64_STANDARD_NO_PAD.encode(format!("{}{secret}", &"xx"[..shift]));
        whole[4 * shift.min(1)..whole.len() - 2].to_owned()
    })
}

fn detector() -> MutexGuard<'static, LeakDetector> {
    DETECTOR.lock().unwrap_or_else(PoisonError::into_inner)
}

/// This is a secret, too.
pub fn add_secret(secret: &str) {
    detector().add_secret(secret);
}

/// What a caller shows of itself: credentials in the request's lines and query.
pub fn add_credentials<'a>(target: &str, lines: impl IntoIterator<Item = (&'a str, &'a [u8])>) {
    let mut confidant = detector();
    for parameter in target.split(['?', '&']).filter_map(|parameter| parameter.split_once('=')) {
        if let ("access_token" | "corpsecret", value) = parameter {
            confidant.add_secret(&percent_decode_str(value).decode_utf8_lossy());
        }
    }
    for (name, value) in lines {
        let value = String::from_utf8_lossy(value);
        let shown = match name {
            "authorization" => value.split_once(' ').map(|(_, rest)| rest),
            "x-api-key" => Some(&*value),
            _ => None,
        };
        confidant.add_secret(shown.unwrap_or_default());
    }
}

/// A simulator whose tokens are known.
pub async fn start_simulator(settings: Settings) -> Simulator {
    let wecom = Simulator::start_local(settings).await.expect("a simulator");
    detector().issued.push((wecom.issued_tokens(), 0));
    wecom
}

/// Starts a proxy that logs everything to here.
pub fn start_proxy(path: &Path, prepared: PreparedConfig) -> (App, LeakCheck) {
    static LOG: LazyLock<LogHandle> = LazyLock::new(|| {
        LogHandle::start_with_writer(LogConfig { level: LogLevel::Trace, ..TEXT_LOG }, false, || LogCapture)
    });
    LazyLock::force(&LOG);
    let access = AccessLog::start(TEXT_LOG, 1, false, Box::new(LogCapture)).expect("a log");
    let from = {
        let mut confidant = detector();
        confidant.add_config_secrets(path, &|name| std::env::var(name).ok());
        confidant.output.len()
    };
    let proxy = App::start_with(
        prepared,
        StartOptions { access_log: Some(access.clone()), ..StartOptions::default() },
    )
    .expect("a proxy");
    (proxy, LeakCheck { access, from, path: path.to_owned() })
}

const TEXT_LOG: LogConfig = LogConfig { format: LogFormat::Text, level: LogLevel::Info, access: true };

/// Where the logs of this process go.
struct LogCapture;

impl io::Write for LogCapture {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        detector().output.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Searches what was told since the proxy began, when the story ends.
pub struct LeakCheck {
    access: AccessLog,
    from: usize,
    path: PathBuf,
}

impl Drop for LeakCheck {
    fn drop(&mut self) {
        // A story that has failed already says so.
        if !std::thread::panicking() {
            assert!(self.access.flush(WAIT_TIMEOUT), "the access log is not written");
            let mut confidant = detector();
            // What a reload has brought.
            confidant.add_config_secrets(&self.path, &|name| std::env::var(name).ok());
            let found = confidant.find_leak(self.from);
            drop(confidant);
            assert!(found.is_none(), "a story tells a secret: {}", found.unwrap_or_default());
        }
    }
}

/// Where all that was told so far ends.
pub fn output_len() -> usize {
    detector().output.len()
}

/// Whether these words were told after that, in this story or one that is played beside it.
pub fn output_contains_since(from: usize, words: &str) -> bool {
    memchr::memmem::find(&detector().output[from..], words.as_bytes()).is_some()
}

/// What somebody got from a proxy: passes are to be kept, errors of its own and headers tell nothing.
pub fn record_output(path: &str, headers: &str, body: &[u8]) {
    let of_admin = ["/api/", "/readyz", "/healthz", "/metrics"].iter().any(|root| path.starts_with(root));
    let is_own = headers.to_ascii_lowercase().contains("x-wecom-proxy-error") || of_admin;
    let mut confidant = detector();
    confidant.output.extend_from_slice(headers.as_bytes());
    confidant.output.push(b'\n');
    if is_own {
        confidant.output.extend_from_slice(body);
        confidant.output.push(b'\n');
    } else if body.len() <= 4096 {
        confidant.add_passes(&String::from_utf8_lossy(body));
    }
}

/// Learns what the configuration of a program that is about to start holds.
pub fn watch_command(command: &Command) -> Option<WatchedCommand> {
    if command.get_program() != env!("CARGO_BIN_EXE_wecom-proxy") {
        return None;
    }
    let given: Vec<_> = command.get_envs().collect();
    let env = |name: &str| {
        let set = given.iter().find(|(known, _)| *known == OsStr::new(name));
        set.and_then(|(_, value)| value.and_then(OsStr::to_str)).map(str::to_owned)
    };
    let mut arguments = command.get_args().skip_while(|argument| *argument != "--config").skip(1);
    let path = arguments.next().map(PathBuf::from);
    if let Some(path) = &path {
        detector().add_config_secrets(path, &env);
    }
    // These print the keys and secrets that they have made, for whoever asked for them.
    let prints_keys = command
        .get_args()
        .next()
        .is_some_and(|first| ["key", "demo", "simulator"].iter().any(|known| first == *known));
    Some(WatchedCommand { path, prints_keys })
}

/// A program whose output is to be searched.
pub struct WatchedCommand {
    path: Option<PathBuf>,
    prints_keys: bool,
}

impl WatchedCommand {
    /// Searches all that it has written.
    pub fn assert_no_leak(&self, out: &str, err: &str) {
        let mut confidant = detector();
        if let Some(path) = &self.path {
            confidant.add_config_secrets(path, &|_| None);
        }
        confidant.add_issued_tokens();
        let found = confidant.search.find(err.as_bytes());
        let found = found.or_else(|| confidant.search.find(out.as_bytes()).filter(|_| !self.prints_keys));
        drop(confidant);
        assert!(found.is_none(), "a program tells a secret: {}", found.unwrap_or_default());
    }
}

/// Whether a text holds one of these, in whatever guise; what it holds, and where.
pub fn find_secret(text: &str, secrets: &[&str]) -> Option<String> {
    let mut search = PatternSearch::default();
    for secret in secrets {
        encoded_forms(secret).into_iter().for_each(|guise| search.add(guise, secret));
    }
    search.find(text.as_bytes())
}

#[test]
fn secret_in_any_encoding_is_found() {
    let secret = "a/secret+of 30 letters, or so~";
    let query = utf8_percent_encode(secret, NON_ALPHANUMERIC).to_string();
    let mut texts = vec![format!("x{secret}"), format!("?a={query}"), format!("?a={}", query.to_lowercase())];
    for before in ["", "a", "bc", "billing:"] {
        let pair = format!("{before}{secret}");
        texts.push(format!("Basic {}", BASE64_STANDARD_NO_PAD.encode(&pair)));
        texts.push(base64::prelude::BASE64_URL_SAFE.encode(format!("{pair} and more")));
    }
    for text in &texts {
        assert!(find_secret(text, &["another secret", secret]).is_some(), "{text}");
        assert_eq!(find_secret(&text.to_uppercase().replace(['A', 'E'], "_"), &[secret]), None);
    }
}

#[tokio::test]
async fn logs_and_responses_reach_the_detector() {
    let stage = TestProxy::start_open().await;
    let reply = stage.get("/cgi-bin/../x").await;
    reply.assert_proxy_error("bad-request", 400, 40035);
    let admin =
        TestClient::connect_http1(stage.admin_address()).await.request(Request::get("/readyz"), "").await;
    tracing::trace!(target: "wecom_proxy", "a trace of the watch");
    stage.get(USER_GET).await.assert_ok();
    let told = String::from_utf8_lossy(&detector().output).into_owned();
    for words in
        ["dot segment", admin.text().trim_end(), "a trace of the watch", reply.header("x-request-id")]
    {
        assert!(told.contains(words), "{words}");
    }
    let issued = stage.wecom.issued_tokens().since(0);
    detector().add_issued_tokens();
    assert!(issued.len() == 1 && detector().secrets.contains(&issued[0]));
}

#[test]
fn leaked_pass_is_detected() {
    let mut confidant = LeakDetector::default();
    confidant.add_passes("{\"access_token\":\"wp1-AAAAAGqxO4ABbgFu\"}");
    confidant.output.extend_from_slice(b"wp1-AAAAAGqxO4ABbgFu was before this story");
    let from = confidant.output.len();
    confidant.output.extend_from_slice(b"wp1-AAAAAGqxO4ABbgFx is no pass");
    assert_eq!(confidant.find_leak(from), None);
    confidant.output.extend_from_slice(b", and wp1-AAAAAGqxO4ABbgFu is one");
    assert!(confidant.find_leak(from).is_some());
}
