//! Listening sockets: opened here, or opened by who started the program and handed to it. One socket is shared by all
//! workers, each of which accepts from it.

use std::{
    fs, io,
    net::{IpAddr, SocketAddr},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
        unix::fs::{FileTypeExt, MetadataExt},
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
use crate::{config::Address, http1::io::Stream};

mod inherited;

/// Connections that wait in the kernel.
const BACKLOG: i32 = 4096;

/// A socket that is open and not yet served.
#[derive(Debug)]
pub struct BoundListener {
    socket: BoundSocket,
    address: Address,
    /// Who comes when this process no longer accepts is served by the next one, for the socket stays open.
    is_inherited: bool,
    /// `None` for TCP, and where the file is not ours.
    socket_file: Option<Arc<SocketFile>>,
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
    /// Opens the address. A unix socket that a dead process left behind is replaced; one that answers is not.
    pub fn open(address: &Address) -> io::Result<Self> {
        match address {
            Address::Tcp(address) => open_tcp(*address),
            Address::Unix(path) => open_unix(path),
        }
    }

    /// The real address.
    pub fn local_address(&self) -> Address {
        self.address.clone()
    }

    /// A handle for one worker; must be called on its runtime.
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
    // Every connection that is accepted inherits it.
    socket.set_tcp_nodelay(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    let listener = std::net::TcpListener::from(socket);
    let address = Address::Tcp(listener.local_addr()?);
    Ok(BoundListener { socket: BoundSocket::Tcp(listener), address, is_inherited: false, socket_file: None })
}

fn open_unix(path: &Path) -> io::Result<BoundListener> {
    if fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket()) && is_stale_socket(path) {
        fs::remove_file(path)?;
    }
    let listener = std::os::unix::net::UnixListener::bind(path)?;
    listener.set_nonblocking(true)?;
    let (address, file) = (Address::Unix(path.to_owned()), Some(Arc::new(SocketFile::new(path))));
    Ok(BoundListener { socket: BoundSocket::Unix(listener), address, is_inherited: false, socket_file: file })
}

/// Whether nobody listens on a unix socket. One that may not be connected to, or on which no more connections can wait,
/// belongs to somebody who lives.
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
    /// Since the runtime last said that somebody waits.
    accepted_since_ready: bool,
    is_inherited: bool,
    _socket_file: Option<Arc<SocketFile>>,
}

