//! Internal functions that `benches/` measures. Hidden, because it is not part of the public API; `benches/` uses public
//! items by their own paths.

pub use crate::{
    proxy::bench::{ResponseHeaderBench, inject_token, key_client, parse_target, pass_client},
    server::bench::{RequestHeadCache, request_head},
    upstream::bench::response_head,
};
