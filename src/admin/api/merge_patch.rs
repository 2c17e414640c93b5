//! JSON Merge Patch (RFC 7396).

use serde_json::{Map, Value};

use crate::config::wipe_json;

/// Applies `patch` to an object: `null` removes a key, objects are merged, everything else replaces. What goes is wiped,
/// because it can be a secret.
pub(super) fn merge(target: &mut Map<String, Value>, patch: Map<String, Value>) {
    for (key, value) in patch {
        match value {
            Value::Null => target.remove(&key).iter_mut().for_each(wipe_json),
            Value::Object(patch) => {
                let entry = target.entry(key).or_insert_with(|| Map::new().into());
                match entry {
                    Value::Object(target) => merge(target, patch),
                    other => {
                        let mut target = Map::new();
                        merge(&mut target, patch);
                        wipe_json(other);
                        *other = target.into();
                    }
                }
            }
            other => target.insert(key, other).iter_mut().for_each(wipe_json),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn merged(target: &Value, patch: Value) -> Value {
        let mut target = target.as_object().expect("an object").clone();
        let Value::Object(patch) = patch else { panic!("an object") };
        merge(&mut target, patch);
        target.into()
    }

    /// RFC 7396, appendix A, without the patches and targets that are no objects.
    #[test]
    fn examples_of_the_rfc_hold() {
        for (target, patch, expected) in [
            (json!({"a":"b"}), json!({"a":"c"}), json!({"a":"c"})),
            (json!({"a":"b"}), json!({"b":"c"}), json!({"a":"b","b":"c"})),
            (json!({"a":"b"}), json!({"a":null}), json!({})),
            (json!({"a":"b","b":"c"}), json!({"a":null}), json!({"b":"c"})),
            (json!({"a":["b"]}), json!({"a":"c"}), json!({"a":"c"})),
            (json!({"a":"c"}), json!({"a":["b"]}), json!({"a":["b"]})),
            (json!({"a":{"b":"c"}}), json!({"a":{"b":"d","c":null}}), json!({"a":{"b":"d"}})),
            (json!({"a":[{"b":"c"}]}), json!({"a":[1]}), json!({"a":[1]})),
            (json!({"e":null}), json!({"a":1}), json!({"e":null,"a":1})),
            (json!({}), json!({"a":{"bb":{"ccc":null}}}), json!({"a":{"bb":{}}})),
        ] {
            assert_eq!(merged(&target, patch.clone()), expected, "{target} {patch}");
        }
    }

    fn any_object() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            "[a-c]{0,2}".prop_map(Value::from)
        ];
        let value = leaf.prop_recursive(3, 20, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                prop::collection::btree_map("[a-d]", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        });
        prop::collection::btree_map("[a-d]", value, 0..4)
            .prop_map(|map| Value::Object(map.into_iter().collect()))
    }

    /// The algorithm as the RFC writes it.
    fn reference(target: Value, patch: &Value) -> Value {
        let Value::Object(patch) = patch else { return patch.clone() };
        let mut target = target.as_object().cloned().unwrap_or_default();
        for (name, value) in patch {
            if value.is_null() {
                target.remove(name);
            } else {
                let before = target.remove(name).unwrap_or_default();
                target.insert(name.clone(), reference(before, value));
            }
        }
        target.into()
    }

    proptest! {
        #[test]
        fn merge_is_the_algorithm_of_the_rfc(target in any_object(), patch in any_object()) {
            prop_assert_eq!(merged(&target, patch.clone()), reference(target, &patch));
        }
    }
}
