//! The systemd units, checked with systemd-analyze, which needs no running systemd.

use std::{fs, process::Command};

use tempfile::TempDir;

use super::{
    assert_check_passes, parse_seconds, program_command, read_text, replace_all, run_ok, shutdown_grace,
};

const SERVICE: &str = "deploy/systemd/wecom-proxy.service";
const SOCKET: &str = "deploy/systemd/wecom-proxy.socket";
const CONFIG: &str = "deploy/systemd/proxy.toml";

/// A directory with both units, in which the program under test replaces the installed one.
fn unit_dir() -> TempDir {
    let dir = TempDir::new().expect("a directory");
    let program = [("/usr/local/bin/wecom-proxy", env!("CARGO_BIN_EXE_wecom-proxy"))];
    let write = |name: &str, text: String| fs::write(dir.path().join(name), text).expect("a file");
    write("wecom-proxy.service", replace_all(&read_text(SERVICE), &program));
    write("wecom-proxy.socket", read_text(SOCKET));
    dir
}

fn analyze(dir: &TempDir, arguments: &[&str]) -> Command {
    let mut command = program_command("systemd-analyze", "--version");
    command.args(arguments).current_dir(dir.path());
    command
}

/// The value of a key in a unit.
fn unit_setting<'a>(unit: &'a str, key: &str) -> &'a str {
    let line = unit.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    line.unwrap_or_else(|| panic!("no {key}= in\n{unit}"))
}

#[tokio::test]
async fn systemd_units_are_valid() {
    let dir = unit_dir();
    let arguments = ["verify", "--man=no", "./wecom-proxy.service", "./wecom-proxy.socket"];
    let output = run_ok(analyze(&dir, &arguments)).await;
    // systemd-analyze exits with 0 on unknown keys; it reports them on stderr.
    assert_eq!((&*output.out, &*output.err), ("", ""));
}

#[tokio::test]
async fn systemd_service_is_sandboxed() {
    let dir = unit_dir();
    let arguments = ["security", "--offline=true", "--threshold=20", "--no-pager", "./wecom-proxy.service"];
    run_ok(analyze(&dir, &arguments)).await;
}

#[tokio::test]
async fn systemd_units_match_the_configuration() {
    let (service, socket, config) = (read_text(SERVICE), read_text(SOCKET), read_text(CONFIG));
    let (id, _) = unit_setting(&service, "LoadCredential").split_once(':').expect("a name");
    assert!(config.contains(&format!("/run/credentials/wecom-proxy.service/{id}_hr")));
    assert_check_passes(&config, "/run/credentials/wecom-proxy.service", &[&format!("{id}_hr")]).await;
    let listen = format!("listen = \"{}\"", unit_setting(&socket, "ListenStream"));
    assert!(config.contains(&listen), "{listen}");
    assert!(parse_seconds(unit_setting(&service, "TimeoutStopSec")) > shutdown_grace());
    assert_eq!(unit_setting(&service, "Type"), "notify");
    assert_eq!(unit_setting(&service, "LimitCORE"), "0");
}
