//! The program as an operator meets it: its commands, its messages, its exit status.

use std::{fs, net::TcpListener, path::PathBuf, process::Command};

use tempfile::TempDir;
use wecom_proxy::simulator::Settings;

use crate::{
    harness::wait_for,
    harness::{OPEN_CONFIG, write_config},
    process::{ExitOutput, Process, curl, log_field, run, run_wecom_proxy, tool, wecom_proxy},
};

const REPOSITORY_CONFIG: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/proxy.toml");

/// A configuration that passes, in a directory of its own.
fn write_config_file(text: &str) -> (TempDir, PathBuf) {
    let dir = TempDir::new().expect("a directory");
    let path = dir.path().join("proxy.toml");
    fs::write(&path, text).expect("a file");
    (dir, path)
}

fn path_text(path: &std::path::Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

const MINIMAL_CONFIG: &str = r#"
[server]
listen = "127.0.0.1:0"
[agents.hr]
corpid = "ww1234567890abcdef"
secret = { env = "WECOM_HR_SECRET" }
"#;

#[track_caller]
fn assert_exit(ended: &ExitOutput, status: i32, words: &[&str]) {
    assert_eq!(ended.status, status, "{ended:?}");
    for word in words {
        assert!(ended.err.contains(word), "no {word:?} in {}", ended.err);
    }
}

#[tokio::test]
async fn demo_prints_three_working_curl_commands() {
    let demo = Process::start(wecom_proxy(&["demo", "--listen", "127.0.0.1:0"]));
    demo.out.wait_for_line("Ctrl-C").await;
    demo.err.wait_for_line("ready listen=").await;
    let said = demo.out.text();
    let lines: Vec<_> = said.lines().filter(|line| line.starts_with("curl ")).collect();
    assert_eq!(lines.len(), 3, "{said}");
    // A link to the dashboard, which answers.
    let dashboard = said.lines().find(|line| line.starts_with("Dashboard of the proxy")).expect("a line");
    let (_, link) = dashboard.split_once(": ").expect("a link");
    assert!(curl(&[link]).await.contains("<title>wecom-proxy</title>"), "{dashboard}");
    tool("curl");
    let paste = async |line: &str| {
        let mut bash = Command::new(tool("bash"));
        bash.args(["-c", line]).env("no_proxy", "*");
        let ended = run(bash).await;
        assert_eq!(ended.status, 0, "{line}: {}", ended.err);
        ended.out
    };
    let first: serde_json::Value = serde_json::from_str(&paste(lines[0]).await).expect("JSON");
    assert_eq!((&first["errcode"], &first["userid"]), (&0.into(), &"zhangsan".into()), "{first}");
    let second: serde_json::Value = serde_json::from_str(&paste(lines[1]).await).expect("JSON");
    assert_eq!(second["errcode"], 0, "{second}");
    let third = paste(lines[2]).await.to_lowercase();
    assert!(third.contains("http/1.1 200") && third.contains("x-wecom-retried: 40014"), "{third}");
    assert!(third.contains("\"errcode\":0") && third.contains("zhangsan"), "{third}");

    let control =
        lines[2].split('\'').nth(1).and_then(|url| url.split("/control").next()).expect("an address");
    let messages = curl(&[&format!("{control}/control/messages")]).await;
    assert!(messages.contains("你好"), "{messages}");
    let ended = demo.stop().await;
    assert_eq!(ended.status, 0, "{}", ended.err);
    assert!(!ended.err.contains("not-a-secret") && !ended.out.contains("not-a-secret"));
}

#[tokio::test]
async fn simulator_output_works_as_a_configuration() {
    let arguments = ["simulator", "--listen", "127.0.0.1:0", "--control", "127.0.0.1:0"];
    let simulator = Process::start(wecom_proxy(&arguments));
    simulator.out.wait_for_line("agentid = 1000003").await;
    let printed = simulator.out.text();
    let (_dir, path) = write_config_file(&format!("[server]\nlisten = \"127.0.0.1:0\"\n\n{printed}"));
    let proxy = Process::serve(&path).await;
    let address = proxy.address().await;
    for agent in ["hr", "ops"] {
        let answer = curl(&[&format!("http://{address}/{agent}/cgi-bin/user/get?userid=zhangsan")]).await;
        assert!(answer.contains("\"errcode\":0"), "{answer}");
    }
    assert_eq!(proxy.stop().await.status, 0);
    let ended = simulator.stop().await;
    assert_eq!(ended.status, 0, "{}", ended.err);
}

#[tokio::test]
async fn repository_config_passes_check_with_its_secret_set() {
    let mut check = wecom_proxy(&["check", "--config", REPOSITORY_CONFIG]);
    check.env("WECOM_HR_SECRET", "a-secret-that-nobody-sees");
    let ended = run(check).await;
    assert_exit(&ended, 0, &[]);
    assert!(ended.out.contains("hr") && ended.out.contains("ww1234567890abcdef"), "{}", ended.out);
    assert!(ended.out.contains("is valid"), "{}", ended.out);
    assert!(!ended.out.contains("a-secret-that") && !ended.err.contains("a-secret-that"), "{ended:?}");
    let ended = run_wecom_proxy(&["check", "--config", REPOSITORY_CONFIG]).await;
    let line = fs::read_to_string(REPOSITORY_CONFIG).expect("the file");
    let line = 1 + line.lines().position(|line| line.contains("WECOM_HR_SECRET")).expect("a line");
    assert_exit(
        &ended,
        2,
        &[&format!("proxy.toml:{line}"), "agents.hr.secret", "WECOM_HR_SECRET", "not set"],
    );
    assert_eq!(ended.out, "");
}

#[tokio::test]
async fn check_lists_clients_and_warns_of_plain_secrets() {
    let (_dir, path) = write_config_file(
        "[agents.hr]\ncorpid = \"ww1\"\nsecret = \"a-plain-secret-of-hr\"\nagentid = 7\n[clients.billing]\nkey = \"a-plain-key-of-billing-0123456789\"\nagents = [\"hr\"]\nallow = [\"POST /cgi-bin/message/send\"]\n",
    );
    let ended = run_wecom_proxy(&["check", "--config", path_text(&path)]).await;
    assert_exit(&ended, 0, &["warning", "plain text", "agents.hr.secret", "clients.billing.key"]);
    for words in ["hr", "ww1", "7", "billing", "POST /cgi-bin/message/send"] {
        assert!(ended.out.contains(words), "{}", ended.out);
    }
    assert!(!format!("{ended:?}").contains("a-plain-"), "{ended:?}");
}

#[tokio::test]
async fn invalid_config_is_refused_with_file_line_and_key() {
    let cases = [
        ("[server]\nlissten = \"a\"\n", "proxy.toml:2", "server.lissten"),
        ("[server]\nheader_timeout = \"soon\"\n", "proxy.toml:2", "server.header_timeout"),
        ("[upstream]\nurl = \"ftp://a\"\n", "proxy.toml:2", "upstream.url"),
        ("\n[server\n", "proxy.toml:2", ""),
        ("[upstream]\n\nca_file = \"missing.pem\"\n", "proxy.toml:3", "upstream.ca_file"),
        ("[server]\ntls = { cert = \"a.pem\", key = \"b.pem\" }\n", "proxy.toml:2", "server.tls.cert"),
        ("[server]\nlisten = \"0.0.0.0:0\"\n", "proxy.toml:2", "server.listen"),
    ];
    for (bad, place, key) in cases {
        let good = "[agents.hr]\ncorpid = \"ww1\"\nsecret = \"a-plain-secret\"\n";
        let (_dir, path) = write_config_file(&format!("{bad}{good}"));
        for command in ["serve", "check"] {
            let ended = run_wecom_proxy(&[command, "--config", path_text(&path)]).await;
            assert_exit(&ended, 2, &["wecom-proxy: ", place, key]);
            assert!(!ended.err.contains("a-plain-secret"), "{}", ended.err);
        }
    }
    for command in ["serve", "check", "health"] {
        let ended = run_wecom_proxy(&[command, "--config", "/nowhere/proxy.toml"]).await;
        assert_exit(&ended, 2, &["/nowhere/proxy.toml"]);
    }
}

#[tokio::test]
async fn invalid_command_line_is_refused() {
    let lines: &[&[&str]] = &[
        &["dance"],
        &["--confg", "a"],
        &["completions", "dos"],
        &["demo", "--listen", "everywhere"],
        &["demo", "--replicas", "2", "--redis", "127.0.0.1:6379"],
        &["simulator", "--token-lifetime", "soon"],
        &["serve", "--config"],
    ];
    for arguments in lines {
        let ended = run_wecom_proxy(arguments).await;
        assert_eq!((ended.status, &*ended.out), (2, ""), "{arguments:?}: {}", ended.err);
        assert!(!ended.err.is_empty(), "{arguments:?}");
    }
    for arguments in [["--help"], ["--version"]] {
        assert_exit(&run_wecom_proxy(&arguments).await, 0, &[]);
    }
}

#[tokio::test]
async fn port_in_use_exits_with_1() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    let (_dir, path) = write_config_file(&MINIMAL_CONFIG.replace("127.0.0.1:0", &address));
    let mut serve = wecom_proxy(&["serve", "--config", path_text(&path)]);
    serve.env("WECOM_HR_SECRET", "a");
    assert_exit(&run(serve).await, 1, &["cannot listen on", &address]);
    let ended = run_wecom_proxy(&["demo", "--listen", &address]).await;
    assert_exit(&ended, 1, &["cannot listen on", &address, "stop what listens there"]);
    for (listen, words) in [
        ("192.0.2.1:8099\"\nopen = true #", "this machine has no such address"),
        ("unix:no-such-directory/a.sock", "make the directory first"),
    ] {
        let (_dir, path) = write_config_file(&MINIMAL_CONFIG.replace("127.0.0.1:0", listen));
        let mut serve = wecom_proxy(&["serve", "--config", path_text(&path)]);
        serve.env("WECOM_HR_SECRET", "a");
        assert_exit(&run(serve).await, 1, &["cannot listen on", words]);
    }
    let ended = run_wecom_proxy(&["simulator", "--listen", &address, "--control", "127.0.0.1:0"]).await;
    assert_exit(
        &ended,
        1,
        &["cannot listen on", &address, "another address with --listen, or stop what listens"],
    );
    let ended = run_wecom_proxy(&["simulator", "--listen", "127.0.0.1:0", "--control", &address]).await;
    assert_exit(&ended, 1, &["cannot listen on", &address, "another address with --control"]);
}

