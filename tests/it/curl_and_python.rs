//! Unmodified clients: curl, and a script with Python's requests.

use std::{fs, process::Command};

use tokio::net::TcpListener;

use crate::{
    certificates::Authority,
    harness::{ECHO, TestProxy, USER_GET, sha256},
    process::{ExitOutput, curl, curl_outcome, python, run, tool},
};

const KEY: &str = "the-key-of-billing-0123456789abcdef";

const CONFIG: &str = r#"
[server]
listen = ["127.0.0.1:0", "unix:{dir}/proxy.sock"]
{tls}
[upstream]
url = "http://{api}"
{agents}
[clients.billing]
key = "the-key-of-billing-0123456789abcdef"
agents = ["hr"]
"#;

async fn start_proxy() -> TestProxy {
    TestProxy::start_with_config(&CONFIG.replace("{tls}", "")).await
}

fn api_key() -> String {
    format!("X-Api-Key: {KEY}")
}

fn url(proxy: &TestProxy, path: &str) -> String {
    format!("http://{}{path}", proxy.address())
}

#[track_caller]
fn assert_ok(response: &str) {
    assert!(response.contains("\"errcode\":0"), "{response}");
}

#[tokio::test]
async fn curl_is_served_over_each_http_version() {
    let proxy = start_proxy().await;
    let user_get = url(&proxy, USER_GET);
    let versions =
        [("--http1.0", "HTTP/1."), ("--http1.1", "HTTP/1.1 200"), ("--http2-prior-knowledge", "HTTP/2 200")];
    for (option, head) in versions {
        let response = curl(&["-i", option, "-H", &api_key(), &user_get]).await;
        assert_ok(&response);
        assert!(response.starts_with(head), "{option}: {response}");
    }
    // The h2c upgrade offer is ignored.
    assert_ok(&curl(&["--http2", "-H", &api_key(), &user_get]).await);
    // Two requests on one connection.
    let twice = curl(&["-H", &api_key(), &user_get, &user_get]).await;
    assert_eq!(twice.matches("\"errcode\":0").count(), 2, "{twice}");
}

#[tokio::test]
async fn curl_key_is_accepted_in_each_form() {
    let proxy = start_proxy().await;
    let user_get = url(&proxy, USER_GET);
    let (basic, bearer) = (format!("billing:{KEY}"), format!("Authorization: Bearer {KEY}"));
    for credential in [["-u", &basic], ["-H", &bearer], ["-H", &api_key()], ["--oauth2-bearer", KEY]] {
        assert_ok(&curl(&[&credential[..], &[&user_get]].concat()).await);
        let record = proxy.last_request("/cgi-bin/user/get");
        for name in ["authorization", "x-api-key", "cookie"] {
            assert_eq!(record.header_values(name), Vec::<&str>::new());
        }
        assert!(record.header_values("user-agent")[0].starts_with("curl/"));
    }
    let refused = curl(&["-i", "-u", "billing:wrong", &user_get]).await;
    assert!(refused.contains(" 401 ") && refused.contains("40001"), "{refused}");
}

#[tokio::test]
async fn curl_over_tls_is_served() {
    let authority = Authority::new();
    let proxy =
        TestProxy::start_with_config(&CONFIG.replace("{tls}", &authority.tls_config_line("localhost"))).await;
    let user_get = format!("https://localhost:{}{USER_GET}", proxy.address().port());
    let ca = authority.ca_file().display().to_string();
    for (option, head) in [("--http2", "HTTP/2 200"), ("--http1.1", "HTTP/1.1 200")] {
        let response = curl(&["-i", "--cacert", &ca, option, "-H", &api_key(), &user_get]).await;
        assert_ok(&response);
        assert!(response.starts_with(head), "{option}: {response}");
    }
    // The same over the Unix socket, with the certificate's host name.
    let socket = proxy.dir.path().join("proxy.sock").display().to_string();
    assert_ok(&curl(&["--unix-socket", &socket, "--cacert", &ca, "-H", &api_key(), &user_get]).await);
    let output = curl_outcome(&["-H", &api_key(), &user_get]).await;
    assert_ne!(output.status, 0, "{}", output.out);
}

#[tokio::test]
async fn curl_over_a_unix_socket_is_served() {
    let proxy = start_proxy().await;
    let socket = proxy.dir.path().join("proxy.sock").display().to_string();
    let user_get = format!("http://localhost{USER_GET}");
    for option in ["--http1.1", "--http2-prior-knowledge"] {
        assert_ok(&curl(&[option, "--unix-socket", &socket, "-H", &api_key(), &user_get]).await);
    }
}

#[tokio::test]
async fn curl_uploads_of_each_kind_arrive_intact() {
    let proxy = start_proxy().await;
    let file = proxy.dir.path().join("body");
    let body: Vec<u8> = (0..3 << 20).map(|index: u32| (index % 253) as u8).collect();
    fs::write(&file, &body).expect("a file");
    let data = format!("@{}", file.display());
    let (echo, path) = (url(&proxy, ECHO), file.display().to_string());
    let api_key = api_key();
    let options: &[&[&str]] = &[
        // curl sends Expect: 100-continue with bodies above 1 MiB.
        &["--http1.1", "--data-binary", &data],
        &["--http1.1", "-H", "Expect: 100-continue", "--data-binary", &data],
        &["--http1.1", "-H", "Expect:", "--data-binary", &data],
        &["--http1.1", "-H", "Transfer-Encoding: chunked", "--data-binary", &data],
        &["--http1.1", "-H", "Transfer-Encoding: chunked", "-X", "POST", "-T", &path],
        &["--http2-prior-knowledge", "--data-binary", &data],
        &["--http1.0", "--data-binary", &data],
    ];
    for option in options {
        for revoked in [false, true] {
            if revoked {
                proxy.wecom.revoke_tokens("hr").expect("an agent");
            }
            assert_ok(&curl(&[option, &["-H", &*api_key, &*echo][..]].concat()).await);
            let record = proxy.last_request(ECHO);
            assert_eq!((record.executed, record.body_bytes), (true, body.len() as u64), "{option:?}");
            assert_eq!(record.body_sha256, Some(sha256(&body)), "{option:?}");
            assert_eq!(record.header_values("expect"), Vec::<&str>::new());
        }
    }
    // From a pipe, whose length is unknown.
    let mut bash = Command::new(tool("bash"));
    let line = "cat \"$1\" | curl -sS --noproxy '*' --max-time 20 -X POST -T - -H \"$2\" \"$3\"";
    bash.args(["-c", line, "bash", &path, &api_key, &echo]);
    let output = run(bash).await;
    assert_ok(&output.out);
    assert_eq!(proxy.last_request(ECHO).body_sha256, Some(sha256(&body)));
}

