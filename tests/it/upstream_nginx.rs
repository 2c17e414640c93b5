//! nginx as an HTTP/2 upstream, which ends each connection in order after a number of requests.

use std::{fs, sync::Arc};

use http::{Method, Request};
use tempfile::TempDir;
use tokio::net::{TcpListener, UnixStream};

use crate::{
    certificates::Authority,
    deploy::program_command,
    harness::{OPEN_CONFIG, TestProxy, USER_GET, wait_for, with_upstream_tls},
    process::Process,
};

const REQUESTS_PER_CONNECTION: usize = 3;
const CALLERS: usize = 24;

/// nginx behind a TCP port of its own; ends when it is dropped.
struct Nginx {
    authority: Authority,
    dir: TempDir,
    _process: Process,
}

impl Nginx {
    async fn start(listener: TcpListener) -> Self {
        let (authority, dir) = (Authority::new(), TempDir::new().expect("a directory"));
        let path_of = |name: &str| dir.path().join(name).display().to_string();
        let [certificate, key] = authority.server_files("127.0.0.1");
        let temp_paths: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|name| format!("{name}_temp_path {};\n", path_of(name)))
            .concat();
        let (socket, calls) = (path_of("nginx.sock"), path_of("calls.log"));
        let config = format!(
            r#"daemon off;
master_process off;
pid {pid};
events {{}}
http {{
{temp_paths}access_log off;
log_format call "$request_method $status";
ssl_certificate {certificate};
ssl_certificate_key {key};
server {{
listen unix:{socket} ssl http2;
keepalive_requests {REQUESTS_PER_CONNECTION};
default_type application/json;
location = /cgi-bin/gettoken {{ return 200 '{{"errcode":0,"errmsg":"ok","access_token":"A-TOKEN","expires_in":7200}}'; }}
location / {{ access_log {calls} call; return 200 '{{"errcode":0,"errmsg":"ok"}}'; }}
}}
}}
"#,
            pid = path_of("pid"),
        );
        fs::write(path_of("nginx.conf"), config).expect("written");
        let mut command = program_command("nginx", "-v");
        command.args(["-p", &path_of(""), "-e", &path_of("error.log"), "-c", &path_of("nginx.conf")]);
        let process = Process::start(command);
        wait_for("nginx", async || UnixStream::connect(&socket).await.is_ok()).await;
        tokio::spawn(async move {
            while let Ok((mut tcp, _)) = listener.accept().await {
                let Ok(mut unix) = UnixStream::connect(&socket).await else { return };
                tokio::spawn(async move { tokio::io::copy_bidirectional(&mut tcp, &mut unix).await });
            }
        });
        Self { authority, dir, _process: process }
    }

    /// The calls that it has processed.
    fn calls(&self) -> Vec<String> {
        let text = fs::read_to_string(self.dir.path().join("calls.log")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

#[tokio::test]
async fn calls_beyond_the_requests_of_a_connection_are_made_once_on_another() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let nginx = Nginx::start(listener).await;
    let config = with_upstream_tls(OPEN_CONFIG, &nginx.authority.ca_file());
    let proxy = Arc::new(TestProxy::start_with_upstream(address, &config).await);
    proxy.get(USER_GET).await.assert_ok();
    for round in 1..=4 {
        let callers = (0..CALLERS).map(|_| {
            let proxy = proxy.clone();
            tokio::spawn(async move {
                let request = Request::builder().method(Method::POST).uri("/hr/cgi-bin/message/send");
                proxy.request(request, r#"{"touser":"li"}"#).await.assert_ok();
            })
        });
        for caller in callers.collect::<Vec<_>>() {
            caller.await.expect("a response");
        }
        wait_for("the calls", async || nginx.calls().len() > round * CALLERS).await;
        assert_eq!(nginx.calls().len(), 1 + round * CALLERS, "each once");
    }
    assert!(nginx.calls().iter().all(|call| call.ends_with(" 200")));
}
