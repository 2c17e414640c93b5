//! Commands print Chinese where the locale or `--lang` asks for it; help, logs and the fields of JSON stay as they are.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;
use tempfile::TempDir;
use wecom_proxy::simulator::{Fault, Settings, SimulatedAgent, Simulator};

use crate::{
    harness::{OPEN_CONFIG, TestProxy, USER_GET, closed_port, write_config},
    process::{ExitOutput, run, wecom_proxy},
};

const BROKEN: &str = "unknown = 1\n[server]\nlisten = \"nowhere\"\nidle_timeout = \"5 days\"\nopen = \"yes\"\n[upstream]\n\
    url = \"ftp://x\"\nvia = [\"http://a\", 7]\n[agents.hr]\ncorpid = \"xxxxx\"\nsecret = { env = \"NOT_SET\" }\n\
    [clients.erp]\nagents = [\"hq\"]\n";

/// Runs the program with these environment variables.
async fn run_with(variables: &[(&str, &str)], arguments: &[&str]) -> ExitOutput {
    let mut command = wecom_proxy(arguments);
    command.envs(variables.iter().copied());
    run(command).await
}

const CHINESE: (&str, &str) = ("LANG", "zh_CN.UTF-8");

fn is_chinese(text: &str) -> bool {
    text.chars().any(|char| ('\u{4e00}'..='\u{9fff}').contains(&char))
}

/// Asserts that there is no English beyond keys, values and names, which stand alone.
#[track_caller]
fn assert_no_english(text: &str) {
    const WORDS: [&str; 12] = [
        " is ", " the ", " must ", " not ", " and ", " of ", " to ", " cannot ", " write ", " has ", " no ",
        " one ",
    ];
    // WeCom's own words follow its errcode.
    for line in text.lines().filter(|line| !line.contains("errcode ")) {
        let found = WORDS.iter().find(|word| line.contains(*word));
        assert!(found.is_none(), "{found:?} in {line}");
    }
}

/// As [`assert_no_english`]; each line has Chinese too.
#[track_caller]
fn assert_chinese(text: &str) {
    assert_no_english(text);
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        assert!(is_chinese(line), "{line}");
    }
}

fn file_with(text: &str) -> (TempDir, PathBuf) {
    let dir = TempDir::new().expect("a directory");
    let path = dir.path().join("proxy.toml");
    fs::write(&path, text).expect("a file");
    (dir, path)
}

#[tokio::test]
async fn mistakes_follow_the_locale_and_the_option() {
    let (_dir, path) = file_with(BROKEN);
    let check = ["check", path.to_str().expect("UTF-8")];
    let english = run_with(&[], &check).await;
    let chinese = run_with(&[CHINESE], &check).await;
    assert_eq!((english.status, chinese.status), (2, 2));
    assert!(!is_chinese(&english.err), "{}", english.err);
    assert_chinese(&chinese.err);
    assert_eq!(english.err.lines().count(), chinese.err.lines().count(), "{}", chinese.err);

    let with_option = |language| [&check[..], &["--lang", language]].concat();
    assert_eq!(run_with(&[], &with_option("zh")).await.err, chinese.err);
    assert_eq!(run_with(&[CHINESE], &with_option("en")).await.err, english.err);
    assert_eq!(run_with(&[CHINESE, ("LC_ALL", "C")], &check).await.err, english.err);
    assert_eq!(run_with(&[("LANG", "C"), ("LC_MESSAGES", "zh_CN.UTF-8")], &check).await.err, chinese.err);
    // The same at the start.
    let serve = run_with(&[CHINESE], &["--config", check[1]]).await;
    assert_eq!((serve.status, serve.err), (2, chinese.err));
}

#[tokio::test]
async fn json_and_help_do_not_depend_on_the_locale() {
    let (_dir, path) = file_with(BROKEN);
    let check = ["check", "--json", path.to_str().expect("UTF-8")];
    let (english, chinese) = (run_with(&[], &check).await, run_with(&[CHINESE], &check).await);
    assert_eq!(english.out, chinese.out);
    let json: Value = serde_json::from_str(&chinese.out).expect("JSON");
    let (what, what_zh) = (&json["error"]["what"], &json["error"]["what_zh"]);
    assert!(
        !is_chinese(what.as_str().expect("a text")) && is_chinese(what_zh.as_str().expect("a text")),
        "{json}"
    );
    for arguments in [&["--help"][..], &["help", "check"]] {
        assert_eq!(run_with(&[], arguments).await.out, run_with(&[CHINESE], arguments).await.out);
    }
}

