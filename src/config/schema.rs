//! The JSON Schema of `proxy.toml`, for editors.

/// JSON Schema, draft 2020-12. The tests compare its keys with those that are read.
pub const SCHEMA: &str = include_str!("schema.json");
