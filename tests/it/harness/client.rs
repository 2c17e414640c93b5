//! A client and its responses.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

use super::with_timeout;
use crate::leak_detector;

/// A complete response.
#[derive(Debug)]
pub struct TestResponse {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl TestResponse {
    /// Reads a response to its end.
    pub async fn read(response: Response<Incoming>) -> Self {
        let (parts, body) = response.into_parts();
        let body = body.collect().await.expect("a whole body").to_bytes();
        Self { status: parts.status, headers: parts.headers, body }
    }

    /// The value of a header; empty if it is missing.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().expect("visible ASCII"))
    }

    /// The body as text.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("UTF-8")
    }

    /// The body as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// The errcode in the body.
    pub fn errcode(&self) -> i64 {
        self.json()["errcode"].as_i64().unwrap_or_else(|| panic!("no errcode: {}", self.text()))
    }

    /// Asserts that WeCom executed the call.
    #[track_caller]
    pub fn assert_ok(&self) -> &Self {
        assert_eq!((self.status, self.errcode()), (StatusCode::OK, 0), "{}", self.text());
        self
    }

    /// Asserts that the response is the proxy's own error with this kind, status and errcode.
    #[track_caller]
    pub fn assert_proxy_error(&self, kind: &str, status: u16, errcode: i64) -> &Self {
        let actual = (self.header("x-wecom-proxy-error"), self.status.as_u16(), self.errcode());
        assert_eq!(actual, (kind, status, errcode), "{}", self.text());
        assert!(self.json()["errmsg"].as_str().is_some_and(|errmsg| errmsg.starts_with("wecom-proxy: ")));
        self
    }
}

/// A client's connection.
pub enum TestClient {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

impl TestClient {
    /// Connects over cleartext HTTP/1.1.
    pub async fn connect_http1(address: SocketAddr) -> Self {
        Self::http1_over(TcpStream::connect(address).await.expect("a connection")).await
    }

    /// HTTP/1.1 on an established stream.
    pub async fn http1_over<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static>(
        stream: S,
    ) -> Self {
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.expect("a handshake");
        tokio::spawn(connection);
        Self::Http1(sender)
    }

    /// Connects over cleartext HTTP/2 with prior knowledge.
    pub async fn connect_http2(address: SocketAddr) -> Self {
        Self::http2_over(TcpStream::connect(address).await.expect("a connection")).await
    }

    /// HTTP/2 on an established stream.
    pub async fn http2_over<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static>(
        stream: S,
    ) -> Self {
        let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
        let (sender, connection) = handshake.await.expect("a handshake");
        tokio::spawn(connection);
        Self::Http2(sender)
    }

    /// A GET through the agent `hr`.
    pub async fn get(&mut self, path: &str) -> TestResponse {
        self.request(Request::get(format!("/hr{path}")), "").await
    }

    /// One request and its complete response.
    pub async fn request(&mut self, request: http::request::Builder, body: impl Into<Bytes>) -> TestResponse {
        let request = request.body(Full::new(body.into())).expect("a request");
        let path = request.uri().path().to_owned();
        let response =
            with_timeout(async { TestResponse::read(self.send(request).await.expect("a response")).await })
                .await;
        leak_detector::record_output(&path, &format!("{:?}", response.headers), &response.body);
        response
    }

    /// One request and the head of its response.
    pub async fn send(&mut self, mut request: Request<Full<Bytes>>) -> hyper::Result<Response<Incoming>> {
        let headers = request.headers().iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
        leak_detector::add_credentials(&request.uri().to_string(), headers);
        match self {
            Self::Http1(sender) => {
                if !request.headers().contains_key(header::HOST) {
                    request.headers_mut().insert(header::HOST, header::HeaderValue::from_static("localhost"));
                }
                sender.ready().await?;
                sender.send_request(request).await
            }
            Self::Http2(sender) => {
                let target = format!("http://proxy.test{}", request.uri());
                *request.uri_mut() = target.parse().expect("a target");
                sender.ready().await?;
                sender.send_request(request).await
            }
        }
    }
}
