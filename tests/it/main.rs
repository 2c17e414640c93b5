//! Stories about the proxy, told over real sockets with the simulator as WeCom.

#![allow(unreachable_pub, reason = "a test program has no public side")]

mod errors;
mod forward;
mod headers;
mod hostile;
mod identify;
mod readme;
mod refresh;
mod refresh_http2;
mod relay;
mod replay;
mod stage;
mod stream;
mod timeouts;
mod weight;
mod wire;
