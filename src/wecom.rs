//! Facts of WeCom: what its replies look like and what its errcodes mean. No I/O, and nothing of this proxy's own.

pub mod errcode; // the codes the proxy acts on, and what an operator should do about the common ones
pub mod response; // the errcode of a reply, found while it streams; the answer of gettoken
