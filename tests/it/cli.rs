//! The command line: commands, messages and exit statuses.

use std::{fs, net::TcpListener, path::PathBuf, process::Command};

use tempfile::TempDir;
use wecom_proxy::simulator::Settings;

use crate::{
    harness::{OPEN_CONFIG, write_config},
    harness::{start_simulator_with_config, wait_for},
    process::{ExitOutput, Process, curl, log_field, run, run_line, run_wecom_proxy, tool, wecom_proxy},
};

const REPOSITORY_CONFIG: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/proxy.toml");

/// Writes a configuration file into a temporary directory.
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
fn assert_exit(output: &ExitOutput, status: i32, expected: &[&str]) {
    assert_eq!(output.status, status, "{output:?}");
    for text in expected {
        assert!(output.err.contains(text), "no {text:?} in {}", output.err);
    }
}

#[tokio::test]
async fn demo_prints_three_working_curl_commands() {
    let demo = Process::start(wecom_proxy(&["demo", "--listen", "127.0.0.1:0"]));
    demo.out.wait_for_line("Ctrl-C").await;
    demo.err.wait_for_line("ready listen=").await;
    let stdout = demo.out.text();
    let command_lines: Vec<_> = stdout.lines().filter(|line| line.starts_with("curl ")).collect();
    assert_eq!(command_lines.len(), 3, "{stdout}");
    // The link to the dashboard works.
    let dashboard = stdout.lines().find(|line| line.starts_with("Dashboard of the proxy")).expect("a line");
    let (_, link) = dashboard.split_once(": ").expect("a link");
    assert!(curl(&[link]).await.contains("<title>wecom-proxy</title>"), "{dashboard}");
    let first: serde_json::Value = serde_json::from_str(&run_line(command_lines[0]).await).expect("JSON");
    assert_eq!((&first["errcode"], &first["userid"]), (&0.into(), &"zhangsan".into()), "{first}");
    let second: serde_json::Value = serde_json::from_str(&run_line(command_lines[1]).await).expect("JSON");
    assert_eq!(second["errcode"], 0, "{second}");
    let third = run_line(command_lines[2]).await.to_lowercase();
    assert!(third.contains("http/1.1 200") && third.contains("x-wecom-retried: 40014"), "{third}");
    assert!(third.contains("\"errcode\":0") && third.contains("zhangsan"), "{third}");

    // A line in the text adds an agent.
    let add = stdout.lines().find(|line| line.contains("add an agent")).expect("a line");
    let (_, add) = add.split_once(": ").expect("a command");
    let added = run_line(add).await;
    assert!(added.contains("\"origin\":\"state\"") && added.contains("zhangsan"), "{added}");

    let control =
        command_lines[2].split('\'').nth(1).and_then(|url| url.split("/control").next()).expect("an address");
    let messages = curl(&[&format!("{control}/control/messages")]).await;
    assert!(messages.contains("你好"), "{messages}");
    let callback_lines: Vec<_> = stdout.lines().filter_map(|line| line.strip_prefix("  curl ")).collect();
    assert_eq!(callback_lines.len(), 2, "{stdout}");
    let pushed = run_line(&format!("curl {}", callback_lines[0])).await;
    assert!(pushed.contains("\"ok\":true"), "{pushed}");
    crate::harness::wait_for("the delivery", async || {
        run_line(&format!("curl {}", callback_lines[1])).await.contains("change_contact")
    })
    .await;
    let output = demo.stop().await;
    assert_eq!(output.status, 0, "{}", output.err);
    assert!(!output.err.contains("not-a-secret") && !output.out.contains("not-a-secret"));
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
        let response = curl(&[&format!("http://{address}/{agent}/cgi-bin/user/get?userid=zhangsan")]).await;
        assert!(response.contains("\"errcode\":0"), "{response}");
    }
    assert_eq!(proxy.stop().await.status, 0);
    let output = simulator.stop().await;
    assert_eq!(output.status, 0, "{}", output.err);
}

