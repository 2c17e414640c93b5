//! wecom-proxy: plain requests go in, the right agent's access_token goes out with them.
//!
//! The map; a room uses only rooms below it.

pub mod tokens; // current(agent), replace(refused): one gettoken however many ask

pub mod upstream; // the way out: pooled connections to WeCom

pub mod config; // proxy.toml

pub mod wecom; // facts of WeCom, no I/O

pub mod upload; // a request's body: streamed, bounded, kept for another attempt

pub mod headers; // which headers stop here

pub mod io; // byte streams as one type

pub mod deadline; // a deadline that is cheap to move

pub mod secret; // text that must never be shown
