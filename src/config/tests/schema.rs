//! The JSON Schema has the keys that are read, and no others.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::config::*;

#[test]
fn schema_has_the_keys_that_are_read() {
    let schema: Value = serde_json::from_str(SCHEMA).unwrap();
    let agents = [agents::KEYS, suites::CORP_KEYS].concat();
    let table = |name: &str| format!("/properties/{name}");
    let named = |name: &str| format!("/properties/{name}/additionalProperties");
    for (pointer, keys) in [
        (String::new(), KEYS),
        (table("server"), server::KEYS),
        (table("server") + "/properties/tls", server::TLS_KEYS),
        (table("upstream"), upstream::KEYS),
        (table("upstream") + "/properties/via/anyOf/1", egress::KEYS),
        (named("upstreams"), upstream::KEYS),
        (table("tokens"), tokens::KEYS),
        (table("tokens") + "/properties/store/anyOf/1", store::KEYS),
        (table("replay"), replay::KEYS),
        (table("quotas"), quotas::KEYS),
        (table("quotas") + "/properties/limit/items", quotas::LIMIT_KEYS),
        (table("log"), log::KEYS),
        (table("admin"), admin::KEYS),
        (table("state"), state::KEYS),
        (named("agents"), &agents),
        (named("clients"), clients::KEYS),
        (named("callbacks"), callbacks::KEYS),
        (named("callbacks") + "/properties/to/items", callbacks::TARGET_KEYS),
        (named("providers"), suites::PROVIDER_KEYS),
        (named("suites"), suites::SUITE_KEYS),
        (named("suites") + "/properties/to/items", callbacks::TARGET_KEYS),
    ] {
        let object = schema.pointer(&pointer).unwrap_or_else(|| panic!("{pointer}"));
        assert_eq!(object["additionalProperties"], false, "{pointer}");
        let found: BTreeSet<&str> =
            object["properties"].as_object().unwrap().keys().map(String::as_str).collect();
        let read: BTreeSet<&str> = keys.iter().copied().collect();
        assert_eq!(found, read, "{pointer}");
    }
}
