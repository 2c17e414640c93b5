//! TCP connections to a host by name: addresses are tried as Happy Eyeballs does (RFC 8305).
//!
//! Ours: the connector of hyper-util starts a second attempt for the other address family only, and gives each address of one
//! family a part of the time in turn, so that one silent address delays all behind it.

use std::{
    future::{Future, poll_fn},
    io,
    net::SocketAddr,
    pin::Pin,
    task::Poll,
    time::Duration,
};

use socket2::{SockRef, TcpKeepalive};
use tokio::{
    net::TcpStream,
    time::{Instant, timeout_at},
};

use super::{
    ConnectError,
    resolver::{LookupError, RESOLVER, Resolved, Resolver},
};

use crate::format_text;

/// An address that has not accepted by then is joined by the next one (Connection Attempt Delay, RFC 8305 §5).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// Probes of a silent peer before its connection is closed.
const KEEPALIVE_PROBES: u32 = 3;
/// The system counts whole seconds.
const MIN_PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// Connects to a host name, or an IP address without brackets, by the deadline. Looks the name up with the resolver of
/// the process.
pub async fn connect(host: &str, port: u16, deadline: Instant) -> Result<TcpStream, ConnectError> {
    connect_resolved_by(&RESOLVER, host, port, deadline).await
}

async fn connect_resolved_by(
    resolver: &'static Resolver,
    host: &str,
    port: u16,
    deadline: Instant,
) -> Result<TcpStream, ConnectError> {
    let (name, resolved) = look_up(resolver, host, deadline).await?;
    let mut race = Race::default();
    race.add(&resolved.addresses, port);
    // The name is looked up again after half of the time: addresses known for a while may have moved.
    let first_until = match resolved.is_cached {
        true => Instant::now() + deadline.saturating_duration_since(Instant::now()) / 2,
        false => deadline,
    };
    let mut winner = race.run(first_until).await;
    if winner.is_err() {
        resolver.expire(name);
        if resolved.is_cached {
            if let Ok(again) = resolver.resolve(name, deadline).await {
                race.add(&again.addresses, port);
            }
            if race.is_running() {
                winner = race.run(deadline).await;
            }
        }
    }
    let (address, tcp) = winner.map_err(|error| ConnectError::tcp(format_args!("{host}:{port}"), &error))?;
    resolver.mark_working(name, address.ip());
    Ok(tcp)
}

/// Has the system probe a silent peer after `interval`, and close the connection when it has not responded for twice
/// that time, unsent data included (RFC 5482). Zero: not at all.
pub(super) fn set_keepalive(tcp: &TcpStream, interval: Duration) {
    if interval.is_zero() {
        return;
    }
    let (socket, probe_interval) =
        (SockRef::from(tcp), (interval / KEEPALIVE_PROBES).max(MIN_PROBE_INTERVAL));
    let keepalive = TcpKeepalive::new()
        .with_time(interval.max(MIN_PROBE_INTERVAL))
        .with_interval(probe_interval)
        .with_retries(KEEPALIVE_PROBES);
    let _ = socket.set_tcp_keepalive(&keepalive);
    #[cfg(target_os = "linux")]
    let _ = socket.set_tcp_user_timeout(Some(2 * interval));
}

/// Resolves a name with the resolver of the process; the addresses have this port.
pub async fn resolve(host: &str, port: u16, deadline: Instant) -> Result<Vec<SocketAddr>, ConnectError> {
    let (_, mut resolved) = look_up(&RESOLVER, host, deadline).await?;
    resolved.addresses.iter_mut().for_each(|address| address.set_port(port));
    Ok(resolved.addresses)
}

/// The addresses of a host, and the name that has them: DNS knows a name with a dot at its end, the hosts file only one
/// without.
async fn look_up<'a>(
    resolver: &'static Resolver,
    host: &'a str,
    deadline: Instant,
) -> Result<(&'a str, Resolved), ConnectError> {
    let error = match resolver.resolve(host, deadline).await {
        Ok(resolved) => return Ok((host, resolved)),
        Err(error) => error,
    };
    if let (LookupError::Failed(_), Some(name)) = (&error, host.strip_suffix('.'))
        && let Ok(resolved) = resolver.resolve(name, deadline).await
    {
        return Ok((name, resolved));
    }
    Err(lookup_failed(host, &error))
}

