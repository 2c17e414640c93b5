//! The READMEs and the pages in docs: both languages have the same structure, and every command and setting in them works.
//!
//! The second word of a fenced block's info string (its kind) says how the block is tested:
//! - `setup` installs what the program needs, `init` the program and its first file; `edit` and `read` read from the terminal.
//! - `start` starts the program; `simulator` starts the WeCom behind it.
//! - `demo`, `serve` and `keys` run while the program runs, `replicas` while the demo with replicas runs, `each` on each of
//!   three replicas, `one` on one of them.
//! - `state` runs while the program runs with a state, with the keys in ADMIN_KEY and KEY; `suites` while it has suites.
//! - `key` creates a client key, `ca` creates certificates, `print` writes files.
//! - Of `container`, `install`, `tests` and `bench` only the named files are checked, and in `pasting` that a block can be
//!   pasted whole.
//!
//! A toml block is a whole configuration, or a `fragment` that extends the first one.

mod agents;
mod chinese;
mod pasting;
mod site;
mod suites;

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, ChildStderr, ChildStdout, Command, Stdio},
    rc::Rc,
    sync::LazyLock,
    time::Duration,
};

use tempfile::TempDir;
use toml::Table;
use wecom_proxy::config;

use crate::layers::rust_files;

/// The pages in docs without their endings, in the order in which their blocks are looked for. They are read when the tests run,
/// so that a change of a page compiles nothing.
const PAGE_NAMES: [&str; 18] = [
    "getting-started",
    "requests",
    "running",
    "clients",
    "deployment",
    "kubernetes",
    "legacy",
    "alerting",
    "migration",
    "agents",
    "callbacks",
    "suites",
    "commands",
    "monitoring",
    "operations",
    "scale",
    "performance",
    "architecture",
];
const BLOCK_KINDS: [&str; 21] = [
    "setup",
    "init",
    "edit",
    "read",
    "start",
    "demo",
    "replicas",
    "each",
    "one",
    "serve",
    "simulator",
    "key",
    "keys",
    "ca",
    "container",
    "install",
    "print",
    "tests",
    "bench",
    "state",
    "suites",
];
/// Languages of examples for other programs, which are not run.
const FOREIGN_LANGUAGES: [&str; 10] =
    ["mermaid", "java", "php", "python", "go", "csharp", "yaml", "env", "nginx", "javascript"];

/// Names on the architecture page that are not this project's, or no symbols.
const FOREIGN_SYMBOLS: [&str; 5] = ["ArcSwap", "LocalRuntime", "code", "replay.memory", "proxy.toml"];

/// The addresses in the READMEs: the proxy, its admin listener, and the control address of the demo's simulator.
const PROXY: &str = "127.0.0.1:8080";
const ADMIN: &str = "127.0.0.1:9090";
const CONTROL: &str = "127.0.0.1:8082";

/// A page in both languages.
struct Page {
    english: String,
    chinese: String,
}

/// The READMEs, then the pages in docs.
static PAGES: LazyLock<Vec<Page>> = LazyLock::new(|| {
    let pages = PAGE_NAMES.iter().map(|name| format!("docs/{name}"));
    let pages = ["README".to_owned()].into_iter().chain(pages);
    pages
        .map(|name| Page { english: read(&format!("{name}.md")), chinese: read(&format!("{name}.zh-CN.md")) })
        .collect()
});

/// A file of the repository.
fn read(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The page of this name in docs.
fn page(name: &str) -> &'static Page {
    let at = PAGE_NAMES.iter().position(|other| *other == name).expect("a page");
    &PAGES[at + 1]
}

/// A fenced code block.
#[derive(Debug, PartialEq)]
struct Block {
    language: String,
    kind: String,
    /// Without comment lines.
    text: String,
}

