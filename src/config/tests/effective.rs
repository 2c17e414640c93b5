//! The effective configuration: it is complete, it is valid again, and it shows no secret.

use serde_json::{Map, Value, json};

use super::{HASH, HIDDEN, directory_with, env, load_in};
use crate::config::{PrivateUrl, effective, load_with_env};

/// Puts a valid secret in place of each that is only said to be set.
fn set_secrets(value: &mut Value, key: &str) {
    match value {
        Value::Object(map) if map.get("set") == Some(&Value::Bool(true)) => {
            *value = match key {
                "key_sha256" => json!(HASH),
                "reader_key_sha256" => json!("01".repeat(32)),
                "aes_key" => json!({ "env": "HR_CALLBACK_AES_KEY" }),
                _ => json!({ "env": "LONG" }),
            }
        }
        Value::Object(map) => map.iter_mut().for_each(|(key, value)| set_secrets(value, key)),
        Value::Array(items) => items.iter_mut().for_each(|item| set_secrets(item, key)),
        _ => {}
    }
}

fn load_again(shown: &Map<String, Value>, directory: &std::path::Path) -> Map<String, Value> {
    let mut value = Value::Object(shown.clone());
    set_secrets(&mut value, "");
    let path = directory.join("shown.toml");
    std::fs::write(&path, toml::to_string(&value).unwrap()).unwrap();
    effective(&load_with_env(&path, &env).unwrap_or_else(|error| panic!("{error}")))
}

#[test]
fn effective_configuration_is_complete_and_valid() {
    let all = super::example::example_with_all_settings();
    let more = "[tokens]\nstore = { redis = [\"rediss://a:1/2\"], user = \"u\", password = { env = \"LONG\" }, \
                key = { env = \"LONG\" } }\n[state]\nshared = true\n[log]\naccess = false\n[agents.hr]\ncorpid = \"ww1\"\n\
                secret = { env = \"HR\" }\n[callbacks.c]\nreceive_ids = [\"\"]\ntoken = { env = \"HR_CALLBACK_TOKEN\" }\n\
                aes_key = { env = \"HR_CALLBACK_AES_KEY\" }\n[[callbacks.c.to]]\nname = \"a\"\nurl = \"unix:/a:/b\"\n\
                form = \"raw\"\n[[callbacks.c.to]]\nname = \"b\"\nurl = \"https://[::1]/x?y\"\nform = \"reencrypt\"\n\
                token = { env = \"LONG\" }\naes_key = { env = \"HR_CALLBACK_AES_KEY\" }\nreceive_id = \"\"\n";
    let files = ["server.pem", "server.key", "ca.pem", "private-ca.pem"].map(|name| (name, ""));
    for text in [&*all, more, super::AGENT_TABLE] {
        let directory = directory_with(&[&files[..], &[("proxy.toml", text)]].concat());
        let shown = effective(&load_in(directory.path()).unwrap_or_else(|error| panic!("{error}")));
        assert!(!format!("{shown:?}").contains(HIDDEN), "a secret is shown: {shown:?}");
        assert_eq!(load_again(&shown, directory.path()), shown);
    }
}

#[test]
fn urls_show_neither_a_password_nor_the_values_of_their_query() {
    let text = "[agents.hr]\ncorpid = \"ww1\"\nsecret = { env = \"HR\" }\n[admin]\n\
                trace_url = \"https://t.example/x?org=hunter2&id={trace_id}\"\n[state]\npath = \"s\"\nkey = { env = \"LONG\" }\n\
                [callbacks.c]\nreceive_ids = [\"\"]\ntoken = { env = \"HR_CALLBACK_TOKEN\" }\n\
                aes_key = { env = \"HR_CALLBACK_AES_KEY\" }\n[[callbacks.c.to]]\nname = \"a\"\n\
                url = \"https://crm.example/in?token=hunter2&hunter2\"\n[[callbacks.c.to]]\nname = \"b\"\n\
                url = \"unix:/a:/b?k=hunter2\"\n[upstream]\nvia = \"http://hunter2@egress:1\"\n";
    let directory = directory_with(&[("proxy.toml", text)]);
    let config = load_in(directory.path()).unwrap_or_else(|error| panic!("{error}"));
    let (shown, debugged) = (Value::Object(effective(&config)).to_string(), format!("{config:#?}"));
    for text in [&shown, &debugged] {
        assert!(!text.contains("hunter2"), "{text}");
        for expected in ["/in?token=***&***", "/b?k=***", "https://t.example/x?org=***&id={trace_id}"] {
            assert!(text.contains(expected), "{expected}: {text}");
        }
    }
    for (url, expected) in [
        ("https://user:hunter2@crm.example/a@b", "https://***@crm.example/a@b"),
        ("https://user:hunter2@crm.example?a=b", "https://***@crm.example?a=***"),
        ("https://crm.example/welcome", "https://crm.example/welcome"),
    ] {
        let url = PrivateUrl::from(url.to_owned());
        assert_eq!((url.masked(), format!("{url:?}")), (expected.to_owned(), format!("{expected:?}")));
    }
}

#[test]
fn effective_configuration_has_every_key_of_the_example() {
    let text = super::example::example_with_all_settings();
    let files = ["server.pem", "server.key", "ca.pem", "private-ca.pem"].map(|name| (name, ""));
    let directory = directory_with(&[&files[..], &[("proxy.toml", &text)]].concat());
    let shown = Value::Object(effective(&load_in(directory.path()).unwrap()));
    let mut missing = Vec::new();
    let written: toml::Table = text.parse().unwrap();
    find_missing(&serde_json::to_value(written).unwrap(), &shown, "", &mut missing);
    // Files are read where they are included, an agent stands for its corpid, and false is what a setting is without it.
    assert_eq!(missing, [".callbacks.hr.agent", ".include"]);
}

fn find_missing(written: &Value, shown: &Value, path: &str, missing: &mut Vec<String>) {
    match (written, shown) {
        (Value::Object(map), _) if map.contains_key("env") => {
            assert_eq!(shown, &json!({ "set": true }), "{path}")
        }
        (Value::Object(map), Value::Object(shown)) => {
            for (key, value) in map {
                let path = format!("{path}.{key}");
                match shown.get(key) {
                    Some(shown) => find_missing(value, shown, &path, missing),
                    None => missing.push(path),
                }
            }
        }
        (Value::Array(items), Value::Array(shown)) => {
            for (item, shown) in items.iter().zip(shown) {
                find_missing(item, shown, path, missing);
            }
        }
        _ => {}
    }
}
