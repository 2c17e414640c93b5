//! Leak detector. Its secrets are the secrets and keys of every configuration, the tokens that simulators issue, the passes
//! that proxies issue and the credentials in requests. Its output is every log line of a proxy, every response of an admin
//! listener and every error of the proxy itself. When a test's proxy ends, the output is searched for the secrets.

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
    config::{LogConfig, LogFormat, LogLevel, LoggedRequests},
    simulator::{IssuedTokens, Settings, Simulator},
    telemetry::{access_log::AccessLog, logs::LogHandle},
};

use self::pattern_search::PatternSearch;
use crate::harness::{TestClient, TestProxy, USER_GET, WAIT_TIMEOUT};

mod pattern_search;

/// Shorter secrets are ignored, because they could occur by chance.
const MIN_SECRET_BYTES: usize = 12;
/// The unreserved characters of RFC 3986, which many encoders leave unencoded.
const ALL_BUT_UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

static DETECTOR: LazyLock<Mutex<LeakDetector>> = LazyLock::new(Mutex::default);

/// The known secrets and the recorded output.
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
            encoded_forms(secret).into_iter().for_each(|form| self.search.add(form, secret));
        }
    }

    /// Searches the output from `from` on for all secrets.
    fn find_leak(&mut self, from: usize) -> Option<String> {
        self.add_issued_tokens();
        self.search.find(&self.output[from..])
    }

    /// Adds the tokens that the simulators have issued since the last call.
    fn add_issued_tokens(&mut self) {
        for index in 0..self.issued.len() {
            let (issued, known_count) = &mut self.issued[index];
            let new_tokens = issued.since(*known_count);
            *known_count += new_tokens.len();
            new_tokens.iter().for_each(|token| self.add_secret(token));
        }
    }

    fn add_passes(&mut self, text: &str) {
        for (start, prefix) in text.match_indices("wp1-") {
            let rest = &text[start..];
            let is_pass_char = |letter: char| letter.is_ascii_alphanumeric() || "-_".contains(letter);
            let end = rest[prefix.len()..].find(|letter| !is_pass_char(letter));
            self.add_secret(&rest[..end.map_or(rest.len(), |end| prefix.len() + end)]);
        }
    }

    /// Adds the secrets of a configuration file, including those in environment variables and files.
    fn add_config_secrets(&mut self, path: &Path, env: &dyn Fn(&str) -> Option<String>) {
        let table = fs::read_to_string(path).ok().and_then(|text| text.parse::<toml::Table>().ok());
        let directory = path.parent().unwrap_or(Path::new(""));
        let mut secrets = Vec::new();
        let table = toml::Value::Table(table.unwrap_or_default());
        visit_secrets(&table, "", &mut |value| {
            let member = |name: &str| value.get(name).and_then(toml::Value::as_str);
            let text = value.as_str().map(str::to_owned);
            let text = text.or_else(|| member("env").and_then(env));
            secrets.extend(text.or_else(|| fs::read_to_string(directory.join(member("file")?)).ok()));
        });
        secrets.iter().for_each(|secret| self.add_secret(secret.trim_end()));
    }
}

/// Visits every value that is a secret by its key, and the password of every URL.
fn visit_secrets(value: &toml::Value, key: &str, visit: &mut dyn FnMut(&toml::Value)) {
    match value {
        // The key of a TLS certificate is a path.
        toml::Value::Table(table) if table.contains_key("cert") => {}
        _ if matches!(key, "secret" | "key" | "permanent_code" | "aes_key" | "token") => visit(value),
        toml::Value::Table(table) => table.iter().for_each(|(key, value)| visit_secrets(value, key, visit)),
        toml::Value::Array(items) => items.iter().for_each(|item| visit_secrets(item, "", visit)),
        toml::Value::String(text) => {
            let login = text.split_once("://").and_then(|(_, rest)| rest.split_once('@'));
            if let Some((_, password)) = login.and_then(|(login, _)| login.split_once(':')) {
                visit(&toml::Value::String(percent_decode_str(password).decode_utf8_lossy().into_owned()));
            }
        }
        _ => {}
    }
}

