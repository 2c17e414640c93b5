//! A real redis-server, which tests start, stop and send commands to.

use std::{
    net::{SocketAddr, TcpListener},
    process::Command,
};

use tempfile::TempDir;
use tokio::net::TcpStream;

use crate::{
    harness::wait_for,
    process::{Process, tool},
};

/// A server on a free port, without persistence.
pub struct RedisServer {
    address: SocketAddr,
    dir: TempDir,
    options: Vec<String>,
    process: Option<Process>,
}

impl RedisServer {
    /// A running server.
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// A running server with more command line options, in which `{port}` is replaced by its port.
    pub async fn start_with(options: &[&str]) -> Self {
        let mut redis = Self {
            address: free_address(),
            dir: TempDir::new().expect("a temporary directory"),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
            process: None,
        };
        redis.restart().await;
        redis
    }

    /// A replica of `master` that has caught up.
    pub async fn start_replica(master: SocketAddr) -> Self {
        let replica = Self::start_with(&["--replicaof", "127.0.0.1", &master.port().to_string()]).await;
        wait_for("replication", async || {
            replica.command(&["INFO", "replication"]).await.contains("link_status:up")
        })
        .await;
        replica
    }

    /// A single sentinel that monitors one master, with a quorum of 1 and a failure detection time of 500 ms.
    pub async fn start_sentinel(master: SocketAddr) -> Self {
        let sentinel = Self {
            address: free_address(),
            dir: TempDir::new().expect("a temporary directory"),
            options: Vec::new(),
            process: None,
        };
        let config = format!(
            "port {}\nbind 127.0.0.1\nsentinel monitor mymaster {} {} 1\n\
             sentinel down-after-milliseconds mymaster 500\nsentinel failover-timeout mymaster 3000\n",
            sentinel.address.port(),
            master.ip(),
            master.port()
        );
        let path = sentinel.dir.path().join("sentinel.conf");
        std::fs::write(&path, config).expect("the configuration is written");
        let mut command = Command::new(tool("redis-server"));
        command.arg(&path).arg("--sentinel").current_dir(sentinel.dir.path());
        let process = Some(Process::start(command));
        wait_for("the sentinel", async || TcpStream::connect(sentinel.address).await.is_ok()).await;
        let sentinel = Self { process, ..sentinel };
        wait_for("its replicas", async || {
            sentinel.command(&["SENTINEL", "REPLICAS", "mymaster"]).await.contains("127.0.0.1")
        })
        .await;
        sentinel
    }

    /// Its address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The `store` line of `[tokens]`.
    pub fn store_config_line(&self) -> String {
        format!("store = {{ redis = \"redis://{}\", key = \"{STORE_KEY}\" }}", self.address)
    }

    /// Starts it again, empty.
    pub async fn restart(&mut self) {
        let mut command = Command::new(tool("redis-server"));
        command.args(["--port", &self.address.port().to_string(), "--bind", "127.0.0.1"]);
        command.args(["--save", "", "--appendonly", "no", "--daemonize", "no"]);
        let port = self.address.port().to_string();
        command.args(self.options.iter().map(|option| option.replace("{port}", &port)));
        command.current_dir(self.dir.path());
        self.process = Some(Process::start(command));
        wait_for("redis-server", async || TcpStream::connect(self.address).await.is_ok()).await;
    }

    /// Kills it with SIGKILL.
    pub async fn kill(&mut self) {
        let process = self.process.take().expect("a running server");
        process.signal("KILL");
        process.wait().await;
    }

    /// Sends it a signal.
    pub fn signal(&self, name: &str) {
        self.process.as_ref().expect("a running server").signal(name);
    }

    /// Sends it a command and returns what redis-cli prints.
    pub async fn command(&self, arguments: &[&str]) -> String {
        self.start_command(arguments).wait().await.out
    }

    /// Sends it a command without waiting for the response.
    pub fn start_command(&self, arguments: &[&str]) -> Process {
        let mut command = Command::new(tool("redis-cli"));
        command.args(["-p", &self.address.port().to_string()]).args(arguments);
        Process::start(command)
    }
}

/// The key with which the replicas of the tests encrypt.
pub const STORE_KEY: &str = "store-key-of-the-tests-0123456789";

/// An address with a free port.
pub fn free_address() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address")
}
