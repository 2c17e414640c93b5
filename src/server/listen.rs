//! Listening sockets: opened here, or opened by who started the program and handed to it. One socket is shared by all
//! workers, each of which accepts from it.

use std::{
    fs, io,
    net::{IpAddr, SocketAddr},
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

pub use self::inherited::{Inherited, InheritedError};
use crate::{config::Address, io::Stream};

mod inherited;

/// Connections that wait in the kernel.
const BACKLOG: i32 = 4096;

/// A socket that is open and not yet served.
#[derive(Debug)]
pub struct Bound {
    socket: BoundSocket,
    address: Address,
    /// Who comes when this process no longer accepts is served by the next one, for the socket stays open.
    stays_open: bool,
    /// `None` for TCP, and where the file is not ours.
    file: Option<Arc<SocketFile>>,
}

#[derive(Debug)]
enum BoundSocket {
    Tcp(std::net::TcpListener),
    Unix(std::os::unix::net::UnixListener),
}

/// The file of a unix socket, removed when it is no longer listened on. Where another process has put its own in its
/// place, that one stays.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    /// Device and inode.
    file: Option<(u64, u64)>,
}

impl SocketFile {
    fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), file: identity(path) }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.file.is_some() && identity(&self.path) == self.file {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|file| (file.dev(), file.ino()))
}

impl Bound {
    /// Opens the address. A unix socket that a dead process left behind is replaced; one that answers is not.
    pub fn open(address: &Address) -> io::Result<Self> {
        match address {
            Address::Tcp(address) => open_tcp(*address),
            Address::Unix(path) => open_unix(path),
        }
    }

    /// The real address.
    pub fn address(&self) -> Address {
        self.address.clone()
    }

    /// A handle for one worker; must be called on its runtime.
    pub fn listener(&self) -> io::Result<Listener> {
        let socket = match &self.socket {
            BoundSocket::Tcp(tcp) => ListenerSocket::Tcp(TcpListener::from_std(tcp.try_clone()?)?),
            BoundSocket::Unix(unix) => ListenerSocket::Unix(UnixListener::from_std(unix.try_clone()?)?),
        };
        Ok(Listener { socket, stays_open: self.stays_open, _file: self.file.clone() })
    }
}

fn open_tcp(address: SocketAddr) -> io::Result<Bound> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    // Every connection that is accepted inherits it.
    socket.set_tcp_nodelay(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    let listener = std::net::TcpListener::from(socket);
    let address = Address::Tcp(listener.local_addr()?);
    Ok(Bound { socket: BoundSocket::Tcp(listener), address, stays_open: false, file: None })
}

fn open_unix(path: &Path) -> io::Result<Bound> {
    let stale = fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket())
        && std::os::unix::net::UnixStream::connect(path).is_err();
    if stale {
        fs::remove_file(path)?;
    }
    let listener = std::os::unix::net::UnixListener::bind(path)?;
    listener.set_nonblocking(true)?;
    let (address, file) = (Address::Unix(path.to_owned()), Some(Arc::new(SocketFile::new(path))));
    Ok(Bound { socket: BoundSocket::Unix(listener), address, stays_open: false, file })
}

/// A listening socket on one worker.
#[derive(Debug)]
pub struct Listener {
    socket: ListenerSocket,
    stays_open: bool,
    _file: Option<Arc<SocketFile>>,
}

#[derive(Debug)]
enum ListenerSocket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    /// The next connection, and where it came from.
    pub async fn accept(&self) -> io::Result<(Stream, Option<IpAddr>)> {
        match &self.socket {
            ListenerSocket::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                Ok((Stream::Tcp(stream), Some(peer.ip())))
            }
            ListenerSocket::Unix(listener) => Ok((Stream::Unix(listener.accept().await?.0), None)),
        }
    }

    /// Closes it, and returns the connections that nobody has accepted. Where the socket stays open it is for the next
    /// process to accept them.
    pub(super) fn left_over(self) -> impl Iterator<Item = (Stream, Option<IpAddr>)> {
        let Self { socket, stays_open, .. } = self;
        let left = (!stays_open).then(|| match socket {
            ListenerSocket::Tcp(listener) => listener.into_std().map(BoundSocket::Tcp),
            ListenerSocket::Unix(listener) => listener.into_std().map(BoundSocket::Unix),
        });
        left.and_then(Result::ok)
            .into_iter()
            .flat_map(|socket| std::iter::from_fn(move || socket.accept_now().ok()))
    }
}

impl BoundSocket {
    /// A connection that waits already.
    fn accept_now(&self) -> io::Result<(Stream, Option<IpAddr>)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept()?;
                stream.set_nonblocking(true)?;
                Ok((Stream::Tcp(TcpStream::from_std(stream)?), Some(peer.ip())))
            }
            Self::Unix(listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(true)?;
                Ok((Stream::Unix(UnixStream::from_std(stream)?), None))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_waits_when_it_closes_is_left_over_unless_the_socket_stays_open() {
        let local = Address::Tcp(SocketAddr::from(([127, 0, 0, 1], 0)));
        for stays_open in [false, true] {
            let mut bound = Bound::open(&local).expect("a port");
            bound.stays_open = stays_open;
            let Address::Tcp(address) = bound.address() else { unreachable!() };
            let callers: Vec<_> = (0..3).map(|_| std::net::TcpStream::connect(address)).collect();
            assert!(callers.iter().all(Result::is_ok));
            let left = bound.listener().expect("a handle").left_over().count();
            assert_eq!(left, if stays_open { 0 } else { 3 });
            let next = bound.listener().expect("another");
            let taken = tokio::time::timeout(std::time::Duration::from_millis(200), next.accept()).await;
            assert_eq!(taken.is_ok(), stays_open, "the next process gets them");
        }
    }
}
