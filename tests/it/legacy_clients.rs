//! Unmodified client libraries and programs: each request is byte for byte what they send to WeCom.

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    certificates::Authority,
    gettoken::{CORPID, HR_SECRET, config_with_hr_lines, pass_from_body},
    harness::{CONFIG_WITH_CLIENTS, TestProxy, client_key, with_timeout},
    raw_http::RawConnection,
};

/// A connection of a legacy client.
struct LegacyClient(RawConnection);

impl LegacyClient {
    async fn connect(proxy: &TestProxy) -> Self {
        Self(RawConnection::connect(proxy.address()).await)
    }

    /// Sends a request whose head has LF line ends; returns the response's head and body.
    async fn request(&mut self, head: &str, body: &str) -> (String, String) {
        let head = head.trim().replace('\n', "\r\n");
        self.0.send(format!("{head}\r\n\r\n{body}")).await.expect("sent");
        let (head, body) = self.0.read_response().await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}{body}");
        (head, body)
    }

    /// Sends a gettoken that must succeed; returns the pass.
    async fn gettoken(&mut self, head: &str) -> String {
        pass_from_body(&self.request(&fill_template(head, ""), "").await.1)
    }

    /// Sends a request with this pass that must succeed.
    async fn call(&mut self, head: &str, pass: &str, body: &str) -> Value {
        let length = body.len().to_string();
        let response = self.request(&fill_template(head, pass).replace("LENGTH", &length), body).await.1;
        let response: Value = serde_json::from_str(&response).expect("JSON");
        assert_eq!(response["errcode"], 0, "{response}");
        response
    }
}

/// Replaces CORPID, KEY and PASS in a request head.
fn fill_template(head: &str, pass: &str) -> String {
    head.replace("CORPID", CORPID).replace("KEY", &client_key("billing")).replace("PASS", pass)
}

/// Asserts that WeCom accepted `count` messages, with the real token.
#[track_caller]
fn assert_delivered(proxy: &TestProxy, count: usize) {
    assert_eq!(proxy.wecom.messages().len(), count);
    assert_eq!(proxy.last_request("/cgi-bin/message/send").query, "access_token=token#1");
    assert_eq!(proxy.wecom.gettoken_count("hr").expect("an agent"), 1);
}

const MESSAGE: &str =
    r#"{"touser":"zhangsan","msgtype":"text","agentid":1000002,"text":{"content":"hello"}}"#;

#[tokio::test]
async fn wxjava_with_a_base_url_prefix_is_served() {
    let proxy = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let mut client = LegacyClient::connect(&proxy).await;
    let pass = client
        .gettoken(
            "GET /hr/cgi-bin/gettoken?corpid=CORPID&corpsecret=KEY HTTP/1.1\nHost: proxy.test\n\
             Connection: Keep-Alive\nUser-Agent: Apache-HttpClient/4.5.14 (Java/17.0.9)\nAccept-Encoding: gzip,deflate",
        )
        .await;
    let send = "POST /hr/cgi-bin/message/send?access_token=PASS HTTP/1.1\nContent-Length: LENGTH\n\
                Content-Type: text/plain; charset=UTF-8\nHost: proxy.test\nConnection: Keep-Alive\n\
                User-Agent: Apache-HttpClient/4.5.14 (Java/17.0.9)\nAccept-Encoding: gzip,deflate";
    client.call(send, &pass, MESSAGE).await;
    assert_delivered(&proxy, 1);
}

#[tokio::test]
async fn wxjava_with_an_invalid_pass_gets_40014_and_refreshes() {
    let proxy = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let mut client = LegacyClient::connect(&proxy).await;
    let gettoken = "GET /hr/cgi-bin/gettoken?corpid=CORPID&corpsecret=KEY HTTP/1.1\nHost: proxy.test";
    let get = "GET /hr/cgi-bin/user/get?userid=zhangsan&access_token=PASS HTTP/1.1\nHost: proxy.test";
    client.gettoken(gettoken).await;
    let (_, response) = client.request(&fill_template(get, "a-token-of-before"), "").await;
    // WxJava discards a response that is not an object, or has a status of 300 or more.
    let response: Value = serde_json::from_str(&response).expect("JSON");
    assert!(response.is_object() && response["errcode"] == 40014, "{response}");
    let pass = client.gettoken(gettoken).await;
    client.call(get, &pass, "").await;
}

