//! The real program and helper programs as processes: their output is read, and they are killed when dropped.

use std::{
    io::Read,
    net::SocketAddr,
    os::fd::OwnedFd,
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use tempfile::TempDir;
use tokio::{sync::watch, task::spawn_blocking, time::timeout};
use wecom_proxy::simulator::Simulator;

use super::{
    WAIT_TIMEOUT,
    leak_detector::{self, WatchedCommand},
    start_simulator_with_config,
};

/// Time limit of a program that runs to its end; generous for a busy machine.
const RUN_TIMEOUT: Duration = Duration::from_secs(240);
/// Time limit of the wait for a line of output.
const LINE_TIMEOUT: Duration = Duration::from_secs(60);

/// A running program.
pub struct Process {
    child: Child,
    watched: Option<WatchedCommand>,
    pub out: ProcessOutput,
    pub err: ProcessOutput,
}

/// Exit status and output of a program.
#[derive(Debug)]
pub struct ExitOutput {
    pub status: i32,
    pub out: String,
    pub err: String,
}

/// The output of a program so far, and whether the stream has ended.
#[derive(Clone)]
pub struct ProcessOutput(watch::Receiver<(String, bool)>);

/// A command of the real program, without environment variables that affect it.
pub fn wecom_proxy(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wecom-proxy"));
    let inherited = ["RUST_LOG", "WECOM_PROXY_CONFIG", "NOTIFY_SOCKET", "WECOM_HR_SECRET"];
    for name in inherited.iter().chain(&["LC_ALL", "LC_MESSAGES", "LANG", "WECOM_PROXY_ADMIN_KEY"]) {
        command.env_remove(name);
    }
    command.args(arguments);
    command
}

impl Process {
    /// Starts a command and collects its output.
    pub fn start(command: Command) -> Self {
        Self::start_with_stdin(command, Stdio::null())
    }

    /// Starts `serve` with a listening socket passed as by systemd socket activation.
    pub fn start_with_socket(socket: OwnedFd, config: &std::path::Path) -> Self {
        let mut command = Command::new("sh");
        let script = "exec 3<&0 0</dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec \"$0\" --config \"$1\"";
        command.args(["-c", script, env!("CARGO_BIN_EXE_wecom-proxy")]).arg(config);
        command.env_remove("RUST_LOG").env_remove("NOTIFY_SOCKET");
        Self::start_with_stdin(command, Stdio::from(socket))
    }

    fn start_with_stdin(mut command: Command, input: Stdio) -> Self {
        command.stdin(input).stdout(Stdio::piped()).stderr(Stdio::piped());
        let watched = leak_detector::watch_command(&command);
        let mut child = command.spawn().expect("the program starts");
        let out = ProcessOutput::follow(child.stdout.take().expect("a pipe"));
        let err = ProcessOutput::follow(child.stderr.take().expect("a pipe"));
        Self { child, watched, out, err }
    }

    /// Starts `serve` with this configuration and waits until it is ready. It logs at level trace, whatever the file sets.
    pub async fn serve(config: &std::path::Path) -> Self {
        Self::serve_with_log_level(config, Some("trace")).await
    }

    /// As [`serve`](Self::serve), with a simulator as WeCom; also returns the directory of the configuration.
    pub async fn serve_with_simulator(toml: &str) -> (Simulator, TempDir, Self) {
        let (wecom, dir, config) = start_simulator_with_config(toml).await;
        let process = Self::serve(&config).await;
        (wecom, dir, process)
    }

    /// As [`serve`](Self::serve), with environment variables.
    pub async fn serve_with_env(config: &std::path::Path, env: &[(&str, &str)]) -> Self {
        let mut command = wecom_proxy(&["serve", "--config", config.to_str().expect("a path in UTF-8")]);
        command.envs(env.iter().copied());
        let process = Self::start(command);
        process.err.wait_for_line("ready listen=").await;
        process
    }

    /// As [`serve`](Self::serve), with the log level of the file.
    pub async fn serve_with_config_log_level(config: &std::path::Path) -> Self {
        Self::serve_with_log_level(config, None).await
    }

    /// As [`serve`](Self::serve), with readable memory: the process is not dumpable, so a non-root user must own its user
    /// namespace to read it.
    pub async fn serve_with_readable_memory(config: &std::path::Path) -> Self {
        let mut command = wecom_proxy(&["serve", "--config", config.to_str().expect("a path in UTF-8")]);
        if !rustix::process::geteuid().is_root() {
            let program = command.get_program().to_owned();
            let mut unshare = Command::new("unshare");
            unshare.args(["--user", "--map-root-user"]).arg(program).args(command.get_args());
            command = unshare;
        }
        let process = Self::start(command);
        process.err.wait_for_line("ready listen=").await;
        process
    }

    /// As [`serve`](Self::serve), with the clock shifted by an offset such as `+2h`.
    pub async fn serve_with_clock_offset(config: &std::path::Path, offset: &str) -> Self {
        let mut command = wecom_proxy(&["serve", "--config", config.to_str().expect("a path in UTF-8")]);
        set_clock_offset(&mut command, offset);
        let process = Self::start(command);
        process.err.wait_for_line("ready listen=").await;
        process
    }

    async fn serve_with_log_level(config: &std::path::Path, level: Option<&str>) -> Self {
        let mut command = wecom_proxy(&["serve", "--config", config.to_str().expect("a path in UTF-8")]);
        command.envs(level.map(|level| ("RUST_LOG", level)));
        let process = Self::start(command);
        process.err.wait_for_line("ready listen=").await;
        process
    }

    /// The proxy's address, from the message `ready`.
    pub async fn address(&self) -> SocketAddr {
        log_field(&self.err.wait_for_line("ready listen=").await, "listen").parse().expect("an address")
    }

    /// The address of its admin listener.
    pub async fn admin_address(&self) -> SocketAddr {
        log_field(&self.err.wait_for_line("ready listen=").await, "admin").parse().expect("an address")
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its resident memory.
    pub fn resident_bytes(&self) -> u64 {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", self.id())).expect("a running process");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("the line");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
    }

    /// Sends it a signal by name.
    pub fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args(["-s", name, pid.as_str()]).status().expect("kill runs");
        assert!(sent.success(), "no signal {name} to {pid}");
    }

    /// The CPU time consumed so far.
    #[cfg(target_os = "linux")]
    pub fn cpu_time(&self) -> Duration {
        let stat =
            std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).expect("a running process");
        // After the name, which may contain any character and ends at the last parenthesis, user and system time are the
        // 12th and 13th field, in units of 10 ms.
        let fields = stat.rsplit(')').next().expect("fields").split_whitespace();
        let ticks: u64 = fields.skip(11).take(2).map(|ticks| ticks.parse::<u64>().expect("a number")).sum();
        Duration::from_millis(10 * ticks)
    }

    /// Limits the number of its open files.
    pub fn limit_descriptors(&self, max: usize) {
        let (pid, max) = (format!("--pid={}", self.child.id()), format!("--nofile={max}:{max}"));
        let status = Command::new(tool("prlimit")).args([pid, max]).status().expect("prlimit runs");
        assert!(status.success(), "no limit for its descriptors");
    }

    /// Waits for its end, at most [`WAIT_TIMEOUT`].
    pub async fn wait(self) -> ExitOutput {
        self.wait_for(WAIT_TIMEOUT).await
    }

    /// Waits for its end, at most `limit`.
    async fn wait_for(mut self, limit: Duration) -> ExitOutput {
        let (out, err) =
            (self.out.clone().wait_for_end(limit).await, self.err.clone().wait_for_end(limit).await);
        let status = spawn_blocking(move || self.child.wait()).await.expect("no panic");
        ExitOutput { status: status.expect("a status").code().unwrap_or(-1), out, err }
    }

    /// Sends SIGTERM and waits for its end.
    pub async fn stop(self) -> ExitOutput {
        self.signal("TERM");
        self.wait().await
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(watched) = self.watched.as_ref().filter(|_| !std::thread::panicking()) {
            watched.assert_no_leak(&self.out.text(), &self.err.text());
        }
    }
}

