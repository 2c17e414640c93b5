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
    access::AccessLog,
    app::{App, Prepared, Surroundings},
    config::{Level, Log, LogFormat},
    simulator::{Issued, Settings, Simulator},
    telemetry::Telemetry,
};

use self::search::Search;
use crate::stage::{Caller, PATIENCE, Stage, USER_GET};

mod search;

/// Shorter ones could be a part of anything; no story's secret is worth looking for that is.
const SHORTEST: usize = 12;
/// What many programs leave as it is beside letters and digits.
const STRICT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

static CONFIDANT: LazyLock<Mutex<Confidant>> = LazyLock::new(Mutex::default);

/// What is known, and what was told.
#[derive(Default)]
struct Confidant {
    known: HashSet<String>,
    search: Search,
    issued: Vec<(Issued, usize)>,
    told: Vec<u8>,
}

impl Confidant {
    fn learn(&mut self, secret: &str) {
        if secret.len() >= SHORTEST && !self.known.contains(secret) {
            self.known.insert(secret.to_owned());
            guises(secret).into_iter().for_each(|guise| self.search.add(guise, secret));
        }
    }

    /// What of all that is known was told from there on.
    fn verdict(&mut self, from: usize) -> Option<String> {
        self.catch_up();
        self.search.find(&self.told[from..])
    }

    /// What the simulators have issued since it was last asked.
    fn catch_up(&mut self) {
        for nth in 0..self.issued.len() {
            let (issued, seen) = &mut self.issued[nth];
            let fresh = issued.since(*seen);
            *seen += fresh.len();
            fresh.iter().for_each(|token| self.learn(token));
        }
    }

    fn learn_passes(&mut self, text: &str) {
        for (at, mark) in text.match_indices("wp1-") {
            let rest = &text[at..];
            let is_letter = |letter: char| letter.is_ascii_alphanumeric() || "-_".contains(letter);
            let end = rest[mark.len()..].find(|letter| !is_letter(letter));
            self.learn(&rest[..end.map_or(rest.len(), |end| mark.len() + end)]);
        }
    }

    /// The values of a file that belong to nobody else, wherever they come from.
    fn learn_file(&mut self, path: &Path, env: &dyn Fn(&str) -> Option<String>) {
        let table = fs::read_to_string(path).ok().and_then(|text| text.parse::<toml::Table>().ok());
        let directory = path.parent().unwrap_or(Path::new(""));
        let mut found = Vec::new();
        let table = toml::Value::Table(table.unwrap_or_default());
        collect(&table, "", &mut |value| {
            let named = |name: &str| value.get(name).and_then(toml::Value::as_str);
            let text = value.as_str().map(str::to_owned);
            let text = text.or_else(|| named("env").and_then(env));
            found.extend(text.or_else(|| fs::read_to_string(directory.join(named("file")?)).ok()));
        });
        found.iter().for_each(|secret| self.learn(secret.trim_end()));
    }
}

