//! The program, and what it weighs.

use std::{
    fs,
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use tokio::time::{Instant, sleep};
use wecom_proxy::simulator::Simulator;

/// Longer than the program keeps an idle connection in this configuration.
const IDLE_WAIT_TIMEOUT: Duration = Duration::from_secs(40);
/// A thread that read or wrote a file waits ten seconds for another.
const THREAD_IDLE_TIMEOUT: Duration = Duration::from_secs(11);

/// The program as a process of its own.
pub struct ProxyProcess {
    child: Child,
    pub address: SocketAddr,
    spool_dir: PathBuf,
}

/// What it holds.
#[derive(Debug, PartialEq, Eq)]
pub struct ResourceUsage {
    /// Resident, in bytes.
    pub memory_bytes: u64,
    pub descriptors: usize,
    /// In the directory for bodies that find no room in memory; they have no name there, and are open.
    pub temp_files: usize,
    pub threads: usize,
    /// To the upstream.
    pub connections: usize,
}

impl ProxyProcess {
    /// Starts it with this configuration; `spilled` is where kept bodies go.
    pub fn start(config: &Path, spilled: &Path) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_wecom-proxy"))
            .arg("serve")
            .arg("--config")
            .arg(config)
            .env_remove("RUST_LOG")
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let mut lines = BufReader::new(child.stderr.take().expect("a pipe")).lines();
        let ready = lines.by_ref().map_while(Result::ok).find(|line| line.contains("ready listen="));
        let ready = ready.expect("a line that says ready");
        let address = ready.split(['"', ' ', '=']).find_map(|word| word.parse().ok());
        // Whoever writes logs must not block because nobody reads them.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, address: address.expect("an address"), spool_dir: spilled.to_owned() }
    }

    /// What it holds once nobody calls: it is waited for until its idle connections and threads are gone.
    pub async fn usage_when_idle(&self, wecom: &Simulator) -> ResourceUsage {
        let deadline = Instant::now() + IDLE_WAIT_TIMEOUT;
        let (mut last, mut since) = (self.usage(wecom), Instant::now());
        while Instant::now() < deadline && (last.connections > 0 || since.elapsed() < THREAD_IDLE_TIMEOUT) {
            // No event tells that a process has nothing left to do.
            sleep(Duration::from_millis(500)).await;
            let now = self.usage(wecom);
            if now.counts() != last.counts() {
                since = Instant::now();
            }
            last = now;
        }
        last
    }

    fn usage(&self, wecom: &Simulator) -> ResourceUsage {
        let own = |name: &str| PathBuf::from(format!("/proc/{}/{name}", self.child.id()));
        let status = fs::read_to_string(own("status")).expect("the program runs");
        let number = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("the line");
            let digits = line.trim_start_matches(':').trim().trim_end_matches(" kB");
            digits.parse::<u64>().expect("a number")
        };
        let descriptors: Vec<_> = fs::read_dir(own("fd")).expect("a directory").collect();
        let targets = descriptors.iter().flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
        let unnamed = targets.filter(|target| target.starts_with(&self.spool_dir)).count();
        let named = fs::read_dir(&self.spool_dir).expect("a directory").count();
        ResourceUsage {
            memory_bytes: number("VmRSS") * 1024,
            descriptors: descriptors.len(),
            temp_files: unnamed + named,
            threads: number("Threads") as usize,
            connections: wecom.observe(|seen| seen.open_connections()) as usize,
        }
    }
}

impl ResourceUsage {
    /// All but the memory, of which some comes and goes.
    pub fn counts(&self) -> [(&'static str, usize); 4] {
        [
            ("file descriptors", self.descriptors),
            ("temporary files", self.temp_files),
            ("threads", self.threads),
            ("connections", self.connections),
        ]
    }
}

impl Drop for ProxyProcess {
    fn drop(&mut self) {
        let _ = (self.child.kill(), self.child.wait());
    }
}
