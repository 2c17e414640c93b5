use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

#[tokio::test]
async fn pending_connections_returned_unless_socket_inherited() {
    let local = Address::Tcp(SocketAddr::from(([127, 0, 0, 1], 0)));
    for is_inherited in [false, true] {
        let mut bound = BoundListener::open(&local, &SocketAccess::default()).expect("a port");
        bound.is_inherited = is_inherited;
        let Address::Tcp(address) = bound.local_address() else { unreachable!() };
        let clients: Vec<_> = (0..3).map(|_| std::net::TcpStream::connect(address)).collect();
        assert!(clients.iter().all(Result::is_ok));
        let backlog = bound.worker_listener().expect("a handle").into_pending().count();
        assert_eq!(backlog, if is_inherited { 0 } else { 3 });
        let mut next = bound.worker_listener().expect("another");
        let accepted = tokio::time::timeout(std::time::Duration::from_millis(200), next.accept()).await;
        assert_eq!(accepted.is_ok(), is_inherited, "the next process gets them");
    }
}

/// A flood of connections does not starve other tasks of the thread.
#[tokio::test]
async fn accept_under_flood_yields_to_other_tasks() {
    let bound =
        BoundListener::open(&Address::Tcp(SocketAddr::from(([127, 0, 0, 1], 0))), &SocketAccess::default())
            .expect("a port");
    let Address::Tcp(address) = bound.local_address() else { unreachable!() };
    let client = || std::net::TcpStream::connect(address).expect("a connection");
    let connections = 400;
    let _clients: Vec<_> = std::iter::repeat_with(client).take(connections).collect();
    let mut listener = bound.worker_listener().expect("a handle");
    let yields = Arc::new(AtomicUsize::new(0));
    let counter = yields.clone();
    let other = tokio::spawn(async move {
        loop {
            counter.fetch_add(1, Ordering::Relaxed);
            tokio::task::yield_now().await;
        }
    });
    // The first accept waits for the runtime's readiness event.
    let accepting = tokio::spawn(async move {
        let first = listener.accept().await.map(drop);
        let before = yields.load(Ordering::Relaxed);
        for _ in 1..connections {
            listener.accept().await.expect("a connection");
        }
        (first, yields.load(Ordering::Relaxed) - before)
    });
    let (first, yields) = accepting.await.expect("no panic");
    other.abort();
    first.expect("a connection");
    assert!(yields >= 2, "{yields} yields during {connections} accepts");
}

/// Batches of every size, some connections arriving while the first are accepted, by one or two workers.
#[tokio::test]
async fn accept_with_concurrent_connects_misses_none() {
    let bound =
        BoundListener::open(&Address::Tcp(SocketAddr::from(([127, 0, 0, 1], 0))), &SocketAccess::default())
            .expect("a port");
    let Address::Tcp(address) = bound.local_address() else { unreachable!() };
    let client = || std::net::TcpStream::connect(address).expect("a connection");
    let mut workers = [bound.worker_listener().expect("a handle"), bound.worker_listener().expect("another")];
    for connections in 1..40 {
        let mut clients: Vec<_> = std::iter::repeat_with(client).take(connections).collect();
        for nth in 0..connections + connections / 3 {
            if nth < connections / 3 {
                clients.push(client());
            }
            let [one, other] = &mut workers;
            let next = async {
                tokio::select! {
                    biased;
                    accepted = one.accept() => accepted,
                    accepted = other.accept(), if connections % 2 == 0 => accepted,
                }
            };
            let accepted = tokio::time::timeout(std::time::Duration::from_secs(10), next).await;
            accepted.expect("a pending connection is accepted").expect("a connection");
        }
    }
}

/// Result of binding the path again; `None` if it does not return.
fn try_rebind(path: &Path) -> Option<Result<(), io::ErrorKind>> {
    let (sender, receiver) = std::sync::mpsc::channel();
    let address = Address::Unix(path.to_owned());
    std::thread::spawn(move || {
        sender.send(
            BoundListener::open(&address, &SocketAccess::default()).map(drop).map_err(|error| error.kind()),
        )
    });
    receiver.recv_timeout(std::time::Duration::from_secs(5)).ok()
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
    let in_use = Some(Err(io::ErrorKind::AddrInUse));

    let full = bound("full", Type::STREAM);
    full.listen(0).expect("it listens");
    let client = || {
        let client = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        client.set_nonblocking(true)?;
        client.connect(&SockAddr::unix(at("full"))?)?;
        io::Result::Ok(client)
    };
    let waiting: Vec<_> = (0..100).map_while(|_| client().ok()).collect();
    assert!((1..100).contains(&waiting.len()), "the accept queue is full");
    assert_eq!(try_rebind(&at("full")), in_use);

    let _of_another_kind = bound("of-another-kind", Type::DGRAM);
    assert_eq!(try_rebind(&at("of-another-kind")), in_use, "a datagram socket");

    let forbidden = bound("forbidden", Type::STREAM);
    forbidden.listen(1).expect("it listens");
    let nothing = std::os::unix::fs::PermissionsExt::from_mode(0o000);
    fs::set_permissions(at("forbidden"), nothing).expect("it is ours");
    assert_eq!(try_rebind(&at("forbidden")), in_use);

    drop(bound("left-behind", Type::STREAM));
    assert_eq!(try_rebind(&at("left-behind")), Some(Ok(())));
}

#[test]
fn unix_socket_gets_configured_mode_and_group() {
    let dir = tempfile::TempDir::new().expect("a directory");
    let path = dir.path().join("socket");
    let own_group = fs::metadata(dir.path()).expect("a directory").gid();
    let access = SocketAccess { mode: Some(0o622), group: Some(own_group) };
    let _bound = BoundListener::open(&Address::Unix(path.clone()), &access).expect("a socket");
    let file = fs::metadata(&path).expect("a socket");
    assert_eq!((file.mode() & 0o777, file.gid()), (0o622, own_group));
}