impl ProcessOutput {
    fn follow(mut pipe: impl Read + Send + 'static) -> Self {
        let (sender, receiver) = watch::channel((String::new(), false));
        std::thread::spawn(move || {
            let mut buffer = [0; 64 * 1024];
            let mut bytes = Vec::new();
            while let Ok(read @ 1..) = pipe.read(&mut buffer) {
                bytes.extend_from_slice(&buffer[..read]);
                // Only complete lines are decoded, because a read may end within a character.
                let complete = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
                let lines: Vec<u8> = bytes.drain(..complete).collect();
                sender.send_modify(|output| output.0.push_str(&String::from_utf8_lossy(&lines)));
            }
            sender.send_modify(|output| {
                output.0.push_str(&String::from_utf8_lossy(&bytes));
                output.1 = true;
            });
        });
        Self(receiver)
    }

    /// The output so far.
    pub fn text(&self) -> String {
        self.0.borrow().0.clone()
    }

    /// Waits for a complete line that contains `words`.
    pub async fn wait_for_line(&self, words: &str) -> String {
        self.wait_for_nth_line(words, 0).await
    }

    /// Waits for a complete line that contains `words`, after `before` other such lines.
    pub async fn wait_for_nth_line(&self, words: &str, before: usize) -> String {
        let find = |text: &str| {
            let lines = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
            lines.filter(|line| line.contains(words)).nth(before).map(str::to_owned)
        };
        let mut receiver = self.0.clone();
        let outcome =
            timeout(LINE_TIMEOUT, receiver.wait_for(|(text, ended)| *ended || find(text).is_some())).await;
        drop(outcome);
        find(&self.text()).unwrap_or_else(|| panic!("no {words:?} in:\n{}", self.text()))
    }

