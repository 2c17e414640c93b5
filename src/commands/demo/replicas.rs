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

use super::Failed;
use crate::{app::App, config::Address};

/// How long a server on this machine may take to be there.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it is looked for.
const LOOK: Duration = Duration::from_millis(20);

/// How long it is waited for without a word.
const SILENCE: Duration = Duration::from_millis(500);

/// Runs the rest of its arguments until its input ends, which it does when the demo is gone, however that ended.
const WATCHDOG: &str = "trap '' INT TERM HUP; \"$@\" & read -r _; kill -9 $!";

/// A redis-server of the demo's own; it ends with it, even if nobody is left to end it.
pub(super) struct Redis {
    watchdog: Child,
    input: Option<ChildStdin>,
    address: SocketAddr,
}

impl Redis {
    /// Starts the redis-server that is found on the PATH, without anything on disk.
    pub(super) async fn start(dir: &TempDir) -> Result<Self, Failed> {
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(Failed::other)?;
        let address = free.local_addr().map_err(Failed::other)?;
        drop(free);
        let found = Command::new("redis-server").arg("--version").stdin(Stdio::null()).output();
        found.map_err(|error| {
            let words = "cannot start redis-server, which several proxies share their tokens through; \
                         install it, or name one that runs with --redis redis://HOST:PORT";
            Failed::other(format!("{words}: {error}"))
        })?;
        let mut command = Command::new("sh");
        command.args(["-c", WATCHDOG, "sh", "redis-server"]);
        command.args(["--port", &address.port().to_string(), "--bind", "127.0.0.1"]);
        command.args(["--save", "", "--appendonly", "no", "--daemonize", "no"]);
        command.current_dir(dir.path()).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut watchdog = command.spawn().map_err(Failed::other)?;
        let server = Self { input: watchdog.stdin.take(), watchdog, address };
        let answers = async {
            while TcpStream::connect(address).await.is_err() {
                sleep(LOOK).await;
            }
        };
        let late = |_| Failed::other(format!("redis-server does not answer at {address}"));
        timeout(PATIENCE, answers).await.map_err(late)?;
        Ok(server)
    }

    pub(super) fn url(&self) -> String {
        format!("redis://{}", self.address)
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        drop(self.input.take());
        let _ = self.watchdog.wait();
    }
}

/// Waits until a proxy has found the store, and says so where that takes long.
pub(super) async fn joined(app: &App) -> Result<(), Failed> {
    let there = async {
        let begun = Instant::now();
        let mut said = false;
        while let Some(trouble) = app.store_trouble() {
            if begun.elapsed() > SILENCE && !std::mem::replace(&mut said, true) {
                let seconds = PATIENCE.as_secs();
                eprintln!("wecom-proxy demo: waiting for Redis, for {seconds} s at most: {trouble}");
            }
            sleep(LOOK).await;
        }
    };
    timeout(PATIENCE, there).await.map_err(|_| {
        let trouble = app.store_trouble().unwrap_or_default();
        Failed::other(format!("the proxies do not reach Redis: {trouble}"))
    })
}

/// Gives each connection to the next proxy.
pub(super) struct Relay {
    listener: TcpListener,
    address: SocketAddr,
}

impl Relay {
    pub(super) async fn open(listen: SocketAddr) -> Result<Self, Failed> {
        let cannot = |error: io::Error| Failed::other(format!("cannot listen on {listen}: {error}"));
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
                    sleep(LOOK).await;
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
pub(super) fn random_key() -> String {
    (0..4).map(|_| format!("{:016x}", getrandom::u64().unwrap_or_default())).collect()
}
