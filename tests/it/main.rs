//! Stories about the proxy, told over real sockets with the simulator as WeCom.

#![allow(unreachable_pub, reason = "a test program has no public side")]

mod admin;
mod bench;
mod certificates;
mod drain;
mod egress;
mod errors;
mod forward;
mod gettoken;
mod headers;
mod hostile;
mod identify;
mod key;
mod legacy;
mod limits;
mod log;
mod passes;
mod process;
mod program;
mod readme;
mod real_programs;
mod redis;
mod refresh;
mod refresh_http2;
mod relay;
mod reload;
mod replay;
mod replicas;
mod scale;
mod sdks;
mod secrecy;
mod stage;
mod stream;
mod tickets;
mod timeouts;
mod tls;
mod tls_clients;
mod weight;
mod wire;