#[tokio::test]
async fn demo_with_its_ports_in_use_takes_others() {
    // Where somebody else has them they are taken all the same.
    let _held = [8080, 8082].map(|port| TcpListener::bind(("127.0.0.1", port)));
    let demo = Process::start(wecom_proxy(&["demo"]));
    let address = demo.address().await;
    demo.out.wait_for_line("Ctrl-C").await;
    let said = demo.out.text();
    let moved = format!("Port 8080 is taken, so the proxy is on {address} instead.\n");
    assert!(said.starts_with(&moved), "{said}");
    assert!(
        said.contains("Port 8082 is taken, so the simulator's control address is on 127.0.0.1:"),
        "{said}"
    );
    assert!(said.contains(&format!("curl 'http://{address}/hr/cgi-bin/user/get")), "{said}");
    assert_eq!(demo.stop().await.status, 0);
}

#[tokio::test]
async fn health_command_reports_readiness() {
    let wecom = crate::leak_detector::start_simulator(Settings::default()).await;
    let dir = TempDir::new().expect("a directory");
    let toml = OPEN_CONFIG
        .replace("[admin]\nlisten = \"127.0.0.1:0\"", "[admin]\nlisten = \"unix:{dir}/admin.sock\"");
    let path = write_config(&dir, wecom.api_addr(), &Settings::default(), &toml);
    let health = async || run_wecom_proxy(&["health", "--config", path_text(&path)]).await;
    assert_exit(&health().await, 1, &["no response from"]);
    let proxy = Process::serve(&path).await;
    let ended = health().await;
    assert_exit(&ended, 0, &[]);
    assert!(ended.out.contains("\"status\":\"ok\""), "{}", ended.out);
    for agent in ["hr", "ops"] {
        wecom.reset_secret(agent, "another-secret").expect("an agent");
    }
    let address = proxy.address().await;
    curl(&[&format!("http://{address}/hr/cgi-bin/user/get?userid=zhangsan")]).await;
    let ended = health().await;
    assert_exit(&ended, 1, &["not ready"]);
    assert!(ended.out.contains("40001"), "{}", ended.out);
    assert_eq!(proxy.stop().await.status, 0);
    assert_exit(&health().await, 1, &["no response from"]);
    write_config(
        &dir,
        wecom.api_addr(),
        &Settings::default(),
        &OPEN_CONFIG.replace("[admin]\nlisten = \"127.0.0.1:0\"", ""),
    );
    assert_exit(&health().await, 2, &["add a line [admin] to the file, and restart"]);
}

