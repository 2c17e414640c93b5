//! systemd's units, checked by systemd-analyze, which needs no running systemd.

use std::{fs, process::Command};

use tempfile::TempDir;

use super::{passes_check, program, seconds, shutdown_grace, succeed, text, with};

const SERVICE: &str = "deploy/systemd/wecom-proxy.service";
const SOCKET: &str = "deploy/systemd/wecom-proxy.socket";
const CONFIG: &str = "deploy/systemd/proxy.toml";

/// Both units in a directory, with the program that was just built.
fn units() -> TempDir {
    let dir = TempDir::new().expect("a directory");
    let program = [("/usr/local/bin/wecom-proxy", env!("CARGO_BIN_EXE_wecom-proxy"))];
    let write = |name: &str, text: String| fs::write(dir.path().join(name), text).expect("a file");
    write("wecom-proxy.service", with(&text(SERVICE), &program));
    write("wecom-proxy.socket", text(SOCKET));
    dir
}

fn analyze(dir: &TempDir, arguments: &[&str]) -> Command {
    let mut command = program("systemd-analyze", "--version");
    command.args(arguments).current_dir(dir.path());
    command
}

/// What a unit says of a key.
fn setting<'a>(unit: &'a str, key: &str) -> &'a str {
    let line = unit.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    line.unwrap_or_else(|| panic!("no {key}= in\n{unit}"))
}

#[tokio::test]
async fn systemd_understands_the_units() {
    let dir = units();
    let arguments = ["verify", "--man=no", "./wecom-proxy.service", "./wecom-proxy.socket"];
    let ended = succeed(analyze(&dir, &arguments)).await;
    // What it does not know it only complains of.
    assert_eq!((&*ended.out, &*ended.err), ("", ""));
}

#[tokio::test]
async fn the_service_is_locked_in() {
    let dir = units();
    let arguments = ["security", "--offline=true", "--threshold=20", "--no-pager", "./wecom-proxy.service"];
    succeed(analyze(&dir, &arguments)).await;
}

#[tokio::test]
async fn the_units_fit_the_configuration() {
    let (service, socket, config) = (text(SERVICE), text(SOCKET), text(CONFIG));
    let (id, _) = setting(&service, "LoadCredential").split_once(':').expect("a name");
    assert!(config.contains(&format!("/run/credentials/wecom-proxy.service/{id}_hr")));
    passes_check(&config, "/run/credentials/wecom-proxy.service", &[&format!("{id}_hr")]).await;
    let listen = format!("listen = \"{}\"", setting(&socket, "ListenStream"));
    assert!(config.contains(&listen), "{listen}");
    assert!(seconds(setting(&service, "TimeoutStopSec")) > shutdown_grace());
    assert_eq!(setting(&service, "Type"), "notify");
    assert_eq!(setting(&service, "LimitCORE"), "0");
}