fn lookup_failed(host: &str, error: &LookupError) -> ConnectError {
    match error {
        LookupError::Failed(error) => ConnectError::with_details(
            "name not found",
            format_text!(
                "cannot resolve {host}: {error}; check the name and this machine's DNS",
                "无法解析 {host}：{error}；请检查名称和本机的 DNS"
            ),
        ),
        LookupError::TimedOut => ConnectError::with_details(
            "name resolution timed out",
            format_text!(
                "resolving {host} took too long; check this machine's DNS",
                "解析 {host} 用时太长；请检查本机的 DNS"
            ),
        ),
    }
}

type Attempt = Pin<Box<dyn Future<Output = (SocketAddr, io::Result<TcpStream>)> + Send>>;

/// Attempts to connect to addresses, of which the first that succeeds wins.
#[derive(Default)]
struct Race {
    addresses: Vec<SocketAddr>,
    /// Number of addresses that an attempt was made for.
    tried: usize,
    attempts: Vec<Attempt>,
}

impl Race {
    /// Adds the addresses that it does not have yet.
    fn add(&mut self, addresses: &[SocketAddr], port: u16) {
        for address in addresses {
            let address = SocketAddr::new(address.ip(), port);
            if !self.addresses.contains(&address) {
                self.addresses.push(address);
            }
        }
    }

    /// Whether an attempt may still succeed.
    fn is_running(&self) -> bool {
        !self.attempts.is_empty() || self.tried < self.addresses.len()
    }

    /// Returns the first connection. The next attempt starts when the one before has failed, or not succeeded within
    /// [`ATTEMPT_DELAY`]. Attempts in progress at the deadline are kept for another run.
    async fn run(&mut self, deadline: Instant) -> io::Result<(SocketAddr, TcpStream)> {
        let mut last_error = io::Error::from(io::ErrorKind::AddrNotAvailable);
        loop {
            match self.addresses.get(self.tried).copied() {
                Some(address) => {
                    self.tried += 1;
                    self.attempts.push(Box::pin(async move { (address, TcpStream::connect(address).await) }));
                }
                None if self.attempts.is_empty() => return Err(last_error),
                None => {}
            }
            let next_at = Instant::now() + ATTEMPT_DELAY;
            let wait_until = if self.tried < self.addresses.len() { next_at.min(deadline) } else { deadline };
            match timeout_at(wait_until, first_ended(&mut self.attempts)).await {
                Ok((address, Ok(tcp))) => return Ok((address, tcp)),
                Ok((_, Err(error))) => last_error = error,
                Err(_) if wait_until == deadline => return Err(io::ErrorKind::TimedOut.into()),
                Err(_) => {}
            }
        }
    }
}