/// A secret unencoded, percent-encoded, and in base64 at each alignment within a longer text.
fn encoded_forms(secret: &str) -> HashSet<String> {
    let encoded =
        [NON_ALPHANUMERIC, ALL_BUT_UNRESERVED].map(|set| utf8_percent_encode(secret, set).to_string());
    let mut forms: HashSet<_> = encoded.iter().flat_map(|text| [text.clone(), text.to_lowercase()]).collect();
    forms.insert(secret.to_owned());
    for text in base64_forms(secret) {
        forms.insert(text.replace('+', "-").replace('/', "_"));
        forms.insert(text);
    }
    forms
}

/// The base64 form of a secret at each of the three alignments, without the digits that depend on adjacent bytes.
fn base64_forms(secret: &str) -> [String; 3] {
    [0, 1, 2].map(|shift| {
        let encoded = BASE64_STANDARD_NO_PAD.encode(format!("{}{secret}", &"xx"[..shift]));
        encoded[4 * shift.min(1)..encoded.len() - 2].to_owned()
    })
}

fn detector() -> MutexGuard<'static, LeakDetector> {
    DETECTOR.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Adds a secret.
pub fn add_secret(secret: &str) {
    detector().add_secret(secret);
}

/// Adds the credentials in a request's query and headers.
pub fn add_credentials<'a>(target: &str, headers: impl IntoIterator<Item = (&'a str, &'a [u8])>) {
    let mut detector = detector();
    for parameter in target.split(['?', '&']).filter_map(|parameter| parameter.split_once('=')) {
        if let ("access_token" | "corpsecret", value) = parameter {
            detector.add_secret(&percent_decode_str(value).decode_utf8_lossy());
        }
    }
    for (name, value) in headers {
        let value = String::from_utf8_lossy(value);
        let credential = match name {
            "authorization" => value.split_once(' ').map(|(_, rest)| rest),
            "x-api-key" => Some(&*value),
            _ => None,
        };
        detector.add_secret(credential.unwrap_or_default());
    }
}

/// Starts a simulator whose tokens are secrets.
pub async fn start_simulator(settings: Settings) -> Simulator {
    let wecom = Simulator::start_local(settings).await.expect("a simulator");
    detector().issued.push((wecom.issued_tokens(), 0));
    wecom
}

/// Starts a proxy whose logs, at level trace, are recorded.
pub fn start_proxy(path: &Path, prepared: PreparedConfig, options: StartOptions) -> (App, LeakCheck) {
    static LOG: LazyLock<LogHandle> = LazyLock::new(|| {
        LogHandle::start_with_writer(&LogConfig { level: LogLevel::Trace, ..TEXT_LOG }, false, || LogCapture)
    });
    LazyLock::force(&LOG);
    let access = AccessLog::start(&TEXT_LOG, 1, false, Box::new(LogCapture)).expect("a log");
    let from = {
        let mut detector = detector();
        detector.add_config_secrets(path, &|name| std::env::var(name).ok());
        detector.output.len()
    };
    let proxy = App::start_with(prepared, StartOptions { access_log: Some(access.clone()), ..options })
        .expect("a proxy");
    (proxy, LeakCheck { access, from, path: path.to_owned() })
}

const TEXT_LOG: LogConfig = LogConfig {
    format: LogFormat::Text,
    level: LogLevel::Info,
    access: LoggedRequests::All,
    access_file: None,
};

/// The log writer of this process.
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

/// Searches the output since the start of the proxy when it is dropped, at the end of the test.
pub struct LeakCheck {
    access: AccessLog,
    from: usize,
    path: PathBuf,
}

impl Drop for LeakCheck {
    fn drop(&mut self) {
        // A test that has failed is reported already.
        if !std::thread::panicking() {
            assert!(self.access.flush(WAIT_TIMEOUT), "the access log is not written");
            let mut detector = detector();
            // A reload may have added secrets.
            detector.add_config_secrets(&self.path, &|name| std::env::var(name).ok());
            let found = detector.find_leak(self.from);
            drop(detector);
            assert!(found.is_none(), "secret leaked in a log or response: {}", found.unwrap_or_default());
        }
    }
}

/// Length of the output so far.
pub fn output_len() -> usize {
    detector().output.len()
}

/// Whether the output from `from` on contains `words`, written by this test or by a concurrent one.
pub fn output_contains_since(from: usize, words: &str) -> bool {
    memchr::memmem::find(&detector().output[from..], words.as_bytes()).is_some()
}