impl Listener {
    /// The next connection, and where it came from.
    pub async fn accept(&mut self) -> io::Result<(Stream, Option<IpAddr>)> {
        // Where they come as fast as they are let in, whoever else works on this thread has to have a turn.
        consume_budget().await;
        loop {
            let mut ready = self.socket.readable().await?;
            let socket = self.socket.get_ref();
            // To accept where nobody waits makes a socket first and then throws it away, which costs eight times as much as
            // to look. As a rule there is one for each time that the runtime says so.
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

    /// Closes it, and returns the connections that nobody has accepted. Where the socket stays open it is for the next
    /// process to accept them.
    pub(super) fn into_pending(self) -> impl Iterator<Item = (Stream, Option<IpAddr>)> {
        let Self { socket, is_inherited: stays_open, .. } = self;
        let left = (!stays_open).then(|| socket.into_inner());
        left.into_iter().flat_map(|socket| std::iter::from_fn(move || socket.try_accept().ok()))
    }
}

impl BoundSocket {
    fn try_clone(&self) -> io::Result<Self> {
        Ok(match self {
            Self::Tcp(listener) => Self::Tcp(listener.try_clone()?),
            Self::Unix(listener) => Self::Unix(listener.try_clone()?),
        })
    }

    /// Whether a connection waits already.
    fn has_pending(&self) -> io::Result<bool> {
        let mut socket = [PollFd::new(self, PollFlags::IN)];
        let at_once = Timespec::default();
        Ok(retry_on_intr(|| poll(&mut socket, Some(&at_once)))? > 0)
    }

    /// A connection that waits already.
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
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn pending_connections_returned_unless_socket_inherited() {
        let local = Address::Tcp(SocketAddr::from(([127, 0, 0, 1], 0)));
        for stays_open in [false, true] {
            let mut bound = BoundListener::open(&local).expect("a port");
            bound.is_inherited = stays_open;
            let Address::Tcp(address) = bound.local_address() else { unreachable!() };
            let callers: Vec<_> = (0..3).map(|_| std::net::TcpStream::connect(address)).collect();
            assert!(callers.iter().all(Result::is_ok));
            let left = bound.worker_listener().expect("a handle").into_pending().count();
            assert_eq!(left, if stays_open { 0 } else { 3 });
            let mut next = bound.worker_listener().expect("another");
            let taken = tokio::time::timeout(std::time::Duration::from_millis(200), next.accept()).await;
            assert_eq!(taken.is_ok(), stays_open, "the next process gets them");
        }
    }

    /// Callers who come as fast as they are let in keep nobody else from his work.
    #[tokio::test]
    async fn accept_under_flood_yields_to_other_tasks() {
        let bound =
            BoundListener::open(&Address::Tcp(SocketAddr::from(([127, 0, 0, 1], 0)))).expect("a port");
        let Address::Tcp(address) = bound.local_address() else { unreachable!() };
        let caller = || std::net::TcpStream::connect(address).expect("a connection");
        let crowd = 400;
        let _callers: Vec<_> = std::iter::repeat_with(caller).take(crowd).collect();
        let mut listener = bound.worker_listener().expect("a handle");
        let worked = Arc::new(AtomicUsize::new(0));
        let works = worked.clone();
        let other = tokio::spawn(async move {
            loop {
                works.fetch_add(1, Ordering::Relaxed);
                tokio::task::yield_now().await;
            }
        });
        // Before the first one is let in the runtime has to say that somebody is there.
        let accepting = tokio::spawn(async move {
            let first = listener.accept().await.map(drop);
            let before = worked.load(Ordering::Relaxed);
            for _ in 1..crowd {
                listener.accept().await.expect("a connection");
            }
            (first, worked.load(Ordering::Relaxed) - before)
        });
        let (first, turns) = accepting.await.expect("no panic");
        other.abort();
        first.expect("a connection");
        assert!(turns >= 2, "{turns} turns while {crowd} came");
    }

    /// Callers in crowds of every size, some of whom come while the first are let in, and one or two who let them in.
    #[tokio::test]
    async fn accept_with_concurrent_connects_misses_none() {
        let bound =
            BoundListener::open(&Address::Tcp(SocketAddr::from(([127, 0, 0, 1], 0)))).expect("a port");
        let Address::Tcp(address) = bound.local_address() else { unreachable!() };
        let caller = || std::net::TcpStream::connect(address).expect("a connection");
        let mut workers =
            [bound.worker_listener().expect("a handle"), bound.worker_listener().expect("another")];
        for crowd in 1..40 {
            let mut callers: Vec<_> = std::iter::repeat_with(caller).take(crowd).collect();
            for nth in 0..crowd + crowd / 3 {
                if nth < crowd / 3 {
                    callers.push(caller());
                }
                let [one, other] = &mut workers;
                let next = async {
                    tokio::select! {
                        biased;
                        taken = one.accept() => taken,
                        taken = other.accept(), if crowd % 2 == 0 => taken,
                    }
                };
                let taken = tokio::time::timeout(std::time::Duration::from_secs(10), next).await;
                taken.expect("whoever waits is seen").expect("a connection");
            }
        }
    }

    /// What opening a socket in the place of this one comes to; `None` where it waits.
    fn try_rebind(path: &Path) -> Option<Result<(), io::ErrorKind>> {
        let (tell, told) = std::sync::mpsc::channel();
        let address = Address::Unix(path.to_owned());
        std::thread::spawn(move || {
            tell.send(BoundListener::open(&address).map(drop).map_err(|error| error.kind()))
        });
        told.recv_timeout(std::time::Duration::from_secs(5)).ok()
    }

    #[test]
    fn unix_socket_is_replaced_only_when_stale() {
        let dir = tempfile::TempDir::new().expect("a directory");
        let at = |name: &str| dir.path().join(name);
        let bound = |name: &str, kind: Type| {
            let socket = Socket::new(Domain::UNIX, kind, None).expect("a socket");
            socket.bind(&SockAddr::unix(at(name)).expect("an address")).expect("it is free");
            socket
        };
        let taken = Some(Err(io::ErrorKind::AddrInUse));

        let full = bound("full", Type::STREAM);
        full.listen(0).expect("it listens");
        let caller = || {
            let caller = Socket::new(Domain::UNIX, Type::STREAM, None)?;
            caller.set_nonblocking(true)?;
            caller.connect(&SockAddr::unix(at("full"))?)?;
            io::Result::Ok(caller)
        };
        let waiting: Vec<_> = (0..100).map_while(|_| caller().ok()).collect();
        assert!((1..100).contains(&waiting.len()), "no more can wait");
        assert_eq!(try_rebind(&at("full")), taken);

        let _of_another_kind = bound("of-another-kind", Type::DGRAM);
        assert_eq!(try_rebind(&at("of-another-kind")), taken, "it cannot be connected to");

        let forbidden = bound("forbidden", Type::STREAM);
        forbidden.listen(1).expect("it listens");
        let nothing = std::os::unix::fs::PermissionsExt::from_mode(0o000);
        fs::set_permissions(at("forbidden"), nothing).expect("it is ours");
        assert_eq!(try_rebind(&at("forbidden")), taken);

        drop(bound("left-behind", Type::STREAM));
        assert_eq!(try_rebind(&at("left-behind")), Some(Ok(())));
    }
}
