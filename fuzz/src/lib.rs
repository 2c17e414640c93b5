//! The parsers of untrusted input and their invariants: one `check` each, which panics if an invariant does not hold. Called
//! by the fuzz targets and by the ordinary tests (`tests/it/properties.rs`).
//!
//! The reference implementations follow the documentation and the RFCs, and share no code with the proxy.

pub mod callback;
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
