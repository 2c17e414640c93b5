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

/// What is behind a reverse proxy: the name and address in its files.
#[derive(Clone, Copy)]
struct Site {
    host: &'static str,
    address: &'static str,
    nginx: &'static str,
    caddy: &'static str,
}

const SERVER: Site = Site {
    host: "wecom-proxy.example.com",
    address: "127.0.0.1:8080",
    nginx: "deploy/nginx/wecom-proxy.conf",
    caddy: "deploy/caddy/Caddyfile",
};
const ADMIN: Site = Site {
    host: "wecom-proxy-admin.example.com",
    address: "127.0.0.1:9090",
    nginx: "deploy/nginx/wecom-proxy-admin.conf",
    caddy: "deploy/caddy/admin.Caddyfile",
};
const ADMIN_KEY: &str = "the-key-of-the-operator-0123456789";
/// What the caller claims as its address.
const FORGED_ADDRESS: &str = "192.0.2.66";

/// A TLS-terminating reverse proxy (nginx or Caddy) in front of an address.
struct ReverseProxy {
    site: Site,
    process: Process,
    authority: Authority,
    /// Its configuration, socket and logs.
    dir: TempDir,
}

impl ReverseProxy {
    async fn nginx(site: Site, proxy: &str) -> Self {
        let (authority, dir) = certificate_dir(site.host);
        let path_of = |name: &str| dir.path().join(name).display().to_string();
        let text = replace_all(
            &read_text(site.nginx),
            &[
                (site.address, proxy),
                ("listen 443 ", &format!("listen unix:{} ", path_of("front.sock"))),
                ("listen [::]:443 ssl http2;", ""),
                ("/etc/nginx", &path_of("")),
            ],
        );
        fs::write(path_of("site.conf"), text.replace("/var/log/nginx", &path_of(""))).expect("a file");
        let temp_paths: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|name| format!("{name}_temp_path {};\n", path_of(name)))
            .concat();
        let (pid, log, path) = (path_of("pid"), path_of("nginx.log"), path_of("site.conf"));
        let config = format!(
            "daemon off;\nmaster_process off;\npid {pid};\nerror_log {log};\nevents {{}}\nhttp {{\naccess_log {log};\n{temp_paths}include {path};\n}}\n"
        );
        fs::write(path_of("nginx.conf"), config).expect("a file");
        let command = || {
            let mut command = program_command("nginx", "-v");
            command.args(["-p", &path_of(""), "-e", &log, "-c", &path_of("nginx.conf")]);
            command
        };
        let mut check = command();
        check.arg("-t");
        run_ok(check).await;
        Self::start(site, command(), authority, dir).await
    }

    async fn caddy(site: Site, proxy: &str) -> Self {
        let (authority, dir) = certificate_dir(site.host);
        let path_of = |name: &str| dir.path().join(name).display().to_string();
        let global = format!("\n{{\n\tadmin unix/{}\n", path_of("admin.sock"));
        let text = replace_all(
            &read_text(site.caddy),
            &[
                (site.address, proxy),
                ("\n{\n", &global),
                ("\ttls /etc", &format!("\tbind unix/{}\n\ttls /etc", path_of("front.sock"))),
                ("/etc/caddy", &path_of("")),
            ],
        );
        fs::write(path_of("Caddyfile"), text.replace("/var/log/caddy", &path_of(""))).expect("a file");
        let command = |subcommand: &str| {
            let mut command = program_command("caddy", "version");
            command.args([subcommand, "--config", &path_of("Caddyfile"), "--adapter", "caddyfile"]);
            for name in ["HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"] {
                command.env(name, dir.path());
            }
            command
        };
        run_ok(command("validate")).await;
        Self::start(site, command("run"), authority, dir).await
    }

    async fn start(site: Site, command: Command, authority: Authority, dir: TempDir) -> Self {
        let process = Process::start(command);
        let socket = dir.path().join("front.sock");
        wait_for("the reverse proxy", async || UnixStream::connect(&socket).await.is_ok()).await;
        Self { site, process, authority, dir }
    }

    /// The curl arguments for a request through the reverse proxy.
    fn curl_arguments(&self, arguments: &[&str], target: &str) -> Vec<String> {
        let text = |path: PathBuf| path.display().to_string();
        let (socket, ca) = (text(self.dir.path().join("front.sock")), text(self.authority.ca_file()));
        let key = format!("X-Api-Key: {}", client_key("crm"));
        let url = format!("https://{}{target}", self.site.host);
        let forged = format!("X-Forwarded-For: {FORGED_ADDRESS}");
        let fixed = ["--unix-socket", &socket, "--cacert", &ca, "-H", &key, "-H", &forged];
        [&fixed, arguments, &[&*url]].concat().into_iter().map(str::to_owned).collect()
    }

    async fn curl(&self, arguments: &[&str], target: &str) -> String {
        let arguments = self.curl_arguments(arguments, target);
        curl(&arguments.iter().map(String::as_str).collect::<Vec<_>>()).await
    }

    /// Its stdout, stderr and log files.
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

