//! Whole files through [`load_with`]: what is refused and in which words, what is accepted and as what.

mod accepted;
mod example;
mod includes;
mod refused_addresses;
mod refused_files;
mod refused_names;
mod secrets;

use std::fs;
use std::path::Path;

use tempfile::TempDir;

use super::{Config, Error, load_with_env};

/// An agent, so that a file about something else is complete.
const AGENT_TABLE: &str = "[agents.hr]\ncorpid = \"ww1\"\nsecret = { env = \"HR\" }\n";

const HASH: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

/// What no message may ever show.
const HIDDEN: &str = "hunter2";

/// A directory with files in it, in which `HASH` stands for a hash.
fn directory_with(files: &[(&str, &str)]) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = directory.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text.replace("HASH", HASH)).unwrap();
        // Whatever the umask is, for there is a warning about this.
        #[cfg(unix)]
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    }
    directory
}

fn env(name: &str) -> Option<String> {
    let value = match name {
        "HR" | "WECOM_HR_SECRET" => "hunter2-the-secret-of-hr",
        "KEY" => "hunter2-the-key-of-a-client",
        "SHORT" => "hunter2",
        "LONG" => "hunter2-the-key-of-the-store-0123456789",
        "SPACED" => "hunter2 ",
        "EMPTY" => "",
        _ => return None,
    };
    Some(value.to_owned())
}

fn load_in(directory: &Path) -> Result<Config, Error> {
    load_with_env(&directory.join("proxy.toml"), &env)
}

/// Loads a lone `proxy.toml`.
fn load_text(text: &str) -> Result<Config, Error> {
    load_in(directory_with(&[("proxy.toml", text)]).path())
}

/// What is said about the files, without the directory that they were in.
fn load_error(files: &[(&str, &str)]) -> String {
    let directory = directory_with(files);
    let Err(error) = load_in(directory.path()) else { return "nothing".to_owned() };
    let said = error.to_string();
    assert!(!format!("{said} {error:?}").contains(HIDDEN), "a secret is shown: {said}");
    said.replace(&format!("{}/", directory.path().display()), "")
}

/// The warnings, without the directory.
fn warnings(files: &[(&str, &str)]) -> Vec<String> {
    let directory = directory_with(files);
    let config = load_in(directory.path()).unwrap_or_else(|error| panic!("{error}"));
    assert!(!format!("{config:#?}").contains(HIDDEN), "a secret is shown: {config:?}");
    let prefix = format!("{}/", directory.path().display());
    config.warnings.iter().map(|warning| warning.to_string().replace(&prefix, "")).collect()
}

/// Each text, with a complete agent below it, is refused in these words, after the file's name.
fn assert_refused(table: &[(&str, &str)]) {
    for (text, said) in table {
        let files = [("proxy.toml", &*format!("{text}\n{AGENT_TABLE}")), ("a.pem", "")];
        assert_eq!(load_error(&files), format!("proxy.toml{said}"), "{text}");
    }
}