#[tokio::test]
async fn repository_config_passes_check_with_its_secret_set() {
    let mut check = wecom_proxy(&["check", "--config", REPOSITORY_CONFIG]);
    check.env("WECOM_HR_SECRET", "a-secret-that-is-never-shown");
    let output = run(check).await;
    assert_exit(&output, 0, &[]);
    assert!(output.out.contains("hr") && output.out.contains("ww1234567890abcdef"), "{}", output.out);
    assert!(output.out.contains("is valid"), "{}", output.out);
    assert!(!output.out.contains("a-secret-that") && !output.err.contains("a-secret-that"), "{output:?}");
    let output = run_wecom_proxy(&["check", "--config", REPOSITORY_CONFIG]).await;
    let config = fs::read_to_string(REPOSITORY_CONFIG).expect("the file");
    let line = 1 + config.lines().position(|line| line.contains("WECOM_HR_SECRET")).expect("a line");
    assert_exit(
        &output,
        2,
        &[&format!("proxy.toml:{line}"), "agents.hr.secret", "WECOM_HR_SECRET", "not set"],
    );
    assert_eq!(output.out, "");
}

#[tokio::test]
async fn check_lists_clients_and_warns_of_plain_secrets() {
    let (_dir, path) = write_config_file(
        "[agents.hr]\ncorpid = \"ww1\"\nsecret = \"a-plain-secret-of-hr\"\nagentid = 7\n[clients.billing]\nkey = \"a-plain-key-of-billing-0123456789\"\nagents = [\"hr\"]\nallow = [\"POST /cgi-bin/message/send\"]\n",
    );
    let output = run_wecom_proxy(&["check", "--config", path_text(&path)]).await;
    assert_exit(&output, 0, &["warning", "plain text", "agents.hr.secret", "clients.billing.key"]);
    for expected in ["hr", "ww1", "7", "billing", "POST /cgi-bin/message/send"] {
        assert!(output.out.contains(expected), "{}", output.out);
    }
    assert!(!format!("{output:?}").contains("a-plain-"), "{output:?}");
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
    for (section, location, key) in cases {
        let agent = "[agents.hr]\ncorpid = \"ww1\"\nsecret = \"a-plain-secret\"\n";
        let (_dir, path) = write_config_file(&format!("{section}{agent}"));
        for command in ["serve", "check"] {
            let output = run_wecom_proxy(&[command, "--config", path_text(&path)]).await;
            assert_exit(&output, 2, &["wecom-proxy: ", location, key]);
            assert!(!output.err.contains("a-plain-secret"), "{}", output.err);
        }
    }
    for command in ["serve", "check", "health"] {
        let output = run_wecom_proxy(&[command, "--config", "/nowhere/proxy.toml"]).await;
        assert_exit(&output, 2, &["/nowhere/proxy.toml"]);
    }
}

#[tokio::test]
async fn invalid_command_line_is_refused() {
    let command_lines: &[&[&str]] = &[
        &["dance"],
        &["--confg", "a"],
        &["completions", "dos"],
        &["demo", "--listen", "everywhere"],
        &["demo", "--replicas", "2", "--redis", "127.0.0.1:6379"],
        &["simulator", "--token-lifetime", "soon"],
        &["serve", "--config"],
    ];
    for arguments in command_lines {
        let output = run_wecom_proxy(arguments).await;
        assert_eq!((output.status, &*output.out), (2, ""), "{arguments:?}: {}", output.err);
        assert!(!output.err.is_empty(), "{arguments:?}");
    }
    for arguments in [["--help"], ["--version"]] {
        assert_exit(&run_wecom_proxy(&arguments).await, 0, &[]);
    }
}

