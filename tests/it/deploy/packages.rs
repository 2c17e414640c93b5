//! What `packaging/build` makes, the files that the .deb is made of, and the workflow that publishes them.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    process::{Command, Output},
};

use tempfile::TempDir;
use toml::Table;

use super::{program_command, read_text, repository_file, run_ok, yaml};

/// The packages are of this program, which is already built; it is not static, and `ldd` decides that.
fn build(out: &Path, parts: &[&str], ldd: &str) -> Output {
    let tools = TempDir::new().expect("a directory");
    let path = tools.path().join("ldd");
    fs::write(&path, format!("#!/bin/sh\necho '{ldd}'\n")).expect("a file");
    Command::new("chmod").arg("755").arg(&path).status().expect("chmod");
    let path = std::env::var("PATH").expect("a path");
    let mut command = Command::new(repository_file("packaging/build"));
    command.args(parts).env("OUT", out).env("STATIC_PROGRAM", env!("CARGO_BIN_EXE_wecom-proxy"));
    command.env("PATH", format!("{}:{path}", tools.path().display())).env("GITHUB_REF", "refs/heads/main");
    command.output().expect("a shell")
}

#[tokio::test]
async fn tarball_has_program_manual_completions_and_sums() {
    let out = TempDir::new().expect("a directory");
    let refused = build(out.path(), &["tarball"], "\tlibc.so.6 => /lib/libc.so.6 (0x0)");
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && text.contains("is not static"), "{text}");

    let built = build(out.path(), &["tarball", "sums"], "statically linked");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let mut sums = Command::new("sha256sum");
    sums.args(["-c", "--strict", "SHA256SUMS"]).current_dir(out.path());
    let checked = run_ok(sums).await.out;
    let name = checked.strip_suffix(".tar.gz: OK\n").expect("one file").to_owned();
    let version = env!("CARGO_PKG_VERSION");
    assert!(name.starts_with(&format!("wecom-proxy-{version}-linux-")), "{name}");
    let mut unpack = Command::new("tar");
    unpack.args(["xzf", &format!("{name}.tar.gz")]).current_dir(out.path());
    run_ok(unpack).await;
    let root = out.path().join(&name);
    let mut program = Command::new(root.join("bin/wecom-proxy"));
    program.arg("--version");
    assert!(run_ok(program).await.out.contains(version));
    for (file, expected) in [
        ("share/man/man1/wecom-proxy.1", ".TH wecom-proxy 1"),
        ("share/bash-completion/completions/wecom-proxy", "complete "),
        ("share/zsh/site-functions/_wecom-proxy", "#compdef wecom-proxy"),
        ("share/fish/vendor_completions.d/wecom-proxy.fish", "complete -c wecom-proxy"),
        ("share/doc/wecom-proxy/proxy.toml", "[server]"),
        ("share/doc/wecom-proxy/deploy/systemd/wecom-proxy.service", "[Service]"),
        ("share/doc/wecom-proxy/docs/getting-started.md", "# Getting started"),
        ("share/doc/wecom-proxy/LICENSE-MIT", "MIT"),
    ] {
        let text = fs::read_to_string(root.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
        assert!(text.contains(expected), "{file}");
    }
    deb_files_exist();
}

/// Called after a build, which writes the directory of the files that only a package has.
fn deb_files_exist() {
    let manifest: Table = read_text("Cargo.toml").parse().expect("TOML");
    let deb = &manifest["package"]["metadata"]["deb"];
    let assets = deb["assets"].as_array().expect("a list");
    let field = |asset: &toml::Value, at: usize| asset[at].as_str().expect("a text").to_owned();
    // The deb part of the script compresses these.
    let compressed = ["wecom-proxy", "wecom-proxy.1.gz", "changelog.gz", "changelog.Debian.gz"];
    let script = read_text("packaging/build");
    for asset in assets {
        let source = field(asset, 0);
        match source.strip_prefix("target/package/stage/").filter(|name| compressed.contains(name)) {
            Some(name) => {
                assert!(script.contains(&format!("$stage/{}\"", name.replace(".1.gz", ".1"))), "{name}")
            }
            None => assert!(repository_file(&source).exists(), "{source}"),
        }
    }
    let installed: BTreeSet<_> = assets.iter().map(|asset| format!("/{}", field(asset, 1))).collect();
    assert!(installed.contains("/usr/bin/") && installed.contains("/etc/wecom-proxy/"), "{installed:?}");
    let unit = fs::read_to_string(repository_file("target/package/stage/systemd/wecom-proxy.service"));
    assert!(unit.expect("a unit").contains("\nExecStart=/usr/bin/wecom-proxy serve\n"));
}

