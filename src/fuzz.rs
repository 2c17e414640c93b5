//! Internal functions that `fuzz/` tests. Hidden, because it is not part of the public API; `fuzz/` uses public items by
//! their own paths.

pub use crate::{
    proxy::fuzz::{ResolvedTarget, TargetKind, resolve_target},
    request_body::fuzz::{block_on, usage, wait_until_written},
    server::fuzz::{FuzzedRequestHead, RequestHeadCache, request_head},
    upstream::fuzz::{UpstreamResponseHead, response_head},
};
