//! Redis and a load balancer for a demo with several proxies.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    process::{Child, ChildStdin, Command, Stdio},
    time::Duration,
};

use tempfile::TempDir;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    time::{Instant, sleep, timeout},
};

use super::CliError;
use crate::{app::App, config::Address, format_text, secret::random_u64};

/// How long Redis may take to accept connections.
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// The interval between attempts to reach it.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// How long the demo waits before it reports that it waits.
const NOTICE_TIMEOUT: Duration = Duration::from_millis(500);

/// Runs the command in its arguments until stdin closes, which it does when the demo ends, even after SIGKILL.
const WATCHDOG_SCRIPT: &str = "trap '' INT TERM HUP; \"$@\" & read -r _; kill -9 $!";

/// The demo's redis-server. A watchdog process ends it, even if the demo is killed.
pub(super) struct RedisProcess {
    watchdog: Child,
    watchdog_stdin: Option<ChildStdin>,
    address: SocketAddr,
}

impl RedisProcess {
    /// Starts the redis-server on the PATH, without persistence.
    pub(super) async fn start(dir: &TempDir) -> Result<Self, CliError> {
        let reserved = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(CliError::of)?;
        let address = reserved.local_addr().map_err(CliError::of)?;
        drop(reserved);
        let found = Command::new("redis-server").arg("--version").stdin(Stdio::null()).output();
        found.map_err(|error| {
            CliError::other(format_text!(
                "cannot start redis-server, through which several proxies share their tokens; install it, or name a running \
                 one with --redis redis://HOST:PORT: {}",
                "无法启动 redis-server，多个代理通过它共享 token；请安装它，或用 --redis redis://HOST:PORT 指定正在运行的：{}",
                error
            ))
        })?;
        let mut command = Command::new("sh");
        command.args(["-c", WATCHDOG_SCRIPT, "sh", "redis-server"]);
        command.args(["--port", &address.port().to_string(), "--bind", "127.0.0.1"]);
        command.args(["--save", "", "--appendonly", "no", "--daemonize", "no"]);
        command.current_dir(dir.path()).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut watchdog = command.spawn().map_err(CliError::of)?;
        let server = Self { watchdog_stdin: watchdog.stdin.take(), watchdog, address };
        let connected = async {
            while TcpStream::connect(address).await.is_err() {
                sleep(POLL_INTERVAL).await;
            }
        };
        let timed_out = |_| {
            CliError::other(format_text!(
                "redis-server does not accept connections at {address}",
                "redis-server 没有在 {address} 接受连接"
            ))
        };
        timeout(START_TIMEOUT, connected).await.map_err(timed_out)?;
        Ok(server)
    }

    pub(super) fn url(&self) -> String {
        format!("redis://{}", self.address)
    }
}

impl Drop for RedisProcess {
    fn drop(&mut self) {
        drop(self.watchdog_stdin.take());
        let _ = self.watchdog.wait();
    }
}

/// Waits until a proxy has reached the store, and prints a notice after [`NOTICE_TIMEOUT`].
pub(super) async fn wait_for_store(app: &App) -> Result<(), CliError> {
    let reached = async {
        let start = Instant::now();
        let mut notified = false;
        while let Some(error) = app.store_error() {
            if start.elapsed() > NOTICE_TIMEOUT && !std::mem::replace(&mut notified, true) {
                let seconds = START_TIMEOUT.as_secs();
                eprintln!("wecom-proxy demo: waiting for Redis, for {seconds} s at most: {error}");
            }
            sleep(POLL_INTERVAL).await;
        }
    };
    timeout(START_TIMEOUT, reached).await.map_err(|_| {
        let error = app.store_error().unwrap_or_default();
        CliError::other(format_text!(
            "the proxies cannot reach Redis: {error}",
            "代理无法连接 Redis：{error}"
        ))
    })
}

/// Distributes connections over the proxies, round robin.
pub(super) struct LoadBalancer {
    listener: TcpListener,
    address: SocketAddr,
}

impl LoadBalancer {
    pub(super) async fn bind(listen: SocketAddr) -> Result<Self, CliError> {
        let bind_error = |error: io::Error| {
            CliError::other(format_text!("cannot listen on {listen}: {}", "无法监听 {listen}：{}", error))
        };
        let listener = TcpListener::bind(listen).await.map_err(bind_error)?;
        let address = listener.local_addr().map_err(bind_error)?;
        Ok(Self { listener, address })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Spawns a task that serves until the program ends.
    pub(super) fn serve<'a>(self, proxies: impl Iterator<Item = &'a Address>) {
        let mut next = proxies.filter_map(Address::to_connect).collect::<Vec<_>>().into_iter().cycle();
        tokio::spawn(async move {
            loop {
                let Ok((mut client, _)) = self.listener.accept().await else {
                    sleep(POLL_INTERVAL).await;
                    continue;
                };
                let Some(proxy) = next.next() else { return };
                tokio::spawn(async move {
                    let mut proxy = TcpStream::connect(proxy).await?;
                    copy_bidirectional(&mut client, &mut proxy).await
                });
            }
        });
    }
}

/// The key with which the demo's proxies encrypt the store's entries.
pub(super) fn random_store_key() -> String {
    (0..4).map(|_| format!("{:016x}", random_u64())).collect()
}
