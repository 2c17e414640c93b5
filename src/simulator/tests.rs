//! The simulator over real sockets.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::{http1, http2};
use hyper::{HeaderMap, Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use tokio::net::TcpStream;

use super::{Fault, Settings, Simulator, When, generated};

mod calls; // what each call answers
mod connections; // versions of HTTP, TLS, ends
mod controls; // the control address
mod tokens; // tokens, and when they stop to serve
mod troubles; // faults

const HR: &str = "corpid=ww1234567890abcdef&corpsecret=not-a-secret-hr-0000000000000000000000000000";

/// An answer that was read to its end.
struct Got {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Got {
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

async fn simulator() -> Simulator {
    Simulator::local(Settings::default()).await.expect("free ports")
}

/// A request line such as `GET /cgi-bin/user/get?userid=lisi`, and a body.
fn request(line: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    let (method, target) = line.split_once(' ').expect("a method and a target");
    let builder = Request::builder().method(method).uri(target).header("host", "qyapi.weixin.qq.com");
    builder.body(Full::from(body.into())).expect("a request")
}

/// A new HTTP/1.1 connection.
async fn open(address: std::net::SocketAddr) -> http1::SendRequest<Full<Bytes>> {
    let socket = TcpStream::connect(address).await.expect("a connection");
    let (sender, connection) = http1::handshake(TokioIo::new(socket)).await.expect("a handshake");
    tokio::spawn(connection);
    sender
}

async fn read<B>(response: Response<B>) -> Result<Got, B::Error>
where
    B: hyper::body::Body<Data = Bytes>,
{
    let (head, body) = response.into_parts();
    Ok(Got { status: head.status, headers: head.headers, body: body.collect().await?.to_bytes() })
}

async fn send(simulator: &Simulator, request: Request<Full<Bytes>>) -> hyper::Result<Got> {
    read(open(simulator.api_addr()).await.send_request(request).await?).await
}

async fn call(simulator: &Simulator, line: &str) -> Got {
    send(simulator, request(line, "")).await.expect("an answer")
}

async fn control(simulator: &Simulator, line: &str, body: &'static str) -> Got {
    let mut sender = open(simulator.control_addr()).await;
    read(sender.send_request(request(line, body)).await.expect("an answer")).await.expect("a body")
}

/// A token of the agent hr.
async fn token(simulator: &Simulator) -> String {
    let got = call(simulator, &format!("GET /cgi-bin/gettoken?{HR}")).await;
    got.json()["access_token"].as_str().expect("a token").to_owned()
}