#[tokio::test]
async fn manual_page_lists_every_command() {
    let dir = TempDir::new().expect("a directory");
    let page = dir.path().join("wecom-proxy.1");
    let ended = run_wecom_proxy(&["man"]).await;
    assert_exit(&ended, 0, &[]);
    fs::write(&page, ended.out).expect("a file");
    let mut groff = Command::new(tool("groff"));
    groff.args(["-man", "-Tutf8", "-Kutf8", "-ww", "-P-cbou"]).arg(&page);
    let ended = run(groff).await;
    // What it does not like it only complains of.
    assert_eq!((ended.status, &*ended.err), (0, ""));
    let help = run_wecom_proxy(&["--help"]).await.out;
    let (_, commands) = help.split_once("Commands:\n").expect("commands");
    let named = commands.lines().map_while(|line| line.strip_prefix("  ")?.split(' ').next());
    let mut count = 0;
    for command in named.filter(|command| !["", "help"].contains(command)) {
        assert!(ended.out.contains(&format!("   wecom-proxy {command}\n")), "{command}: {}", ended.out);
        count += 1;
    }
    assert!(count >= 8, "{help}");
    for words in ["--token-lifetime", "--config", "SIGHUP", "EXIT STATUS"] {
        assert!(ended.out.contains(words), "{words}: {}", ended.out);
    }
}