#[tokio::test]
async fn port_in_use_exits_with_1() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    let (_dir, path) = write_config_file(&MINIMAL_CONFIG.replace("127.0.0.1:0", &address));
    let mut serve = wecom_proxy(&["serve", "--config", path_text(&path)]);
    serve.env("WECOM_HR_SECRET", "a");
    assert_exit(&run(serve).await, 1, &["cannot listen on", &address]);
    let output = run_wecom_proxy(&["demo", "--listen", &address]).await;
    assert_exit(&output, 1, &["cannot listen on", &address, "stop what listens there"]);
    for (listen, expected) in [
        ("192.0.2.1:8099\"\nopen = true #", "this machine has no such address"),
        ("unix:no-such-directory/a.sock", "make the directory first"),
    ] {
        let (_dir, path) = write_config_file(&MINIMAL_CONFIG.replace("127.0.0.1:0", listen));
        let mut serve = wecom_proxy(&["serve", "--config", path_text(&path)]);
        serve.env("WECOM_HR_SECRET", "a");
        assert_exit(&run(serve).await, 1, &["cannot listen on", expected]);
    }
    let output = run_wecom_proxy(&["simulator", "--listen", &address, "--control", "127.0.0.1:0"]).await;
    assert_exit(
        &output,
        1,
        &["cannot listen on", &address, "another address with --listen, or stop what listens"],
    );
    let output = run_wecom_proxy(&["simulator", "--listen", "127.0.0.1:0", "--control", &address]).await;
    assert_exit(&output, 1, &["cannot listen on", &address, "another address with --control"]);
}

#[tokio::test]
async fn demo_with_its_ports_in_use_takes_others() {
    // If another process already listens on a port, the port is in use as well.
    let _listeners = [8080, 8082].map(|port| TcpListener::bind(("127.0.0.1", port)));
    let demo = Process::start(wecom_proxy(&["demo"]));
    let address = demo.address().await;
    demo.out.wait_for_line("Ctrl-C").await;
    let stdout = demo.out.text();
    let notice = format!("Port 8080 is taken, so the proxy is on {address} instead.\n");
    assert!(stdout.starts_with(&notice), "{stdout}");
    assert!(
        stdout.contains("Port 8082 is taken, so the simulator's control address is on 127.0.0.1:"),
        "{stdout}"
    );
    assert!(stdout.contains(&format!("curl 'http://{address}/hr/cgi-bin/user/get")), "{stdout}");
    assert_eq!(demo.stop().await.status, 0);
}

#[tokio::test]
async fn health_command_reports_readiness() {
    let toml = OPEN_CONFIG
        .replace("[admin]\nlisten = \"127.0.0.1:0\"", "[admin]\nlisten = \"unix:{dir}/admin.sock\"");
    let (wecom, dir, path) = start_simulator_with_config(&toml).await;
    let health = async || run_wecom_proxy(&["health", "--config", path_text(&path)]).await;
    assert_exit(&health().await, 1, &["no response from"]);
    let proxy = Process::serve(&path).await;
    let output = health().await;
    assert_exit(&output, 0, &[]);
    assert!(output.out.contains("\"status\":\"ok\""), "{}", output.out);
    for agent in ["hr", "ops"] {
        wecom.reset_secret(agent, "another-secret").expect("an agent");
    }
    let address = proxy.address().await;
    curl(&[&format!("http://{address}/hr/cgi-bin/user/get?userid=zhangsan")]).await;
    let output = health().await;
    assert_exit(&output, 1, &["not ready"]);
    assert!(output.out.contains("40001"), "{}", output.out);
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
    let output = run_wecom_proxy(&["man"]).await;
    assert_exit(&output, 0, &[]);
    fs::write(&page, output.out).expect("a file");
    let mut groff = Command::new(tool("groff"));
    groff.args(["-man", "-Tutf8", "-Kutf8", "-ww", "-P-cbou"]).arg(&page);
    let output = run(groff).await;
    // groff exits with 0 on warnings; they go to stderr.
    assert_eq!((output.status, &*output.err), (0, ""));
    let help = run_wecom_proxy(&["--help"]).await.out;
    let (_, commands) = help.split_once("Commands:\n").expect("commands");
    let names = commands.lines().map_while(|line| line.strip_prefix("  ")?.split(' ').next());
    let mut count = 0;
    for command in names.filter(|command| !["", "help"].contains(command)) {
        assert!(output.out.contains(&format!("   wecom-proxy {command}\n")), "{command}: {}", output.out);
        count += 1;
    }
    assert!(count >= 8, "{help}");
    for expected in ["--token-lifetime", "--config", "SIGHUP", "EXIT STATUS"] {
        assert!(output.out.contains(expected), "{expected}: {}", output.out);
    }
}

