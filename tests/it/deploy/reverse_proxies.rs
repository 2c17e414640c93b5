//! nginx and Caddy in front of the proxy, with the files of `deploy/`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;
use tokio::net::UnixStream;

use super::{program_command, read_text, replace_all, run_ok};
use crate::{
    certificates::Authority,
    harness::{CONFIG_WITH_CLIENTS, ECHO, TestProxy, client_key, wait_for},
    process::{Process, curl, run, tool},
    raw_http::ManualUpstream,
};

const HOST: &str = "wecom-proxy.example.com";

/// A server with TLS in front of an address.
struct ReverseProxy {
    process: Process,
    authority: Authority,
    /// Everything of its own, its logs too.
    dir: TempDir,
}

impl ReverseProxy {
    async fn nginx(proxy: &str) -> Self {
        let (authority, dir) = certificate_dir();
        let at = |name: &str| dir.path().join(name).display().to_string();
        let site = replace_all(
            &read_text("deploy/nginx/wecom-proxy.conf"),
            &[
                ("127.0.0.1:8080", proxy),
                ("listen 443 ", &format!("listen unix:{} ", at("front.sock"))),
                ("listen [::]:443 ssl http2;", ""),
                ("/etc/nginx", &at("")),
                ("/var/log/nginx", &at("")),
            ],
        );
        fs::write(at("site.conf"), site).expect("a file");
        let places: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|name| format!("{name}_temp_path {};\n", at(name)))
            .concat();
        let (pid, log, site) = (at("pid"), at("nginx.log"), at("site.conf"));
        let whole = format!(
            "daemon off;\nmaster_process off;\npid {pid};\nerror_log {log};\nevents {{}}\nhttp {{\n{places}include {site};\n}}\n"
        );
        fs::write(at("nginx.conf"), whole).expect("a file");
        let command = || {
            let mut command = program_command("nginx", "-v");
            command.args(["-p", &at(""), "-e", &log, "-c", &at("nginx.conf")]);
            command
        };
        let mut test = command();
        test.arg("-t");
        run_ok(test).await;
        Self::start(command(), authority, dir).await
    }

    async fn caddy(proxy: &str) -> Self {
        let (authority, dir) = certificate_dir();
        let at = |name: &str| dir.path().join(name).display().to_string();
        let global = format!("\n{{\n\tadmin unix/{}\n", at("admin.sock"));
        let site = replace_all(
            &read_text("deploy/caddy/Caddyfile"),
            &[
                ("127.0.0.1:8080", proxy),
                ("\n{\n", &global),
                (
                    "\ttls /etc/caddy/wecom-proxy.pem",
                    &format!("\tbind unix/{}\n\ttls {}", at("front.sock"), at("wecom-proxy.pem")),
                ),
                ("/etc/caddy", &at("")),
                ("/var/log/caddy", &at("")),
            ],
        );
        fs::write(at("Caddyfile"), site).expect("a file");
        let command = |order: &str| {
            let mut command = program_command("caddy", "version");
            command.args([order, "--config", &at("Caddyfile"), "--adapter", "caddyfile"]);
            for name in ["HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"] {
                command.env(name, dir.path());
            }
            command
        };
        run_ok(command("validate")).await;
        Self::start(command("run"), authority, dir).await
    }

    async fn start(command: Command, authority: Authority, dir: TempDir) -> Self {
        let process = Process::start(command);
        let socket = dir.path().join("front.sock");
        wait_for("the front", async || UnixStream::connect(&socket).await.is_ok()).await;
        Self { process, authority, dir }
    }

    /// curl's arguments for a call through it.
    fn curl_arguments(&self, arguments: &[&str], target: &str) -> Vec<String> {
        let at = |path: PathBuf| path.display().to_string();
        let (socket, ca) = (at(self.dir.path().join("front.sock")), at(self.authority.ca_file()));
        let key = format!("X-Api-Key: {}", client_key("crm"));
        let url = format!("https://{HOST}{target}");
        let fixed = ["--unix-socket", &socket, "--cacert", &ca, "-H", &key];
        [&fixed, arguments, &[&*url]].concat().into_iter().map(str::to_owned).collect()
    }

    async fn curl(&self, arguments: &[&str], target: &str) -> String {
        let call = self.curl_arguments(arguments, target);
        curl(&call.iter().map(String::as_str).collect::<Vec<_>>()).await
    }

    /// Everything that it wrote.
    fn logs(&self) -> String {
        let mut all = self.process.out.text() + &self.process.err.text();
        for entry in fs::read_dir(self.dir.path()).expect("a directory").flatten() {
            if entry.path().extension().is_some_and(|end| end == "log") {
                all += &fs::read_to_string(entry.path()).expect("a text");
            }
        }
        all
    }
}