#[tokio::test]
async fn curl_expecting_100_continue_gets_it_in_time() {
    let proxy = start_proxy().await;
    let arguments = ["-v", "--http1.1", "-H", "Expect: 100-continue", "--expect100-timeout", "15"];
    let echo = url(&proxy, ECHO);
    let output: ExitOutput =
        curl_outcome(&[&arguments[..], &["-H", &api_key(), "-d", "{}", &echo]].concat()).await;
    assert_ok(&output.out);
    assert!(output.err.contains("< HTTP/1.1 100 Continue"), "{}", output.err);
    // A request without a key is refused before its body is read.
    let output = curl_outcome(&[&arguments[..], &["-d", "{}", &echo]].concat()).await;
    assert!(output.out.contains("40001") && !output.err.contains("100 Continue"), "{}", output.err);
}

#[tokio::test]
async fn curl_file_upload_downloads_again_by_range() {
    let proxy = start_proxy().await;
    let path = |name: &str| proxy.dir.path().join(name).display().to_string();
    let content: Vec<u8> = (0..1 << 20).map(|index: u32| (index % 249) as u8).collect();
    fs::write(path("out"), &content).expect("a file");
    let upload = url(&proxy, "/cgi-bin/media/upload?type=file");
    let response = curl(&["-H", &api_key(), "-F", &format!("media=@{}", path("out")), &upload]).await;
    let response: serde_json::Value = serde_json::from_str(&response).expect("JSON");
    let media_id = response["media_id"].as_str().unwrap_or_else(|| panic!("{response}"));
    let get = url(&proxy, &format!("/cgi-bin/media/get?media_id={media_id}"));
    curl(&["-H", &api_key(), "-o", &path("back"), &get]).await;
    assert!(fs::read(path("back")).expect("a file") == content);
    curl(&["-H", &api_key(), "-r", "100-299", "-o", &path("part"), &get]).await;
    assert!(fs::read(path("part")).expect("a file") == content[100..300]);
    // Half of the file is there already: -C resumes the download.
    fs::write(path("rest"), &content[..content.len() / 2]).expect("a file");
    curl(&["-H", &api_key(), "-C", "-", "-o", &path("rest"), &get]).await;
    assert!(fs::read(path("rest")).expect("a file") == content);
    let head = curl(&["-I", "-H", &api_key(), &get]).await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
}

#[tokio::test]
async fn curl_using_it_as_a_forward_proxy_is_refused() {
    let proxy = start_proxy().await;
    let outside = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let proxy_url = url(&proxy, "");
    let target = format!("http://{}{USER_GET}", outside.local_addr().expect("an address"));
    for tunnel in [&[][..], &["-p"]] {
        let options = ["-i", "--noproxy", "", "-x", &proxy_url, "-H", &api_key(), &target];
        let output = curl_outcome(&[tunnel, &options[..]].concat()).await;
        assert!(!output.out.contains(" 200 "), "{}", output.out);
    }
    let accepted = tokio::time::timeout(std::time::Duration::from_millis(100), outside.accept()).await;
    assert!(accepted.is_err(), "a connection left the proxy");
}

#[tokio::test]
async fn python_requests_script_runs_unchanged() {
    let proxy = start_proxy().await;
    let python = python();
    let mut script = Command::new(python);
    script.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/programs/legacy.py"));
    script.args([&url(&proxy, ""), KEY]).env("NO_PROXY", "127.0.0.1").env("no_proxy", "127.0.0.1");
    let output = run(script).await;
    assert_eq!((output.status, output.out.trim()), (0, "legacy: fine"), "{}", output.err);
    let texts: Vec<_> = proxy.wecom.messages().into_iter().map(|message| message.body).collect();
    let contents: Vec<_> =
        texts.iter().map(|body| body["text"]["content"].as_str().expect("a text")).collect();
    assert_eq!(contents, ["hello", "你好，世界 😀 \" \\ \n", "chunked"]);
    assert_eq!(proxy.wecom.gettoken_count("hr").expect("an agent"), 1);
}

#[tokio::test]
async fn curl_reads_the_refusal_while_still_uploading() {
    let proxy = start_proxy().await;
    let file = proxy.dir.path().join("large");
    fs::File::create(&file).and_then(|file| file.set_len(70 << 20)).expect("a sparse file");
    let file = file.to_str().expect("a path in UTF-8");
    let upload = url(&proxy, "/hr/cgi-bin/media/upload?type=file");
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        for (key, errcode) in [(KEY, "45001"), ("unknown-key", "40001")] {
            let header = format!("X-Api-Key: {key}");
            let response =
                curl(&[version, "-H", &header, "-H", "Expect:", "-X", "POST", "-T", file, &upload]).await;
            assert!(response.contains(errcode), "{version} {errcode}: {response}");
        }
    }
}
