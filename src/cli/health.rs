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

use super::{CliError, block_on, print};
use crate::{
    config::{self, Address},
    http1::io::Stream,
};

/// Longest wait for the answer.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);

/// What stands for a secret that is not set; as long as the longest that is asked for.
const UNSET_SECRET: &str = "this-variable-is-not-set-in-this-shell";

/// Prints what `/readyz` says; fails unless it says ready.
pub fn health(path: &Path) -> Result<(), CliError> {
    // Only the address matters here: a variable that holds a secret need not be set in the shell that asks.
    let env = |name: &str| Some(std::env::var(name).unwrap_or_else(|_| UNSET_SECRET.to_owned()));
    let config = config::load_with_env(path, &env).map_err(CliError::config)?;
    let Some(address) = config.admin.as_ref().and_then(|admin| admin.listen.first()).cloned() else {
        return Err(CliError::config(format!(
            "{}: there is no admin listener to ask; add a line [admin] to the file, and restart the proxy",
            path.display()
        )));
    };
    block_on(async {
        let asked = timeout(RESPONSE_TIMEOUT, fetch_readyz(&address)).await;
        let (status, body) = asked
            .map_err(|_| {
                CliError::other(format!("{address} did not answer within {} s", RESPONSE_TIMEOUT.as_secs()))
            })?
            .map_err(|error| CliError::other(format!("{address} did not answer: {error}")))?;
        print(&body)?;
        if status == StatusCode::OK { Ok(()) } else { Err(CliError::other(format!("not ready ({status})"))) }
    })
}

async fn fetch_readyz(address: &Address) -> Result<(StatusCode, Bytes), Box<dyn std::error::Error>> {
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
