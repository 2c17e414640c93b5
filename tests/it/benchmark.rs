//! The benchmark that users run: it works with what it is told to start, and leaves nothing behind.

use std::{fs, path::Path, process::Command};

use tempfile::TempDir;

use crate::process::{Process, run, tool};

/// One short round, with the program just built; its temporary files go to `dir`.
fn smoke_command(dir: &TempDir) -> Command {
    let mut command = Command::new(tool("python3"));
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/bench/run.py"));
    command.args(["--smoke", "--program", env!("CARGO_BIN_EXE_wecom-proxy")]).env("TMPDIR", dir.path());
    command
}

/// Nothing is left of what was started: their command lines all name a file in `dir`, which is empty again.
fn assert_nothing_left(dir: &Path) {
    let left: Vec<_> = fs::read_dir(dir).expect("the directory").collect();
    assert!(left.is_empty(), "{left:?}");
    let name = dir.to_str().expect("a path in UTF-8");
    for process in fs::read_dir("/proc").expect("processes").flatten() {
        let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        assert!(!line.contains(name), "{line}");
    }
}

#[tokio::test]
#[cfg(target_os = "linux")]
async fn benchmark_runs_with_every_peer() {
    let dir = TempDir::new().expect("a directory");
    let ended = run(smoke_command(&dir)).await;
    assert_eq!(ended.status, 0, "{}", ended.err);
    assert!(!ended.err.contains("Not compared"), "{}; `sh tests/run.sh` installs it", ended.err);
    let peers = ["nginx", "HAProxy", "nginx + Lua, whole job", "wecom-proxy", "wecom-proxy, access log"];
    for peer in peers {
        let rows = ended.out.lines().filter(|line| line.contains(&format!("| {peer} |"))).count();
        assert_eq!(rows, 7, "{peer}: six scenarios and the idle connections\n{}", ended.out);
    }
    assert_nothing_left(dir.path());
}

#[tokio::test]
#[cfg(target_os = "linux")]
async fn interrupted_benchmark_stops_its_processes() {
    for signal in ["INT", "TERM"] {
        let dir = TempDir::new().expect("a directory");
        let benchmark = Process::start(smoke_command(&dir));
        benchmark.err.wait_for_line("round 1 of 1").await;
        benchmark.signal(signal);
        let ended = benchmark.wait().await;
        assert!(ended.status > 128, "{ended:?}");
        assert_nothing_left(dir.path());
    }
}
