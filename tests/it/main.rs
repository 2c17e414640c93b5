//! Stories about the proxy, told over real sockets with the simulator as WeCom.

// One binary: nobody imports from it, and not every story needs all of the stage.
#![allow(dead_code, unreachable_pub)]

mod errors;
mod forward;
mod headers;
mod hostile;
mod identify;
mod readme;
mod relay;
mod stage;
mod stream;
mod timeouts;
mod wire;