/// A directory with the certificate files.
fn certificate_dir(host: &str) -> (Authority, TempDir) {
    let (authority, dir) = (Authority::new(), TempDir::new().expect("a directory"));
    let identity = authority.issue_server(host);
    for name in ["wecom-proxy", "wecom-proxy-admin"] {
        identity.write_files(dir.path(), name);
    }
    (authority, dir)
}

/// Asserts that requests are forwarded, and that neither a request nor a failure leaves a secret in the logs.
async fn assert_serves(front: &ReverseProxy, proxy: TestProxy) {
    let secret = "a-pass-or-so";
    let target = format!("/hr/cgi-bin/user/get?userid=zhangsan&odd=%2F+%20&&x={secret}");
    for version in ["--http1.1", "--http2"] {
        let response = front.curl(&["-i", version], &target).await.to_ascii_lowercase();
        assert!(response.contains("\"errcode\":0"), "{response}");
        assert!(response.contains("x-wecom-agent: hr"), "{response}");
    }
    let query = proxy.last_request("/cgi-bin/user/get").query;
    assert!(query.starts_with(&format!("userid=zhangsan&odd=%2F+%20&&x={secret}&access_token=")), "{query}");
    let body = front.dir.path().join("body");
    fs::write(&body, vec![b'x'; 3 << 20]).expect("a file");
    let data = format!("@{}", body.display());
    front.curl(&["--data-binary", &data], &format!("/hr{ECHO}")).await;
    assert_eq!(proxy.last_request(ECHO).body_bytes, 3 << 20);
    proxy.app.shutdown().await;
    let response = front.curl(&["-i"], &target).await;
    assert!(response.contains(" 502") && response.contains("application/json"), "{response}");
    assert!(response.contains("\"errcode\":-1"), "{response}");
    front.curl(&[], &format!("/k/{}/cgi-bin/user/list?x={secret}", client_key("crm"))).await;
    let is_logged = || {
        let logs = front.logs();
        logs.matches("/hr/cgi-bin/user/get").count() >= 3 && logs.contains("/k/")
    };
    wait_for("the access log", async || is_logged()).await;
    let logs = front.logs();
    assert!(!logs.contains(secret) && !logs.contains(&client_key("crm")), "{logs}");
}

/// Asserts that an upload is streamed, that the next request reuses the upstream connection, and that its response is streamed.
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
    assert!(!call.head.contains(FORGED_ADDRESS), "{}", call.head);
    assert_eq!(call.connection.read_exact(10).await, b"5\r\nbegin\r\n");
    finish_upload(&pipe).await;
    assert_eq!(call.connection.read_exact(13).await, b"3\r\nend\r\n0\r\n\r\n");
    call.connection.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.expect("sent");
    assert_eq!(sending.await.expect("no panic").out, "ok");
    let mut again = Command::new(tool("curl"));
    again.args(["-sSN", "--noproxy", "*", "--max-time", "20"]).args(front.curl_arguments(&[], "/hr/again"));
    let again = Process::start(again);
    let head = call.connection.read_head().await.to_ascii_lowercase();
    assert!(head.starts_with("get /hr/again http/1.1\r\n") && !head.contains("connection: close"), "{head}");
    call.connection.send("HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\nfirst\n").await.expect("sent");
    again.out.wait_for_line("first").await;
    call.connection.send("last\n").await.expect("sent");
    assert_eq!(again.wait().await.out, "first\nlast\n");
}

