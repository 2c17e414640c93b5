//! Programs that know nothing of this proxy, each saying just what it says to WeCom.

use std::fs;

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    certificates::Authority,
    gettoken::{CORPID, HR, keyed_with, pass_in},
    stage::{KEYED, Stage, key, soon},
    wire::Line,
};

/// A connection of such a program.
struct Program(Line);

impl Program {
    async fn of(stage: &Stage) -> Self {
        Self(Line::to(stage.address()).await)
    }

    /// A request, written with plain line ends; the answer's status line and body.
    async fn says(&mut self, head: &str, body: &str) -> (String, String) {
        let head = head.trim().replace('\n', "\r\n");
        self.0.say(format!("{head}\r\n\r\n{body}")).await.expect("it is taken");
        let (head, body) = self.0.answer().await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}{body}");
        (head, body)
    }

    /// A gettoken that must be granted.
    async fn pass(&mut self, head: &str) -> String {
        pass_in(&self.says(&fill(head, ""), "").await.1)
    }

    /// A call with this pass that must succeed.
    async fn calls(&mut self, head: &str, pass: &str, body: &str) -> Value {
        let length = body.len().to_string();
        let answer = self.says(&fill(head, pass).replace("LENGTH", &length), body).await.1;
        let answer: Value = serde_json::from_str(&answer).expect("JSON");
        assert_eq!(answer["errcode"], 0, "{answer}");
        answer
    }
}

/// A head in which CORPID, KEY and PASS stand for what they say.
fn fill(head: &str, pass: &str) -> String {
    head.replace("CORPID", CORPID).replace("KEY", &key("billing")).replace("PASS", pass)
}

/// The messages that WeCom took, and that they came with the real token.
#[track_caller]
fn delivered(stage: &Stage, count: usize) {
    assert_eq!(stage.wecom.messages().len(), count);
    assert_eq!(stage.last_seen("/cgi-bin/message/send").query, "access_token=token#1");
    assert_eq!(stage.wecom.gettoken_count("hr").expect("an agent"), 1);
}

const MESSAGE: &str =
    r#"{"touser":"zhangsan","msgtype":"text","agentid":1000002,"text":{"content":"hello"}}"#;

#[tokio::test]
async fn wxjava_with_a_prefix_in_its_base_url() {
    let stage = Stage::with(KEYED).await;
    let mut program = Program::of(&stage).await;
    let pass = program
        .pass(
            "GET /hr/cgi-bin/gettoken?corpid=CORPID&corpsecret=KEY HTTP/1.1\nHost: proxy.test\n\
             Connection: Keep-Alive\nUser-Agent: Apache-HttpClient/4.5.14 (Java/17.0.9)\nAccept-Encoding: gzip,deflate",
        )
        .await;
    let send = "POST /hr/cgi-bin/message/send?access_token=PASS HTTP/1.1\nContent-Length: LENGTH\n\
                Content-Type: text/plain; charset=UTF-8\nHost: proxy.test\nConnection: Keep-Alive\n\
                User-Agent: Apache-HttpClient/4.5.14 (Java/17.0.9)\nAccept-Encoding: gzip,deflate";
    program.calls(send, &pass, MESSAGE).await;
    delivered(&stage, 1);
}

#[tokio::test]
async fn wxjava_renews_by_itself_when_its_pass_is_void() {
    let stage = Stage::with(KEYED).await;
    let mut program = Program::of(&stage).await;
    let gettoken = "GET /hr/cgi-bin/gettoken?corpid=CORPID&corpsecret=KEY HTTP/1.1\nHost: proxy.test";
    let get = "GET /hr/cgi-bin/user/get?userid=zhangsan&access_token=PASS HTTP/1.1\nHost: proxy.test";
    program.pass(gettoken).await;
    let (_, answer) = program.says(&fill(get, "a-token-of-before"), "").await;
    // Any answer but an object, or a status of 300 and more, it would throw away.
    let answer: Value = serde_json::from_str(&answer).expect("JSON");
    assert!(answer.is_object() && answer["errcode"] == 40014, "{answer}");
    let pass = program.pass(gettoken).await;
    program.calls(get, &pass, "").await;
}

