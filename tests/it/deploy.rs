//! What operators copy from `deploy/`, read by the programs that it is for.

mod containers;
mod monitoring;
mod reverse_proxies;
mod systemd;

use std::{
    collections::HashMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::OnceCell;
use wecom_proxy::config;

use crate::process::{ExitOutput, python, run, run_wecom_proxy};

/// A file of the repository.
fn repository_file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn read_text(name: &str) -> String {
    fs::read_to_string(repository_file(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The text with each of these replaced, all of which must be there.
fn replace_all(text: &str, changes: &[(&str, &str)]) -> String {
    changes.iter().fold(text.to_owned(), |text, (from, to)| {
        assert!(text.contains(from), "no {from:?} in\n{text}");
        text.replace(from, to)
    })
}

/// A program that prints its version when it is asked in this way.
fn program_command(name: &str, ask: &str) -> Command {
    // Debian keeps servers where only root's PATH looks.
    let places = [name.to_owned(), format!("/usr/sbin/{name}")];
    let found = places.into_iter().find(|place| Command::new(place).arg(ask).output().is_ok());
    Command::new(
        found
            .unwrap_or_else(|| panic!("{name} is missing; `sh tests/run.sh` installs what these tests need")),
    )
}

/// Runs a command that must succeed; what it wrote.
async fn run_ok(command: Command) -> ExitOutput {
    let words = format!("{command:?}");
    let ended = run(command).await;
    assert_eq!(ended.status, 0, "{words}\n{}\n{}", ended.out, ended.err);
    ended
}

/// The documents of a YAML file of the repository. All are read at once, and once: what takes long is Python's start.
async fn yaml(name: &str) -> &'static [Value] {
    static ALL: OnceCell<HashMap<String, Vec<Value>>> = OnceCell::const_new();
    let all = ALL.get_or_init(async || {
        let mut names = manifest_names();
        names.push("deploy/compose/compose.yaml".to_owned());
        names.extend(
            ["prometheus", "rules", "rules.test"].map(|name| format!("deploy/prometheus/{name}.yml")),
        );
        let documents = parse_yaml(&names.iter().map(|name| repository_file(name)).collect::<Vec<_>>()).await;
        names.into_iter().zip(documents).collect()
    });
    all.await.get(name).unwrap_or_else(|| panic!("{name} was not read"))
}

/// The documents of each of these YAML files.
async fn parse_yaml(paths: &[PathBuf]) -> Vec<Vec<Value>> {
    let mut command = Command::new(python());
    let script = "import json, sys, yaml
print(json.dumps([list(yaml.load_all(open(path), yaml.CSafeLoader)) for path in sys.argv[1:]]))";
    command.args(["-c", script]).args(paths);
    serde_json::from_str(&run_ok(command).await.out).expect("JSON")
}

/// Kubernetes' manifests, the example too.
fn manifest_names() -> Vec<String> {
    let entries = fs::read_dir(repository_file("deploy/kubernetes")).expect("a directory").flatten();
    entries.map(|entry| format!("deploy/kubernetes/{}", entry.file_name().to_string_lossy())).collect()
}

/// Runs `check` on a configuration that names secrets in `secrets`, with files of these names in that directory's place.
/// No warning is allowed.
async fn assert_check_passes(toml: &str, secrets: &str, names: &[&str]) {
    let ended = check(toml, secrets, names).await;
    assert_eq!((ended.status, &*ended.err), (0, ""), "{}", ended.out);
}

async fn check(toml: &str, secrets: &str, names: &[&str]) -> ExitOutput {
    let dir = TempDir::new().expect("a directory");
    // Whoever copies the file puts hashes of keys in place of these; as they are they are refused.
    let toml = &toml.replace(&"0".repeat(64), &"4bf5122f".repeat(8));
    for name in names {
        let path = dir.path().join(name);
        fs::write(&path, "a-secret-of-more-than-thirty-two-characters\n").expect("a file");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).expect("a mode");
    }
    let path = dir.path().join("proxy.toml");
    fs::write(&path, replace_all(toml, &[(secrets, &dir.path().display().to_string())])).expect("a file");
    run_wecom_proxy(&["check", "--config", path.to_str().expect("a path in UTF-8")]).await
}

/// How long the proxy takes at most to end, if its file does not say otherwise.
fn shutdown_grace() -> Duration {
    let secret = |_: &str| Some("secret".to_owned());
    config::load_with_env(&repository_file("proxy.toml"), &secret)
        .expect("a valid file")
        .server
        .shutdown_grace
}

/// Seconds, written as systemd and Compose do.
fn parse_seconds(text: &str) -> Duration {
    let digits = text.strip_suffix('s').and_then(|digits| digits.parse().ok());
    Duration::from_secs(digits.unwrap_or_else(|| panic!("{text:?} is no time in seconds")))
}