/// Records a response of a proxy: its headers, its body if it is the proxy's own; passes in other bodies are secrets.
pub fn record_output(path: &str, headers: &str, body: &[u8]) {
    let is_admin = ["/api/", "/readyz", "/healthz", "/metrics"].iter().any(|root| path.starts_with(root));
    // A key just made is shown, this once.
    let is_admin = is_admin && !path.ends_with("/keys");
    let is_own = headers.to_ascii_lowercase().contains("x-wecom-proxy-error") || is_admin;
    let mut detector = detector();
    detector.output.extend_from_slice(headers.as_bytes());
    detector.output.push(b'\n');
    if is_own {
        detector.output.extend_from_slice(body);
        detector.output.push(b'\n');
    } else if body.len() <= 4096 {
        detector.add_passes(&String::from_utf8_lossy(body));
    }
}

/// Adds the secrets in the configuration of a program that is about to start.
pub fn watch_command(command: &Command) -> Option<WatchedCommand> {
    if command.get_program() != env!("CARGO_BIN_EXE_wecom-proxy") {
        return None;
    }
    let environment: Vec<_> = command.get_envs().collect();
    let env = |name: &str| {
        let variable = environment.iter().find(|(known, _)| *known == OsStr::new(name));
        variable.and_then(|(_, value)| value.and_then(OsStr::to_str)).map(str::to_owned)
    };
    let mut arguments = command.get_args().skip_while(|argument| *argument != "--config").skip(1);
    let path = arguments.next().map(PathBuf::from);
    if let Some(path) = &path {
        detector().add_config_secrets(path, &env);
    }
    // These commands print generated keys and secrets by design.
    let prints_keys = command
        .get_args()
        .next()
        .is_some_and(|first| ["key", "demo", "simulator"].iter().any(|known| first == *known));
    Some(WatchedCommand { path, prints_keys })
}

/// A program whose output is searched for secrets.
pub struct WatchedCommand {
    path: Option<PathBuf>,
    prints_keys: bool,
}

impl WatchedCommand {
    /// Searches its whole output.
    pub fn assert_no_leak(&self, out: &str, err: &str) {
        let mut detector = detector();
        if let Some(path) = &self.path {
            detector.add_config_secrets(path, &|_| None);
        }
        detector.add_issued_tokens();
        let found = detector.search.find(err.as_bytes());
        let found = found.or_else(|| detector.search.find(out.as_bytes()).filter(|_| !self.prints_keys));
        drop(detector);
        assert!(found.is_none(), "secret leaked by a program: {}", found.unwrap_or_default());
    }
}

/// Searches a text for these secrets in all encodings; returns the secret, its form and the line.
pub fn find_secret(text: &str, secrets: &[&str]) -> Option<String> {
    let mut search = PatternSearch::default();
    for secret in secrets {
        encoded_forms(secret).into_iter().for_each(|form| search.add(form, secret));
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
    let proxy = TestProxy::start_open().await;
    let response = proxy.get("/cgi-bin/../x").await;
    response.assert_proxy_error("bad-request", 400, 40035);
    let admin =
        TestClient::connect_http1(proxy.admin_address()).await.request(Request::get("/readyz"), "").await;
    tracing::trace!(target: "wecom_proxy", "a trace message of the detector");
    proxy.get(USER_GET).await.assert_ok();
    let output = String::from_utf8_lossy(&detector().output).into_owned();
    for words in [
        "dot segment",
        admin.text().trim_end(),
        "a trace message of the detector",
        response.header("x-request-id"),
    ] {
        assert!(output.contains(words), "{words}");
    }
    let tokens = proxy.wecom.issued_tokens().since(0);
    detector().add_issued_tokens();
    assert!(tokens.len() == 1 && detector().secrets.contains(&tokens[0]));
}

#[test]
fn leaked_pass_is_detected() {
    let mut detector = LeakDetector::default();
    detector.add_passes("{\"access_token\":\"wp1-AAAAAGqxO4ABbgFu\"}");
    detector.output.extend_from_slice(b"wp1-AAAAAGqxO4ABbgFu was before this test");
    let from = detector.output.len();
    detector.output.extend_from_slice(b"wp1-AAAAAGqxO4ABbgFx is no pass");
    assert_eq!(detector.find_leak(from), None);
    detector.output.extend_from_slice(b", and wp1-AAAAAGqxO4ABbgFu is one");
    assert!(detector.find_leak(from).is_some());
}