async fn finish_upload(pipe: &Path) {
    tokio::fs::write(pipe, "end").await.expect("a reader");
}

/// A proxy whose admin listener has a key.
async fn proxy_with_admin_key() -> TestProxy {
    use sha2::Digest;
    let hash: String = sha2::Sha256::digest(ADMIN_KEY).iter().map(|byte| format!("{byte:02x}")).collect();
    let hash = format!("\n[admin]\nkey_sha256 = \"{hash}\"");
    TestProxy::start_with_config(&replace_all(CONFIG_WITH_CLIENTS, &[("\n[admin]", &hash)])).await
}

/// Asserts that the dashboard, its stream and its actions work, with the key.
async fn assert_serves_dashboard(front: &ReverseProxy, proxy: TestProxy) {
    let (key, origin) = (format!("operator:{ADMIN_KEY}"), format!("Origin: https://{}", front.site.host));
    assert!(front.curl(&["-u", &key], "/").await.contains("<title>wecom-proxy</title>"));
    assert!(front.curl(&[], "/api/agents").await.contains("key"), "the key is required");
    let action = ["-u", &key, "-X", "POST", "-H", "Content-Type: application/json", "-H"];
    let reload = async |origin: &str| front.curl(&[&action[..], &[origin]].concat(), "/api/reload").await;
    let response = reload(&origin).await;
    assert!(response.contains("\"ok\":true"), "{response}");
    assert!(reload("Origin: https://elsewhere.example").await.contains("cross-site"));
    let mut stream = Command::new(tool("curl"));
    stream.args(["-sSN", "--noproxy", "*", "--max-time", "20"]);
    let stream = Process::start({
        stream.args(front.curl_arguments(&["-u", &key], "/api/requests/stream"));
        stream
    });
    // The first call may precede the stream.
    wait_for("an exchange on the stream", async || {
        proxy.get("/hr/cgi-bin/user/get?userid=zhangsan").await;
        stream.out.text().contains("data: {")
    })
    .await;
}

#[tokio::test]
async fn nginx_serves_the_dashboard() {
    let proxy = proxy_with_admin_key().await;
    let front = ReverseProxy::nginx(ADMIN, &proxy.admin_address().to_string()).await;
    assert_serves_dashboard(&front, proxy).await;
}

#[tokio::test]
async fn caddy_serves_the_dashboard() {
    let proxy = proxy_with_admin_key().await;
    let front = ReverseProxy::caddy(ADMIN, &proxy.admin_address().to_string()).await;
    assert_serves_dashboard(&front, proxy).await;
}

#[tokio::test]
async fn nginx_forwards_and_logs_no_secret() {
    let proxy = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    assert_serves(&ReverseProxy::nginx(SERVER, &proxy.address().to_string()).await, proxy).await;
}

#[tokio::test]
async fn nginx_streams_and_reuses_connections() {
    let proxy = ManualUpstream::new().await;
    assert_streams(&ReverseProxy::nginx(SERVER, &proxy.address.to_string()).await, proxy).await;
}

#[tokio::test]
async fn caddy_forwards_and_logs_no_secret() {
    let proxy = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    assert_serves(&ReverseProxy::caddy(SERVER, &proxy.address().to_string()).await, proxy).await;
}

#[tokio::test]
async fn caddy_streams_and_reuses_connections() {
    let proxy = ManualUpstream::new().await;
    assert_streams(&ReverseProxy::caddy(SERVER, &proxy.address.to_string()).await, proxy).await;
}
