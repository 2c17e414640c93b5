//! The program under test, and its resource usage.

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

/// Longer than the idle time-outs of this configuration.
const IDLE_WAIT_TIMEOUT: Duration = Duration::from_secs(40);
/// Longer than the 10 s after which tokio ends an idle blocking thread.
const THREAD_IDLE_TIMEOUT: Duration = Duration::from_secs(11);

/// The program as a separate process.
pub struct ProxyProcess {
    child: Child,
    pub address: SocketAddr,
    spool_dir: PathBuf,
}

/// The resources that the process holds.
#[derive(Debug, PartialEq, Eq)]
pub struct ResourceUsage {
    /// Resident memory.
    pub memory_bytes: u64,
    pub descriptors: usize,
    /// Files in the spool directory, including open files without a name.
    pub temp_files: usize,
    pub threads: usize,
    /// Connections to the upstream.
    pub connections: usize,
}

impl ProxyProcess {
    /// Starts the program with this configuration; `spool_dir` is its `replay.dir`.
    pub fn start(config: &Path, spool_dir: &Path) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_wecom-proxy"))
            .arg("serve")
            .arg("--config")
            .arg(config)
            .env_remove("RUST_LOG")
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let mut lines = BufReader::new(child.stderr.take().expect("a pipe")).lines();
        let ready_line = lines.by_ref().map_while(Result::ok).find(|line| line.contains("ready listen="));
        let ready_line = ready_line.expect("the ready message");
        let address = ready_line.split(['"', ' ', '=']).find_map(|word| word.parse().ok());
        // Drains the pipe, because the program would block on a full one.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, address: address.expect("an address"), spool_dir: spool_dir.to_owned() }
    }

    /// The resource usage at rest: waits until idle connections and threads have ended.
    pub async fn usage_when_idle(&self, wecom: &Simulator) -> ResourceUsage {
        let deadline = Instant::now() + IDLE_WAIT_TIMEOUT;
        let (mut last, mut last_change) = (self.usage(wecom), Instant::now());
        while Instant::now() < deadline
            && (last.connections > 0 || last_change.elapsed() < THREAD_IDLE_TIMEOUT)
        {
            // A process does not signal that it is idle.
            sleep(Duration::from_millis(500)).await;
            let now = self.usage(wecom);
            if now.counts() != last.counts() {
                last_change = Instant::now();
            }
            last = now;
        }
        last
    }

    fn usage(&self, wecom: &Simulator) -> ResourceUsage {
        let proc_path = |name: &str| PathBuf::from(format!("/proc/{}/{name}", self.child.id()));
        let status = fs::read_to_string(proc_path("status")).expect("the program runs");
        let number = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("the line");
            let digits = line.trim_start_matches(':').trim().trim_end_matches(" kB");
            digits.parse::<u64>().expect("a number")
        };
        let descriptors: Vec<_> = fs::read_dir(proc_path("fd")).expect("a directory").collect();
        let targets = descriptors.iter().flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
        let unnamed = targets.filter(|target| target.starts_with(&self.spool_dir)).count();
        let named = fs::read_dir(&self.spool_dir).expect("a directory").count();
        ResourceUsage {
            memory_bytes: number("VmRSS") * 1024,
            descriptors: descriptors.len(),
            temp_files: unnamed + named,
            threads: number("Threads") as usize,
            connections: wecom.observe(|observed| observed.open_connections()) as usize,
        }
    }
}

impl ResourceUsage {
    /// All counts except memory, which fluctuates.
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
