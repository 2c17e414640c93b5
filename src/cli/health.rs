//! `health`: one request to the admin listener, for container health checks.

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

/// Total time for connect, request and response.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Replaces a secret whose variable is not set; longer than every minimum length of a secret.
const UNSET_SECRET: &str = "this-variable-is-not-set-in-this-shell";

/// Prints the response of `/readyz`; fails unless its status is 200.
pub fn health(path: &Path) -> Result<(), CliError> {
    // Only the address is needed here, so secrets need not be set in the shell that runs the check.
    let env = |name: &str| Some(std::env::var(name).unwrap_or_else(|_| UNSET_SECRET.to_owned()));
    let config = config::load_with_env(path, &env).map_err(CliError::config)?;
    let Some(address) = config.admin.as_ref().and_then(|admin| admin.listen.first()).cloned() else {
        return Err(CliError::config(format!(
            "{}: no admin listener configured; add a line [admin] to the file, and restart the proxy",
            path.display()
        )));
    };
    block_on(async {
        let response = timeout(RESPONSE_TIMEOUT, fetch_readyz(&address)).await;
        let (status, body) = response
            .map_err(|_| {
                CliError::other(format!("no response from {address} within {} s", RESPONSE_TIMEOUT.as_secs()))
            })?
            .map_err(|error| CliError::other(format!("no response from {address}: {error}")))?;
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
                let loopback =
                    if address.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
                address.set_ip(loopback);
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
