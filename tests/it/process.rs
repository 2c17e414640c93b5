//! The real program, and others beside it: started, listened to, told to stop, and never left behind.

use std::{
    io::Read,
    net::SocketAddr,
    os::fd::OwnedFd,
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use crate::{
    harness::WAIT_TIMEOUT,
    leak_detector::{self, WatchedCommand},
};
use tokio::{sync::watch, task::spawn_blocking, time::timeout};

/// Longest wait for a program that runs to its end by itself: some do much, on a machine that has other work.
const RUN_TIMEOUT: Duration = Duration::from_secs(240);
/// Longest wait for what a program writes.
const LINE_TIMEOUT: Duration = Duration::from_secs(60);

/// A running program.
pub struct Process {
    child: Child,
    watched: Option<WatchedCommand>,
    pub out: ProcessOutput,
    pub err: ProcessOutput,
}

/// How a program ended.
#[derive(Debug)]
pub struct ExitOutput {
    pub status: i32,
    pub out: String,
    pub err: String,
}

/// What a program has written so far.
#[derive(Clone)]
pub struct ProcessOutput(watch::Receiver<(String, bool)>);

/// A command of the real program, without the surroundings' settings.
pub fn wecom_proxy(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wecom-proxy"));
    for name in ["RUST_LOG", "WECOM_PROXY_CONFIG", "NOTIFY_SOCKET", "WECOM_HR_SECRET"] {
        command.env_remove(name);
    }
    command.args(arguments);
    command
}

impl Process {
    /// Starts a command and listens to what it writes.
    pub fn start(command: Command) -> Self {
        Self::start_with_stdin(command, Stdio::null())
    }

    /// Starts `serve` with a listening socket that it is handed as systemd would.
    pub fn start_with_socket(socket: OwnedFd, config: &std::path::Path) -> Self {
        let mut command = Command::new("sh");
        let words = "exec 3<&0 0</dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec \"$0\" --config \"$1\"";
        command.args(["-c", words, env!("CARGO_BIN_EXE_wecom-proxy")]).arg(config);
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

    /// `serve` with this configuration, once it is ready. It logs everything, whatever the file says.
    pub async fn serve(config: &std::path::Path) -> Self {
        Self::serve_with_log_level(config, Some("trace")).await
    }

    /// The same, and it logs what the file wants.
    pub async fn serve_with_config_log_level(config: &std::path::Path) -> Self {
        Self::serve_with_log_level(config, None).await
    }

    /// The same, and its memory can be read: for that a user who is not root has to own the namespace it runs in, since it
    /// is not dumpable.
    pub async fn serve_with_readable_memory(config: &std::path::Path) -> Self {
        let mut command = wecom_proxy(&["serve", "--config", config.to_str().expect("a path in UTF-8")]);
        if !rustix::process::geteuid().is_root() {
            let program = command.get_program().to_owned();
            let mut inside = Command::new("unshare");
            inside.args(["--user", "--map-root-user"]).arg(program).args(command.get_args());
            command = inside;
        }
        let process = Self::start(command);
        process.err.wait_for_line("ready listen=").await;
        process
    }

    /// `serve` on a machine whose clock is that much off, like `+2h`.
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

    /// Where the proxy listens, by the line that says so.
    pub async fn address(&self) -> SocketAddr {
        log_field(&self.err.wait_for_line("ready listen=").await, "listen").parse().expect("an address")
    }

    /// Where its admin listener is.
    pub async fn admin_address(&self) -> SocketAddr {
        log_field(&self.err.wait_for_line("ready listen=").await, "admin").parse().expect("an address")
    }

    /// Its number.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal by name.
    pub fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args(["-s", name, pid.as_str()]).status().expect("kill is there");
        assert!(sent.success(), "no signal {name} to {pid}");
    }

    /// The processor time that it has taken so far.
    #[cfg(target_os = "linux")]
    pub fn cpu_time(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).expect("it runs");
        // After the name, which may hold anything and ends in the last parenthesis, user and system time are the 12th
        // and 13th, in hundredths of a second.
        let fields = stat.rsplit(')').next().expect("fields").split_whitespace();
        let ticks: u64 = fields.skip(11).take(2).map(|ticks| ticks.parse::<u64>().expect("a number")).sum();
        Duration::from_millis(10 * ticks)
    }

    /// Bounds how many files it may have open from now on.
    pub fn limit_descriptors(&self, most: usize) {
        let (pid, most) = (format!("--pid={}", self.child.id()), format!("--nofile={most}:{most}"));
        let set = Command::new(tool("prlimit")).args([pid, most]).status().expect("prlimit is there");
        assert!(set.success(), "no limit for its descriptors");
    }

    /// Waits for its end, which is near.
    pub async fn wait(self) -> ExitOutput {
        self.wait_for(WAIT_TIMEOUT).await
    }

    /// Waits for its end, at most so long.
    async fn wait_for(mut self, most: Duration) -> ExitOutput {
        let (out, err) =
            (self.out.clone().wait_for_end(most).await, self.err.clone().wait_for_end(most).await);
        let waited = spawn_blocking(move || self.child.wait()).await.expect("no panic");
        ExitOutput { status: waited.expect("a status").code().unwrap_or(-1), out, err }
    }

    /// Tells it to stop and waits for its end.
    pub async fn stop(self) -> ExitOutput {
        self.signal("TERM");
        self.wait().await
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(overheard) = self.watched.as_ref().filter(|_| !std::thread::panicking()) {
            overheard.assert_no_leak(&self.out.text(), &self.err.text());
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
                // Only whole lines are text yet: a letter may have been cut in two.
                let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
                let lines: Vec<u8> = bytes.drain(..whole).collect();
                sender.send_modify(|seen| seen.0.push_str(&String::from_utf8_lossy(&lines)));
            }
            sender.send_modify(|seen| {
                seen.0.push_str(&String::from_utf8_lossy(&bytes));
                seen.1 = true;
            });
        });
        Self(receiver)
    }

    /// What has come so far.
    pub fn text(&self) -> String {
        self.0.borrow().0.clone()
    }

    /// Waits for a whole line with these words in it.
    pub async fn wait_for_line(&self, words: &str) -> String {
        self.wait_for_nth_line(words, 0).await
    }

    /// Waits for a whole line with these words in it, after `before` others.
    pub async fn wait_for_nth_line(&self, words: &str, before: usize) -> String {
        let find = |text: &str| {
            let lines = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
            lines.filter(|line| line.contains(words)).nth(before).map(str::to_owned)
        };
        let mut seen = self.0.clone();
        let waited =
            timeout(LINE_TIMEOUT, seen.wait_for(|(text, ended)| *ended || find(text).is_some())).await;
        drop(waited);
        find(&self.text()).unwrap_or_else(|| panic!("no {words:?} in:\n{}", self.text()))
    }

    /// Waits for the end of the stream.
    async fn wait_for_end(mut self, most: Duration) -> String {
        let waited = timeout(most, self.0.wait_for(|(_, ended)| *ended)).await.map(drop);
        assert!(waited.is_ok(), "the program does not end:\n{}", self.text());
        self.text()
    }
}