/// Takes the first attempt that ends out of the list.
async fn first_ended(attempts: &mut Vec<Attempt>) -> (SocketAddr, io::Result<TcpStream>) {
    poll_fn(|cx| {
        for nth in 0..attempts.len() {
            if let Poll::Ready(ended) = attempts[nth].as_mut().poll(cx) {
                drop(attempts.swap_remove(nth));
                return Poll::Ready(ended);
            }
        }
        Poll::Pending
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    };

    use parking_lot::Mutex;
    use tokio::net::{TcpListener, TcpSocket};

    use super::*;

    async fn listener(ip: &str) -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind((ip, 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        (listener, address)
    }

    /// An address that drops connection requests, as a firewall does: its accept queue is full.
    async fn silent_address() -> (SocketAddr, TcpListener, Vec<TcpStream>) {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind("127.0.0.1:0".parse().expect("an address")).expect("a port");
        let listener = socket.listen(1).expect("it listens");
        let address = listener.local_addr().expect("an address");
        let mut queued = Vec::new();
        let until = || Instant::now() + Duration::from_millis(300);
        while let Ok(Ok(tcp)) = timeout_at(until(), TcpStream::connect(address)).await {
            queued.push(tcp);
        }
        (address, listener, queued)
    }

    async fn race(addresses: &[SocketAddr], deadline: Instant) -> io::Result<(SocketAddr, TcpStream)> {
        let mut race = Race { addresses: addresses.to_vec(), ..Race::default() };
        race.run(deadline).await
    }

    fn in_10_s() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    #[tokio::test]
    async fn silent_address_delays_by_an_attempt_delay_only() {
        let (silent, _listener, _queued) = silent_address().await;
        let (_live_listener, live) = listener("127.0.0.1").await;
        let start = Instant::now();
        let (address, _tcp) = race(&[silent, live], in_10_s()).await.expect("a connection");
        assert_eq!(address, live);
        assert!(start.elapsed() >= ATTEMPT_DELAY && start.elapsed() < Duration::from_secs(5));
    }

    #[tokio::test]
    async fn refused_address_is_followed_by_the_next_at_once() {
        let (closed, (_listener, live)) = (listener("127.0.0.1").await.1, listener("127.0.0.1").await);
        let (address, _tcp) = race(&[closed, closed, live], in_10_s()).await.expect("a connection");
        assert_eq!(address, live);
        let error = race(&[closed, closed], in_10_s()).await.expect_err("both are closed");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }

    #[tokio::test]
    async fn silent_addresses_end_at_the_deadline() {
        let (silent, _listener, _queued) = silent_address().await;
        let deadline = Instant::now() + Duration::from_millis(400);
        let error = race(&[silent, silent], deadline).await.expect_err("both are silent");
        assert_eq!((error.kind(), Instant::now() >= deadline), (io::ErrorKind::TimedOut, true));
    }

    #[tokio::test]
    async fn working_address_of_a_name_is_tried_first() {
        // Both families of localhost, one of which is closed.
        for ip in ["127.0.0.1", "::1"] {
            let Ok(_listener) = TcpListener::bind((ip, 0)).await else { continue };
            let port = _listener.local_addr().expect("an address").port();
            let Ok(tcp) = connect("localhost", port, in_10_s()).await else { continue };
            let first = resolve("localhost", port, in_10_s()).await.expect("an address")[0];
            assert_eq!(first, tcp.peer_addr().expect("an address"));
        }
    }

    fn leaked_resolver(
        lookup: impl Fn(&str) -> io::Result<Vec<SocketAddr>> + Send + Sync + 'static,
    ) -> &'static Resolver {
        Box::leak(Box::new(Resolver::new(Box::new(lookup))))
    }

    /// The address stays the same, and begins to accept connections only when half of the time is over.
    #[tokio::test]
    async fn slow_address_of_a_cached_name_has_all_the_time() {
        let (slow, listener, queued) = silent_address().await;
        let listener = listener.into_std().expect("a listener");
        let lookups = AtomicU32::new(0);
        let resolver = leaked_resolver(move |_| {
            while lookups.load(Ordering::Relaxed) > 0 && listener.accept().is_ok() {}
            lookups.fetch_add(1, Ordering::Relaxed);
            Ok(vec![slow])
        });
        resolver.resolve("slow.test", in_10_s()).await.expect("an address");
        // The system repeats a SYN after 1 s and again by 3 s.
        let deadline = Instant::now() + Duration::from_secs(5);
        let connected = connect_resolved_by(resolver, "slow.test", slow.port(), deadline).await;
        assert_eq!(connected.expect("a connection").peer_addr().expect("an address"), slow);
        drop(queued);
    }

    #[tokio::test]
    async fn dot_at_the_end_is_left_out_only_if_not_found() {
        let closed = listener("127.0.0.1").await.1;
        let names = Arc::new(Mutex::new(Vec::new()));
        let looked_up = names.clone();
        let resolver = leaked_resolver(move |name| {
            looked_up.lock().push(name.to_owned());
            match name {
                "dns.test." | "hosts.test" => Ok(vec![closed]),
                _ => Err(io::Error::other("not found")),
            }
        });
        for (host, expected) in [
            ("dns.test.", &["dns.test."][..]),
            ("hosts.test.", &["hosts.test.", "hosts.test"]),
            ("unknown.test.", &["unknown.test.", "unknown.test"]),
        ] {
            let error = connect_resolved_by(resolver, host, closed.port(), in_10_s()).await;
            let error = error.expect_err("it is closed").to_string();
            assert!(error.contains(host), "{error}");
            assert_eq!(std::mem::take(&mut *names.lock()), expected);
        }
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn silent_peer_is_probed_and_given_up() {
        let (_listener, address) = listener("127.0.0.1").await;
        for (interval, expected) in [(0, None), (15, Some((15, 5))), (1, Some((1, 1)))] {
            let tcp = TcpStream::connect(address).await.expect("a connection");
            set_keepalive(&tcp, Duration::from_secs(interval));
            let socket = SockRef::from(&tcp);
            assert_eq!(socket.keepalive().expect("a socket"), expected.is_some());
            let Some((time, probe_interval)) = expected else { continue };
            let seconds = Duration::from_secs;
            assert_eq!(socket.tcp_keepalive_time().expect("a socket"), seconds(time));
            assert_eq!(socket.tcp_keepalive_interval().expect("a socket"), seconds(probe_interval));
            assert_eq!(socket.tcp_user_timeout().expect("a socket"), Some(seconds(2 * interval)));
        }
    }
}
