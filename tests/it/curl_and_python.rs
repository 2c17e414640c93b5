//! Programs that nobody wrote for this proxy: curl, and Python's requests as scripts use it.

use std::{fs, process::Command};

use tokio::net::TcpListener;
use wecom_proxy::simulator::RecordedRequest;

use crate::{
    certificates::Authority,
    harness::{ECHO, TestProxy, USER_GET},
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

fn url(stage: &TestProxy, path: &str) -> String {
    format!("http://{}{path}", stage.address())
}

#[track_caller]
fn assert_ok(answer: &str) {
    assert!(answer.contains("\"errcode\":0"), "{answer}");
}

/// The last call of this path that WeCom saw.
fn last_request(stage: &TestProxy, path: &str) -> RecordedRequest {
    stage.wecom.requests().into_iter().rfind(|record| record.path == path).expect("a request")
}

fn sha256(bytes: &[u8]) -> Option<String> {
    use sha2::Digest;
    Some(sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect())
}

#[tokio::test]
async fn curl_is_served_over_each_http_version() {
    let stage = start_proxy().await;
    let user_get = url(&stage, USER_GET);
    let versions =
        [("--http1.0", "HTTP/1."), ("--http1.1", "HTTP/1.1 200"), ("--http2-prior-knowledge", "HTTP/2 200")];
    for (option, head) in versions {
        let answer = curl(&["-i", option, "-H", &api_key(), &user_get]).await;
        assert_ok(&answer);
        assert!(answer.starts_with(head), "{option}: {answer}");
    }
    // An upgrade to HTTP/2 that is offered and not taken up.
    assert_ok(&curl(&["--http2", "-H", &api_key(), &user_get]).await);
    // Several on one connection.
    let twice = curl(&["-H", &api_key(), &user_get, &user_get]).await;
    assert_eq!(twice.matches("\"errcode\":0").count(), 2, "{twice}");
}

#[tokio::test]
async fn curl_key_is_accepted_in_each_form() {
    let stage = start_proxy().await;
    let user_get = url(&stage, USER_GET);
    let (basic, bearer) = (format!("billing:{KEY}"), format!("Authorization: Bearer {KEY}"));
    for shown in [["-u", &basic], ["-H", &bearer], ["-H", &api_key()], ["--oauth2-bearer", KEY]] {
        assert_ok(&curl(&[&shown[..], &[&user_get]].concat()).await);
        let record = last_request(&stage, "/cgi-bin/user/get");
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
    let stage =
        TestProxy::start_with_config(&CONFIG.replace("{tls}", &authority.tls_config_line("localhost"))).await;
    let user_get = format!("https://localhost:{}{USER_GET}", stage.address().port());
    let ca = authority.ca_file().display().to_string();
    for (option, head) in [("--http2", "HTTP/2 200"), ("--http1.1", "HTTP/1.1 200")] {
        let answer = curl(&["-i", "--cacert", &ca, option, "-H", &api_key(), &user_get]).await;
        assert_ok(&answer);
        assert!(answer.starts_with(head), "{option}: {answer}");
    }
    // The same over the unix socket, under the name in the certificate.
    let socket = stage.dir.path().join("proxy.sock").display().to_string();
    assert_ok(&curl(&["--unix-socket", &socket, "--cacert", &ca, "-H", &api_key(), &user_get]).await);
    let distrusted = curl_outcome(&["-H", &api_key(), &user_get]).await;
    assert_ne!(distrusted.status, 0, "{}", distrusted.out);
}

#[tokio::test]
async fn curl_over_a_unix_socket_is_served() {
    let stage = start_proxy().await;
    let socket = stage.dir.path().join("proxy.sock").display().to_string();
    let user_get = format!("http://localhost{USER_GET}");
    for option in ["--http1.1", "--http2-prior-knowledge"] {
        assert_ok(&curl(&[option, "--unix-socket", &socket, "-H", &api_key(), &user_get]).await);
    }
}

#[tokio::test]
async fn curl_uploads_of_each_kind_arrive_intact() {
    let stage = start_proxy().await;
    let file = stage.dir.path().join("body");
    let body: Vec<u8> = (0..3 << 20).map(|at: u32| (at % 253) as u8).collect();
    fs::write(&file, &body).expect("a file");
    let data = format!("@{}", file.display());
    let (echo, path) = (url(&stage, ECHO), file.display().to_string());
    let api_key = api_key();
    let ways: &[&[&str]] = &[
        // Beyond a mebibyte curl asks first: Expect: 100-continue.
        &["--http1.1", "--data-binary", &data],
        &["--http1.1", "-H", "Expect: 100-continue", "--data-binary", &data],
        &["--http1.1", "-H", "Expect:", "--data-binary", &data],
        &["--http1.1", "-H", "Transfer-Encoding: chunked", "--data-binary", &data],
        &["--http1.1", "-H", "Transfer-Encoding: chunked", "-X", "POST", "-T", &path],
        &["--http2-prior-knowledge", "--data-binary", &data],
        &["--http1.0", "--data-binary", &data],
    ];
    for way in ways {
        for void in [false, true] {
            if void {
                stage.wecom.revoke_tokens("hr").expect("an agent");
            }
            assert_ok(&curl(&[way, &["-H", &*api_key, &*echo][..]].concat()).await);
            let record = last_request(&stage, ECHO);
            assert_eq!((record.executed, record.body_bytes), (true, body.len() as u64), "{way:?}");
            assert_eq!(record.body_sha256, sha256(&body), "{way:?}");
            assert_eq!(record.header_values("expect"), Vec::<&str>::new());
        }
    }
    // From a pipe, whose length nobody knows.
    let mut bash = Command::new(tool("bash"));
    let line = "cat \"$1\" | curl -sS --noproxy '*' --max-time 20 -X POST -T - -H \"$2\" \"$3\"";
    bash.args(["-c", line, "bash", &path, &api_key, &echo]);
    let ended = run(bash).await;
    assert_ok(&ended.out);
    assert_eq!(last_request(&stage, ECHO).body_sha256, sha256(&body));
}

#[tokio::test]
async fn curl_expecting_100_continue_gets_it_in_time() {
    let stage = start_proxy().await;
    let arguments = ["-v", "--http1.1", "-H", "Expect: 100-continue", "--expect100-timeout", "15"];
    let echo = url(&stage, ECHO);
    let ended: ExitOutput =
        curl_outcome(&[&arguments[..], &["-H", &api_key(), "-d", "{}", &echo]].concat()).await;
    assert_ok(&ended.out);
    assert!(ended.err.contains("< HTTP/1.1 100 Continue"), "{}", ended.err);
    // Who has no key is refused without being asked for the body.
    let ended = curl_outcome(&[&arguments[..], &["-d", "{}", &echo]].concat()).await;
    assert!(ended.out.contains("40001") && !ended.err.contains("100 Continue"), "{}", ended.err);
}

#[tokio::test]
async fn curl_file_upload_downloads_again_by_range() {
    let stage = start_proxy().await;
    let at = |name: &str| stage.dir.path().join(name).display().to_string();
    let content: Vec<u8> = (0..1 << 20).map(|at: u32| (at % 249) as u8).collect();
    fs::write(at("out"), &content).expect("a file");
    let upload = url(&stage, "/cgi-bin/media/upload?type=file");
    let answer = curl(&["-H", &api_key(), "-F", &format!("media=@{}", at("out")), &upload]).await;
    let answer: serde_json::Value = serde_json::from_str(&answer).expect("JSON");
    let media_id = answer["media_id"].as_str().unwrap_or_else(|| panic!("{answer}"));
    let get = url(&stage, &format!("/cgi-bin/media/get?media_id={media_id}"));
    curl(&["-H", &api_key(), "-o", &at("back"), &get]).await;
    assert!(fs::read(at("back")).expect("a file") == content);
    curl(&["-H", &api_key(), "-r", "100-299", "-o", &at("part"), &get]).await;
    assert!(fs::read(at("part")).expect("a file") == content[100..300]);
    // Half of it is here already: -C goes on from there.
    fs::write(at("rest"), &content[..content.len() / 2]).expect("a file");
    curl(&["-H", &api_key(), "-C", "-", "-o", &at("rest"), &get]).await;
    assert!(fs::read(at("rest")).expect("a file") == content);
    let head = curl(&["-I", "-H", &api_key(), &get]).await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
}

#[tokio::test]
async fn curl_using_it_as_a_forward_proxy_is_refused() {
    let stage = start_proxy().await;
    let outside = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let proxy = url(&stage, "");
    let target = format!("http://{}{USER_GET}", outside.local_addr().expect("an address"));
    for tunnel in [&[][..], &["-p"]] {
        let options = ["-i", "--noproxy", "", "-x", &proxy, "-H", &api_key(), &target];
        let ended = curl_outcome(&[tunnel, &options[..]].concat()).await;
        assert!(!ended.out.contains(" 200 "), "{}", ended.out);
    }
    let waited = tokio::time::timeout(std::time::Duration::from_millis(100), outside.accept()).await;
    assert!(waited.is_err(), "somebody got out");
}

#[tokio::test]
async fn python_requests_script_runs_unchanged() {
    let stage = start_proxy().await;
    let python = python();
    let mut script = Command::new(python);
    script.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/programs/legacy.py"));
    script.args([&url(&stage, ""), KEY]).env("NO_PROXY", "127.0.0.1").env("no_proxy", "127.0.0.1");
    let ended = run(script).await;
    assert_eq!((ended.status, ended.out.trim()), (0, "legacy: fine"), "{}", ended.err);
    let texts: Vec<_> = stage.wecom.messages().into_iter().map(|message| message.body).collect();
    let said: Vec<_> = texts.iter().map(|body| body["text"]["content"].as_str().expect("a text")).collect();
    assert_eq!(said, ["hello", "你好，世界 😀 \" \\ \n", "chunked"]);
    assert_eq!(stage.wecom.gettoken_count("hr").expect("an agent"), 1);
}

#[tokio::test]
async fn curl_reads_the_refusal_while_still_uploading() {
    let stage = start_proxy().await;
    let file = stage.dir.path().join("large");
    fs::File::create(&file).and_then(|file| file.set_len(70 << 20)).expect("a sparse file");
    let file = file.to_str().expect("a path in UTF-8");
    let upload = url(&stage, "/hr/cgi-bin/media/upload?type=file");
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        for (key, errcode) in [(KEY, "45001"), ("nobody's-key", "40001")] {
            let header = format!("X-Api-Key: {key}");
            let answer =
                curl(&[version, "-H", &header, "-H", "Expect:", "-X", "POST", "-T", file, &upload]).await;
            assert!(answer.contains(errcode), "{version} {errcode}: {answer}");
        }
    }
}
