//! The demo's callback: the simulator pushes to the proxy, and stands for the program that messages are delivered to.

use std::net::SocketAddr;

use tempfile::TempDir;

use super::replicas::random_store_key;
use crate::simulator::SimulatedCallback;

/// These protect nothing: the simulator has them too.
const TOKEN: &str = "token-of-the-demo";
const AES_KEY: &str = "abcdefghijklmnopqrstuvwxyz0123456789ABCDEFG";
/// The corpid of the simulator's agents.
const CORPID: &str = "ww1234567890abcdef";

/// The sections of the demo's proxy.toml for callbacks; the state is in its temporary directory.
pub(super) fn config_sections(dir: &TempDir, control: SocketAddr) -> String {
    let (path, key) = (dir.path().join("state.db").display().to_string(), random_store_key());
    format!(
        "\n[state]\npath = {path:?}\nkey = {key:?}\n\n[callbacks.hr]\nagent = \"hr\"\ntoken = {TOKEN:?}\naes_key = {AES_KEY:?}\n\n\
         [[callbacks.hr.to]]\nname = \"demo\"\nurl = \"http://{control}/control/deliveries\"\n"
    )
}

/// What would be set in WeCom's console for the demo's callback.
pub(super) fn console_settings(proxy: SocketAddr) -> SimulatedCallback {
    SimulatedCallback {
        name: "hr".to_owned(),
        url: format!("http://{proxy}/callbacks/hr"),
        token: TOKEN.to_owned(),
        aes_key: AES_KEY.to_owned(),
        receive_id: CORPID.to_owned(),
    }
}
