use proptest::prelude::*;

use super::super::clients::AgentSet;
use super::*;

const HASH: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

fn table(value: Value) -> JsonTable {
    JsonTable::parse(value.to_string().as_bytes()).expect("an object")
}

fn origin() -> Origin {
    Origin::State { version: 7, generation: 9 }
}

fn agent(value: Value) -> Result<AgentConfig, String> {
    read_agent("hr", value).map(|(agent, _)| agent).map_err(text)
}

fn read_agent(name: &str, value: Value) -> Result<(AgentConfig, Vec<Warning>), Error> {
    let text = "[upstreams.private]\nurl = \"https://wecom.corp.example\"\n[agents.a]\ncorpid = \"ww1\"\nsecret = \"s-of-a\"\n";
    let upstreams = crate::config::tests::load_text(text).expect("a configuration").upstreams;
    agent_from_json(name, &table(value), origin(), &upstreams)
}

fn client(value: Value) -> Result<ClientConfig, String> {
    client_from_json("billing", &table(value), origin(), None).map(|(client, _)| client).map_err(text)
}

fn text(error: Error) -> String {
    format!("{}: {}", error.key.unwrap_or_default(), error.message.english())
}

/// A table with all keys that are not written with another one's.
fn all_agent_keys() -> Value {
    json!({
        "corpid": "ww1234567890abcdef",
        "secret": "a-secret-of-wecom",
        "upstream": "private",
        "agentid": 1_000_002,
        "accept_secret": true,
        "limit": "6000/m",
        "plain": ["/cgi-bin/corpgroup/*"],
        "jssdk_origins": ["https://app.example.com"],
    })
}

fn all_client_keys() -> Value {
    json!({
        "key_sha256": HASH,
        "agents": ["hr", "ops"],
        "key_in": "path",
        "allow": ["POST /cgi-bin/message/send", "/cgi-bin/user/*"],
        "limit": "600/m",
        "always_200": true,
    })
}

/// Which suites there are is checked where the client is written; the record must be in force everywhere.
#[test]
fn suites_stand_beside_all_agents_where_none_are_known() {
    let mut value = all_client_keys();
    value["agents"] = json!(["*", "crm"]);
    let AgentSet::AllWith(names) = client(value).expect("a client").agents else { panic!("all agents") };
    assert_eq!(names.into_iter().collect::<Vec<_>>(), ["crm"]);
}

#[test]
fn all_keys_are_read_and_shown_again() {
    let shown = agent_to_json(&agent(all_agent_keys()).expect("an agent"));
    let mut expected = all_agent_keys();
    expected["secret"] = json!({ "set": true });
    assert_eq!(Value::Object(shown.clone()), expected);
    let missing = agents::KEYS.iter().filter(|key| !shown.contains_key(**key));
    assert_eq!(missing.collect::<Vec<_>>(), Vec::<&&str>::new(), "show the key in agent_to_json");

    let shown = client_to_json(&client(all_client_keys()).expect("a client"));
    let mut expected = all_client_keys();
    expected["key_sha256"] = json!({ "set": true });
    assert_eq!(Value::Object(shown.clone()), expected);
    let missing = clients::KEYS.iter().filter(|key| **key != "key" && !shown.contains_key(**key));
    assert_eq!(missing.collect::<Vec<_>>(), Vec::<&&str>::new(), "show the key in client_to_json");
}

#[test]
fn defaults_are_left_out() {
    let minimal = json!({ "corpid": "ww1", "secret": "a-secret" });
    let shown = Value::Object(agent_to_json(&agent(minimal).expect("an agent")));
    assert_eq!(shown, json!({ "corpid": "ww1", "secret": { "set": true } }));
    let minimal = json!({ "key_sha256": HASH, "agents": ["*"] });
    let shown = Value::Object(client_to_json(&client(minimal).expect("a client")));
    assert_eq!(shown, json!({ "key_sha256": { "set": true }, "agents": ["*"] }));
}