/// The heading levels and the fenced blocks of a page.
fn parse_page(readme: &str) -> (Vec<usize>, Vec<Block>) {
    let (mut headings, mut blocks, mut open) = (Vec::new(), Vec::new(), None::<Block>);
    for line in readme.lines() {
        match (line.strip_prefix("```"), open.as_mut()) {
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (Some(info), None) => {
                let (language, kind) = info.split_once(' ').unwrap_or((info, ""));
                open = Some(Block { language: language.into(), kind: kind.into(), text: String::new() });
            }
            (None, Some(block)) if !line.starts_with('#') => block.text.extend([line, "\n"]),
            (None, None) if line.starts_with('#') => headings.push(line.find(' ').expect("a heading")),
            _ => {}
        }
    }
    assert_eq!(open, None, "an unterminated block");
    (headings, blocks)
}

/// The texts of the English pages' blocks of this language and kind.
fn block_texts(language: &str, kind: &str) -> Vec<String> {
    let wanted = |block: &Block| block.language == language && block.kind == kind;
    let blocks = PAGES.iter().flat_map(|page| parse_page(&page.english).1);
    let found: Vec<_> = blocks.filter(wanted).map(|block| block.text.trim_end().to_owned()).collect();
    assert!(!found.is_empty(), "no block ```{language} {kind}");
    found
}

/// The first of the English pages' shell blocks of this kind that contains this text.
fn block_with(kind: &str, text: &str) -> String {
    let found = block_texts("sh", kind).into_iter().find(|block| block.contains(text));
    found.unwrap_or_else(|| panic!("no block ```sh {kind} with {text}"))
}

/// The first configuration in the README, which is a whole file.
fn first_config() -> Table {
    parse_toml(&block_texts("toml", "")[0])
}

fn parse_toml(text: &str) -> Table {
    text.parse().expect("TOML")
}

/// A program started as a README says, with its output.
struct RunningProgram {
    child: Child,
    stdout: BufReader<ChildStdout>,
    stderr: BufReader<ChildStderr>,
}

impl RunningProgram {
    fn start(script: &str, dir: &Path) -> Self {
        let mut child = shell(script, dir).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("sh");
        let stdout = BufReader::new(child.stdout.take().expect("its stdout"));
        let stderr = BufReader::new(child.stderr.take().expect("its stderr"));
        Self { child, stdout, stderr }
    }

    /// The TCP addresses of the proxy and of the admin listener, from the ready message.
    fn ready_addresses(&mut self) -> (String, String) {
        let stderr = read_lines_until(&mut self.stderr, |line| line.contains(": ready "));
        let line = stderr.lines().last().expect("a line");
        let address = |name: &str| {
            let (_, rest) = line.split_once(&format!(" {name}=\"")).expect("the addresses");
            let mut all = rest.split('"').next().expect("a closing quote").split(", ");
            all.find(|address| !address.starts_with("unix:")).expect("a TCP address").to_owned()
        };
        (address("listen"), address("admin"))
    }
}

