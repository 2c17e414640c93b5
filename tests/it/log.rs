//! The log: what it records of failed requests, what it hides, and that it never blocks requests.

use std::{
    io::{BufRead, BufReader, Lines, PipeReader},
    os::unix::fs::MetadataExt,
    path::Path,
    process::{Child, Command},
};

use http::Request;
use tempfile::TempDir;
use tokio::task::spawn_blocking;
use wecom_proxy::simulator::{DropPoint, Fault, Settings, Simulator};

use crate::{
    certificates::Authority,
    harness::{
        CONFIG_WITH_CLIENTS, OPEN_CONFIG, TestClient, USER_GET, WAIT_TIMEOUT, client_key,
        start_simulator_with_config, wait_for, with_timeout, write_config,
    },
    process::{Process, log_field, wecom_proxy},
    raw_http::RawConnection,
};

async fn start_logged() -> (Simulator, Process, TestClient, TempDir) {
    let (wecom, dir, proxy) = Process::serve_with_simulator(CONFIG_WITH_CLIENTS).await;
    let client = TestClient::connect_http1(proxy.address().await).await;
    (wecom, proxy, client, dir)
}

#[tokio::test]
async fn refused_request_is_logged_with_client_and_reason() {
    let (_wecom, proxy, mut client, _dir) = start_logged().await;
    let request = Request::get("/nil/cgi-bin/user/get").header("x-api-key", client_key("crm"));
    client.request(request.header("x-request-id", "night-shift-1"), "").await.assert_proxy_error(
        "unknown-agent",
        404,
        40035,
    );
    let line = proxy.err.wait_for_line("night-shift-1").await;
    for part in [
        "INFO access",
        "peer=127.0.0.1",
        "client=\"crm\"",
        "error=\"unknown-agent\"",
        "no agent of this name",
    ] {
        assert!(line.contains(part), "no {part} in {line}");
    }
}

#[tokio::test]
async fn upstream_failure_is_logged_as_a_warning() {
    let (wecom, proxy, mut client, _dir) = start_logged().await;
    wecom.inject(Fault::drop(DropPoint::BeforeResponse).on_path("/cgi-bin/message/send")).expect("a fault");
    let request = Request::post("/hr/cgi-bin/message/send").header("x-api-key", client_key("crm"));
    let response = client.request(request.header("x-request-id", "night-shift-2"), "{}").await;
    response.assert_proxy_error("upstream-broke", 502, -1);
    let line = proxy.err.wait_for_line("night-shift-2").await;
    for part in [
        "WARN access",
        "error=\"upstream-broke\"",
        "connection closed before the response",
        "agent=\"hr\"",
        "request_bytes=2 bytes=",
    ] {
        assert!(line.contains(part), "no {part} in {line}");
    }
}

#[tokio::test]
async fn journal_gets_priorities_and_wecoms_errors_are_named() {
    let (wecom, dir, config) = start_simulator_with_config(OPEN_CONFIG).await;
    wecom.inject(Fault::status(502).on_path("/cgi-bin/user/get")).expect("a fault");
    let journal = dir.path().join("journal");
    let file = std::fs::File::create(&journal).expect("a file").metadata().expect("its numbers");
    let mut command = Command::new("sh");
    command.args(["-c", "exec \"$0\" --config \"$1\" 2>>\"$2\""]).arg(wecom_proxy(&[]).get_program());
    command.arg(config).arg(&journal).env_remove("RUST_LOG").env_remove("NOTIFY_SOCKET");
    command.env("JOURNAL_STREAM", format!("{}:{}", file.dev(), file.ino()));
    let _proxy = Process::start(command);
    let line = async |words: &str| {
        let mut found = String::new();
        wait_for(words, async || {
            let text = std::fs::read_to_string(&journal).expect("the file");
            found = text.lines().find(|line| line.contains(words)).unwrap_or_default().to_owned();
            !found.is_empty()
        })
        .await;
        found
    };
    let ready = line("ready listen=").await;
    assert!(ready.starts_with("<6>2"), "{ready}");
    let address = log_field(&ready, "listen").parse().expect("an address");
    TestClient::connect_http1(address).await.request(Request::get(format!("/hr{USER_GET}")), "").await;
    let failed = line("status=502").await;
    assert!(failed.starts_with("<6>2") && failed.contains("status=502 by=\"wecom\""), "{failed}");
    wecom.inject(Fault::drop(DropPoint::BeforeResponse).on_path("/cgi-bin/message/send")).expect("a fault");
    TestClient::connect_http1(address).await.request(Request::post("/hr/cgi-bin/message/send"), "{}").await;
    let broken = line("upstream-broke").await;
    assert!(broken.starts_with("<4>2") && !broken.contains(" by="), "{broken}");
}

