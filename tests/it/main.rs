//! Stories about the proxy, told over real sockets with the simulator as WeCom.

mod readme;
mod relay;
mod stage;