/// A directory with the certificate's files.
fn certificate_dir() -> (Authority, TempDir) {
    let (authority, dir) = (Authority::new(), TempDir::new().expect("a directory"));
    let identity = authority.issue_server(HOST);
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).expect("a file");
    write("wecom-proxy.pem", &identity.pem);
    write("wecom-proxy.key", &identity.key_pem);
    (authority, dir)
}

/// Calls come through and back, and neither a call nor a failure shows a secret in the logs.
async fn assert_serves(front: &ReverseProxy, stage: TestProxy) {
    let secret = "a-pass-or-so";
    let target = format!("/hr/cgi-bin/user/get?userid=zhangsan&odd=%2F+%20&&x={secret}");
    for version in ["--http1.1", "--http2"] {
        let answer = front.curl(&["-i", version], &target).await.to_ascii_lowercase();
        assert!(answer.contains("\"errcode\":0"), "{answer}");
        assert!(answer.contains("x-wecom-agent: hr"), "{answer}");
    }
    let query = stage.last_request("/cgi-bin/user/get").query;
    assert!(query.starts_with(&format!("userid=zhangsan&odd=%2F+%20&&x={secret}&access_token=")), "{query}");
    let body = front.dir.path().join("body");
    fs::write(&body, vec![b'x'; 3 << 20]).expect("a file");
    let data = format!("@{}", body.display());
    front.curl(&["--data-binary", &data], &format!("/hr{ECHO}")).await;
    assert_eq!(stage.last_request(ECHO).body_bytes, 3 << 20);
    stage.app.shutdown().await;
    let answer = front.curl(&["-i"], &target).await;
    assert!(answer.contains(" 502") && answer.contains("application/json"), "{answer}");
    assert!(answer.contains("\"errcode\":-1"), "{answer}");
    let written = || front.logs().matches("/hr/cgi-bin/user/get").count() >= 3;
    wait_for("the access log", async || written()).await;
    let logs = front.logs();
    assert!(!logs.contains(secret) && !logs.contains(&client_key("crm")), "{logs}");
}

/// An upload arrives while it is still being sent, the next call comes on the same connection, and its answer arrives
/// while it is still being sent too.
async fn assert_streams(front: &ReverseProxy, mut proxy: ManualUpstream) {
    let pipe = front.dir.path().join("pipe");
    let mut mkfifo = Command::new(tool("mkfifo"));
    mkfifo.arg(&pipe);
    run_ok(mkfifo).await;
    let mut shell = Command::new("sh");
    let script =
        "pipe=$1; shift; { printf begin; cat \"$pipe\"; } | curl -sS --noproxy '*' --max-time 20 \"$@\"";
    shell
        .args(["-c", script, "sh"])
        .arg(&pipe)
        .args(front.curl_arguments(&["--http1.1", "-X", "POST", "-T", "-"], "/hr/upload"));
    let sending = tokio::spawn(run(shell));
    let mut call = proxy.next_call().await;
    assert!(call.head.starts_with("POST /hr/upload HTTP/1.1\r\n"), "{}", call.head);
    assert_eq!(call.connection.read_exact(10).await, b"5\r\nbegin\r\n");
    finish_upload(&pipe).await;
    assert_eq!(call.connection.read_exact(13).await, b"3\r\nend\r\n0\r\n\r\n");
    call.connection.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.expect("it is taken");
    assert_eq!(sending.await.expect("no panic").out, "ok");
    let mut again = Command::new(tool("curl"));
    again.args(["-sSN", "--noproxy", "*", "--max-time", "20"]).args(front.curl_arguments(&[], "/hr/again"));
    let again = Process::start(again);
    let head = call.connection.read_head().await.to_ascii_lowercase();
    assert!(head.starts_with("get /hr/again http/1.1\r\n") && !head.contains("connection: close"), "{head}");
    call.connection.send("HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\nfirst\n").await.expect("it is taken");
    again.out.wait_for_line("first").await;
    call.connection.send("last\n").await.expect("it is taken");
    assert_eq!(again.wait().await.out, "first\nlast\n");
}

async fn finish_upload(pipe: &Path) {
    tokio::fs::write(pipe, "end").await.expect("a reader");
}

#[tokio::test]
async fn nginx_forwards_and_logs_no_secret() {
    let stage = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    assert_serves(&ReverseProxy::nginx(&stage.address().to_string()).await, stage).await;
}

#[tokio::test]
async fn nginx_streams_and_reuses_connections() {
    let proxy = ManualUpstream::new().await;
    assert_streams(&ReverseProxy::nginx(&proxy.address.to_string()).await, proxy).await;
}

#[tokio::test]
async fn caddy_forwards_and_logs_no_secret() {
    let stage = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    assert_serves(&ReverseProxy::caddy(&stage.address().to_string()).await, stage).await;
}

#[tokio::test]
async fn caddy_streams_and_reuses_connections() {
    let proxy = ManualUpstream::new().await;
    assert_streams(&ReverseProxy::caddy(&proxy.address.to_string()).await, proxy).await;
}
