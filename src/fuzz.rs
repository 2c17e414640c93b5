//! What `fuzz/` tries of the rooms' insides, a door to each. It is hidden because it is no part of the library's
//! interface; whatever is public anyway is tried from where it is.

pub use crate::{
    proxy::fuzz::{Kind, Way, way},
    server::fuzz::{Habits, RequestHead, request_head},
    upload::fuzz::{held, on_runtime, written},
    upstream::fuzz::{AnswerHead, answer_head},
};
