//! Names the commit and the build for `wecom-proxy --version`, and keeps a static program from loading libraries.

use std::{env, process::Command};

fn main() {
    println!("cargo:rerun-if-env-changed=WECOM_PROXY_COMMIT");
    println!("cargo:rerun-if-changed=build.rs");
    let var = |name: &str| env::var(name).unwrap_or_default();
    let is_release = var("PROFILE") == "release";
    // A development build would be compiled again after each commit.
    let commit = match (var("WECOM_PROXY_COMMIT"), is_release) {
        (named, _) if !named.is_empty() => named,
        (_, true) => {
            if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"]) {
                println!("cargo:rerun-if-changed={log}");
            }
            git(&["describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"])
                .unwrap_or_else(|| "unknown".to_owned())
        }
        (_, false) => "unknown".to_owned(),
    };
    println!("cargo:rustc-env=WECOM_PROXY_COMMIT={commit}");
    println!("cargo:rustc-env=WECOM_PROXY_BUILD={} for {}", var("PROFILE"), var("TARGET"));
    let is_static = var("CARGO_CFG_TARGET_FEATURE").split(',').any(|feature| feature == "crt-static");
    if is_static && var("CARGO_CFG_TARGET_ENV") == "gnu" {
        let source = "src/static_names.c";
        println!("cargo:rerun-if-changed={source}");
        for object in cc::Build::new().file(source).compile_intermediates() {
            println!("cargo:rustc-link-arg-bins={}", object.display());
        }
    }
}

fn git(arguments: &[&str]) -> Option<String> {
    let output =
        Command::new("git").args(arguments).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned()).filter(|text| !text.is_empty())
}
