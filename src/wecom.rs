//! Facts about WeCom, without I/O: response formats, errcodes and callbacks.

pub mod callback; // signature, encryption and parts of what WeCom pushes
pub mod errcode; // the codes the proxy acts on, and what an operator should do about the common ones
pub mod jssdk; // signatures for web pages
pub mod provider_api; // the calls of service providers: the token that a path wants, and what an errcode voids
pub mod quotas; // how often calls may be made
pub mod response; // the errcode of a streamed response; gettoken's response
