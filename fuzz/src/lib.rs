//! What is read from strangers, and what must hold of it whatever they send: one `check` each, which panics where it does
//! not. The fuzz targets call them, and so does the ordinary test run (`tests/it/properties.rs`).
//!
//! The models beside them are written from what was promised and from the RFCs, and share no code with the proxy.

pub mod chunks;
pub mod config;
pub mod errcode;
pub mod http2_frames;
pub mod pass;
pub mod query;
pub mod reference;
pub mod replay;
pub mod request_head;
pub mod response_head;
pub mod target;