#[tokio::test]
async fn operator_errcode_is_logged_with_a_hint() {
    let (wecom, proxy, mut client, _dir) = start_logged().await;
    for (errcode, hint) in [(60020, Some("Company's Trusted IP")), (60111, None)] {
        wecom.inject(Fault::errcode(errcode).on_path("/cgi-bin/user/get").times(1)).expect("a fault");
        let request = Request::get(format!("/hr{USER_GET}")).header("x-api-key", client_key("crm"));
        client.request(request.header("x-request-id", format!("night-shift-{errcode}")), "").await;
        let line = proxy.err.wait_for_line(&format!("night-shift-{errcode}")).await;
        assert!(line.contains(&format!("errcode={errcode}")), "{line}");
        assert_eq!(line.contains(" hint="), hint.is_some(), "{line}");
        assert!(line.contains(hint.unwrap_or_default()), "{line}");
    }
    // An errcode of the proxy's own gets no hint.
    client.request(Request::get(USER_GET).header("x-request-id", "night-shift-401"), "").await;
    let line = proxy.err.wait_for_line("night-shift-401").await;
    assert!(line.contains("errcode=40001") && !line.contains(" hint="), "{line}");
}

#[tokio::test]
async fn mistyped_query_leaves_no_secret_in_the_logged_path() {
    let (_wecom, proxy, mut client, _dir) = start_logged().await;
    let request = Request::get("/hr/cgi-bin/gettoken&corpid=ww1&corpsecret=hush-hush")
        .header("x-api-key", client_key("crm"));
    client.request(request.header("x-request-id", "night-shift-3"), "").await;
    let line = proxy.err.wait_for_line("night-shift-3").await;
    assert!(line.contains("path=\"/hr/cgi-bin/gettoken\""), "{line}");
    assert!(!proxy.err.text().contains("hush-hush"));
}

#[tokio::test]
async fn misplaced_key_is_not_logged() {
    use base64::{Engine, prelude::BASE64_STANDARD};
    let (_wecom, proxy, mut client, _dir) = start_logged().await;
    let crm = client_key("crm");
    let with_key = |request: http::request::Builder| request.header("x-api-key", &crm);
    let user_get = || Request::get(format!("/hr{USER_GET}"));
    let basic = BASE64_STANDARD.encode(format!("crm:{crm}"));
    let gettoken = format!("/hr/cgi-bin/gettoken?corpid=ww1234567890abcdef&corpsecret={crm}");
    let pass = client.request(Request::get(&gettoken), "").await.json()["access_token"].clone();
    let pass = pass.as_str().expect("a pass");
    for request in [
        with_key(user_get()).method(&*crm),
        with_key(Request::get(USER_GET)).header("x-wecom-agent", &crm),
        with_key(user_get()).header("x-request-id", &crm),
        user_get().header("authorization", format!("Bearer {crm}")).header("x-request-id", &crm),
        user_get().header("authorization", format!("Basic {basic}")).header("x-request-id", &crm),
        user_get().header("authorization", format!("Basic {basic}")).header("x-request-id", &basic),
        user_get().header("authorization", &crm).header("x-request-id", &crm),
        Request::get(&gettoken).header("x-request-id", &crm),
        with_key(user_get()).header("x-request-id", pass),
    ] {
        let id = client.request(request, "").await.header("x-request-id").to_owned();
        let line = proxy.err.wait_for_line(&id).await;
        for secret in [&*crm, &*basic, pass] {
            assert!(!id.contains(secret) && !line.contains(secret), "{line}");
        }
    }
    // A pass as a path segment, in place of the agent or behind the endpoint.
    for path in [format!("/{pass}/cgi-bin/user/get"), format!("/hr/cgi-bin/user/get/{pass}")] {
        let id = client.request(with_key(Request::get(path)), "").await.header("x-request-id").to_owned();
        let line = proxy.err.wait_for_line(&id).await;
        assert!(line.contains("/[masked]") && !line.contains(pass), "{line}");
    }
    // A request id that is only a prefix of a key is kept.
    let request = with_key(user_get()).header("x-request-id", &crm[..8]);
    assert_eq!(client.request(request, "").await.header("x-request-id"), &crm[..8]);
    let line = proxy.err.wait_for_line(&crm[..8]).await;
    assert!(line.contains("method=GET"), "{line}");
    let all = proxy.err.text();
    assert!(all.contains("method=-"), "{all}");
    assert!(![&*crm, &*basic, pass].iter().any(|secret| all.contains(secret)), "{all}");
}

