//! Stories about the proxy, told over real sockets with the simulator as WeCom.

#![allow(unreachable_pub)] // one binary: nobody imports from it

//mod errors;
mod forward;
mod headers;
//mod hostile;
mod identify;
mod relay;
mod stage;
//mod stream;
//mod timeouts;
mod wire;
