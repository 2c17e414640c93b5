//! The benchmarks that users run: they start every peer, and leave no files or processes behind.

use std::{fs, path::Path, process::Command};

use tempfile::TempDir;

use crate::process::{Process, run, tool};

/// One short round of a benchmark with the program under test; its temporary files go to `dir`.
fn smoke_command(script: &str, dir: &TempDir) -> Command {
    let mut command = Command::new(tool("python3"));
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("bench").join(script));
    command.args(["--smoke", "--program", env!("CARGO_BIN_EXE_wecom-proxy")]).env("TMPDIR", dir.path());
    command
}

/// Asserts that `dir` is empty and that no process runs whose command line names a file in it.
fn assert_nothing_left(dir: &Path) {
    let remaining: Vec<_> = fs::read_dir(dir).expect("the directory").collect();
    assert!(remaining.is_empty(), "{remaining:?}");
    let name = dir.to_str().expect("a path in UTF-8");
    for process in fs::read_dir("/proc").expect("processes").flatten() {
        let command_line = fs::read(process.path().join("cmdline")).unwrap_or_default();
        let command_line = String::from_utf8_lossy(&command_line).into_owned();
        assert!(!command_line.contains(name), "{command_line}");
    }
}

#[tokio::test]
#[cfg(target_os = "linux")]
async fn benchmark_runs_with_every_peer() {
    let dir = TempDir::new().expect("a directory");
    let output = run(smoke_command("run.py", &dir)).await;
    assert_eq!(output.status, 0, "{}", output.err);
    assert!(!output.err.contains("Not compared"), "{}; `sh tests/run.sh` installs it", output.err);
    let rows = [
        ("nginx", 8),
        ("HAProxy", 8),
        ("nginx + Lua, whole job", 7),
        ("wecom-proxy", 8),
        ("wecom-proxy, access log", 8),
    ];
    for (peer, expected) in rows {
        let rows = output.out.lines().filter(|line| line.contains(&format!("| {peer} |"))).count();
        assert_eq!(
            rows, expected,
            "{peer}: seven scenarios, Lua without HTTP/2, and idle connections\n{}",
            output.out
        );
    }
    assert_nothing_left(dir.path());
}

#[tokio::test]
#[cfg(target_os = "linux")]
async fn latencies_are_measured_beside_nginx_and_during_work() {
    let dir = TempDir::new().expect("a directory");
    let output = run(smoke_command("tail.py", &dir)).await;
    assert_eq!(output.status, 0, "{}", output.err);
    let rows = |name: &str| output.out.lines().filter(|line| line.contains(&format!("| {name} |"))).count();
    assert_eq!((rows("nginx"), rows("wecom-proxy")), (1, 1), "{}", output.out);
    for work in ["at rest", "reloads", "token renewals", "scrapes", "pages of agents", "access log stalled"] {
        assert_eq!(rows(work), 2, "{work}: on either core\n{}", output.out);
    }
    assert_nothing_left(dir.path());
}

#[tokio::test]
#[cfg(target_os = "linux")]
async fn interrupted_benchmark_stops_its_processes() {
    for signal in ["INT", "TERM"] {
        let dir = TempDir::new().expect("a directory");
        let benchmark = Process::start(smoke_command("run.py", &dir));
        benchmark.err.wait_for_line("round 1 of 1").await;
        benchmark.signal(signal);
        let output = benchmark.wait().await;
        assert!(output.status > 128, "{output:?}");
        assert_nothing_left(dir.path());
    }
}