#[tokio::test]
async fn easywechat6_without_prefix_in_gettoken_is_served() {
    let proxy = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let mut client = LegacyClient::connect(&proxy).await;
    let pass = client
        .gettoken(
            "GET /cgi-bin/gettoken?corpid=CORPID&corpsecret=KEY HTTP/1.1\nHost: proxy.test\nAccept: */*\n\
             User-Agent: Symfony HttpClient (Curl)\nAccept-Encoding: gzip",
        )
        .await;
    let send = "POST /hr/cgi-bin/message/send?access_token=PASS HTTP/1.1\nHost: proxy.test\n\
                Content-Type: application/json\nAccept: */*\nContent-Length: LENGTH\n\
                User-Agent: Symfony HttpClient (Curl)\nAccept-Encoding: gzip";
    client.call(send, &pass, MESSAGE).await;
    assert_delivered(&proxy, 1);
}

#[tokio::test]
async fn easywechat4_and_5_with_a_prefix_are_served() {
    let proxy = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let mut client = LegacyClient::connect(&proxy).await;
    let pass = client
        .gettoken(
            "GET /hr/cgi-bin/gettoken?corpid=CORPID&corpsecret=KEY HTTP/1.1\nHost: proxy.test\n\
             User-Agent: GuzzleHttp/7",
        )
        .await;
    let send = "POST /hr/cgi-bin/message/send?access_token=PASS HTTP/1.1\nContent-Length: LENGTH\n\
                User-Agent: GuzzleHttp/7\nContent-Type: application/json\nHost: proxy.test";
    client.call(send, &pass, MESSAGE).await;
    assert_delivered(&proxy, 1);
}

#[tokio::test]
async fn wechatpy_with_gettoken_at_the_root_is_served() {
    let proxy = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let mut client = LegacyClient::connect(&proxy).await;
    let headers = "HTTP/1.1\nHost: qyapi.weixin.qq.com\nUser-Agent: python-requests/2.31.0\n\
                  Accept-Encoding: gzip, deflate\nAccept: */*\nConnection: keep-alive";
    let gettoken = format!("GET /cgi-bin/gettoken?corpid=CORPID&corpsecret=KEY {headers}");
    let pass = client.gettoken(&gettoken).await;
    let get = format!("GET /cgi-bin/user/get?userid=zhangsan&access_token=PASS {headers}");
    assert_eq!(client.call(&get, &pass, "").await["userid"], "zhangsan");
    let media = format!("GET /cgi-bin/media/get?access_token=PASS&media_id=generated-1000 {headers}");
    let (head, _) = client.request(&fill_template(&media, &pass), "").await;
    assert!(head.contains("content-length: 1000\r\n") && head.contains("attachment"), "{head}");
}

#[tokio::test]
async fn go_workwx_without_a_prefix_is_served() {
    let proxy = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let mut client = LegacyClient::connect(&proxy).await;
    let headers = "Host: proxy.test\nUser-Agent: Go-http-client/1.1\nAccept-Encoding: gzip";
    let gettoken = format!("GET /cgi-bin/gettoken?corpid=CORPID&corpsecret=KEY HTTP/1.1\n{headers}");
    let pass = client.gettoken(&gettoken).await;
    let send = format!(
        "POST /cgi-bin/message/send?access_token=PASS HTTP/1.1\n{headers}\nContent-Length: LENGTH\n\
         Content-Type: application/json"
    );
    client.call(&send, &pass, MESSAGE).await;
    assert_delivered(&proxy, 1);
}

#[tokio::test]
async fn silenceper_with_wecoms_host_over_tls_is_served() {
    let authority = Authority::new();
    let tls = format!("[server]\n{}", authority.tls_config_line("localhost"));
    let proxy = TestProxy::start_with_config(&CONFIG_WITH_CLIENTS.replace("[server]", &tls)).await;
    let mut stream = authority.connect_tls(proxy.address(), &[], None).await.expect("a handshake");
    let headers = "HTTP/1.1\r\nHost: qyapi.weixin.qq.com\r\nUser-Agent: Go-http-client/1.1\r\nConnection: close\r\n\r\n";
    let gettoken = fill_template("GET /cgi-bin/gettoken?corpid=CORPID&corpsecret=KEY ", "") + headers;
    let pass = pass_from_body(body_of(&exchange_to_end(&mut stream, &gettoken).await));
    let mut stream = authority.connect_tls(proxy.address(), &[], None).await.expect("a handshake");
    let get = format!("GET /cgi-bin/user/get?access_token={pass}&userid=zhangsan {headers}");
    let response: Value =
        serde_json::from_str(body_of(&exchange_to_end(&mut stream, &get).await)).expect("JSON");
    assert_eq!(response["userid"], "zhangsan");
}

