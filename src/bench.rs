//! What `benches/` counts of the rooms' insides, one function a part. It is hidden because it is no part of the library's
//! interface; whatever is public anyway is used from where it is.

pub use crate::{
    proxy::bench::{Signer, client_of_key, client_of_pass, rewrite, route},
    server::bench::{Habits, request_head},
    upstream::bench::answer_head,
};
