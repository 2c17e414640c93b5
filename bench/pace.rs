//! Load at a fixed rate, as of many independent clients: `pace PORT CONNECTIONS RATE SECONDS`, with the request on stdin.
//!
//! A latency counts from the moment the request was due, also where no connection was free to send it then, so a server
//! that stalls cannot hide its queue. With a rate of 0, each connection sends as soon as it has its response. Prints the
//! requests a second, and percentiles in microseconds.

use std::{
    env,
    io::{self, ErrorKind, Read, Write},
    net::TcpStream,
    os::fd::AsRawFd,
    time::{Duration, Instant},
};

#[derive(Clone, Copy)]
#[repr(C)]
#[cfg_attr(target_arch = "x86_64", repr(packed))]
struct Event {
    events: u32,
    connection: u64,
}

/// Seconds and nanoseconds.
#[repr(C)]
struct Timeout(i64, i64);

const EPOLLIN: u32 = 1;
const EPOLL_CTL_ADD: i32 = 1;

// The standard library has no epoll.
unsafe extern "C" {
    fn epoll_create1(flags: i32) -> i32;
    fn epoll_ctl(epoll: i32, operation: i32, descriptor: i32, event: *mut Event) -> i32;
    fn epoll_pwait2(
        epoll: i32,
        events: *mut Event,
        count: i32,
        timeout: *const Timeout,
        mask: *const u8,
    ) -> i32;
}

struct Connection {
    stream: TcpStream,
    received: Vec<u8>,
    due: Instant,
}

fn main() {
    let arguments: Vec<f64> = env::args().skip(1).map(|number| number.parse().expect("a number")).collect();
    let [port, connections, rate, seconds] = arguments[..] else { panic!("PORT CONNECTIONS RATE SECONDS") };
    let mut request = Vec::new();
    io::stdin().read_to_end(&mut request).expect("a request");
    let mut connections: Vec<_> = (0..connections as usize).map(|_| connect(port as u16)).collect();
    let epoll = unsafe { epoll_create1(0) };
    for (nth, connection) in connections.iter().enumerate() {
        let mut event = Event { events: EPOLLIN, connection: nth as u64 };
        let added = unsafe { epoll_ctl(epoll, EPOLL_CTL_ADD, connection.stream.as_raw_fd(), &mut event) };
        assert_eq!(added, 0, "epoll: {}", io::Error::last_os_error());
    }
    let begin = Instant::now();
    let end = begin + Duration::from_secs_f64(seconds);
    let (mut free, mut due) = ((0..connections.len()).collect::<Vec<_>>(), begin);
    let (mut sent, mut latencies) = (0_u32, Vec::new());
    while due < end || free.len() < connections.len() {
        let now = Instant::now();
        while due < end.min(now)
            && let Some(nth) = free.pop()
        {
            connections[nth].due = if rate > 0.0 { due } else { now };
            connections[nth].stream.write_all(&request).expect("the request");
            sent += 1;
            due = if rate > 0.0 { begin + Duration::from_secs_f64(f64::from(sent) / rate) } else { now };
        }
        if rate == 0.0 {
            due = now;
        }
        let until_due = due.saturating_duration_since(Instant::now());
        let wait = if free.is_empty() || due >= end { Duration::from_secs(10) } else { until_due };
        let timeout = Timeout(wait.as_secs() as i64, i64::from(wait.subsec_nanos()));
        let mut events = [Event { events: 0, connection: 0 }; 64];
        let ready = unsafe { epoll_pwait2(epoll, events.as_mut_ptr(), 64, &timeout, std::ptr::null()) };
        for event in &events[..ready.max(0) as usize] {
            let nth = event.connection as usize;
            if connections[nth].receive() {
                latencies.push(connections[nth].due.elapsed().as_micros());
                free.push(nth);
            }
        }
    }
    let rate = latencies.len() as f64 / begin.elapsed().as_secs_f64();
    latencies.sort_unstable();
    let percentile = |share: usize| latencies[latencies.len() * share / 100];
    println!(r#"{{"rate": {rate:.0}, "p50": {}, "p99": {}}}"#, percentile(50), percentile(99));
}

fn connect(port: u16) -> Connection {
    let stream = TcpStream::connect(("127.0.0.1", port)).expect("a connection");
    stream.set_nodelay(true).expect("a socket option");
    stream.set_nonblocking(true).expect("a socket option");
    Connection { stream, received: Vec::new(), due: Instant::now() }
}

impl Connection {
    /// Whether a small response is complete, which has to be WeCom's.
    fn receive(&mut self) -> bool {
        let mut part = [0; 8192];
        match self.stream.read(&mut part) {
            Ok(0) => panic!("closed after {}", String::from_utf8_lossy(&self.received)),
            Ok(length) => self.received.extend_from_slice(&part[..length]),
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
        let is_complete = self.received.ends_with(b"}");
        if is_complete {
            let text = String::from_utf8_lossy(&self.received);
            assert!(text.starts_with("HTTP/1.1 200") && text.contains(r#""errcode":0"#), "{text}");
            self.received.clear();
        }
        is_complete
    }
}