#[tokio::test]
async fn completions_are_printed_for_each_shell() {
    for (shell, words) in
        [("bash", "complete -F"), ("zsh", "#compdef wecom-proxy"), ("fish", "complete -c wecom-proxy")]
    {
        let ended = run_wecom_proxy(&["completions", shell]).await;
        assert_exit(&ended, 0, &[]);
        assert!(ended.out.contains(words) && ended.out.contains("simulator"), "{}", ended.out);
    }
    let script = run_wecom_proxy(&["completions", "bash"]).await.out;
    let mut bash = Command::new(tool("bash"));
    bash.args(["-n", "-c", &script]);
    assert_exit(&run(bash).await, 0, &[]);
}

#[tokio::test]
async fn config_path_is_taken_from_options_or_environment() {
    let (_dir, path) = write_config_file(MINIMAL_CONFIG);
    let (_other_dir, other) = write_config_file("[server]\nlissten = 1\n");
    let path = path_text(&path);
    let lines: &[(&[&str], &str)] = &[
        (&["check", "--config", path], ""),
        (&["--config", path, "check"], ""),
        (&["check"], path),
        (&["check", "--config", path], path_text(&other)),
        (&["--config", path, "check"], path_text(&other)),
    ];
    for (arguments, variable) in lines {
        let mut command = wecom_proxy(arguments);
        command.env("WECOM_HR_SECRET", "a-secret");
        if !variable.is_empty() {
            command.env("WECOM_PROXY_CONFIG", variable);
        }
        let ended = run(command).await;
        assert_exit(&ended, 0, &[]);
        assert!(ended.out.contains(&format!("{path} is valid")), "{arguments:?}: {}", ended.out);
    }
    // `serve` is the default.
    for arguments in [&["--config", path][..], &[], &["serve"]] {
        let mut command = wecom_proxy(arguments);
        command.env("WECOM_HR_SECRET", "a-secret").env("WECOM_PROXY_CONFIG", path);
        let proxy = Process::start(command);
        proxy.err.wait_for_line("ready listen=").await;
        assert_eq!(proxy.stop().await.status, 0);
    }
}

