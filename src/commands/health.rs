//! `health`: one question to the admin listener, for container health checks.

use std::{net::Ipv4Addr, net::Ipv6Addr, path::Path, time::Duration};

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpStream, UnixStream},
    time::timeout,
};

use super::{Failed, on_runtime, say};
use crate::{
    config::{self, Address},
    io::Stream,
};

/// Longest wait for the answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// What stands for a secret that is not set; as long as the longest that is asked for.
const UNSET: &str = "this-variable-is-not-set-in-this-shell";

/// Prints what `/readyz` says; fails unless it says ready.
pub fn health(path: &Path) -> Result<(), Failed> {
    // Only the address matters here: a variable that holds a secret need not be set in the shell that asks.
    let env = |name: &str| Some(std::env::var(name).unwrap_or_else(|_| UNSET.to_owned()));
    let config = config::load_with(path, &env).map_err(Failed::config)?;
    let Some(address) = config.admin.as_ref().and_then(|admin| admin.listen.first()).cloned() else {
        return Err(Failed::config(format!(
            "{}: there is no admin listener to ask; add a line [admin] to the file, and restart the proxy",
            path.display()
        )));
    };
    on_runtime(async {
        let asked = timeout(PATIENCE, ask(&address)).await;
        let (status, body) = asked
            .map_err(|_| Failed::other(format!("{address} did not answer within {} s", PATIENCE.as_secs())))?
            .map_err(|error| Failed::other(format!("{address} did not answer: {error}")))?;
        say(&body)?;
        if status == StatusCode::OK { Ok(()) } else { Err(Failed::other(format!("not ready ({status})"))) }
    })
}

async fn ask(address: &Address) -> Result<(StatusCode, Bytes), Box<dyn std::error::Error>> {
    let stream = match address {
        Address::Unix(path) => Stream::Unix(UnixStream::connect(path).await?),
        Address::Tcp(address) => {
            let mut address = *address;
            if address.ip().is_unspecified() {
                let here =
                    if address.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
                address.set_ip(here);
            }
            Stream::Tcp(TcpStream::connect(address).await?)
        }
    };
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = Request::get("/readyz").header(header::HOST, "localhost").body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    Ok((status, response.into_body().collect().await?.to_bytes()))
}
