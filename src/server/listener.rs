//! Listening sockets, bound here or inherited from the service manager. All workers share one socket, and each accepts
//! from it.

use std::{
    fs, io,
    net::{IpAddr, SocketAddr},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
        unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown},
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::retry_on_intr,
};
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};
use tokio::{
    io::{Interest, unix::AsyncFd},
    net::{TcpStream, UnixStream},
    task::coop::consume_budget,
};

pub use self::inherited::{Inherited, InheritedError};
use crate::{
    config::{Address, SocketAccess},
    http1::io::Stream,
};

mod inherited;

/// Length of the kernel's accept queue of TCP sockets that the proxy binds itself.
const BACKLOG: i32 = 4096;

/// A bound socket that no worker accepts from yet.
#[derive(Debug)]
pub struct BoundListener {
    socket: BoundSocket,
    address: Address,
    /// Passed in by the service manager, which keeps the socket open: connections that this process does not accept
    /// wait for the next one.
    is_inherited: bool,
    /// `None` for TCP and for inherited sockets.
    socket_file: Option<Arc<SocketFile>>,
}

#[derive(Debug)]
enum BoundSocket {
    Tcp(std::net::TcpListener),
    Unix(std::os::unix::net::UnixListener),
}

/// The file of a unix socket, removed when the last listener is dropped, unless another process has replaced it.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    /// Device and inode.
    identity: Option<(u64, u64)>,
}

impl SocketFile {
    fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), identity: file_identity(path) }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.identity.is_some() && file_identity(&self.path) == self.identity {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn file_identity(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|file| (file.dev(), file.ino()))
}

impl BoundListener {
    /// Binds the address. A unix socket whose process has died is replaced; one that still accepts connections is an
    /// error.
    pub fn open(address: &Address, access: &SocketAccess) -> io::Result<Self> {
        match address {
            Address::Tcp(address) => open_tcp(*address),
            Address::Unix(path) => open_unix(path, access),
        }
    }

    /// The bound address, with the real port.
    pub fn local_address(&self) -> Address {
        self.address.clone()
    }

    /// Creates the handle of one worker; must be called on the worker's runtime.
    pub fn worker_listener(&self) -> io::Result<Listener> {
        #[expect(
            deprecated,
            reason = "its descriptor stays the same; what takes its place is unsafe to call"
        )]
        let socket = AsyncFd::with_interest(self.socket.try_clone()?, Interest::READABLE)?;

        Ok(Listener {
            socket,
            accepted_since_ready: false,
            is_inherited: self.is_inherited,
            _socket_file: self.socket_file.clone(),
        })
    }
}

fn open_tcp(address: SocketAddr) -> io::Result<BoundListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    // Accepted connections inherit the option.
    socket.set_tcp_nodelay(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    let listener = std::net::TcpListener::from(socket);
    let address = Address::Tcp(listener.local_addr()?);
    Ok(BoundListener { socket: BoundSocket::Tcp(listener), address, is_inherited: false, socket_file: None })
}

fn open_unix(path: &Path, access: &SocketAccess) -> io::Result<BoundListener> {
    if fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket())
        && is_stale_socket(path)
    {
        fs::remove_file(path)?;
    }
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SockAddr::unix(path)?)?;
    let (address, file) = (Address::Unix(path.to_owned()), Some(Arc::new(SocketFile::new(path))));
    // Nothing can connect before `listen`, so the mode that the umask leaves does not matter.
    apply_access(path, access)?;
    socket.listen(BACKLOG)?;
    let socket = BoundSocket::Unix(socket.into());
    Ok(BoundListener { socket, address, is_inherited: false, socket_file: file })
}

/// Sets mode and group of a unix socket.
fn apply_access(path: &Path, access: &SocketAccess) -> io::Result<()> {
    let named = |key: &str, advice: &str| {
        let (key, advice) = (key.to_owned(), advice.to_owned());
        move |error: io::Error| io::Error::other(format!("{key}: {error}{advice}"))
    };
    if let Some(group) = access.group {
        chown(path, None, Some(group))
            .map_err(named("server.socket_group", " (the process must be a member of the group)"))?;
    }
    if let Some(mode) = access.mode {
        fs::set_permissions(path, fs::Permissions::from_mode(mode))
            .map_err(named("server.socket_mode", ""))?;
    }
    Ok(())
}

/// Whether no process listens on a unix socket. A refused permission or a full accept queue means that a process is
/// alive.
fn is_stale_socket(path: &Path) -> bool {
    let connect = || {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.connect(&SockAddr::unix(path)?)
    };
    connect().is_err_and(|error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused)
}

/// A listening socket on one worker.
#[derive(Debug)]
pub struct Listener {
    socket: AsyncFd<BoundSocket>,
    /// A connection was accepted since the runtime last reported readiness.
    accepted_since_ready: bool,
    is_inherited: bool,
    _socket_file: Option<Arc<SocketFile>>,
}

impl Listener {
    /// Accepts the next connection; the peer's address is `None` for unix sockets.
    pub async fn accept(&mut self) -> io::Result<(Stream, Option<IpAddr>)> {
        self.accept_after(async || ()).await
    }

    /// Waits for a connection, then for `wait`, and accepts a connection if there is still one.
    pub(super) async fn accept_after(
        &mut self,
        wait: impl AsyncFn(),
    ) -> io::Result<(Stream, Option<IpAddr>)> {
        // Under a flood of connections the accept never waits: without this the other tasks of the thread would starve.
        consume_budget().await;
        loop {
            let mut ready = self.socket.readable().await?;
            wait().await;
            let socket = self.socket.get_ref();
            // `accept` without a pending connection creates a socket and destroys it again, which costs eight times as
            // much as `poll`. As a rule each readiness event stands for one connection.
            if !self.accepted_since_ready || socket.has_pending()? {
                match socket.try_accept() {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    accepted => {
                        self.accepted_since_ready = true;
                        return accepted;
                    }
                }
            }
            ready.clear_ready();
            self.accepted_since_ready = false;
        }
    }

    /// Returns the connections in the accept queue, and closes this worker's descriptor of the socket when the iterator
    /// is dropped. The queue of an inherited socket is left to the next process.
    pub(super) fn into_pending(self) -> impl Iterator<Item = (Stream, Option<IpAddr>)> {
        let Self { socket, is_inherited, .. } = self;
        let socket = (!is_inherited).then(|| socket.into_inner());
        socket.into_iter().flat_map(|socket| std::iter::from_fn(move || socket.try_accept().ok()))
    }
}

impl BoundSocket {
    fn try_clone(&self) -> io::Result<Self> {
        Ok(match self {
            Self::Tcp(listener) => Self::Tcp(listener.try_clone()?),
            Self::Unix(listener) => Self::Unix(listener.try_clone()?),
        })
    }

    /// Whether a connection is pending.
    fn has_pending(&self) -> io::Result<bool> {
        let mut socket = [PollFd::new(self, PollFlags::IN)];
        let at_once = Timespec::default();
        Ok(retry_on_intr(|| poll(&mut socket, Some(&at_once)))? > 0)
    }

    /// Accepts a pending connection without waiting.
    fn try_accept(&self) -> io::Result<(Stream, Option<IpAddr>)> {
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

impl AsFd for BoundSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(listener) => listener.as_fd(),
            Self::Unix(listener) => listener.as_fd(),
        }
    }
}

impl AsRawFd for BoundSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

#[cfg(test)]
mod tests;