/// Sends a request and reads to the end of the connection.
async fn exchange_to_end<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin>(
    stream: &mut S,
    request: &str,
) -> String {
    with_timeout(async {
        let mut response = String::new();
        stream.write_all(request.as_bytes()).await.expect("sent");
        stream.read_to_string(&mut response).await.expect("a response");
        response
    })
    .await
}

fn body_of(response: &str) -> &str {
    response.split_once("\r\n\r\n").expect("a head").1
}

#[tokio::test]
async fn alertmanager_with_a_string_agentid_is_served() {
    let proxy = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let mut client = LegacyClient::connect(&proxy).await;
    let pass = client
        .gettoken(
            "GET /hr/cgi-bin/gettoken?corpid=CORPID&corpsecret=KEY HTTP/1.1\nHost: proxy.test\n\
             User-Agent: Alertmanager/0.27.0\nContent-Type: application/json\nAccept-Encoding: gzip",
        )
        .await;
    let send = "POST /hr/cgi-bin/message/send?access_token=PASS HTTP/1.1\nHost: proxy.test\n\
                User-Agent: Alertmanager/0.27.0\nContent-Length: LENGTH\nContent-Type: application/json\n\
                Accept-Encoding: gzip";
    client.call(send, &pass, &MESSAGE.replace("1000002", "\"1000002\"")).await;
    assert_delivered(&proxy, 1);
}

#[tokio::test]
async fn grafana_posting_gettoken_each_time_is_served() {
    let proxy = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let mut client = LegacyClient::connect(&proxy).await;
    let headers =
        "Host: proxy.test\nUser-Agent: Grafana\nContent-Type: application/json\nAccept-Encoding: gzip";
    for sent in 1..=3 {
        let gettoken = "POST /hr/cgi-bin/gettoken?corpid=CORPID&corpsecret=KEY HTTP/1.1\nContent-Length: 0";
        let pass = client.gettoken(&format!("{gettoken}\n{headers}")).await;
        let send =
            "POST /hr/cgi-bin/message/send?access_token=PASS HTTP/1.1\nContent-Length: LENGTH".to_owned();
        client.call(&format!("{send}\n{headers}"), &pass, MESSAGE).await;
        assert_delivered(&proxy, sent);
    }
}

#[tokio::test]
async fn moviepilot_reusing_its_first_pass_is_served() {
    let proxy = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let mut client = LegacyClient::connect(&proxy).await;
    let headers = "HTTP/1.1\nHost: proxy.test\nUser-Agent: python-requests/2.31.0\nAccept-Encoding: gzip, deflate\n\
                  Accept: */*\nConnection: keep-alive";
    let pass =
        client.gettoken(&format!("GET /cgi-bin/gettoken?corpid=CORPID&corpsecret=KEY {headers}")).await;
    let send = format!("POST /cgi-bin/message/send?access_token=PASS {headers}\nContent-Length: LENGTH");
    client.call(&send, &pass, MESSAGE).await;
    proxy.wecom.expire_tokens("hr").expect("an agent");
    client.call(&send, &pass, MESSAGE).await;
    assert_eq!(proxy.wecom.messages().len(), 2);
}

#[tokio::test]
async fn shell_script_parsing_by_position_is_served() {
    let proxy = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let headers = "HTTP/1.1\nHost: proxy.test\nUser-Agent: curl/7.88.1\nAccept: */*";
    let mut client = LegacyClient::connect(&proxy).await;
    let gettoken = format!("GET /cgi-bin/gettoken?corpid=CORPID&corpsecret=KEY {headers}");
    let (_, response) = client.request(&fill_template(&gettoken, ""), "").await;
    // awk -F\" '{print $10}', and cut -d: -f4 | cut -d\" -f2
    let by_awk = response.split('"').nth(9).expect("a tenth field");
    let by_cut = response.split(':').nth(3).and_then(|field| field.split('"').nth(1)).expect("a field");
    assert_eq!(by_awk, by_cut);
    let send = format!(
        "POST /cgi-bin/message/send?access_token=PASS {headers}\nContent-Length: LENGTH\n\
         Content-Type: application/x-www-form-urlencoded"
    );
    client.call(&send, by_awk, MESSAGE).await;
    assert_delivered(&proxy, 1);
}

