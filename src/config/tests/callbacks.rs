//! `[callbacks.*]` and their targets.

use super::{AGENT_TABLE, HASH, assert_refused, load_text, warnings};
use crate::config::*;

/// The state, which callbacks need; it follows them, so that their lines stay the same.
const STATE: &str = "[state]\npath = \"s.db\"\nkey = { env = \"LONG\" }\n";

/// A valid callback, to which targets are added; 4 lines.
const CALLBACK: &str = "[callbacks.hr]\nagent = \"hr\"\ntoken = { env = \"HR_CALLBACK_TOKEN\" }\naes_key = { env = \"HR_CALLBACK_AES_KEY\" }\n";

fn load_callback(more: &str) -> CallbackConfig {
    let text = format!("{CALLBACK}{more}\n{STATE}{AGENT_TABLE}");
    let mut config = load_text(&text).unwrap_or_else(|error| panic!("{error}"));
    config.callbacks.remove("hr").expect("the callback")
}

#[test]
fn callback_has_defaults() {
    let callback = load_callback("");
    assert_eq!(callback.receive_ids.iter().collect::<Vec<_>>(), ["ww1"]);
    assert_eq!((&*callback.answer, callback.max_age.as_secs()), ("", 600));
    assert!(callback.targets.is_empty());
}

#[test]
fn targets_are_read_with_all_keys() {
    let callback = load_callback(
        r#"answer = "success"
max_age = "0s"
[[callbacks.hr.to]]
name = "crm"
url = "http://[::1]:9000/wecom?a=b"
events = ["change_contact", "text"]
secret = { env = "CRM_CALLBACK_SECRET" }
ordered = true
[[callbacks.hr.to]]
name = "legacy"
url = "unix:/run/app.sock:/path"
form = "reencrypt"
token = { env = "HR_CALLBACK_TOKEN" }
aes_key = { env = "HR_CALLBACK_AES_KEY" }
receive_id = ""
reply = true
[[callbacks.hr.to]]
name = "other"
url = "https://Crm.example.com"
form = "raw"
[[callbacks.hr.to]]
name = "desktop"
pull = true
clients = ["desktop"]
"#,
    );
    assert_eq!((&*callback.answer, callback.max_age.as_secs()), ("success", 0));
    let [crm, legacy, other, desktop] = &callback.targets[..] else { panic!("{callback:?}") };
    assert_eq!(crm.events.iter().collect::<Vec<_>>(), ["change_contact", "text"]);
    let DeliveryMethod::Push {
        url,
        form: TargetForm::Plain { secret: Some(_) },
        reply: false,
        ordered: true,
    } = &crm.method
    else {
        panic!("{crm:?}")
    };
    assert_eq!(url.address, TargetAddress::Tcp { tls: false, host: "::1".to_owned(), port: 9000 });
    assert_eq!(&*url.path_and_query, "/wecom?a=b");
    let DeliveryMethod::Push { url, form: TargetForm::Reencrypt(keys), reply: true, ordered: false } =
        &legacy.method
    else {
        panic!("{legacy:?}")
    };
    assert_eq!((&url.address, &*url.path_and_query), (&TargetAddress::Unix("/run/app.sock".into()), "/path"));
    assert_eq!(keys.receive_id, "");
    let DeliveryMethod::Push { url, form: TargetForm::Raw, .. } = &other.method else { panic!("{other:?}") };
    let address = TargetAddress::Tcp { tls: true, host: "crm.example.com".to_owned(), port: 443 };
    assert_eq!((&url.address, &*url.path_and_query), (&address, "/"));
    assert!(matches!(&desktop.method, DeliveryMethod::Pull { clients } if clients.contains("desktop")));
}

#[test]
fn receive_ids_may_be_empty_texts() {
    let text = CALLBACK.replace("agent = \"hr\"", "receive_ids = [\"ww2\", \"\"]");
    let config = load_text(&format!("{text}{STATE}{AGENT_TABLE}")).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(config.callbacks["hr"].receive_ids.iter().collect::<Vec<_>>(), ["", "ww2"]);
}