/// A simulator, and a directory for the configuration.
async fn start_simulator() -> (Simulator, TempDir) {
    let wecom = crate::leak_detector::start_simulator(Settings::default()).await;
    (wecom, TempDir::new().expect("a directory"))
}

fn write_log_config((wecom, dir): &(Simulator, TempDir), more: &str) -> std::path::PathBuf {
    write_config(dir, wecom.api_addr(), &Settings::default(), &format!("{OPEN_CONFIG}{more}"))
}

/// Sends a successful and a failing request, with the request ids `well-{suffix}` and `failed-{suffix}`.
async fn send_ok_and_failed(wecom: &Simulator, client: &mut TestClient, suffix: &str) {
    let well = Request::get(format!("/hr{USER_GET}")).header("x-request-id", format!("well-{suffix}"));
    client.request(well, "").await.assert_ok();
    wecom.inject(Fault::drop(DropPoint::BeforeResponse).on_path("/cgi-bin/message/send")).expect("a fault");
    let failed = Request::post("/hr/cgi-bin/message/send").header("x-request-id", format!("failed-{suffix}"));
    client.request(failed, "{}").await.assert_proxy_error("upstream-broke", 502, -1);
}

#[tokio::test]
async fn disabled_access_log_still_logs_failures() {
    let setup = start_simulator().await;
    let proxy =
        Process::serve_with_config_log_level(&write_log_config(&setup, "[log]\naccess = false\n")).await;
    let mut client = TestClient::connect_http1(proxy.address().await).await;
    send_ok_and_failed(&setup.0, &mut client, "1").await;
    assert!(proxy.err.wait_for_line("failed-1").await.contains("WARN access"));
    let output = proxy.stop().await;
    assert!(!output.err.contains("well-1"), "{}", output.err);
}

#[tokio::test]
async fn rust_log_overrides_the_log_level() {
    for (directives, [well, failed]) in [("info", [false, true]), ("warn,access=off", [false, false])] {
        let setup = start_simulator().await;
        let path = write_log_config(&setup, "[log]\naccess = false\n");
        let mut command = wecom_proxy(&["--config", path.to_str().expect("UTF-8")]);
        command.env("RUST_LOG", directives);
        let proxy = Process::start(command);
        let mut client = TestClient::connect_http1(proxy.address().await).await;
        send_ok_and_failed(&setup.0, &mut client, "1").await;
        let output = proxy.stop().await;
        let logged = ["well-1", "failed-1"].map(|id| output.err.contains(id));
        assert_eq!(logged, [well, failed], "{directives}: {}", output.err);
    }
}

#[tokio::test]
async fn access_log_setting_follows_a_reload() {
    let setup = start_simulator().await;
    let proxy = Process::serve_with_config_log_level(&write_log_config(&setup, "")).await;
    let (mut client, mut admin) = (
        TestClient::connect_http1(proxy.address().await).await,
        TestClient::connect_http1(proxy.admin_address().await).await,
    );
    send_ok_and_failed(&setup.0, &mut client, "1").await;
    write_log_config(&setup, "[log]\naccess = false\nlevel = \"error\"\n");
    // The response is sent after the reload is complete.
    let reload = Request::post("/api/reload").header("x-requested-with", "a test");
    assert_eq!(admin.request(reload, "").await.status, 200);
    send_ok_and_failed(&setup.0, &mut client, "2").await;
    let output = proxy.stop().await;
    let logged = ["well-1", "failed-1", "well-2", "failed-2"].map(|id| output.err.contains(id));
    assert_eq!(logged, [true, true, false, false], "{}", output.err);
}