#[test]
fn scripts_of_the_packages_are_valid() {
    for (shell, name) in [
        ("sh", "packaging/build"),
        ("sh", "packaging/prometheus-rule"),
        ("sh", "packaging/site/build"),
        ("bash", "packaging/check-deb"),
        ("sh", "packaging/debian/postinst"),
        ("sh", "packaging/debian/prerm"),
        ("sh", "packaging/debian/postrm"),
    ] {
        let checked = Command::new(shell).arg("-n").arg(repository_file(name)).output().expect("a shell");
        assert!(checked.status.success(), "{name}: {}", String::from_utf8_lossy(&checked.stderr));
    }
    let out = TempDir::new().expect("a directory");
    let refused = build(out.path(), &["tarbal"], "");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("unknown part tarbal"));
}

#[tokio::test]
async fn release_workflow_builds_and_checks_every_package() {
    let workflow = &yaml(".github/workflows/release.yml").await[0];
    let jobs = workflow["jobs"].as_object().expect("jobs");
    let steps = jobs.values().flat_map(|job| job["steps"].as_array().into_iter().flatten());
    let commands: Vec<_> = steps.filter_map(|step| step["run"].as_str()).collect();
    let commands = commands.join("\n");
    for command in [
        "packaging/build tarball deb sbom",
        "packaging/build image",
        "packaging/build sums",
        "packaging/site/build",
    ] {
        assert!(commands.contains(command), "no {command}");
    }
    assert!(commands.contains("bash packaging/check-deb packages/*.deb"));
    for name in ["packages", "install", "image"] {
        let matrix = jobs[name]["strategy"]["matrix"]["include"].as_array().expect("architectures");
        let architectures: Vec<_> = matrix.iter().map(|entry| entry["arch"].as_str()).collect();
        assert_eq!(architectures, [Some("amd64"), Some("arm64")], "{name}");
    }
    let needed = jobs["publish"]["needs"].as_array().expect("jobs");
    assert_eq!(needed.len(), jobs.len() - 1, "a release with a part that failed: {needed:?}");
}

#[test]
fn mirror_of_the_image_is_a_source_for_cargo() {
    let dockerfile = read_text("Dockerfile");
    let line = dockerfile.lines().find(|line| line.contains("$CRATES_MIRROR")).expect("a line");
    let home = TempDir::new().expect("a directory");
    let run = |mirror: &str| {
        let mut shell = Command::new("sh");
        shell.args(["-euc", line.strip_prefix("RUN ").expect("a command")]);
        let status = shell.env("CARGO_HOME", home.path()).env("CRATES_MIRROR", mirror).status().expect("sh");
        assert!(status.success());
        fs::read_to_string(home.path().join("config.toml")).ok()
    };
    assert_eq!(run(""), None);
    let config: Table = run("sparse+https://mirror.example/index/").expect("a file").parse().expect("TOML");
    let replaced = config["source"]["crates-io"]["replace-with"].as_str().expect("a name");
    assert_eq!(config["source"][replaced]["registry"].as_str(), Some("sparse+https://mirror.example/index/"));
    assert_eq!(dockerfile.matches("--mount=type=cache,").count(), 2);
}

/// A module that nsswitch.conf names belongs to the machine's own glibc, and kills a static program that loads it.
#[tokio::test]
async fn static_program_resolves_names_without_the_modules_of_the_machine() {
    let dir = TempDir::new().expect("a directory");
    let caller = dir.path().join("caller.c");
    let program = "#include <netdb.h>\n#include <stddef.h>\nint main(void) { struct addrinfo *found; \
                   return getaddrinfo(\"name.example\", NULL, NULL, &found); }\n";
    fs::write(&caller, program).expect("written");
    fs::write(dir.path().join("hosts"), "127.0.0.1 name.example\n").expect("written");
    fs::write(dir.path().join("nsswitch.conf"), "hosts: absent\n").expect("written");
    let static_names = repository_file("src/static_names.c");
    for (sources, resolves) in [(vec![&caller], false), (vec![&caller, &static_names], true)] {
        let mut compiler = Command::new("cc");
        compiler.arg("-static").args(sources).arg("-o").arg(dir.path().join("caller"));
        run_ok(compiler).await;
        let mut command = program_command("unshare", "--version");
        if !rustix::process::geteuid().is_root() {
            command.args(["--user", "--map-root-user"]);
        }
        let script =
            "mount --bind hosts /etc/hosts && mount --bind nsswitch.conf /etc/nsswitch.conf && ./caller";
        command.args(["--mount", "sh", "-c", script]).current_dir(dir.path());
        let status = command.status().expect("unshare");
        assert_eq!(status.success(), resolves, "{status}");
    }
    let build_script = read_text("build.rs");
    assert!(build_script.contains("\"src/static_names.c\"") && build_script.contains("crt-static"));
}