#[test]
fn mistakes_are_described_as_by_check() {
    let with = |key: &str, value: Value| {
        let mut table = all_agent_keys();
        table[key] = value;
        agent(table).expect_err("a mistake")
    };
    for (key, value, expected) in [
        (
            "corpid",
            json!(7),
            "agents.hr.corpid: must be a string like \"ww1234567890abcdef\", not a whole number",
        ),
        (
            "corpid",
            json!(""),
            "agents.hr.corpid: \"\" is not a corpid; a corpid is visible ASCII without spaces",
        ),
        ("accept_secret", json!(1), "agents.hr.accept_secret: must be true or false, not a whole number"),
        ("agentid", json!(1.5), "agents.hr.agentid: must be a whole number, 0 or more, not a fraction"),
        ("agentid", json!(-1), "agents.hr.agentid: must be a whole number, 0 or more, not -1"),
        ("agentid", json!(null), "agents.hr.agentid: must not be null; leave the key out"),
        ("plain", json!([null]), "agents.hr.plain: must not be null; leave the key out"),
        ("limit", json!("0/m"), "agents.hr.limit: would allow no request; the count must be 1 or more"),
        (
            "corpId",
            json!("x"),
            "agents.hr.corpId: unknown key \"corpId\"; did you mean \"corpid\"? allowed: ",
        ),
        (
            "secret",
            json!({ "env": "HOME" }),
            "agents.hr.secret: must be a string, not a table; { env } and { file } ",
        ),
        (
            "secret",
            json!({ "file": "/etc/passwd" }),
            "agents.hr.secret: must be a string, not a table; { env } ",
        ),
        ("secret", json!(""), "agents.hr.secret: is empty"),
        ("secret", json!("a b"), "agents.hr.secret: is not a secret: "),
    ] {
        let message = with(key, value);
        assert!(message.starts_with(expected), "{message}\n{expected}");
    }
    let message = agent(json!({ "corpid": "ww1" })).expect_err("no secret");
    assert!(message.starts_with("agents.hr.secret: is missing"), "{message}");
    let mut table = all_client_keys();
    table["key"] = json!("a-key-of-billing-0123456789");
    let message = client(table.clone()).expect_err("a key");
    assert!(message.starts_with("clients.billing.key: "), "{message}");
    table.as_object_mut().expect("a table").remove("key_sha256");
    let message = client(table).expect_err("a key");
    assert!(message.starts_with("clients.billing.key: ") && message.contains("key_sha256"), "{message}");
    for name in ["", "a b", "a.b", "中", "cgi-bin", "a\"]\n[agents.b", &"n".repeat(65)] {
        let read = read_agent(name, all_agent_keys());
        assert!(read.is_err(), "{name}");
    }
}

#[test]
fn plain_secret_is_no_mistake_here() {
    let (_, warnings) = read_agent("hr", all_agent_keys()).expect("an agent");
    assert_eq!(warnings, []);
}

#[test]
fn duplicate_keys_and_other_values_are_refused() {
    for (text, expected) in [
        (r#"{"a":1,"a":2}"#, "\"a\" is a duplicate key; keep one"),
        (r#"{"a":{"b":1,"b":1}}"#, "\"b\" is a duplicate key"),
        ("[]", "must be a JSON object"),
        ("", "EOF"),
        ("{", "EOF"),
        (r#"{"a":1}x"#, "trailing characters"),
        (r#"{"a":1e999}"#, "number out of range"),
    ] {
        let error = JsonTable::parse(text.as_bytes()).expect_err("a mistake");
        assert!(error.contains(expected), "{error}");
    }
    assert!(JsonTable::parse(&[b'[', 0xFF, b']']).is_err());
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        (-1e300..1e300f64).prop_map(Value::from),
        "(\\PC|[\\x00-\\x7f]){0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("(\\PC|[\\x00-\\x7f]){0,6}", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// The value that toml reads, as JSON.
fn from_toml(value: &toml::Value) -> Value {
    match value {
        toml::Value::String(text) => text.as_str().into(),
        toml::Value::Integer(number) => (*number).into(),
        toml::Value::Float(number) => (*number).into(),
        toml::Value::Boolean(value) => (*value).into(),
        toml::Value::Datetime(_) => Value::Null,
        toml::Value::Array(items) => items.iter().map(from_toml).collect::<Vec<_>>().into(),
        toml::Value::Table(table) => {
            Value::Object(table.iter().map(|(key, value)| (key.clone(), from_toml(value))).collect())
        }
    }
}

proptest! {
    #[test]
    fn any_table_is_read_from_its_toml_unchanged(
        name in "(\\PC|[\\x00-\\x7f]){0,12}",
        value in prop::collection::btree_map("(\\PC|[\\x00-\\x7f]){0,6}", any_json(), 0..4),
    ) {
        let table = JsonTable::from(value.into_iter().collect::<Map<_, _>>());
        let Ok(text) = to_toml("agents", &name, &table) else { return Err(TestCaseError::fail("null")) };
        // A number above the range of toml's own type is read by ours as text.
        if let Ok(read) = text.parse::<toml::Table>() {
            let read = from_toml(&read["agents"][&name]);
            prop_assert_eq!(&read, &Value::Object(table.as_map().clone()));
        }
        prop_assert!(toml::de::DeTable::parse(&text).is_ok());
        prop_assert!(text.len() <= table.to_bytes().len() * 6 + 256);
    }

    #[test]
    fn text_is_parsed_as_by_serde_json(text in any_json()) {
        let text = text.to_string();
        let parsed = JsonTable::parse(text.as_bytes());
        match serde_json::from_str::<Value>(&text) {
            Ok(Value::Object(map)) => prop_assert_eq!(parsed, Ok(JsonTable(map))),
            _ => prop_assert!(parsed.is_err()),
        }
    }
}