/// The request ids of the lines that contain `text`, in order.
fn request_ids<'a>(lines: impl Iterator<Item = &'a str>, text: &str) -> Vec<String> {
    lines.filter(|line| line.contains(text)).map(|line| log_field(line, "request_id")).collect()
}

/// Sends a request that is refused, with `number` as its request id.
async fn send_refused(client: &mut TestClient, number: usize, path: &str) {
    let request = Request::get(path).header("x-request-id", number.to_string());
    client.request(request, "").await.assert_proxy_error("no-route", 404, 40035);
}

#[tokio::test]
async fn log_lines_are_flushed_at_exit() {
    let numbers: Vec<_> = (0..200).map(|number| number.to_string()).collect();
    for signals in [1, 2] {
        let setup = start_simulator().await;
        let proxy = Process::serve(&write_log_config(&setup, "")).await;
        let mut held = TestClient::connect_http1(proxy.address().await).await;
        let mut client = TestClient::connect_http1(proxy.address().await).await;
        if signals == 2 {
            held.get(USER_GET).await.assert_ok();
            setup.0.inject(Fault::hold().on_path("/cgi-bin/user/get")).expect("a fault");
            let request = Request::get(format!("/hr{USER_GET}")).body(Default::default()).expect("a request");
            tokio::spawn(async move { held.send(request).await });
            setup.0.wait_until(|observed| observed.in_flight() == 1).await.expect("a request");
        }
        for number in 0..numbers.len() {
            send_refused(&mut client, number, "/nowhere").await;
        }
        proxy.signal("TERM");
        if signals == 2 {
            proxy.err.wait_for_line("stopping").await;
            proxy.signal("TERM");
        }
        let output = proxy.wait().await;
        assert_eq!(output.status, signals - 1, "{}", output.err);
        assert_eq!(request_ids(output.err.lines(), "no-route"), numbers);
        assert_eq!(output.err.contains("stopped"), signals == 1, "{}", output.err);
    }
}

/// The program, whose stderr is read only on demand.
struct UnreadLogProcess {
    child: Child,
    err: Option<Lines<BufReader<PipeReader>>>,
}

impl UnreadLogProcess {
    fn serve(config: &Path) -> Self {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        let mut command = wecom_proxy(&["serve", "--config", config.to_str().expect("UTF-8")]);
        let child = command.stderr(writer).spawn().expect("the program starts");
        Self { child, err: Some(BufReader::new(reader).lines()) }
    }

    /// Reads up to the line that contains `text`, or to the end.
    async fn read_until(&mut self, text: &str) -> Vec<String> {
        let text = text.to_owned();
        let mut err = self.err.take().expect("the only reader");
        let reading = spawn_blocking(move || {
            let mut read = Vec::new();
            while let Some(Ok(line)) = err.next() {
                read.push(line);
                if read.last().is_some_and(|line| line.contains(&text)) {
                    break;
                }
            }
            (read, err)
        });
        let (read, err) = with_timeout(reading).await.expect("no panic");
        self.err = Some(err);
        read
    }
}

impl Drop for UnreadLogProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A TLS ClientHello whose server name (SNI) is not valid UTF-8.
fn invalid_client_hello() -> Vec<u8> {
    let name = [&[0, 0, 0, 9, 0, 7, 0, 0, 4][..], &[0xff; 4]].concat();
    let length = |bytes: &[u8]| bytes.len() as u8;
    let body = [&[3, 3][..], &[7; 32], &[0, 0, 2, 0x13, 1, 1, 0, 0, length(&name)], &name].concat();
    let hello = [&[1, 0, 0, length(&body)][..], &body].concat();
    [&[22, 3, 1, 0, length(&hello)][..], &hello].concat()
}

