//! Facts about WeCom, without I/O: response formats and errcodes.

pub mod errcode; // the codes the proxy acts on, and what an operator should do about the common ones
pub mod response; // the errcode of a streamed response; gettoken's response