#[test]
fn client_that_is_not_in_the_file_is_warned_of() {
    let client = format!("[clients.desktop]\nkey_sha256 = \"{HASH}\"\nagents = [\"hr\"]\n");
    let target = "[[callbacks.hr.to]]\nname = \"x\"\npull = true\nclients = [\"desktpo\"]\n";
    let found = warnings(&[("proxy.toml", &format!("{CALLBACK}{target}{client}{STATE}{AGENT_TABLE}"))]);
    assert_eq!(
        found,
        [
            r#"proxy.toml:5: callbacks.hr.to: target "x" names the client "desktpo", which is not in this file; did you mean "desktop"? it cannot read events until it exists"#
        ]
    );
}

#[test]
fn ca_file_of_a_target_needs_https() {
    let ca_file = format!("ca_file = \"{}\"", concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"));
    let target = |url: &str| format!("[[callbacks.hr.to]]\nname = \"x\"\nurl = \"{url}\"\n{ca_file}\n");
    let callback = load_callback(&target("https://crm.example.com/"));
    let DeliveryMethod::Push { url, .. } = &callback.targets[0].method else { panic!("{callback:?}") };
    assert!(url.ca_file.as_ref().is_some_and(|path| path.ends_with("Cargo.toml")), "{url:?}");
    for url in ["http://crm.example.com/", "unix:/run/app.sock:/"] {
        let expected = ":8: callbacks.hr.to[0].ca_file: needs a url with https";
        assert_refused(&[(&format!("{CALLBACK}{}", target(url)), expected)]);
    }
}

#[test]
fn callbacks_need_a_state() {
    let expected = ":1: callbacks.hr: needs [state], which keeps what must outlive the process; write [state] with path = \
                    \"/var/lib/wecom-proxy/state.db\" and key = { env = \"WECOM_PROXY_STATE_KEY\" }";
    assert_refused(&[(CALLBACK, expected)]);
}

#[test]
fn mistakes_in_callbacks_are_refused() {
    let keys = "token = { env = \"HR_CALLBACK_TOKEN\" }\naes_key = { env = \"HR_CALLBACK_AES_KEY\" }\n";
    let cases = [
        (
            format!("[callbacks.\"a b\"]\n{keys}"),
            r#":1: callbacks."a b": is not a name; use letters, digits, _ and -"#,
        ),
        (
            format!("[callbacks.x]\n{keys}"),
            r#":1: callbacks.x: names no receiveid; write agent = "NAME", or receive_ids = ["ww…"] with the corpid or suite_id"#,
        ),
        (
            format!("[callbacks.x]\nagent = \"hx\"\n{keys}"),
            r#":2: callbacks.x.agent: there is no agent "hx"; did you mean "hr"? write receive_ids with its corpid if it is not in this file"#,
        ),
        (
            format!("[callbacks.x]\nagent = \"hr\"\nreceive_ids = [\"\"]\n{keys}"),
            ":3: callbacks.x.receive_ids: conflicts with agent; keep one of the two",
        ),
        (
            format!("[callbacks.x]\nreceive_ids = []\n{keys}"),
            r#":2: callbacks.x.receive_ids: is empty; name the corpid or suite_id of its messages, or "" for an AI bot"#,
        ),
        (
            "[callbacks.x]\nagent = \"hr\"\n".to_owned(),
            r#":1: callbacks.x.token: is missing; write one like token = { env = "HR_CALLBACK_TOKEN" }"#,
        ),
        (
            "[callbacks.x]\nagent = \"hr\"\ntoken = { env = \"HR\" }\naes_key = { env = \"HR\" }\n"
                .to_owned(),
            r#":4: callbacks.x.aes_key: has 24 characters; an EncodingAESKey has 43, without the "=" that completes its base64"#,
        ),
        (
            format!("[callbacks.x]\nagent = \"hr\"\n{keys}max_age = \"-1s\"\n"),
            r#":5: callbacks.x.max_age: "-1s" is not a duration; write one like "75s" (ms, s, m, h)"#,
        ),
        (
            format!("[callbacks.x]\nagent = \"hr\"\n{keys}anwser = \"\"\n"),
            r#":5: callbacks.x.anwser: unknown key "anwser"; did you mean "answer"? allowed: agent, receive_ids, token, aes_key, answer, max_age, to"#,
        ),
    ];
    let cases: Vec<_> = cases.iter().map(|(text, error)| (text.as_str(), *error)).collect();
    assert_refused(&cases);
}

/// Lines of a target, each with the error that they cause.
const INVALID_TARGETS: &[(&str, &str)] = &[
    ("url = \"http://a\"", r#":5: callbacks.hr.to[0].name: is missing; write one like name = "crm""#),
    (
        "name = \"a/b\"",
        r#":6: callbacks.hr.to[0].name: is not a name; use letters, digits, _ and -, at most 64 characters"#,
    ),
    (
        "name = \"a\"\nurl = \"https://-crm.example.com/wecom\"",
        ":7: callbacks.hr.to[0].url: has a host that is no valid TLS server name: no label may begin or end with a hyphen",
    ),
    (
        "name = \"a\"",
        r#":5: callbacks.hr.to[0]: has no url; write url = "http://127.0.0.1:9000/wecom", or pull = true and clients = ["NAME"]"#,
    ),
    (
        "name = \"a\"\nurl = \"ftp://a\"",
        r#":7: callbacks.hr.to[0].url: must start with http:// or https://, as in "http://127.0.0.1:9000/wecom""#,
    ),
    (
        "name = \"a\"\nurl = \"http://a/#x\"",
        r##":7: callbacks.hr.to[0].url: has a path with a character that must be percent-encoded, or a "#""##,
    ),
    (
        "name = \"a\"\nurl = \"http://u:hunter2@a/\"",
        ":7: callbacks.hr.to[0].url: must contain no user or password before the host",
    ),
    (
        "name = \"a\"\nurl = \"unix:\"",
        r#":7: callbacks.hr.to[0].url: has no socket; write one like "unix:/run/app.sock:/path""#,
    ),
    (
        "name = \"a\"\nurl = \"http://a\"\npull = true",
        ":7: callbacks.hr.to[0].url: conflicts with pull = true; keep one of the two",
    ),
    (
        "name = \"a\"\npull = true",
        r#":5: callbacks.hr.to[0].clients: is missing; write one like clients = ["desktop"]"#,
    ),
    (
        "name = \"a\"\npull = true\nclients = [\"x\"]\nreply = true",
        ":9: callbacks.hr.to[0].reply: has no meaning with pull = true",
    ),
    (
        "name = \"a\"\nurl = \"http://a\"\nform = \"raw\"\nsecret = { env = \"HR\" }",
        r#":9: callbacks.hr.to[0].secret: signs plain messages only; take it out, or write form = "plain""#,
    ),
    (
        "name = \"a\"\nurl = \"http://a\"\nreceive_id = \"\"",
        r#":8: callbacks.hr.to[0].receive_id: needs form = "reencrypt""#,
    ),
    (
        "name = \"a\"\nurl = \"http://a\"\nform = \"reencrypt\"",
        r#":5: callbacks.hr.to[0].token: is missing; write one like token = { env = "CRM_CALLBACK_TOKEN" }"#,
    ),
    (
        "name = \"a\"\nurl = \"http://a\"\nreply = true\nordered = true",
        ":9: callbacks.hr.to[0].ordered: conflicts with reply = true: a reply cannot wait for the messages before it",
    ),
    (
        "name = \"a\"\nurl = \"http://a\"\n[[callbacks.hr.to]]\nname = \"a\"\nurl = \"http://b\"",
        r#":9: callbacks.hr.to[1].name: "a" is the name of another target; rename one of them"#,
    ),
    (
        "name = \"a\"\nurl = \"http://a\"\nreply = true\n[[callbacks.hr.to]]\nname = \"b\"\nurl = \"http://b\"\nreply = true",
        r#":12: callbacks.hr.to[1].reply: is set for "a" too; at most one target can reply"#,
    ),
    (
        "name = \"a\"\npull = true\nclients = [\"x\"]\n[[callbacks.hr.to]]\nname = \"b\"\npull = true\nclients = [\"x\"]",
        r#":12: callbacks.hr.to[1].clients: names "x", which reads the events of "a" already; a client reads those of one target"#,
    ),
];

#[test]
fn mistakes_in_targets_are_refused() {
    for (target, expected) in INVALID_TARGETS {
        assert_refused(&[(&format!("{CALLBACK}[[callbacks.hr.to]]\n{target}"), expected)]);
    }
}
