//! Pasting: a terminal gives the lines that follow a pasted command to that command, if it reads its input. So a command that
//! reads the terminal is the last of its block.

use std::{
    fs,
    io::Write,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
    process::{Command, Stdio},
};

use tempfile::TempDir;

use super::{Block, PAGES, block_texts, block_with, parse_page};
use crate::process::tool;

/// Records each command. An editor, a password prompt, and `install` from stdin read all of their input, as on a terminal.
const RECORDER: &str = r#"#!/bin/sh
name=${0##*/}
case "$name $*" in
    "sudo -v" | "editor "* | *" /dev/stdin"* | "docker compose "*" exec "*) cat >/dev/null ;;
esac
[ "$name" = sudo ] && [ "$1" != -v ] && exec "$@"
echo "$name" >>"$RECORD"
"#;
const RECORDED: [&str; 18] = [
    "sudo",
    "editor",
    "install",
    "cargo",
    "wecom-proxy",
    "systemctl",
    "docker",
    "kubectl",
    "mkdir",
    "openssl",
    "chown",
    "chmod",
    "apt-get",
    "curl",
    "sh",
    "pkill",
    "python3",
    "rm",
];

/// A directory with a recorder under the name of each command.
fn recorders() -> TempDir {
    let dir = TempDir::new().expect("a directory");
    for name in RECORDED {
        let path = dir.path().join(name);
        // The recorder is itself a script of /bin/sh, so no other name may be used for it in PATH.
        fs::write(&path, RECORDER).expect("a file");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("a mode");
    }
    dir
}

/// Runs what is typed or pasted in a shell that reads its commands from the same input as they do.
fn paste(text: &str, path: &str, dir: &Path) -> String {
    let mut shell = Command::new(tool("bash"));
    shell.args(["--norc", "-s"]).current_dir(dir);
    shell.env("PATH", path).env("EDITOR", "editor").env("HOME", dir).env("RECORD", dir.join("record"));
    shell.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = shell.spawn().expect("bash");
    child.stdin.take().expect("a pipe").write_all(text.as_bytes()).expect("written");
    String::from_utf8_lossy(&child.wait_with_output().expect("an end").stdout).into_owned()
}

/// The blocks of all pages that are typed into a shell.
fn shell_blocks() -> Vec<Block> {
    let pages = PAGES.iter().flat_map(|page| [&page.english, &page.chinese]);
    pages.flat_map(|page| parse_page(page).1).filter(|block| block.language == "sh").collect()
}

#[test]
fn pasted_blocks_run_to_their_last_line() {
    let recorders = recorders();
    let path = format!("{}:{}", recorders.path().display(), std::env::var("PATH").expect("a path"));
    for block in shell_blocks() {
        if !["install", "edit", "container", "setup", "init", "serve", "key", "start"].contains(&&*block.kind)
        {
            continue;
        }
        let dir = TempDir::new().expect("a directory");
        let secrets = dir.path().join("deploy/compose/secrets");
        fs::create_dir_all(&secrets).expect("a directory");
        paste(&block.text, &path, dir.path());
        let record = fs::read_to_string(dir.path().join("record")).unwrap_or_default();
        let parts = block.text.lines().flat_map(|line| line.split(" | ").flat_map(|part| part.split(" && ")));
        let commands = parts.filter_map(|part| {
            let words = part.replace("\"${EDITOR:-vi}\"", "editor");
            let name = words.strip_prefix("sudo ").filter(|rest| *rest != "-v").unwrap_or(&words);
            let name = name.split_whitespace().next().expect("a command").to_owned();
            RECORDED.contains(&&*name).then_some(name)
        });
        // Commands of a pipe start in any order.
        let (mut recorded, mut expected) =
            (record.lines().map(str::to_owned).collect::<Vec<_>>(), commands.collect::<Vec<_>>());
        recorded.sort();
        expected.sort();
        assert!(!expected.is_empty() || block.text.contains("() {"), "no known command in\n{}", block.text);
        assert_eq!(recorded, expected, "{}", block.text);
    }
}

/// What the other test would miss if the recorders did not read as the real commands do.
#[test]
fn pasted_lines_are_taken_by_commands_that_read() {
    let (recorders, dir) = (recorders(), TempDir::new().expect("a directory"));
    let path = format!("{}:{}", recorders.path().display(), std::env::var("PATH").expect("a path"));
    for first in ["sudo install -m 600 /dev/stdin /etc/hr", "sudo \"${EDITOR:-vi}\" proxy.toml", "sudo -v"] {
        paste(&format!("{first}\nsystemctl start wecom-proxy\n"), &path, dir.path());
        let record = dir.path().join("record");
        let recorded = fs::read_to_string(&record).expect("a record");
        assert!(recorded.lines().count() == 1 && !recorded.contains("systemctl"), "{recorded}");
        fs::remove_file(record).expect("removed");
    }
}

#[test]
fn documented_secret_is_read_from_the_terminal() {
    let path = std::env::var("PATH").expect("a path");
    let dir = TempDir::new().expect("a directory");
    for line in block_texts("sh", "read") {
        let name = line.split_whitespace().nth(2).expect("a variable");
        let shown = paste(&format!("{line}\na-b\\c d\necho \"=${name}=\"\n"), &path, dir.path());
        assert_eq!(shown, "=a-b\\c d=\n", "{line}");
    }
}

#[test]
fn documented_service_files_are_private() {
    let root = TempDir::new().expect("a directory");
    let at = |path: &str| root.path().join(path);
    for folder in ["target/release", "usr/local/bin", "etc/systemd/system", "bin"] {
        fs::create_dir_all(at(folder)).expect("a directory");
    }
    symlink(Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy"), at("deploy")).expect("a link");
    symlink(env!("CARGO_BIN_EXE_wecom-proxy"), at("target/release/wecom-proxy")).expect("a link");
    symlink(env!("CARGO_BIN_EXE_wecom-proxy"), at("bin/wecom-proxy")).expect("a link");
    for (name, script) in [("cargo", "#!/bin/sh\n"), ("sudo", "#!/bin/sh\nexec \"$@\"\n")] {
        fs::write(at("bin").join(name), script).expect("a file");
        fs::set_permissions(at("bin").join(name), fs::Permissions::from_mode(0o755)).expect("a mode");
    }
    let path = format!("{}:{}", at("bin").display(), std::env::var("PATH").expect("a path"));
    let block = block_with("install", "deploy/systemd/proxy.toml")
        .replace(" /etc/", " etc/")
        .replace(" /usr/", " usr/");
    let shown = paste(&block, &path, root.path());
    assert!(shown.contains("[clients.billing]"), "{shown}");
    let mode = |path: &str| fs::metadata(at(path)).expect("a file").permissions().mode() & 0o7777;
    assert_eq!(mode("etc/wecom-proxy/secrets"), 0o700);
    assert_eq!(mode("etc/wecom-proxy/secrets/hr"), 0o600);
    assert_eq!(fs::read_to_string(at("etc/wecom-proxy/secrets/hr")).expect("a file"), "");
    for name in
        ["etc/wecom-proxy/proxy.toml", "etc/systemd/system/wecom-proxy.socket", "usr/local/bin/wecom-proxy"]
    {
        assert!(at(name).exists(), "{name}");
    }
    let page = fs::read_to_string(at("usr/local/share/man/man1/wecom-proxy.1")).expect("a page");
    assert!(page.contains(".TH wecom-proxy 1"), "{page}");
}