    /// Waits for the end of the stream.
    async fn wait_for_end(mut self, limit: Duration) -> String {
        let outcome = timeout(limit, self.0.wait_for(|(_, ended)| *ended)).await.map(drop);
        assert!(outcome.is_ok(), "the program does not end:\n{}", self.text());
        self.text()
    }
}

/// A field of a log line in text format.
pub fn log_field(line: &str, name: &str) -> String {
    let prefix = format!("{name}=\"");
    let rest = line.split(&prefix).nth(1).unwrap_or_else(|| panic!("no {name} in {line}"));
    rest.split('"').next().expect("a value").to_owned()
}

/// Shifts a command's clock by an offset such as `+2h`. Sets the variables that `faketime` would set instead of running
/// `faketime`, which would be the parent of the program.
fn set_clock_offset(command: &mut Command, offset: &str) {
    let environment =
        Command::new(tool("faketime")).args(["-f", "+0h", "env"]).output().expect("faketime runs");
    let environment = String::from_utf8_lossy(&environment.stdout).into_owned();
    let library = environment.lines().find_map(|line| line.strip_prefix("LD_PRELOAD=")).expect("its library");
    command.env("LD_PRELOAD", library).env("FAKETIME", offset).env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
}

/// Runs a command to its end, at most [`RUN_TIMEOUT`].
pub async fn run(command: Command) -> ExitOutput {
    Process::start(command).wait_for(RUN_TIMEOUT).await
}

/// Runs the real program to its end.
pub async fn run_wecom_proxy(arguments: &[&str]) -> ExitOutput {
    run(wecom_proxy(arguments)).await
}

/// Runs curl with these arguments; returns its output.
pub async fn curl(arguments: &[&str]) -> String {
    let output = curl_outcome(arguments).await;
    assert_eq!(output.status, 0, "curl {arguments:?}: {}", output.err);
    output.out
}

/// Runs curl with these arguments, whatever its exit status.
pub async fn curl_outcome(arguments: &[&str]) -> ExitOutput {
    let mut command = Command::new(tool("curl"));
    command.args(["--silent", "--show-error", "--max-time", "20", "--noproxy", "*"]).args(arguments);
    let url = arguments.iter().find_map(|argument| argument.strip_prefix("http")).unwrap_or_default();
    let path = url.splitn(4, '/').nth(3).map(|path| format!("/{path}")).unwrap_or_default();
    let output = run(command).await;
    leak_detector::record_output(&path, "", output.out.as_bytes());
    output
}

/// Runs a printed command line, which must succeed; returns what it writes.
pub async fn run_line(line: &str) -> String {
    tool("curl");
    let mut bash = Command::new(tool("bash"));
    bash.args(["-c", line]).env("no_proxy", "*");
    let output = run(bash).await;
    assert_eq!(output.status, 0, "{line}: {}", output.err);
    output.out
}

/// A program by name; panics if it is missing.
pub fn tool(name: &str) -> String {
    let found =
        Command::new(name).arg("--version").output().is_ok_and(|Output { status, .. }| status.success());
    assert!(found, "{name} is missing; `sh tests/run.sh` installs what these tests need");
    name.to_owned()
}

/// The interpreter of the tests' Python environment.
pub fn python() -> PathBuf {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/target/venv/bin/python");
    let python = std::env::var_os("PYTHON").map_or_else(|| PathBuf::from(default), PathBuf::from);
    // Looked up, not imported, because imports take long.
    let script = "import importlib.util as u
exit(not all(map(u.find_spec, ['grpc', 'kubernetes_validate', 'opentelemetry', 'requests', 'wechatpy'])))";
    let outcome = Command::new(&python).args(["-c", script]).output();
    assert!(
        outcome.is_ok_and(|output| output.status.success()),
        "{} lacks what tests/requirements.txt lists; `sh tests/run.sh` makes target/venv, PYTHON=… names another interpreter",
        python.display()
    );
    python
}