#[tokio::test]
async fn easywechat_6_loses_its_prefix_in_gettoken_and_keeps_it_in_calls() {
    let stage = Stage::with(KEYED).await;
    let mut program = Program::of(&stage).await;
    let pass = program
        .pass(
            "GET /cgi-bin/gettoken?corpid=CORPID&corpsecret=KEY HTTP/1.1\nHost: proxy.test\nAccept: */*\n\
             User-Agent: Symfony HttpClient (Curl)\nAccept-Encoding: gzip",
        )
        .await;
    let send = "POST /hr/cgi-bin/message/send?access_token=PASS HTTP/1.1\nHost: proxy.test\n\
                Content-Type: application/json\nAccept: */*\nContent-Length: LENGTH\n\
                User-Agent: Symfony HttpClient (Curl)\nAccept-Encoding: gzip";
    program.calls(send, &pass, MESSAGE).await;
    delivered(&stage, 1);
}

#[tokio::test]
async fn easywechat_4_and_5_keep_their_prefix_everywhere() {
    let stage = Stage::with(KEYED).await;
    let mut program = Program::of(&stage).await;
    let pass = program
        .pass(
            "GET /hr/cgi-bin/gettoken?corpid=CORPID&corpsecret=KEY HTTP/1.1\nHost: proxy.test\n\
             User-Agent: GuzzleHttp/7",
        )
        .await;
    let send = "POST /hr/cgi-bin/message/send?access_token=PASS HTTP/1.1\nContent-Length: LENGTH\n\
                User-Agent: GuzzleHttp/7\nContent-Type: application/json\nHost: proxy.test";
    program.calls(send, &pass, MESSAGE).await;
    delivered(&stage, 1);
}

#[tokio::test]
async fn wechatpy_whose_gettoken_is_hard_coded_to_the_root() {
    let stage = Stage::with(KEYED).await;
    let mut program = Program::of(&stage).await;
    let shared = "HTTP/1.1\nHost: qyapi.weixin.qq.com\nUser-Agent: python-requests/2.31.0\n\
                  Accept-Encoding: gzip, deflate\nAccept: */*\nConnection: keep-alive";
    let gettoken = format!("GET /cgi-bin/gettoken?corpid=CORPID&corpsecret=KEY {shared}");
    let pass = program.pass(&gettoken).await;
    let get = format!("GET /cgi-bin/user/get?userid=zhangsan&access_token=PASS {shared}");
    assert_eq!(program.calls(&get, &pass, "").await["userid"], "zhangsan");
    let media = format!("GET /cgi-bin/media/get?access_token=PASS&media_id=generated-1000 {shared}");
    let (head, _) = program.says(&fill(&media, &pass), "").await;
    assert!(head.contains("content-length: 1000\r\n") && head.contains("attachment"), "{head}");
}

#[tokio::test]
async fn go_workwx_drops_its_prefix() {
    let stage = Stage::with(KEYED).await;
    let mut program = Program::of(&stage).await;
    let shared = "Host: proxy.test\nUser-Agent: Go-http-client/1.1\nAccept-Encoding: gzip";
    let gettoken = format!("GET /cgi-bin/gettoken?corpid=CORPID&corpsecret=KEY HTTP/1.1\n{shared}");
    let pass = program.pass(&gettoken).await;
    let send = format!(
        "POST /cgi-bin/message/send?access_token=PASS HTTP/1.1\n{shared}\nContent-Length: LENGTH\n\
         Content-Type: application/json"
    );
    program.calls(&send, &pass, MESSAGE).await;
    delivered(&stage, 1);
}

#[tokio::test]
async fn silenceper_believes_that_this_is_wecom_itself() {
    let authority = Authority::new();
    let (identity, dir) = (authority.server("localhost"), TempDir::new().expect("a directory"));
    fs::write(dir.path().join("server.pem"), &identity.pem).expect("a file");
    fs::write(dir.path().join("server.key"), &identity.key_pem).expect("a file");
    let certs = dir.path().display();
    let tls = format!("[server]\ntls = {{ cert = \"{certs}/server.pem\", key = \"{certs}/server.key\" }}");
    let stage = Stage::with(&KEYED.replace("[server]", &tls)).await;
    let mut stream = authority.connect(stage.address(), &[], None).await.expect("a handshake");
    let shared = "HTTP/1.1\r\nHost: qyapi.weixin.qq.com\r\nUser-Agent: Go-http-client/1.1\r\nConnection: close\r\n\r\n";
    let gettoken = fill("GET /cgi-bin/gettoken?corpid=CORPID&corpsecret=KEY ", "") + shared;
    let pass = pass_in(body_of(&exchange(&mut stream, &gettoken).await));
    let mut stream = authority.connect(stage.address(), &[], None).await.expect("a handshake");
    let get = format!("GET /cgi-bin/user/get?access_token={pass}&userid=zhangsan {shared}");
    let answer: Value = serde_json::from_str(body_of(&exchange(&mut stream, &get).await)).expect("JSON");
    assert_eq!(answer["userid"], "zhangsan");
}

