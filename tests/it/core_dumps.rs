//! Memory holds secrets, tokens and keys, so a crash must not write a core dump.

use std::{
    fs,
    os::unix::process::ExitStatusExt,
    process::{Command, Stdio},
};

use tempfile::TempDir;

/// The program disables core dumps even if the soft limit (`ulimit -S -c`) allows them.
#[tokio::test]
async fn core_dumps_are_off_despite_the_ulimit() {
    let dir = TempDir::new().expect("a directory");
    let demo = "ulimit -S -c unlimited 2>/dev/null; exec \"$0\" demo --listen 127.0.0.1:0";
    let mut command = Command::new("sh");
    command.args(["-c", demo, env!("CARGO_BIN_EXE_wecom-proxy")]).current_dir(dir.path());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("the program starts");
    let mut out = child.stdout.take().expect("a pipe");
    let limits = tokio::task::spawn_blocking(move || {
        // The first byte on stdout shows that start-up is done.
        let _ = std::io::Read::read(&mut out, &mut [0]);
        let limits = fs::read_to_string(format!("/proc/{}/limits", child.id())).expect("it runs");
        let killed = Command::new("kill").args(["-s", "ABRT", &child.id().to_string()]).status();
        assert!(killed.expect("kill is there").success());
        let status = child.wait().expect("a status");
        assert!(status.signal().is_some() && !status.core_dumped(), "{status}");
        limits
    });
    let limits = limits.await.expect("no panic");
    let line = limits.lines().find_map(|line| line.strip_prefix("Max core file size")).expect("a limit");
    assert_eq!(line.split_whitespace().take(2).collect::<Vec<_>>(), ["0", "0"]);
    assert_eq!(fs::read_dir(dir.path()).expect("a directory").count(), 0, "a dump");
}
