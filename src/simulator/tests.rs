//! The simulator over real sockets.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::{http1, http2};
use hyper::{HeaderMap, Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use tokio::net::TcpStream;

use super::{DropPoint, Fault, Settings, Simulator, generated_bytes};

mod calls; // the response of each call
mod connections; // HTTP versions, TLS, close
mod control; // the control address
mod faults;
mod tokens; // tokens, their expiry and revocation

const HR_CREDENTIALS: &str =
    "corpid=ww1234567890abcdef&corpsecret=not-a-secret-hr-0000000000000000000000000000";

/// A response that was read to its end.
struct TestResponse {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl TestResponse {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("JSON")
    }

    fn errcode(&self) -> i64 {
        self.json()["errcode"].as_i64().expect("an errcode")
    }

    fn header(&self, name: &str) -> &str {
        self.headers[name].to_str().expect("text")
    }
}

async fn start_simulator() -> Simulator {
    Simulator::start_local(Settings::default()).await.expect("free ports")
}

/// A request line such as `GET /cgi-bin/user/get?userid=lisi`, and a body.
fn request(line: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    let (method, target) = line.split_once(' ').expect("a method and a target");
    let builder = Request::builder().method(method).uri(target).header("host", "qyapi.weixin.qq.com");
    builder.body(Full::from(body.into())).expect("a request")
}

/// A new HTTP/1.1 connection.
async fn connect(address: std::net::SocketAddr) -> http1::SendRequest<Full<Bytes>> {
    let socket = TcpStream::connect(address).await.expect("a connection");
    let (sender, connection) = http1::handshake(TokioIo::new(socket)).await.expect("a handshake");
    tokio::spawn(connection);
    sender
}

async fn read_response<B>(response: Response<B>) -> Result<TestResponse, B::Error>
where
    B: hyper::body::Body<Data = Bytes>,
{
    let (head, body) = response.into_parts();
    Ok(TestResponse { status: head.status, headers: head.headers, body: body.collect().await?.to_bytes() })
}

async fn send(simulator: &Simulator, request: Request<Full<Bytes>>) -> hyper::Result<TestResponse> {
    read_response(connect(simulator.api_addr()).await.send_request(request).await?).await
}

async fn call(simulator: &Simulator, line: &str) -> TestResponse {
    send(simulator, request(line, "")).await.expect("a response")
}

async fn control(simulator: &Simulator, line: &str, body: &'static str) -> TestResponse {
    let mut sender = connect(simulator.control_addr()).await;
    read_response(sender.send_request(request(line, body)).await.expect("a response")).await.expect("a body")
}

/// A token of the agent hr.
async fn fetch_token(simulator: &Simulator) -> String {
    let response = call(simulator, &format!("GET /cgi-bin/gettoken?{HR_CREDENTIALS}")).await;
    response.json()["access_token"].as_str().expect("a token").to_owned()
}
