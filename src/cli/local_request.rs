//! One request to a listener of the proxy on this machine.

use std::{
    error::Error,
    net::{Ipv4Addr, Ipv6Addr},
};

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpStream, UnixStream};

use crate::{config::Address, http1::io::Stream};

/// Why there was no response.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub(super) struct LocalRequestError(#[from] Box<dyn Error>);

/// Sends a GET and returns the response.
pub(super) async fn get(address: &Address, target: &str) -> Result<(StatusCode, Bytes), LocalRequestError> {
    Ok(try_get(address, target).await?)
}

async fn try_get(address: &Address, target: &str) -> Result<(StatusCode, Bytes), Box<dyn Error>> {
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
    let request = Request::get(target).header(header::HOST, "localhost").body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    Ok((status, response.into_body().collect().await?.to_bytes()))
}