/// Every value that is a secret by its key, and the password of every URL that has one.
fn collect(value: &toml::Value, key: &str, found: &mut dyn FnMut(&toml::Value)) {
    match value {
        // A file of TLS, and not what is in it.
        toml::Value::Table(table) if table.contains_key("cert") => {}
        _ if matches!(key, "secret" | "key") => found(value),
        toml::Value::Table(table) => table.iter().for_each(|(key, value)| collect(value, key, found)),
        toml::Value::Array(items) => items.iter().for_each(|item| collect(item, "", found)),
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
fn guises(secret: &str) -> HashSet<String> {
    let encoded = [NON_ALPHANUMERIC, STRICT].map(|set| utf8_percent_encode(secret, set).to_string());
    let mut guises: HashSet<_> =
        encoded.iter().flat_map(|text| [text.clone(), text.to_lowercase()]).collect();
    guises.insert(secret.to_owned());
    for text in in_base64(secret) {
        guises.insert(text.replace('+', "-").replace('/', "_"));
        guises.insert(text);
    }
    guises
}

/// What base64 makes of a secret at each of the three alignments, without the digits that depend on its neighbours.
fn in_base64(secret: &str) -> [String; 3] {
    [0, 1, 2].map(|shift| {
        let whole = BASE64_STANDARD_NO_PAD.encode(format!("{}{secret}", &"xx"[..shift]));
        whole[4 * shift.min(1)..whole.len() - 2].to_owned()
    })
}

fn confidant() -> MutexGuard<'static, Confidant> {
    CONFIDANT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// This is a secret, too.
pub fn keep(secret: &str) {
    confidant().learn(secret);
}

/// What a caller shows of itself: credentials in the request's lines and query.
pub fn keep_credentials<'a>(target: &str, lines: impl IntoIterator<Item = (&'a str, &'a [u8])>) {
    let mut confidant = confidant();
    for parameter in target.split(['?', '&']).filter_map(|parameter| parameter.split_once('=')) {
        if let ("access_token" | "corpsecret", value) = parameter {
            confidant.learn(&percent_decode_str(value).decode_utf8_lossy());
        }
    }
    for (name, value) in lines {
        let value = String::from_utf8_lossy(value);
        let shown = match name {
            "authorization" => value.split_once(' ').map(|(_, rest)| rest),
            "x-api-key" => Some(&*value),
            _ => None,
        };
        confidant.learn(shown.unwrap_or_default());
    }
}

/// A simulator whose tokens are known.
pub async fn simulator(settings: Settings) -> Simulator {
    let wecom = Simulator::local(settings).await.expect("a simulator");
    confidant().issued.push((wecom.issued(), 0));
    wecom
}

/// Starts a proxy that logs everything to here.
pub fn proxy(path: &Path, prepared: Prepared) -> (App, Watch) {
    static LOG: LazyLock<Telemetry> =
        LazyLock::new(|| Telemetry::start_on(Log { level: Level::Trace, ..AS_TEXT }, false, || Ear));
    LazyLock::force(&LOG);
    let access = AccessLog::start(AS_TEXT, 1, false, Box::new(Ear)).expect("a log");
    let from = {
        let mut confidant = confidant();
        confidant.learn_file(path, &|name| std::env::var(name).ok());
        confidant.told.len()
    };
    let proxy =
        App::start_with(prepared, Surroundings { access: Some(access.clone()), ..Surroundings::default() })
            .expect("a proxy");
    (proxy, Watch { access, from, path: path.to_owned() })
}

const AS_TEXT: Log = Log { format: LogFormat::Text, level: Level::Info, access: true };

/// Where the logs of this process go.
struct Ear;

impl io::Write for Ear {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        confidant().told.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Searches what was told since the proxy began, when the story ends.
pub struct Watch {
    access: AccessLog,
    from: usize,
    path: PathBuf,
}

impl Drop for Watch {
    fn drop(&mut self) {
        // A story that has failed already says so.
        if !std::thread::panicking() {
            assert!(self.access.flush(PATIENCE), "the access log is not written");
            let mut confidant = confidant();
            // What a reload has brought.
            confidant.learn_file(&self.path, &|name| std::env::var(name).ok());
            let found = confidant.verdict(self.from);
            drop(confidant);
            assert!(found.is_none(), "a story tells a secret: {}", found.unwrap_or_default());
        }
    }
}

/// Where all that was told so far ends.
pub fn told() -> usize {
    confidant().told.len()
}

/// Whether these words were told after that, in this story or one that is played beside it.
pub fn was_told_since(from: usize, words: &str) -> bool {
    memchr::memmem::find(&confidant().told[from..], words.as_bytes()).is_some()
}

/// What somebody got from a proxy: passes are to be kept, errors of its own and headers tell nothing.
pub fn heard(path: &str, headers: &str, body: &[u8]) {
    let of_admin = ["/api/", "/readyz", "/healthz", "/metrics"].iter().any(|root| path.starts_with(root));
    let is_own = headers.to_ascii_lowercase().contains("x-wecom-proxy-error") || of_admin;
    let mut confidant = confidant();
    confidant.told.extend_from_slice(headers.as_bytes());
    confidant.told.push(b'\n');
    if is_own {
        confidant.told.extend_from_slice(body);
        confidant.told.push(b'\n');
    } else if body.len() <= 4096 {
        confidant.learn_passes(&String::from_utf8_lossy(body));
    }
}

/// Learns what the configuration of a program that is about to start holds.
pub fn read_along(command: &Command) -> Option<Overheard> {
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
        confidant().learn_file(path, &env);
    }
    // These print the keys and secrets that they have made, for whoever asked for them.
    let prints_keys = command
        .get_args()
        .next()
        .is_some_and(|first| ["key", "demo", "simulator"].iter().any(|known| first == *known));
    Some(Overheard { path, prints_keys })
}

/// A program whose output is to be searched.
pub struct Overheard {
    path: Option<PathBuf>,
    prints_keys: bool,
}

impl Overheard {
    /// Searches all that it has written.
    pub fn search(&self, out: &str, err: &str) {
        let mut confidant = confidant();
        if let Some(path) = &self.path {
            confidant.learn_file(path, &|_| None);
        }
        confidant.catch_up();
        let found = confidant.search.find(err.as_bytes());
        let found = found.or_else(|| confidant.search.find(out.as_bytes()).filter(|_| !self.prints_keys));
        drop(confidant);
        assert!(found.is_none(), "a program tells a secret: {}", found.unwrap_or_default());
    }
}

/// Whether a text holds one of these, in whatever guise; what it holds, and where.
pub fn found_in(text: &str, secrets: &[&str]) -> Option<String> {
    let mut search = Search::default();
    for secret in secrets {
        guises(secret).into_iter().for_each(|guise| search.add(guise, secret));
    }
    search.find(text.as_bytes())
}

#[test]
fn every_guise_is_found_wherever_it_stands() {
    let secret = "a/secret+of 30 letters, or so~";
    let query = utf8_percent_encode(secret, NON_ALPHANUMERIC).to_string();
    let mut texts = vec![format!("x{secret}"), format!("?a={query}"), format!("?a={}", query.to_lowercase())];
    for before in ["", "a", "bc", "billing:"] {
        let pair = format!("{before}{secret}");
        texts.push(format!("Basic {}", BASE64_STANDARD_NO_PAD.encode(&pair)));
        texts.push(base64::prelude::BASE64_URL_SAFE.encode(format!("{pair} and more")));
    }
    for text in &texts {
        assert!(found_in(text, &["another secret", secret]).is_some(), "{text}");
        assert_eq!(found_in(&text.to_uppercase().replace(['A', 'E'], "_"), &[secret]), None);
    }
}

#[tokio::test]
async fn what_is_told_arrives_here() {
    let stage = Stage::open().await;
    let reply = stage.get("/cgi-bin/../x").await;
    reply.is_own("bad-request", 400, 40035);
    let admin = Caller::http1(stage.admin()).await.call(Request::get("/readyz"), "").await;
    tracing::trace!(target: "wecom_proxy", "a trace of the watch");
    stage.get(USER_GET).await.is_ok();
    let told = String::from_utf8_lossy(&confidant().told).into_owned();
    for words in
        ["dot segment", admin.text().trim_end(), "a trace of the watch", reply.header("x-request-id")]
    {
        assert!(told.contains(words), "{words}");
    }
    let issued = stage.wecom.issued().since(0);
    confidant().catch_up();
    assert!(issued.len() == 1 && confidant().known.contains(&issued[0]));
}

#[test]
fn a_story_that_tells_a_secret_fails() {
    let mut confidant = Confidant::default();
    confidant.learn_passes("{\"access_token\":\"wp1-AAAAAGqxO4ABbgFu\"}");
    confidant.told.extend_from_slice(b"wp1-AAAAAGqxO4ABbgFu was before this story");
    let from = confidant.told.len();
    confidant.told.extend_from_slice(b"wp1-AAAAAGqxO4ABbgFx is no pass");
    assert_eq!(confidant.verdict(from), None);
    confidant.told.extend_from_slice(b", and wp1-AAAAAGqxO4ABbgFu is one");
    assert!(confidant.verdict(from).is_some());
}
