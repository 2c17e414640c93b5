//! What `fuzz/` tries of the rooms' insides, a door to each. It is hidden because it is no part of the library's
//! interface; whatever is public anyway is tried from where it is.

pub use crate::{
    proxy::fuzz::{ResolvedTarget, TargetKind, resolve_target},
    request_body::fuzz::{block_on, usage, wait_until_written},
    server::fuzz::{FuzzedRequestHead, RequestHeadCache, request_head},
    upstream::fuzz::{UpstreamResponseHead, response_head},
};