/// A field of a log line in text.
pub fn log_field(line: &str, name: &str) -> String {
    let begin = format!("{name}=\"");
    let rest = line.split(&begin).nth(1).unwrap_or_else(|| panic!("no {name} in {line}"));
    rest.split('"').next().expect("a value").to_owned()
}

/// Has a command see a clock that is that much off, like `+2h`. Not by the program `faketime` itself, which would stand
/// between: it is asked what it would set.
fn set_clock_offset(command: &mut Command, offset: &str) {
    let set = Command::new(tool("faketime")).args(["-f", "+0h", "env"]).output().expect("faketime runs");
    let set = String::from_utf8_lossy(&set.stdout).into_owned();
    let library = set.lines().find_map(|line| line.strip_prefix("LD_PRELOAD=")).expect("its library");
    command.env("LD_PRELOAD", library).env("FAKETIME", offset).env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
}

/// Runs a command to its end, within bounds.
pub async fn run(command: Command) -> ExitOutput {
    Process::start(command).wait_for(RUN_TIMEOUT).await
}

/// Runs the real program to its end.
pub async fn run_wecom_proxy(arguments: &[&str]) -> ExitOutput {
    run(wecom_proxy(arguments)).await
}

/// Runs curl with these arguments; what it printed.
pub async fn curl(arguments: &[&str]) -> String {
    let ended = curl_outcome(arguments).await;
    assert_eq!(ended.status, 0, "curl {arguments:?}: {}", ended.err);
    ended.out
}

/// Runs curl with these arguments, however it ends.
pub async fn curl_outcome(arguments: &[&str]) -> ExitOutput {
    let mut command = Command::new(tool("curl"));
    command.args(["--silent", "--show-error", "--max-time", "20", "--noproxy", "*"]).args(arguments);
    let asked = arguments.iter().find_map(|argument| argument.strip_prefix("http")).unwrap_or_default();
    let path = asked.splitn(4, '/').nth(3).map(|path| format!("/{path}")).unwrap_or_default();
    let ended = run(command).await;
    leak_detector::record_output(&path, "", ended.out.as_bytes());
    ended
}

/// A program by name, which must be there.
pub fn tool(name: &str) -> String {
    let there =
        Command::new(name).arg("--version").output().is_ok_and(|Output { status, .. }| status.success());
    assert!(there, "{name} is missing; `sh tests/run.sh` installs what these tests need");
    name.to_owned()
}

/// The interpreter of the tests' own Python environment.
pub fn python() -> PathBuf {
    let own = concat!(env!("CARGO_MANIFEST_DIR"), "/target/venv/bin/python");
    let python = std::env::var_os("PYTHON").map_or_else(|| PathBuf::from(own), PathBuf::from);
    // Found, not imported: that takes long.
    let look = "import importlib.util as u
exit(not all(map(u.find_spec, ['grpc', 'kubernetes_validate', 'opentelemetry', 'requests', 'wechatpy'])))";
    let has = Command::new(&python).args(["-c", look]).output();
    assert!(
        has.is_ok_and(|output| output.status.success()),
        "{} lacks what tests/requirements.txt lists; `sh tests/run.sh` makes target/venv, PYTHON=… names another interpreter",
        python.display()
    );
    python
}