#[tokio::test]
async fn client_with_the_real_secret_is_served() {
    let proxy = TestProxy::start_with_config(&config_with_hr_lines("accept_secret = true")).await;
    let mut client = LegacyClient::connect(&proxy).await;
    let gettoken =
        format!("GET /cgi-bin/gettoken?corpid=CORPID&corpsecret={HR_SECRET} HTTP/1.1\nHost: proxy.test");
    let pass = client.gettoken(&gettoken).await;
    let get = "GET /cgi-bin/user/get?access_token=PASS&userid=zhangsan HTTP/1.1\nHost: proxy.test";
    client.call(get, &pass, "").await;
}

#[tokio::test]
async fn basic_credentials_from_a_base_url_are_accepted() {
    let proxy = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let basic = BASE64_STANDARD.encode(format!("billing:{}", client_key("billing")));
    let headers = format!("HTTP/1.1\nHost: proxy.test\nAuthorization: Basic {basic}");
    let mut client = LegacyClient::connect(&proxy).await;
    let pass =
        client.gettoken(&format!("GET /hr/cgi-bin/gettoken?corpid=CORPID&corpsecret=KEY {headers}")).await;
    let get = format!("GET /hr/cgi-bin/user/get?access_token=PASS&userid=zhangsan {headers}");
    client.call(&get, &pass, "").await;
    assert!(proxy.last_request("/cgi-bin/user/get").header_values("authorization").is_empty());
}

#[tokio::test]
async fn unusual_valid_requests_are_forwarded_unchanged() {
    let proxy = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let h2c =
        "Connection: Upgrade, HTTP2-Settings\nUpgrade: h2c\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAA";
    let mut client = LegacyClient::connect(&proxy).await;
    let gettoken =
        "GET /cgi-bin/gettoken?access_token=&corpid=CORPID&corpsecret=KEY HTTP/1.1\nHost: proxy.test";
    let pass = client.gettoken(&format!("{gettoken}\n{h2c}")).await;
    for (sent, arrives) in [
        ("/cgi-bin/simulator/echo?&a=1&access_token=PASS", "&a=1&access_token=token#1"),
        ("/cgi-bin/simulator/echo?access_token=PASS&a=1", "a=1&access_token=token#1"),
        ("//cgi-bin/simulator/echo?access_token=PASS", "access_token=token#1"),
        ("/hr//cgi-bin/simulator/echo?access_token=PASS", "access_token=token#1"),
    ] {
        let head = format!("POST {sent} HTTP/1.1\nHost: proxy.test\nContent-Length: LENGTH\n{h2c}");
        client.call(&head, &pass, "{\"a\":1}").await;
        let record = proxy.last_request("/cgi-bin/simulator/echo");
        assert_eq!(record.query, arrives, "{sent}");
        for name in ["content-type", "upgrade", "http2-settings"] {
            assert!(record.header_values(name).is_empty(), "{name} in {record:?}");
        }
    }
    let empty =
        "POST /cgi-bin/simulator/echo?access_token=PASS HTTP/1.1\nHost: proxy.test\nContent-Length: 0";
    client.call(empty, &pass, "").await;
    assert_eq!(proxy.last_request("/cgi-bin/simulator/echo").header_values("content-length"), ["0"]);
    // WeCom's own path with a double slash, which the simulator does not implement.
    let double_slash = "POST /cgi-bin/oa/meetingroom//book_by_meeting?access_token=PASS HTTP/1.1\nHost: proxy.test\n\
                   Content-Length: 2";
    client
        .0
        .send(fill_template(double_slash, &pass).replace('\n', "\r\n") + "\r\n\r\n{}")
        .await
        .expect("sent");
    assert!(client.0.read_head().await.starts_with("HTTP/1.1 404 "));
    proxy.last_request("/cgi-bin/oa/meetingroom//book_by_meeting");
}
