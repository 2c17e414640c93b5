//! wecom-proxy: plain requests go in, the right agent's access_token goes out with them.
//!
//! The map; a room uses only rooms below it.

pub mod wecom; // facts of WeCom: its replies, its errcodes; no I/O

pub mod secret; // text that must never be shown