/// Says a request and takes in all that comes.
async fn exchange<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin>(
    stream: &mut S,
    request: &str,
) -> String {
    soon(async {
        let mut answer = String::new();
        stream.write_all(request.as_bytes()).await.expect("it is taken");
        stream.read_to_string(&mut answer).await.expect("an answer");
        answer
    })
    .await
}

fn body_of(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").expect("a head").1
}

#[tokio::test]
async fn alertmanager_with_agentid_as_a_string() {
    let stage = Stage::with(KEYED).await;
    let mut program = Program::of(&stage).await;
    let pass = program
        .pass(
            "GET /hr/cgi-bin/gettoken?corpid=CORPID&corpsecret=KEY HTTP/1.1\nHost: proxy.test\n\
             User-Agent: Alertmanager/0.27.0\nContent-Type: application/json\nAccept-Encoding: gzip",
        )
        .await;
    let send = "POST /hr/cgi-bin/message/send?access_token=PASS HTTP/1.1\nHost: proxy.test\n\
                User-Agent: Alertmanager/0.27.0\nContent-Length: LENGTH\nContent-Type: application/json\n\
                Accept-Encoding: gzip";
    program.calls(send, &pass, &MESSAGE.replace("1000002", "\"1000002\"")).await;
    delivered(&stage, 1);
}

#[tokio::test]
async fn grafana_posts_gettoken_before_each_notification() {
    let stage = Stage::with(KEYED).await;
    let mut program = Program::of(&stage).await;
    let shared =
        "Host: proxy.test\nUser-Agent: Grafana\nContent-Type: application/json\nAccept-Encoding: gzip";
    for sent in 1..=3 {
        let gettoken = "POST /hr/cgi-bin/gettoken?corpid=CORPID&corpsecret=KEY HTTP/1.1\nContent-Length: 0";
        let pass = program.pass(&format!("{gettoken}\n{shared}")).await;
        let send =
            "POST /hr/cgi-bin/message/send?access_token=PASS HTTP/1.1\nContent-Length: LENGTH".to_owned();
        program.calls(&format!("{send}\n{shared}"), &pass, MESSAGE).await;
        delivered(&stage, sent);
    }
}

#[tokio::test]
async fn moviepilot_calls_with_the_pass_of_its_start() {
    let stage = Stage::with(KEYED).await;
    let mut program = Program::of(&stage).await;
    let shared = "HTTP/1.1\nHost: proxy.test\nUser-Agent: python-requests/2.31.0\nAccept-Encoding: gzip, deflate\n\
                  Accept: */*\nConnection: keep-alive";
    let pass = program.pass(&format!("GET /cgi-bin/gettoken?corpid=CORPID&corpsecret=KEY {shared}")).await;
    let send = format!("POST /cgi-bin/message/send?access_token=PASS {shared}\nContent-Length: LENGTH");
    program.calls(&send, &pass, MESSAGE).await;
    stage.wecom.expire("hr").expect("an agent");
    program.calls(&send, &pass, MESSAGE).await;
    assert_eq!(stage.wecom.messages().len(), 2);
}

#[tokio::test]
async fn a_shell_script_cuts_the_answer_by_position_and_posts_a_form() {
    let stage = Stage::with(KEYED).await;
    let shared = "HTTP/1.1\nHost: proxy.test\nUser-Agent: curl/7.88.1\nAccept: */*";
    let mut program = Program::of(&stage).await;
    let gettoken = format!("GET /cgi-bin/gettoken?corpid=CORPID&corpsecret=KEY {shared}");
    let (_, answer) = program.says(&fill(&gettoken, ""), "").await;
    // awk -F\" '{print $10}', and cut -d: -f4 | cut -d\" -f2
    let by_awk = answer.split('"').nth(9).expect("a tenth field");
    let by_cut = answer.split(':').nth(3).and_then(|field| field.split('"').nth(1)).expect("a field");
    assert_eq!(by_awk, by_cut);
    let send = format!(
        "POST /cgi-bin/message/send?access_token=PASS {shared}\nContent-Length: LENGTH\n\
         Content-Type: application/x-www-form-urlencoded"
    );
    program.calls(&send, by_awk, MESSAGE).await;
    delivered(&stage, 1);
}

