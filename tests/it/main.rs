//! Stories about the proxy, told over real sockets with the simulator as WeCom.

#![allow(unreachable_pub, reason = "a test program has no public side")]
#![allow(dead_code, reason = "the stage serves stories that are still to be told")]

mod refresh;
mod refresh_http2;
mod relay;
mod replay;
mod stage;
mod weight;
