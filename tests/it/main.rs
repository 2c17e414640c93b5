//! Stories about the proxy, told over real sockets with the simulator as WeCom.

// One binary: its modules share what they make public.
#![allow(unreachable_pub)]

mod admin;
mod certificates;
mod drain;
mod egress;
mod process;
mod program;
mod real_programs;
mod relay;
mod reload;
mod secrecy;
mod stage;
mod tls;
mod tls_clients;
