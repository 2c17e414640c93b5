//! wecom-proxy: plain requests go in, the right agent's access_token goes out with them.
//!
//! The map; a room uses only rooms below it.

pub mod secret; // text that must never be shown
pub mod simulator; // a WeCom that expires, revokes, stalls and counts; shares nothing with the other rooms
