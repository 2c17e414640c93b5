//! Internal items that `benches/` measures and `fuzz/` tests. Hidden, because they are not part of the public API; public
//! items are used by their own paths.

pub use crate::{
    proxy::{
        internals::{ResponseHeaderBench, key_client, pass_client},
        query::{unchanged_target, with_token},
        target::{TargetError, TargetKind},
    },
    request_body::internals::{usage, wait_until_written},
    server::http1::head::{HeadError, RequestHead, RequestHeadCache, parse as parse_request_head},
    upstream::head::{ResponseHead, parse_response_head},
};
