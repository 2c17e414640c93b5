//! Loads whole files with [`load_with_env`] and checks the errors, the warnings and the resulting configuration.

mod accepted;
mod agent_by_agent;
mod all_mistakes;
mod callbacks;
mod effective;
mod example;
mod includes;
mod mistakes;
mod refused_addresses;
mod refused_files;
mod refused_names;
mod rotation;
mod schema;
mod secrets;
mod state;
mod suites;
mod traces;
mod upstreams;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use tempfile::TempDir;

use super::{Config, Error, load_with_env};
use crate::text::{Language, Text};

/// An agent, which every valid file needs.
const AGENT_TABLE: &str = "[agents.hr]\ncorpid = \"ww1\"\nsecret = { env = \"HR\" }\n";

const HASH: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

/// Part of every secret; no message may contain it.
const HIDDEN: &str = "hunter2";

/// A directory with the given files, in which the text `HASH` is replaced by a hash.
fn directory_with(files: &[(&str, &str)]) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = directory.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text.replace("HASH", HASH)).unwrap();
        // Independent of the umask, because world-readable secrets cause a warning.
        #[cfg(unix)]
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    }
    directory
}

fn env(name: &str) -> Option<String> {
    let value = match name {
        "HR" | "WECOM_HR_SECRET" => "hunter2-the-secret-of-hr",
        "KEY" => "hunter2-the-key-of-a-client",
        "HR_CALLBACK_TOKEN" | "CRM_CALLBACK_SECRET" => "hunter2-token",
        "HR_CALLBACK_AES_KEY" => "hunter2YAr5nMoAUwZRjGtBxmz3KA1tkAj3ykkR6q2B",
        "SHORT" | "EGRESS_PASSWORD" => "hunter2",
        "LONG" | "PASS_KEY" | "WECOM_PROXY_STATE_KEY" | "WECOM_PROXY_OLD_STATE_KEY" => {
            "hunter2-the-key-of-the-store-0123456789"
        }
        "SPACED" => "hunter2 ",
        "PROVIDER_SECRET" | "SUITE_SECRET" | "SUITE_TOKEN" | "PERMANENT_CODE" => "hunter2-of-a-suite",
        "SUITE_AES_KEY" => "hunter2YAr5nMoAUwZRjGtBxmz3KA1tkAj3ykkR6q2B",
        "EMPTY" => "",
        _ => return None,
    };
    Some(value.to_owned())
}

/// Asserts that the text has a Chinese one, which shows no secret either and names the same things in quotes.
#[track_caller]
fn assert_has_chinese_text(text: &Text) {
    let chinese = text.get(Language::Chinese);
    assert!(chinese.chars().any(|char| ('\u{4e00}'..='\u{9fff}').contains(&char)), "{text:?}");
    assert!(!chinese.contains(HIDDEN), "a secret is shown: {chinese}");
    let quoted = |text: &str| text.split('"').skip(1).step_by(2).map(str::to_owned).collect::<BTreeSet<_>>();
    assert_eq!(quoted(text.english()), quoted(chinese), "{text:?}");
}

fn load_in(directory: &Path) -> Result<Config, Error> {
    load_with_env(&directory.join("proxy.toml"), &env)
}

/// Loads a `proxy.toml` without other files.
pub(super) fn load_text(text: &str) -> Result<Config, Error> {
    load_in(directory_with(&[("proxy.toml", text)]).path())
}

/// The error of loading the files, with the directory removed from paths.
fn load_error(files: &[(&str, &str)]) -> String {
    let errors = load_errors(files);
    if errors.is_empty() { "nothing".to_owned() } else { errors.join("\n") }
}

/// Each mistake of the files, with the directory removed from paths.
fn load_errors(files: &[(&str, &str)]) -> Vec<String> {
    let directory = directory_with(files);
    let Err(error) = load_in(directory.path()) else { return Vec::new() };
    assert!(!format!("{error} {error:?}").contains(HIDDEN), "a secret is shown: {error}");
    error.all().for_each(|error| assert_has_chinese_text(&error.message));
    let prefix = format!("{}/", directory.path().display());
    let alone =
        |error: &Error| Error { others: Vec::new(), ..error.clone() }.to_string().replace(&prefix, "");
    error.all().map(alone).collect()
}

/// The warnings of loading the files, with the directory removed from paths.
fn warnings(files: &[(&str, &str)]) -> Vec<String> {
    let directory = directory_with(files);
    let config = load_in(directory.path()).unwrap_or_else(|error| panic!("{error}"));
    assert!(!format!("{config:#?}").contains(HIDDEN), "a secret is shown: {config:?}");
    config.warnings.iter().for_each(|warning| assert_has_chinese_text(&warning.message));
    let prefix = format!("{}/", directory.path().display());
    config.warnings.iter().map(|warning| warning.to_string().replace(&prefix, "")).collect()
}

/// Asserts that each text, followed by a valid agent, causes this error after the file's name, and perhaps others.
fn assert_refused(table: &[(&str, &str)]) {
    for (text, expected) in table {
        let files = [("proxy.toml", &*format!("{text}\n{AGENT_TABLE}")), ("a.pem", "")];
        let errors = load_errors(&files);
        assert!(errors.contains(&format!("proxy.toml{expected}")), "{text}: {errors:#?}");
    }
}