#[tokio::test]
async fn a_program_that_still_has_the_real_secret() {
    let stage = Stage::with(&keyed_with("accept_secret = true")).await;
    let mut program = Program::of(&stage).await;
    let gettoken = format!("GET /cgi-bin/gettoken?corpid=CORPID&corpsecret={HR} HTTP/1.1\nHost: proxy.test");
    let pass = program.pass(&gettoken).await;
    let get = "GET /cgi-bin/user/get?access_token=PASS&userid=zhangsan HTTP/1.1\nHost: proxy.test";
    program.calls(get, &pass, "").await;
}

#[tokio::test]
async fn user_and_password_in_a_base_url_become_basic_beside_everything() {
    let stage = Stage::with(KEYED).await;
    let basic = BASE64_STANDARD.encode(format!("billing:{}", key("billing")));
    let shared = format!("HTTP/1.1\nHost: proxy.test\nAuthorization: Basic {basic}");
    let mut program = Program::of(&stage).await;
    let pass = program.pass(&format!("GET /hr/cgi-bin/gettoken?corpid=CORPID&corpsecret=KEY {shared}")).await;
    let get = format!("GET /hr/cgi-bin/user/get?access_token=PASS&userid=zhangsan {shared}");
    program.calls(&get, &pass, "").await;
    assert!(stage.last_seen("/cgi-bin/user/get").header("authorization").is_empty());
}

#[tokio::test]
async fn what_is_odd_but_legal_is_served_and_stays_as_it_came() {
    let stage = Stage::with(KEYED).await;
    let h2c =
        "Connection: Upgrade, HTTP2-Settings\nUpgrade: h2c\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAA";
    let mut program = Program::of(&stage).await;
    let gettoken =
        "GET /cgi-bin/gettoken?access_token=&corpid=CORPID&corpsecret=KEY HTTP/1.1\nHost: proxy.test";
    let pass = program.pass(&format!("{gettoken}\n{h2c}")).await;
    for (sent, arrives) in [
        ("/cgi-bin/simulator/echo?&a=1&access_token=PASS", "&a=1&access_token=token#1"),
        ("/cgi-bin/simulator/echo?access_token=PASS&a=1", "a=1&access_token=token#1"),
        ("//cgi-bin/simulator/echo?access_token=PASS", "access_token=token#1"),
        ("/hr//cgi-bin/simulator/echo?access_token=PASS", "access_token=token#1"),
    ] {
        let head = format!("POST {sent} HTTP/1.1\nHost: proxy.test\nContent-Length: LENGTH\n{h2c}");
        program.calls(&head, &pass, "{\"a\":1}").await;
        let record = stage.last_seen("/cgi-bin/simulator/echo");
        assert_eq!(record.query, arrives, "{sent}");
        for name in ["content-type", "upgrade", "http2-settings"] {
            assert!(record.header(name).is_empty(), "{name} in {record:?}");
        }
    }
    let empty =
        "POST /cgi-bin/simulator/echo?access_token=PASS HTTP/1.1\nHost: proxy.test\nContent-Length: 0";
    program.calls(empty, &pass, "").await;
    assert_eq!(stage.last_seen("/cgi-bin/simulator/echo").header("content-length"), ["0"]);
    // WeCom's own doubled slash; the simulator has no such call.
    let doubled = "POST /cgi-bin/oa/meetingroom//book_by_meeting?access_token=PASS HTTP/1.1\nHost: proxy.test\n\
                   Content-Length: 2";
    program.0.say(fill(doubled, &pass).replace('\n', "\r\n") + "\r\n\r\n{}").await.expect("it is taken");
    assert!(program.0.head().await.starts_with("HTTP/1.1 404 "));
    stage.last_seen("/cgi-bin/oa/meetingroom//book_by_meeting");
}