#[tokio::test]
async fn ready_line_has_real_ports_at_any_level_and_format() {
    for level in ["info", "error"] {
        let text_format =
            format!("{MINIMAL_CONFIG}[admin]\nlisten = \"127.0.0.1:0\"\n[log]\nlevel = \"{level}\"\n");
        let json_format = format!("{text_format}format = \"json\"\n");
        let start = |toml: &str| {
            let (dir, path) = write_config_file(toml);
            let mut command = wecom_proxy(&["--config", path_text(&path)]);
            command.env("WECOM_HR_SECRET", "a-secret");
            (dir, Process::start(command))
        };
        let (_dir, proxy) = start(&text_format);
        let line = proxy.err.wait_for_line("ready listen=").await;
        let served = r#"upstream="https://qyapi.weixin.qq.com" agents=1 clients=0 store="memory" open=true"#;
        assert!(line.contains(served), "{line}");
        let (listen, admin) = (log_field(&line, "listen"), log_field(&line, "admin"));
        let (_json_dir, json_proxy) = start(&json_format);
        let line = json_proxy.err.wait_for_line("\"message\":\"ready\"").await;
        let line: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(
            (&line["level"], &line["agents"], &line["open"]),
            (&"INFO".into(), &1.into(), &true.into())
        );
        for address in [&*listen, &*admin, line["listen"].as_str().unwrap(), line["admin"].as_str().unwrap()]
        {
            let real: std::net::SocketAddr = address.parse().expect("an address");
            assert_ne!(real.port(), 0);
            std::net::TcpStream::connect(real).expect("somebody listens");
        }
        for proxy in [proxy, json_proxy] {
            let ended = proxy.stop().await;
            assert_eq!((ended.status, &*ended.out), (0, ""), "logs go to stderr");
        }
    }
}

#[tokio::test]
async fn demo_replicas_without_redis_names_what_is_missing() {
    let mut demo = wecom_proxy(&["demo", "--replicas", "2", "--listen", "127.0.0.1:0"]);
    demo.env("PATH", "/nowhere");
    assert_exit(&run(demo).await, 1, &["redis-server", "--redis"]);
}

/// The processes that this one has started.
async fn child_pids(pid: &str) -> Vec<String> {
    let mut pgrep = Command::new(tool("pgrep"));
    pgrep.args(["-P", pid]);
    run(pgrep).await.out.lines().map(str::to_owned).collect()
}

#[tokio::test]
async fn killed_demo_leaves_no_redis_server() {
    let arguments = ["demo", "--replicas", "2", "--listen", "127.0.0.1:0"];
    let demo = Process::start(wecom_proxy(&arguments));
    demo.out.wait_for_line("Ctrl-C").await;
    let line = demo.out.wait_for_line("Dashboards of the proxies").await;
    assert_eq!(line.split_whitespace().filter(|word| word.starts_with("http://")).count(), 2, "{line}");
    let [watchdog] = &child_pids(&demo.id().to_string()).await[..] else {
        panic!("one process that watches")
    };
    let [server] = &child_pids(watchdog).await[..] else { panic!("one redis-server") };
    let is_there = async || {
        let mut ps = Command::new("ps");
        ps.args(["-o", "args=", "-p", server]);
        run(ps).await.out.contains("redis-server")
    };
    assert!(is_there().await);
    demo.signal("KILL");
    demo.wait().await;
    wait_for("the end of its redis-server", async || !is_there().await).await;
}

#[tokio::test]
async fn demo_waiting_for_redis_reports_it() {
    // It takes connections, and that is all it does.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("redis://:a-password-of-the-stories@{}", silent.local_addr().expect("an address"));
    let demo =
        Process::start(wecom_proxy(&["demo", "--replicas", "2", "--redis", &url, "--listen", "127.0.0.1:0"]));
    let line = demo.err.wait_for_line("waiting for Redis").await;
    assert!(line.contains("10 s at most"), "{line}");
    let ended = demo.wait().await;
    assert!(ended.status == 1 && ended.err.contains("cannot reach Redis"), "{}", ended.err);
    assert!(!ended.err.contains("a-password"), "{}", ended.err);
}
