//! wecom-proxy: plain requests go in, the right agent's access_token goes out with them.
//!
//! The map; a room uses only rooms below it.

pub mod config; // proxy.toml: read, checked and resolved before anything starts
pub mod secret; // text that must never be shown