#[tokio::test]
async fn start_errors_follow_the_locale() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address");
    let agent = "[agents.hr]\ncorpid = \"ww1\"\nsecret = \"a-secret-of-hr\"\n";
    let (dir, path) = file_with(&format!("[server]\nlisten = \"{address}\"\n{agent}"));
    let config = path.to_str().expect("UTF-8");
    let output = run_with(&[CHINESE], &["--config", config]).await;
    assert_eq!(output.status, 1);
    let (log, error): (Vec<_>, Vec<_>) =
        output.err.lines().partition(|line| !line.starts_with("wecom-proxy: "));
    assert!(!log.is_empty() && !log.iter().any(|line| is_chinese(line)), "the log stays English: {log:?}");
    assert_chinese(&error.join("\n"));
    assert!(error[0].contains("地址已被占用"), "{error:?}");

    let missing = dir.path().join("missing.toml");
    let output = run_with(&[CHINESE], &["--config", missing.to_str().expect("UTF-8")]).await;
    assert_chinese(&output.err);
    assert!(output.err.contains("文件或目录不存在"), "{}", output.err);

    for (name, text, expected) in [
        ("tls", "[server.tls]\ncert = \"proxy.toml\"\nkey = \"proxy.toml\"\n", "没有找到证书"),
        (
            "state",
            "[state]\npath = \"missing/state.db\"\nkey = \"0123456789012345678901234567890123456789\"\n",
            "请先创建其目录",
        ),
        ("syntax", "[server\n", "TOML"),
    ] {
        let (_dir, path) = file_with(&format!("[server]\nlisten = \"127.0.0.1:0\"\n{text}{agent}"));
        let output = run_with(&[CHINESE], &["--config", path.to_str().expect("UTF-8")]).await;
        let error = output.err.lines().find(|line| line.starts_with("wecom-proxy: ")).unwrap_or_default();
        assert!(error.contains(expected), "{name}: {}", output.err);
        assert_chinese(error);
    }
}

/// The doctor: a wrong secret, an address that is not trusted, and a gateway in place of WeCom.
#[tokio::test]
async fn doctor_follows_the_locale() {
    let agents = ["hr", "ops"]
        .map(|name| SimulatedAgent::new(name, &format!("the-secret-of-{name}-0123456789"), 1_000_002));
    let settings = Settings { agents: agents.to_vec(), ..Settings::default() };
    let wecom = Simulator::start_local(settings.clone()).await.expect("a simulator");
    let dir = TempDir::new().expect("a directory");
    let path = write_config(&dir, wecom.api_addr(), &settings, OPEN_CONFIG);
    let check = ["check", "--online", path.to_str().expect("UTF-8")];
    let passed = run_with(&[CHINESE], &check).await;
    assert_eq!(passed.status, 0, "{passed:?}");
    assert!(passed.out.contains("正常") && passed.out.contains("有效"), "{}", passed.out);
    assert_no_english(&passed.out);

    wecom.reset_secret("hr", "another-secret-of-hr-0123456789").expect("an agent");
    wecom.inject(Fault::errcode(60020).on_path("/cgi-bin/agent/get").for_agent("ops")).expect("a fault");
    let failed = run_with(&[CHINESE], &check).await;
    assert_eq!(failed.status, 1, "{failed:?}");
    assert_no_english(&failed.out);
    assert_chinese(&failed.err);
    assert!(failed.out.contains("处理：") && !failed.out.contains("What to do"), "{}", failed.out);

    let nothing = closed_port();
    let path = write_config(&dir, nothing, &settings, OPEN_CONFIG);
    let unreachable = run_with(&[CHINESE], &["check", "--online", path.to_str().expect("UTF-8")]).await;
    assert!(
        unreachable.out.contains("无法连接企业微信") && unreachable.out.contains("连接被拒绝"),
        "{}",
        unreachable.out
    );
    assert_no_english(&unreachable.out);
}

#[tokio::test]
async fn mistakes_in_the_command_line_follow_the_locale() {
    for (arguments, expected) in [
        (&["chek"][..], "未知的命令 chek；是否想写 check？"),
        (&["check", "--onlin"], "未知的参数 --onlin；是否想写 --online？"),
        (&["key"], "缺少 <NAME>"),
        (&["check", "--agent", "hr"], "缺少 --online"),
        (&["tail", "--id", "x", "--failed"], "不能与 --failed 同时使用"),
        (&["status", "--admin"], "--admin <URL> 需要一个值"),
        (&["completions", "tcsh"], "的值 \"tcsh\" 无效；可用：bash, "),
        (&["inspect", "hr", "--for", "5x"], "请写成 10s 这样"),
        (&["--lang", "zh", "status", "--json", "--json"], "--json 只能写一次"),
    ] {
        let chinese = run_with(&[CHINESE], arguments).await;
        assert_eq!(chinese.status, 2, "{chinese:?}");
        assert!(chinese.err.contains(expected), "{}", chinese.err);
        assert_chinese(&chinese.err);
        let english = run_with(&[CHINESE], &[arguments, &["--lang=en"]].concat()).await;
        assert_eq!((english.status, is_chinese(&english.err)), (2, false), "{}", english.err);
    }
}

