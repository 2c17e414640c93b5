//! The deployment files in `deploy/`, checked with the programs that read them.

mod containers;
mod monitoring;
mod packages;
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

/// Applies each replacement; panics if a text to be replaced is absent.
fn replace_all(text: &str, changes: &[(&str, &str)]) -> String {
    changes.iter().fold(text.to_owned(), |text, (from, to)| {
        assert!(text.contains(from), "no {from:?} in\n{text}");
        text.replace(from, to)
    })
}

/// A command for an installed program; `version_flag` tests that the program starts.
pub fn program_command(name: &str, version_flag: &str) -> Command {
    // On Debian, servers are in /usr/sbin, which only root's PATH contains.
    let paths = [name.to_owned(), format!("/usr/sbin/{name}")];
    let found = paths.into_iter().find(|path| Command::new(path).arg(version_flag).output().is_ok());
    Command::new(
        found
            .unwrap_or_else(|| panic!("{name} is missing; `sh tests/run.sh` installs what these tests need")),
    )
}

/// Runs a command that must succeed.
async fn run_ok(command: Command) -> ExitOutput {
    let description = format!("{command:?}");
    let output = run(command).await;
    assert_eq!(output.status, 0, "{description}\n{}\n{}", output.out, output.err);
    output
}

/// The documents of a YAML file of the repository. All files are parsed by one Python process, because starting Python is slow.
async fn yaml(name: &str) -> &'static [Value] {
    static ALL: OnceCell<HashMap<String, Vec<Value>>> = OnceCell::const_new();
    let all = ALL.get_or_init(async || {
        let mut names = [manifest_names(), operator_manifest_names()].concat();
        names.extend(KUSTOMIZATIONS.map(|folder| format!("{folder}/kustomization.yaml")));
        names.push(".github/workflows/release.yml".to_owned());
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

const KUSTOMIZATIONS: [&str; 2] = ["deploy/kubernetes", "deploy/kubernetes/prometheus-operator"];

/// The Kubernetes manifests, the example included.
fn manifest_names() -> Vec<String> {
    names_in(KUSTOMIZATIONS[0])
}

/// The manifests of the Prometheus Operator's kinds, and the Service that they need.
fn operator_manifest_names() -> Vec<String> {
    names_in(KUSTOMIZATIONS[1])
}

fn names_in(folder: &str) -> Vec<String> {
    let entries = fs::read_dir(repository_file(folder)).expect("a directory").flatten();
    let files = entries.filter(|entry| entry.path().is_file() && entry.file_name() != "kustomization.yaml");
    files.map(|entry| format!("{folder}/{}", entry.file_name().to_string_lossy())).collect()
}

/// Asserts that `check` passes without warnings. The directory `secrets` in the configuration is replaced by one with files of
/// these names.
async fn assert_check_passes(toml: &str, secrets: &str, names: &[&str]) {
    let output = check(toml, secrets, names).await;
    assert_eq!((output.status, &*output.err), (0, ""), "{}", output.out);
}

async fn check(toml: &str, secrets: &str, names: &[&str]) -> ExitOutput {
    let dir = TempDir::new().expect("a directory");
    // The zeros are placeholders for key hashes, and are refused as they are.
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

/// The default `shutdown_grace`.
fn shutdown_grace() -> Duration {
    let secret = |_: &str| Some("secret".to_owned());
    config::load_with_env(&repository_file("proxy.toml"), &secret)
        .expect("a valid file")
        .server
        .shutdown_grace
}

/// Parses seconds in the form of systemd and Compose (`30s`).
fn parse_seconds(text: &str) -> Duration {
    let digits = text.strip_suffix('s').and_then(|digits| digits.parse().ok());
    Duration::from_secs(digits.unwrap_or_else(|| panic!("{text:?} is not a number of seconds")))
}
