//! Lists of secrets and keys, and when the files are read again.

use std::fs;

use super::{AGENT_TABLE, HASH, directory_with, load_error, load_in, load_text, warnings};
use crate::config::{KeyHash, ReloadTrigger, read_secret_again};

fn client_table(keys: &str) -> String {
    format!("{AGENT_TABLE}[clients.a]\nagents = [\"*\"]\nkey_sha256 = {keys}\n")
}

fn hash_of(nth: usize) -> String {
    format!("\"{nth}{}\"", &HASH[1..])
}

fn list(hashes: &[String]) -> String {
    format!("[{}]", hashes.join(", "))
}

#[test]
fn agent_may_have_two_secrets() {
    let text = "[agents.hr]\ncorpid = \"ww1\"\nsecret = [{ env = \"HR\" }, { file = \"f\" }]\n";
    let directory = directory_with(&[("proxy.toml", text), ("f", "the-new-secret\n")]);
    let config = load_in(directory.path()).unwrap();
    let [first, second] = &config.agents["hr"].secrets[..] else { panic!("two secrets") };
    assert_eq!((first.value.expose(), &first.file), ("hunter2-the-secret-of-hr", &None));
    assert_eq!(second.value.expose(), "the-new-secret");
    assert_eq!(second.file.as_deref(), Some(&*directory.path().join("f")));
    assert!(config.loaded_files.files.contains_key(&directory.path().join("f")));
}

#[test]
fn same_secret_twice_is_warned_of() {
    let text = "[agents.hr]\ncorpid = \"ww1\"\nsecret = [{ env = \"HR\" }, { env = \"HR\" }]\n";
    let found = warnings(&[("proxy.toml", text)]);
    assert!(found.iter().any(|warning| warning.contains("is the same secret as the first one")), "{found:?}");
    assert!(found.iter().all(|warning| !warning.contains("they share one token")), "{found:?}");
}

#[test]
fn second_secret_of_another_agent_is_warned_of() {
    let text = format!(
        "{AGENT_TABLE}[agents.it]\ncorpid = \"ww1\"\nsecret = [\"the-secret-of-it\", {{ env = \"HR\" }}]\n"
    );
    let found = warnings(&[("proxy.toml", &text)]);
    assert!(found.iter().any(|warning| warning.contains("they share one token")), "{found:?}");
}

#[test]
fn client_may_have_up_to_four_keys() {
    let hashes: Vec<_> = (0..5).map(hash_of).collect();
    for count in 1..=4 {
        let config = load_text(&client_table(&list(&hashes[..count]))).unwrap();
        let keys = &config.clients["a"].keys;
        assert_eq!(keys.len(), count);
        assert_eq!(Some(keys[count - 1].hash), KeyHash::from_hex(hashes[count - 1].trim_matches('"')));
    }
    for (keys, expected) in [
        (list(&hashes), "clients.a.key_sha256: lists 5 keys; write 1 to 4"),
        ("[]".to_owned(), "clients.a.key_sha256: lists 0 keys; write 1 to 4"),
        (list(&[hash_of(1), hash_of(1)]), "clients.a.key_sha256[1]: is the same key as one before it"),
        (list(&[hash_of(1), "7".to_owned()]), "clients.a.key_sha256[1]: must be the key's SHA-256"),
        (list(&[hash_of(1), "\"hunter2\"".to_owned()]), "clients.a.key_sha256[1]: must be the key's SHA-256"),
    ] {
        let error = load_error(&[("proxy.toml", &client_table(&keys))]);
        assert!(error.contains(expected) && !error.contains("hunter2"), "{keys}: {error}");
    }
}

#[test]
fn key_of_another_client_is_refused_in_a_list() {
    let other = format!("[clients.b]\nagents = [\"*\"]\nkey_sha256 = {}\n", hash_of(2));
    let error = load_error(&[("proxy.toml", &(client_table(&list(&[hash_of(1), hash_of(2)])) + &other))]);
    assert!(error.contains("clients.b.key_sha256: is the same key as the one in"), "{error}");
}

#[test]
fn files_are_watched_only_where_set() {
    let load = |line: &str| load_text(&format!("[server]\n{line}\n{AGENT_TABLE}"));
    assert_eq!(load("").unwrap().server.reload, ReloadTrigger::Signal);
    assert_eq!(load("reload = \"signal\"").unwrap().server.reload, ReloadTrigger::Signal);
    assert_eq!(load("reload = \"watch\"").unwrap().server.reload, ReloadTrigger::Watch);
    let error = load("reload = \"wach\"").unwrap_err().to_string();
    assert!(error.contains("did you mean \"watch\"") && error.contains("\"signal\""), "{error}");
}

#[test]
fn secret_is_read_again_with_the_same_checks() {
    let directory = directory_with(&[("f", "the-secret\r\n")]);
    let file = directory.path().join("f");
    assert_eq!(read_secret_again(&file).unwrap().expose(), "the-secret");
    for (text, expected) in [
        ("", "is empty"),
        ("changeme", "is a placeholder"),
        ("hunter2 x", "is not a secret"),
        ("\"hunter2\"", "has quotes around it"),
        ("SECRET=hunter2", "begins like NAME=value"),
    ] {
        fs::write(&file, text).unwrap();
        let error = read_secret_again(&file).unwrap_err();
        let error = error.english();
        assert!(error.contains(expected) && !error.contains("hunter2"), "{text}: {error}");
    }
    fs::remove_file(&file).unwrap();
    assert!(read_secret_again(&file).unwrap_err().english().contains("cannot be read"));
    assert!(read_secret_again(directory.path()).unwrap_err().english().contains("is not a file"));
}
