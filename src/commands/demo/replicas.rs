//! What several proxies need: a Redis, and one address for all of them.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    process::{Child, Command, Stdio},
    time::Duration,
};

use tempfile::TempDir;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};

use super::Failed;
use crate::{app::App, config::Address};

/// How long a server on this machine may take to be there.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it is looked for.
const LOOK: Duration = Duration::from_millis(20);

/// A redis-server of the demo's own; it ends with it.
pub(super) struct Redis {
    child: Child,
    address: SocketAddr,
}

impl Redis {
    /// Starts the redis-server that is found on the PATH, without anything on disk.
    pub(super) async fn start(dir: &TempDir) -> Result<Self, Failed> {
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(Failed::other)?;
        let address = free.local_addr().map_err(Failed::other)?;
        drop(free);
        let mut command = Command::new("redis-server");
        command.args(["--port", &address.port().to_string(), "--bind", "127.0.0.1"]);
        command.args(["--save", "", "--appendonly", "no", "--daemonize", "no"]);
        command.current_dir(dir.path()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().map_err(|error| {
            let words = "cannot start redis-server, which several proxies share their tokens through; \
                         install it, or name one that runs with --redis redis://HOST:PORT";
            Failed::other(format!("{words}: {error}"))
        })?;
        let server = Self { child, address };
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
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until a proxy has found the store.
pub(super) async fn joined(app: &App) -> Result<(), Failed> {
    let there = async {
        while app.store_trouble().is_some() {
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