#[tokio::test]
async fn repeated_client_faults_do_not_fill_the_log() {
    let setup = start_simulator().await;
    let proxy = Process::serve(&write_log_config(&setup, "")).await;
    let mut connection = RawConnection::connect(proxy.address().await).await;
    // Unsolicited PING acknowledgements, and one PING behind them.
    let unsolicited = b"\0\0\x08\x06\x01\0\0\0\0unwanted".repeat(100);
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    connection
        .send([&preface[..], &unsolicited, b"\0\0\x08\x06\0\0\0\0\0lastping"].concat())
        .await
        .expect("sent");
    while {
        let head = connection.read_exact(9).await;
        let payload = connection.read_exact(usize::from(head[1]) << 8 | usize::from(head[2])).await;
        payload != b"lastping"
    } {}
    let plain = proxy.stop().await.err;

    let authority = Authority::new();
    let toml =
        OPEN_CONFIG.replace("[upstream]", &format!("{}\n[upstream]", authority.tls_config_line("localhost")));
    let config = write_config(&setup.1, setup.0.api_addr(), &Settings::default(), &toml);
    let proxy = Process::serve(&config).await;
    for _ in 0..100 {
        let mut connection = RawConnection::connect(proxy.address().await).await;
        connection.send(invalid_client_hello()).await.expect("sent");
        let _ = connection.read_to_end().await;
    }
    let secure = proxy.stop().await.err;
    assert!(secure.contains("TLS handshake failed"), "{secure}");
    for log in [plain, secure] {
        assert!(log.lines().count() < 20, "{log}");
    }
}

#[tokio::test]
async fn requests_do_not_wait_for_a_blocked_log_reader() {
    // More data than the pipe and all buffers hold.
    const REQUESTS: usize = 100;
    let path = format!("/{}", "x".repeat(40_000));
    let setup = start_simulator().await;
    let mut proxy = UnreadLogProcess::serve(&write_log_config(&setup, ""));
    let ready = proxy.read_until("ready listen=").await;
    let address = log_field(ready.last().expect("a line"), "listen").parse().expect("an address");
    let mut client = TestClient::connect_http1(address).await;
    // One extra request: a response is sent before its line is logged, but the next request comes after both.
    for number in 0..=REQUESTS {
        send_refused(&mut client, number, &path).await;
    }
    let mut read = proxy.read_until("lines dropped").await;
    let lost = read.last().and_then(|line| line.split(" lines=").nth(1)).expect("a count");
    let lost: usize = lost.split_whitespace().next().and_then(|lost| lost.parse().ok()).expect("a number");
    assert!(lost > 0);
    send_refused(&mut client, REQUESTS + 1, "/nowhere").await;
    read.extend(proxy.read_until("/nowhere").await);
    let mut kept = request_ids(read.iter().map(String::as_str), "no-route");
    assert_eq!(kept.pop(), Some((REQUESTS + 1).to_string()), "logging resumes");
    kept.retain(|id| *id != REQUESTS.to_string());
    assert!((REQUESTS..=REQUESTS + 1).contains(&(kept.len() + lost)), "{lost} lost, {} kept", kept.len());
    let first: Vec<_> = (0..kept.len()).map(|number| number.to_string()).collect();
    assert_eq!(kept, first, "the first lines are kept");
}

#[tokio::test]
async fn unread_log_blocks_neither_admin_nor_shutdown() {
    let setup = start_simulator().await;
    let mut proxy = UnreadLogProcess::serve(&write_log_config(&setup, ""));
    let ready = proxy.read_until("ready listen=").await;
    let address_of = |name| log_field(ready.last().expect("a line"), name).parse().expect("an address");
    let (mut client, mut admin) = (
        TestClient::connect_http1(address_of("listen")).await,
        TestClient::connect_http1(address_of("admin")).await,
    );
    // More data than the pipe holds, and then lines of the reload.
    let path = format!("/{}", "x".repeat(40_000));
    for number in 0..4 {
        send_refused(&mut client, number, &path).await;
    }
    for _ in 0..20 {
        let reload = Request::post("/api/reload").header("x-requested-with", "a test");
        assert_eq!(with_timeout(admin.request(reload, "")).await.status, 200);
    }
    assert_eq!(with_timeout(admin.request(Request::get("/readyz"), "")).await.status, 200);
    let started = std::time::Instant::now();
    let pid = proxy.child.id().to_string();
    for _ in 0..2 {
        assert!(std::process::Command::new("kill").arg(&pid).status().expect("kill is there").success());
    }
    while proxy.child.try_wait().expect("a status").is_none() {
        assert!(started.elapsed() < WAIT_TIMEOUT, "the program does not exit");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}