/// The commands that ask the running proxy, one of whose agents has a wrong secret.
#[tokio::test]
async fn live_commands_follow_the_locale() {
    let proxy = TestProxy::start_open().await;
    proxy.wecom.reset_secret("ops", "another-secret-of-ops").expect("an agent");
    proxy.get(USER_GET).await.assert_ok();
    proxy.get("/cgi-bin/user/get?userid=not-there").await;
    proxy.request(http::Request::get(format!("/ops{USER_GET}")), "").await;
    let url = format!("http://{}", proxy.admin_address());
    let live =
        async |arguments: &[&str]| run_with(&[CHINESE], &[arguments, &["--admin", &url]].concat()).await;
    for (arguments, expected) in [
        (&["status"][..], &["正常，但有应用失败", "状态库", "ops：gettoken 失败，errcode 40001"][..]),
        (&["agents"], &["有效", "gettoken 失败，errcode 40001", "管理后台："]),
        (&["tail", "--once", "--agent", "hr"], &["hint=UserID"]),
    ] {
        let output = live(arguments).await;
        assert_eq!(output.status, 0, "{output:?}");
        for text in expected {
            assert!(output.out.contains(text), "no {text:?} in {}", output.out);
        }
        assert_no_english(&output.out);
    }
    for command in ["refresh", "inspect"] {
        let output = live(&[command, "missing"]).await;
        assert_eq!(output.status, 2, "{output:?}");
        assert_chinese(&output.err);
    }
}

/// The literals of `text!` and `format_text!` in a file: English and Chinese.
fn texts_of(source: &str) -> Vec<(String, String)> {
    let mut texts = Vec::new();
    for (at, found) in source.match_indices("text!(") {
        let before = source[..at].chars().next_back();
        if before.is_some_and(|char| char.is_alphanumeric() || char == '_')
            && !source[..at].ends_with("format_")
        {
            continue;
        }
        let rest = &source[at + found.len()..];
        let Some((english, rest)) = literal(rest) else { continue };
        let Some((chinese, _)) = literal(rest.trim_start().trim_start_matches(',')) else { continue };
        texts.push((english, chinese));
    }
    texts
}

/// A string literal at the start, as it stands in the source, and what follows it.
fn literal(source: &str) -> Option<(String, &str)> {
    let inner = source.trim_start().strip_prefix('"')?;
    let mut is_escaped = false;
    let end = inner.find(|char| {
        let is_end = char == '"' && !is_escaped;
        is_escaped = char == '\\' && !is_escaped;
        is_end
    })?;
    Some((inner[..end].to_owned(), &inner[end + 1..]))
}

/// The parameters, sorted; the number of those without a name.
fn placeholders(text: &str) -> (usize, Vec<&str>) {
    let (mut unnamed, mut named) = (0, Vec::new());
    for part in text.replace("{{", "").leak().split('{').skip(1) {
        let name = part.split(['}', ':']).next().unwrap_or_default();
        match name.bytes().all(|byte| byte.is_ascii_digit()) {
            true => unnamed += 1,
            false => named.push(name),
        }
    }
    named.sort_unstable();
    named.dedup();
    (unnamed, named)
}

fn rust_files(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).expect("a directory").map(|entry| entry.expect("an entry").path());
    let (dirs, files): (Vec<_>, Vec<_>) = entries.partition(|path| path.is_dir());
    let files = files.into_iter().filter(|path| path.extension().is_some_and(|end| end == "rs"));
    files.chain(dirs.iter().flat_map(|dir| rust_files(dir))).collect()
}

#[test]
fn texts_have_the_same_parameters_in_both_languages() {
    let mut count = 0;
    for file in rust_files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src")) {
        let source = fs::read_to_string(&file).expect("a source file");
        for (english, chinese) in texts_of(&source) {
            let place = format!("{}: {english:?} {chinese:?}", file.display());
            assert_eq!(placeholders(&english), placeholders(&chinese), "{place}");
            let has_words =
                english.split(' ').filter(|word| word.chars().all(|char| char.is_ascii_lowercase())).count()
                    > 1;
            assert!(is_chinese(&chinese) || !has_words, "{place}");
            count += 1;
        }
    }
    assert!(count > 300, "only {count} texts were found");
}
