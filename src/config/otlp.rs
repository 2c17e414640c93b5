//! `admin.otlp`: the OpenTelemetry collector for traces.

use std::fmt;

use super::error::Error;
use super::reader::ConfigValue;
use super::url;
use crate::{format_text, text, text::Text};

/// OTLP's port for gRPC; the one for HTTP is 4318.
const GRPC_PORT: u16 = 4317;
/// The path of OTLP/gRPC.
const GRPC_PATH: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
/// The path of OTLP/HTTP, appended to the URL's path.
const HTTP_PATH: &str = "/v1/traces";

/// The collector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtlpConfig {
    /// Whether to connect with TLS.
    pub tls: bool,
    /// In lower case; an IPv6 address without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
    /// Whether the protocol is OTLP/gRPC; else it is OTLP/HTTP with protobuf.
    pub grpc: bool,
    /// The path of the POST request.
    pub path: String,
}

impl OtlpConfig {
    /// `host:port`, with brackets around an IPv6 address.
    pub fn authority(&self) -> String {
        url::authority(&self.host, self.port)
    }
}

impl fmt::Display for OtlpConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.authority(), self.path)
    }
}

pub(super) fn read(item: &ConfigValue<'_>) -> Result<OtlpConfig, Error> {
    let example = "http://127.0.0.1:4317";
    let url = url::read(item, &["http", "https"], example)?.require_no_userinfo(item)?;
    if url.rest.contains(['?', '#', '\\']) {
        return Err(item.error(format_text!(
            "must contain no query; write one like {example:?}",
            "不能有查询参数；请写成 {example:?}"
        )));
    }
    Ok(collector(&url, None, |path| match path.ends_with(HTTP_PATH) {
        true => path.to_owned(),
        false => format!("{path}{HTTP_PATH}"),
    }))
}

/// Reads a URL of the environment: of traces alone, whose path is complete, or of all signals. Without `grpc`, the protocol
/// follows from port and path as in `admin.otlp`. Error: what is wrong with it.
pub(super) fn from_environment(
    text: &str,
    is_complete: bool,
    grpc: Option<bool>,
) -> Result<OtlpConfig, Text> {
    let url = url::parse(text)?;
    if !["http", "https"].contains(&url.scheme) {
        return Err(text!("must start with http:// or https://", "必须以 http:// 或 https:// 开头"));
    }
    if url.userinfo.is_some() || url.rest.contains(['?', '#', '\\']) {
        return Err(text!("must contain no user, password or query", "不能有用户名、密码或查询参数"));
    }
    Ok(collector(&url, grpc, |path| match is_complete {
        true if path.is_empty() => "/".to_owned(),
        true => path.to_owned(),
        false => format!("{path}{HTTP_PATH}"),
    }))
}

/// The collector at a URL; `http_path` completes the path of OTLP/HTTP, which has no slash at its end.
fn collector(url: &url::Url<'_>, grpc: Option<bool>, http_path: impl Fn(&str) -> String) -> OtlpConfig {
    let tls = url.scheme == "https";
    let port = url.port.unwrap_or(if tls { 443 } else { 80 });
    let path = url.rest.trim_end_matches('/');
    let grpc = grpc.unwrap_or(path == GRPC_PATH || (path.is_empty() && port == GRPC_PORT));
    let path = if grpc { GRPC_PATH.to_owned() } else { http_path(path) };
    OtlpConfig { tls, host: url.host.clone(), port, grpc, path }
}
