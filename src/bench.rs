//! What `benches/` counts of the rooms' insides, one function a part. It is hidden because it is no part of the library's
//! interface; whatever is public anyway is used from where it is.

pub use crate::{
    proxy::bench::{ResponseHeaderBench, inject_token, key_client, parse_target, pass_client},
    server::bench::{RequestHeadCache, request_head},
    upstream::bench::response_head,
};
