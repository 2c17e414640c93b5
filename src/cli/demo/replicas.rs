//! What several proxies need: a Redis, and one address for all of them.

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
use crate::{app::App, config::Address};

/// How long a server on this machine may take to be there.
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// How often it is looked for.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// How long it is waited for without a word.
const NOTICE_TIMEOUT: Duration = Duration::from_millis(500);

/// Runs the rest of its arguments until its input ends, which it does when the demo is gone, however that ended.
const WATCHDOG_SCRIPT: &str = "trap '' INT TERM HUP; \"$@\" & read -r _; kill -9 $!";

/// A redis-server of the demo's own; it ends with it, even if nobody is left to end it.
pub(super) struct RedisProcess {
    watchdog: Child,
    watchdog_stdin: Option<ChildStdin>,
    address: SocketAddr,
}

impl RedisProcess {
    /// Starts the redis-server that is found on the PATH, without anything on disk.
    pub(super) async fn start(dir: &TempDir) -> Result<Self, CliError> {
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(CliError::other)?;
        let address = free.local_addr().map_err(CliError::other)?;
        drop(free);
        let found = Command::new("redis-server").arg("--version").stdin(Stdio::null()).output();
        found.map_err(|error| {
            let words = "cannot start redis-server, which several proxies share their tokens through; \
                         install it, or name one that runs with --redis redis://HOST:PORT";
            CliError::other(format!("{words}: {error}"))
        })?;
        let mut command = Command::new("sh");
        command.args(["-c", WATCHDOG_SCRIPT, "sh", "redis-server"]);
        command.args(["--port", &address.port().to_string(), "--bind", "127.0.0.1"]);
        command.args(["--save", "", "--appendonly", "no", "--daemonize", "no"]);
        command.current_dir(dir.path()).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut watchdog = command.spawn().map_err(CliError::other)?;
        let server = Self { watchdog_stdin: watchdog.stdin.take(), watchdog, address };
        let answers = async {
            while TcpStream::connect(address).await.is_err() {
                sleep(POLL_INTERVAL).await;
            }
        };
        let late = |_| CliError::other(format!("redis-server does not answer at {address}"));
        timeout(START_TIMEOUT, answers).await.map_err(late)?;
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

/// Waits until a proxy has found the store, and says so where that takes long.
pub(super) async fn wait_for_store(app: &App) -> Result<(), CliError> {
    let there = async {
        let begun = Instant::now();
        let mut said = false;
        while let Some(trouble) = app.store_error() {
            if begun.elapsed() > NOTICE_TIMEOUT && !std::mem::replace(&mut said, true) {
                let seconds = START_TIMEOUT.as_secs();
                eprintln!("wecom-proxy demo: waiting for Redis, for {seconds} s at most: {trouble}");
            }
            sleep(POLL_INTERVAL).await;
        }
    };
    timeout(START_TIMEOUT, there).await.map_err(|_| {
        let trouble = app.store_error().unwrap_or_default();
        CliError::other(format!("the proxies do not reach Redis: {trouble}"))
    })
}

/// Gives each connection to the next proxy.
pub(super) struct LoadBalancer {
    listener: TcpListener,
    address: SocketAddr,
}

impl LoadBalancer {
    pub(super) async fn bind(listen: SocketAddr) -> Result<Self, CliError> {
        let cannot = |error: io::Error| CliError::other(format!("cannot listen on {listen}: {error}"));
        let listener = TcpListener::bind(listen).await.map_err(cannot)?;
        let address = listener.local_addr().map_err(cannot)?;
        Ok(Self { listener, address })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until the program ends.
    pub(super) fn serve<'a>(self, proxies: impl Iterator<Item = &'a Address>) {
        let tcp = |address: &Address| match address {
            Address::Tcp(address) => Some(*address),
            Address::Unix(_) => None,
        };
        let mut next = proxies.filter_map(tcp).collect::<Vec<_>>().into_iter().cycle();
        tokio::spawn(async move {
            loop {
                let Ok((mut caller, _)) = self.listener.accept().await else {
                    sleep(POLL_INTERVAL).await;
                    continue;
                };
                let Some(proxy) = next.next() else { return };
                tokio::spawn(async move {
                    let mut proxy = TcpStream::connect(proxy).await?;
                    copy_bidirectional(&mut caller, &mut proxy).await
                });
            }
        });
    }
}

/// What the proxies of one demo encrypt under.
pub(super) fn random_store_key() -> String {
    (0..4).map(|_| format!("{:016x}", getrandom::u64().unwrap_or_default())).collect()
}