/// Sends TERM first, so that the program stops its child processes, and kills it after 5 s.
impl Drop for RunningProgram {
    fn drop(&mut self) {
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        for _ in 0..100 {
            if matches!(self.child.try_wait(), Ok(Some(_)) | Err(_)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let _ = (self.child.kill(), self.child.wait());
    }
}

/// Reads up to and including the first line for which `is_last` is true.
fn read_lines_until(from: &mut impl BufRead, mut is_last: impl FnMut(&str) -> bool) -> String {
    let mut text = String::new();
    loop {
        let mut line = String::new();
        assert!(
            from.read_line(&mut line).expect("text") > 0,
            "the program exited after this output:\n{text}"
        );
        text.push_str(&line);
        if is_last(&line) {
            return text;
        }
    }
}

/// A shell in which `wecom-proxy` is the program under test and `curl` fails on HTTP errors.
fn shell(script: &str, dir: &Path) -> Command {
    let program_dir = Path::new(env!("CARGO_BIN_EXE_wecom-proxy")).parent().expect("its directory").display();
    let path = std::env::var("PATH").expect("a path");
    let mut shell = Command::new("sh");
    shell.args(["-euc", &format!("curl() {{ command curl -fsS \"$@\"; }}\n{script}")]).current_dir(dir);
    shell
        .env("PATH", format!("{program_dir}:{path}"))
        .env("RUST_LOG", "info")
        .env_remove("WECOM_PROXY_CONFIG");
    for name in ["STORE_KEY", "WECOM_PROXY_STATE_KEY"] {
        shell.env(name, "a-key-of-the-pages-0123456789-abcdef");
    }
    shell
}

/// Runs a block and returns its stdout. Every API request in it must succeed.
fn run_block(block: &str, shell: &mut Command) -> String {
    let output = shell.output().expect("sh");
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{block}\n{stdout}\n{stderr}");
    assert_eq!(
        stdout.matches("\"errcode\":0,\"errmsg\"").count(),
        block.matches("/cgi-bin/").count(),
        "{block}\n{stdout}"
    );
    stdout.into_owned()
}

/// A simulated WeCom and a proxy in front of it, started as the READMEs say.
struct DocumentedSetup {
    proxy: RunningProgram,
    listen: String,
    admin: String,
    secret: String,
    dir: TempDir,
    _wecom: Rc<RunningProgram>,
}

/// A simulated WeCom, and the configuration that it prints.
fn simulator() -> (Rc<RunningProgram>, Table) {
    let script =
        format!("exec {} --listen 127.0.0.1:0 --control 127.0.0.1:0", block_texts("sh", "simulator")[0]);
    let mut wecom = RunningProgram::start(&script, Path::new("."));
    let mut agents = 0;
    let printed = read_lines_until(&mut wecom.stdout, |line| {
        agents += usize::from(line.starts_with("agentid"));
        agents == 2
    });
    (Rc::new(wecom), parse_toml(&printed))
}

impl DocumentedSetup {
    /// Starts both with the first configuration, extended by `more`.
    fn serve(more: Table) -> Self {
        let (wecom, printed) = simulator();
        Self::serve_with(wecom, &printed, more)
    }

    /// Starts a proxy in front of this simulator.
    fn serve_with(wecom: Rc<RunningProgram>, printed: &Table, more: Table) -> Self {
        let dir = TempDir::new().expect("a directory");
        let secret = printed["agents"]["hr"]["secret"].as_str().expect("a secret").to_owned();

        let mut file = first_config();
        file.extend(more);
        file.insert("upstream".into(), printed["upstream"].clone());
        file.extend(parse_toml("[server]\nlisten = \"127.0.0.1:0\""));
        // `wecom-proxy health` connects to the first address, whose port must not be 0.
        let listen = parse_toml("listen = [\"unix:admin.sock\", \"127.0.0.1:0\"]");
        file.get_mut("admin").and_then(toml::Value::as_table_mut).expect("a table").extend(listen);
        fs::write(dir.path().join("proxy.toml"), file.to_string()).expect("the file");

        let script =
            block_with("start", "wecom-proxy serve").replace("wecom-proxy serve", "exec wecom-proxy serve");
        let script = format!("export WECOM_HR_SECRET='{secret}'\n{script}");
        let mut proxy = RunningProgram::start(&script, dir.path());
        let (listen, admin) = proxy.ready_addresses();
        Self { proxy, listen, admin, secret, dir, _wecom: wecom }
    }

    fn run_block(&self, block: &str, key: &str) -> String {
        let block = block.replace(PROXY, &self.listen).replace(ADMIN, &self.admin);
        // The real pkill would also find the proxies of other tests.
        let script = format!(
            "pkill() {{ [ \"$2\" = -xf ] && kill \"$1\" $(pgrep -xf \"$3\" | grep -x $PID); }}\n{block}"
        );
        let mut shell = shell(&script, self.dir.path());
        shell.env("PID", self.proxy.child.id().to_string()).env("KEY", key);
        run_block(&block, shell.env("WECOM_HR_SECRET", &self.secret))
    }
}

#[test]
fn architecture_page_names_existing_files_and_symbols() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = &page("architecture").english;
    let source =
        rust_files(&root.join("src")).into_iter().map(|file| fs::read_to_string(file).expect("a file"));
    let source = source.collect::<String>();
    let is_symbol = |name: &str| {
        ["fn", "struct", "enum", "trait", "mod", "const"].iter().any(|kind| {
            let definition = format!("{kind} {name}");
            source.match_indices(&definition).any(|(at, _)| {
                !source[at + definition.len()..]
                    .starts_with(|next: char| next.is_alphanumeric() || next == '_')
            })
        })
    };
    let prose = page.split("```").step_by(2).collect::<String>();
    let names = prose.split('`').skip(1).step_by(2).filter(|name| !FOREIGN_SYMBOLS.contains(name));
    let missing = names.filter(|name| match name.contains(['/', '.']) {
        true => ![root.join("src").join(name), root.join(name)].iter().any(|path| path.exists()),
        false => {
            let is_path = name.chars().all(|letter| letter.is_alphanumeric() || "_:".contains(letter));
            is_path && !is_symbol(name.rsplit("::").next().unwrap_or_default())
        }
    });
    assert_eq!(missing.collect::<Vec<_>>(), [""; 0]);
}

#[test]
fn english_and_chinese_pages_match() {
    for Page { english, chinese } in PAGES.iter() {
        let ((headings, blocks), (other_headings, other_blocks)) = (parse_page(english), parse_page(chinese));
        assert_eq!(headings, other_headings);
        // Of a diagram, the words differ, and their number of lines does not.
        let comparable = |blocks: &[Block]| {
            let text = |block: &Block| match &*block.language {
                "mermaid" => block.text.lines().count().to_string(),
                _ => block.text.clone(),
            };
            let parts = |block: &Block| (block.language.clone(), block.kind.clone(), text(block));
            blocks.iter().map(parts).collect::<Vec<_>>()
        };
        assert_eq!(comparable(&blocks), comparable(&other_blocks));
        let count = |page: &str, prefix: &str| page.lines().filter(|line| line.starts_with(prefix)).count();
        for prefix in ["| ", "- "] {
            assert_eq!(count(english, prefix), count(chinese, prefix), "{prefix}");
        }
        for Block { language, kind, .. } in blocks {
            let known = match language.as_str() {
                "sh" => BLOCK_KINDS.contains(&kind.as_str()),
                "toml" => ["", "fragment"].contains(&kind.as_str()),
                foreign => FOREIGN_LANGUAGES.contains(&foreign) && kind.is_empty(),
            };
            assert!(known, "```{language} {kind}");
        }
    }
}

#[test]
fn documented_settings_are_accepted() {
    let dir = TempDir::new().expect("a directory");
    for name in ["server.pem", "server.key", "ca.pem"] {
        fs::write(dir.path().join(name), "").expect("a file");
    }
    fs::write(dir.path().join("egress-password"), "secret").expect("a file");
    let path = dir.path().join("proxy.toml");
    let check = |file: &str| {
        // Zeros in a page are a placeholder for the hash of a key.
        fs::write(&path, file.replace(&"0".repeat(64), &"01".repeat(32))).expect("the file");
        let secret = |name: &str| match name {
            "WECOM_HR_SECRET" | "STORE_PASSWORD" => Some("secret".to_owned()),
            "STORE_KEY" | "OLD_STORE_KEY" | "WECOM_PROXY_STATE_KEY" => Some(name.repeat(4)),
            "HR_CALLBACK_TOKEN" => Some("token".to_owned()),
            "HR_CALLBACK_AES_KEY" => Some("a1".repeat(21) + "a"),
            "CRM_AES_KEY" => Some("jWmYm7qr5nMoAUwZRjGtBxmz3KA1tkAj3ykkR6q2B2C".to_owned()),
            name if name.starts_with("CRM_") || name.starts_with("ACME_") => Some("secret".to_owned()),
            _ => None,
        };
        config::load_with_env(&path, &secret).unwrap_or_else(|error| panic!("{file}\n{error}"))
    };
    for file in block_texts("toml", "") {
        assert!(check(&file).warnings.is_empty(), "{file}");
    }
    let fragments = block_texts("toml", "fragment");
    let mut base = first_config();
    base.extend(parse_toml(fragments.iter().find(|text| text.contains("[clients.")).expect("a client")));
    let suites = fragments.iter().find(|text| text.contains("[suites.crm]")).expect("a suite");
    let suites = parse_toml(suites);
    for fragment in &fragments {
        let mut file = base.clone();
        if fragment.contains("suite = \"crm\"") {
            file.extend(suites.clone());
        }
        file.extend(parse_toml(fragment));
        check(&file.to_string());
    }
}

#[test]
fn documented_init_writes_the_documented_file() {
    for block in block_texts("sh", "init") {
        let home = TempDir::new().expect("a directory");
        let script = format!("cargo() {{ :; }}\n{block}");
        let shown = run_block(&script, shell(&script, Path::new(".")).env("HOME", home.path()));
        assert!(shown.contains("Wrote proxy.toml"), "{shown}");
        let written = fs::read_to_string(home.path().join("wecom-proxy/proxy.toml")).expect("the file");
        assert_eq!(written.trim_end(), block_texts("toml", "")[0]);
    }
}

#[test]
fn documented_rust_version_is_the_required_one() {
    let manifest = parse_toml(include_str!("../../Cargo.toml"));
    let version = manifest["package"]["rust-version"].as_str().expect("a version");
    let toolchain = parse_toml(include_str!("../../rust-toolchain.toml"));
    assert!(toolchain["toolchain"]["channel"].as_str().is_some_and(|channel| channel.starts_with(version)));
    let readme = &PAGES[0];
    let names_version = |page: &String| page.contains(&format!("Rust {version}"));
    assert!([&readme.english, &readme.chinese].into_iter().all(names_version));
    let dockerfile = read("Dockerfile");
    assert!(dockerfile.contains(&format!("ARG RUST_IMAGE=rust:{version}-")), "{dockerfile}");
}

#[test]
fn demo_prints_the_documented_commands() {
    let dir = TempDir::new().expect("a directory");
    // The two commands of a fresh machine with Rust.
    let readme = parse_page(&PAGES[0].english).1;
    let cargo = readme.iter().find(|block| block.text.contains("cargo")).expect("a command");
    assert_eq!((&*cargo.kind, &*cargo.text), ("start", "cargo run --release -- demo\n"));
    assert_eq!(readme.iter().filter(|block| block.kind == "tests").count(), 1);
    let mut demo = RunningProgram::start("exec wecom-proxy demo --listen 127.0.0.1:0", dir.path());
    let (listen, _) = demo.ready_addresses();
    let printed = read_lines_until(&mut demo.stdout, |line| line.contains("Ctrl-C"));
    let (_, control) = printed.split_once("-X POST 'http://").expect("the third line");
    let control = control.split('/').next().expect("an address");
    let mut stdout = String::new();
    for block in block_texts("sh", "demo") {
        let block = block.replace(PROXY, &listen).replace(CONTROL, control);
        for line in block.lines() {
            assert!(printed.lines().any(|other| other == line), "{line}\n{printed}");
        }
        stdout += &run_block(&block, &mut shell(&block, dir.path()));
    }
    assert!(stdout.contains("x-wecom-retried: 40014"), "{stdout}");
}

#[test]
fn replica_demo_prints_the_documented_commands() {
    crate::process::tool("redis-server");
    let dir = TempDir::new().expect("a directory");
    assert_eq!(block_with("start", "--replicas"), "cargo run --release -- demo --replicas 3");
    let script = "exec wecom-proxy demo --replicas 3 --listen 127.0.0.1:0";
    let mut demo = RunningProgram::start(script, dir.path());
    let printed = read_lines_until(&mut demo.stdout, |line| line.contains("Ctrl-C"));
    let address = |before: &str| {
        let (_, rest) = printed.split_once(before).expect("a line");
        rest.split(['/', ',']).next().expect("an address").to_owned()
    };
    let (listen, control) = (address("proxies behind http://"), address("-X POST 'http://"));
    let block = block_texts("sh", "replicas")[0].replace(PROXY, &listen).replace(CONTROL, &control);
    for line in block.lines() {
        assert!(printed.lines().any(|other| other == line), "{line}\n{printed}");
    }
    let output = shell(&block, dir.path()).output().expect("sh");
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{stdout}\n{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(stdout.matches("\"errcode\":0,").count(), 6, "{stdout}");
    assert!(stdout.contains("x-wecom-retried: 40014"), "{stdout}");
    assert!(stdout.trim_end().ends_with("}2"), "gettokens: {stdout}");
}

#[test]
fn documented_operator_commands_work() {
    let setup = DocumentedSetup::serve(Table::new());
    let stdout: String = block_texts("sh", "serve").iter().map(|block| setup.run_block(block, "")).collect();
    assert_eq!(stdout.matches("\"status\":\"ok\"").count(), 3, "{stdout}");
    assert!(stdout.contains("\"state\":\"valid\"") && stdout.contains("agent/get ok"), "{stdout}");
    assert!(stdout.contains("\nwecom_proxy_requests_total{"), "{stdout}");
    assert!(stdout.contains("\"same_token\":") && stdout.contains("\"needs_restart\":[]"), "{stdout}");
}

#[test]
fn documented_replica_commands_show_sharing() {
    let redis = crate::redis_server::free_address();
    let script =
        format!("exec redis-server --port {} --bind 127.0.0.1 --save '' --appendonly no", redis.port());
    let (dir, (wecom, printed)) = (TempDir::new().expect("a directory"), simulator());
    crate::process::tool("redis-server");
    let mut server = RunningProgram::start(&script, dir.path());
    read_lines_until(&mut server.stdout, |line| line.contains("Ready to accept connections"));
    let fragments = block_texts("toml", "fragment");
    let store = fragments.iter().find(|text| text.contains("redis://10.0.0.5:6379/0")).expect("a store");
    let store = store.replace("10.0.0.5:6379", &redis.to_string());
    let replicas: Vec<_> =
        (0..3).map(|_| DocumentedSetup::serve_with(wecom.clone(), &printed, parse_toml(&store))).collect();
    let (each, one) = (block_texts("sh", "each"), block_texts("sh", "one"));
    let at_each =
        |block: &str| replicas.iter().map(|replica| replica.run_block(block, "")).collect::<Vec<_>>();
    for stdout in at_each(&each[0]) {
        assert!(stdout.contains(&format!("the store at {redis}: ok")), "{stdout}");
    }
    let counts_refresh =
        |stdout: &str, reason: &str| stdout.contains(&format!("reason=\"{reason}\",result=\"ok\"}} 1"));
    for (nth, stdout) in at_each(&each[1]).iter().enumerate() {
        assert!(stdout.contains(r#""store":{"kind":"redis","ok":true"#), "{stdout}");
        assert_eq!(
            (counts_refresh(stdout, "first"), counts_refresh(stdout, "shared")),
            (nth == 0, nth > 0),
            "{stdout}"
        );
    }
    assert!(replicas[0].run_block(&one[0], "").contains("\"ok\":true"));
    let is_shared = |stdout: &Vec<String>| {
        stdout[0].contains("asked")
            && stdout[1..].iter().all(|stdout| stdout.contains("reason=\"shared\",result=\"ok\"} 2"))
    };
    let rounds = (0..100).map(|_| {
        std::thread::sleep(Duration::from_millis(50));
        at_each(&each[2])
    });
    assert!(
        rounds.into_iter().any(|stdout| is_shared(&stdout)),
        "the other replicas do not use the new token"
    );
}

#[test]
fn documented_client_key_commands_work() {
    let dir = TempDir::new().expect("a directory");
    let script = &block_texts("sh", "key")[0];
    let stdout = run_block(script, &mut shell(script, dir.path()));
    let (key, section) = stdout.split_once('\n').expect("a key and a section");
    let fragments = block_texts("toml", "fragment");
    let mut clients =
        parse_toml(fragments.iter().find(|text| text.contains("key_sha256")).expect("a client"));
    clients["clients"]["billing"]["key_sha256"] =
        parse_toml(section)["clients"]["billing"]["key_sha256"].clone();
    let setup = DocumentedSetup::serve(clients);
    for block in block_texts("sh", "keys") {
        setup.run_block(&block, key);
    }
    let refused = shell(&format!("curl 'http://{}/cgi-bin/user/get'", setup.listen), dir.path()).output();
    assert!(!refused.expect("sh").status.success(), "the key is required");
}

#[test]
fn documented_private_ca_signs_the_host() {
    let dir = TempDir::new().expect("a directory");
    let script = &block_texts("sh", "ca")[0];
    run_block(script, &mut shell(script, dir.path()));
    let check = "openssl verify -CAfile ca.pem -verify_hostname qyapi.weixin.qq.com server.pem";
    assert!(run_block(check, &mut shell(check, dir.path())).contains("OK"));
}

#[test]
fn documented_files_exist() {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
    let assert_exists = |name: &str| assert!(repository.join(name).exists(), "{name} does not exist");
    for name in ["proxy.toml", "Dockerfile", ".dockerignore"] {
        assert_exists(name);
    }
    for block in ["install", "edit", "setup", "init"].iter().flat_map(|kind| block_texts("sh", kind)) {
        let paths = block.split_whitespace().filter(|word| word.starts_with("deploy/"));
        paths.filter(|path| !path.contains("/secrets")).for_each(assert_exists);
        let checked = Command::new("sh").args(["-nc", &block]).output().expect("sh");
        assert!(checked.status.success(), "{block}");
    }
    for block in block_texts("sh", "tests") {
        assert_exists(block.strip_prefix("sh ").expect("a script"));
    }
    for block in block_texts("sh", "bench") {
        assert_exists(block.strip_prefix("python3 ").expect("a script"));
    }
    let dockerfile = read("Dockerfile");
    let uses_path = dockerfile.contains("WECOM_PROXY_CONFIG=/etc/wecom-proxy/proxy.toml");
    assert!(uses_path && block_texts("sh", "container")[0].contains(":/etc/wecom-proxy:"));
}

/// A copied configuration has placeholders for agents, keys and registries.
#[test]
fn documented_configs_are_edited_before_the_start() {
    let pages = [page("deployment"), page("kubernetes")].map(|page| &*page.english).join("\n");
    let commands: String = parse_page(&pages).1.into_iter().map(|block| block.text).collect();
    let position =
        |command: &str| commands.find(command).unwrap_or_else(|| panic!("no {command} in\n{commands}"));
    for (config, start) in [
        ("/etc/wecom-proxy/proxy.toml", "systemctl enable"),
        ("deploy/compose/config/proxy.toml", " up -d"),
        ("deploy/kubernetes/configmap.yaml", "kubectl apply -k"),
    ] {
        assert!(position(&format!("\"${{EDITOR:-vi}}\" {config}")) < position(start), "{config}");
    }
}

#[test]
fn documented_man_page_and_completions_are_written() {
    let dir = TempDir::new().expect("a directory");
    let script = &block_texts("sh", "print")[0];
    run_block(script, &mut shell(script, dir.path()));
    for (name, expected) in [("wecom-proxy.1", ".TH wecom-proxy 1"), ("wecom-proxy.bash", "complete -F")] {
        let text = fs::read_to_string(dir.path().join(name)).expect("a text");
        assert!(text.contains(expected), "{text}");
    }
}