#[tokio::test]
async fn completions_are_printed_for_each_shell() {
    for (shell, expected) in
        [("bash", "complete -F"), ("zsh", "#compdef wecom-proxy"), ("fish", "complete -c wecom-proxy")]
    {
        let output = run_wecom_proxy(&["completions", shell]).await;
        assert_exit(&output, 0, &[]);
        assert!(output.out.contains(expected) && output.out.contains("simulator"), "{}", output.out);
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
    let command_lines: &[(&[&str], &str)] = &[
        (&["check", "--config", path], ""),
        (&["--config", path, "check"], ""),
        (&["check"], path),
        (&["check", "--config", path], path_text(&other)),
        (&["--config", path, "check"], path_text(&other)),
    ];
    for (arguments, variable) in command_lines {
        let mut command = wecom_proxy(arguments);
        command.env("WECOM_HR_SECRET", "a-secret");
        if !variable.is_empty() {
            command.env("WECOM_PROXY_CONFIG", variable);
        }
        let output = run(command).await;
        assert_exit(&output, 0, &[]);
        assert!(output.out.contains(&format!("{path} is valid")), "{arguments:?}: {}", output.out);
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
        let summary = r#"upstream="https://qyapi.weixin.qq.com" agents=1 clients=0 store="memory" open=true"#;
        assert!(line.contains(summary), "{line}");
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
            let address: std::net::SocketAddr = address.parse().expect("an address");
            assert_ne!(address.port(), 0);
            std::net::TcpStream::connect(address).expect("a listener");
        }
        for proxy in [proxy, json_proxy] {
            let output = proxy.stop().await;
            assert_eq!((output.status, &*output.out), (0, ""), "logs go to stderr");
        }
    }
}

#[tokio::test]
async fn demo_replicas_without_redis_names_what_is_missing() {
    let mut demo = wecom_proxy(&["demo", "--replicas", "2", "--listen", "127.0.0.1:0"]);
    demo.env("PATH", "/nowhere");
    assert_exit(&run(demo).await, 1, &["redis-server", "--redis"]);
}

/// The child processes of a process.
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
    assert_eq!(line.split_whitespace().filter(|text| text.starts_with("http://")).count(), 2, "{line}");
    let [watchdog] = &child_pids(&demo.id().to_string()).await[..] else { panic!("one watchdog process") };
    let [server] = &child_pids(watchdog).await[..] else { panic!("one redis-server") };
    let is_running = async || {
        let mut ps = Command::new("ps");
        ps.args(["-o", "args=", "-p", server]);
        run(ps).await.out.contains("redis-server")
    };
    assert!(is_running().await);
    demo.signal("KILL");
    demo.wait().await;
    wait_for("the end of its redis-server", async || !is_running().await).await;
}

#[tokio::test]
async fn demo_waiting_for_redis_reports_it() {
    // The server accepts connections and never responds.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("redis://:a-password-of-the-tests@{}", silent.local_addr().expect("an address"));
    let demo =
        Process::start(wecom_proxy(&["demo", "--replicas", "2", "--redis", &url, "--listen", "127.0.0.1:0"]));
    let line = demo.err.wait_for_line("waiting for Redis").await;
    assert!(line.contains("10 s at most"), "{line}");
    let output = demo.wait().await;
    assert!(output.status == 1 && output.err.contains("cannot reach Redis"), "{}", output.err);
    assert!(!output.err.contains("a-password"), "{}", output.err);
}
