//! Listening sockets. One bound socket is shared by all workers, each of which accepts from it.

use std::{
    fs, io,
    net::{IpAddr, SocketAddr},
    os::unix::fs::FileTypeExt,
    path::PathBuf,
};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, UnixListener};

use crate::{config::Address, io::Stream};

/// Connections that wait in the kernel.
const BACKLOG: i32 = 4096;

/// A socket that is open and not yet served.
#[derive(Debug)]
pub enum Bound {
    /// TCP, with its real address.
    Tcp(std::net::TcpListener, SocketAddr),
    /// A unix socket; its file goes when this does.
    Unix(std::os::unix::net::UnixListener, SocketFile),
}

/// The file of a unix socket, removed when it is no longer listened on.
#[derive(Debug)]
pub struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

impl Bound {
    /// Opens the address. A unix socket that a dead process left behind is replaced; one that answers is not.
    pub fn open(address: &Address) -> io::Result<Self> {
        match address {
            Address::Tcp(address) => {
                let socket = Socket::new(Domain::for_address(*address), Type::STREAM, Some(Protocol::TCP))?;
                socket.set_reuse_address(true)?;
                socket.set_nonblocking(true)?;
                // Every connection that is accepted inherits it.
                socket.set_tcp_nodelay(true)?;
                socket.bind(&(*address).into())?;
                socket.listen(BACKLOG)?;
                let listener = std::net::TcpListener::from(socket);
                let real = listener.local_addr()?;
                Ok(Self::Tcp(listener, real))
            }
            Address::Unix(path) => {
                let stale = fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket())
                    && std::os::unix::net::UnixStream::connect(path).is_err();
                if stale {
                    fs::remove_file(path)?;
                }
                let listener = std::os::unix::net::UnixListener::bind(path)?;
                listener.set_nonblocking(true)?;
                Ok(Self::Unix(listener, SocketFile(path.clone())))
            }
        }
    }

    /// The real address.
    pub fn address(&self) -> Address {
        match self {
            Self::Tcp(_, address) => Address::Tcp(*address),
            Self::Unix(_, file) => Address::Unix(file.0.clone()),
        }
    }

    /// A handle for one worker; must be called on its runtime.
    pub fn listener(&self) -> io::Result<Listener> {
        Ok(match self {
            Self::Tcp(listener, _) => Listener::Tcp(TcpListener::from_std(listener.try_clone()?)?),
            Self::Unix(listener, _) => Listener::Unix(UnixListener::from_std(listener.try_clone()?)?),
        })
    }
}

/// A listening socket on one worker.
#[derive(Debug)]
pub enum Listener {
    /// TCP.
    Tcp(TcpListener),
    /// A unix socket.
    Unix(UnixListener),
}

impl Listener {
    /// The next connection, and where it came from.
    pub async fn accept(&self) -> io::Result<(Stream, Option<IpAddr>)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                Ok((Stream::Tcp(stream), Some(peer.ip())))
            }
            Self::Unix(listener) => Ok((Stream::Unix(listener.accept().await?.0), None)),
        }
    }
}
