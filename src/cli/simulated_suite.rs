//! A provider and a suite of the simulator, for `demo --suite` and `simulator --suite`, and their tables in proxy.toml.

use std::net::SocketAddr;

use crate::simulator::{Settings, SimulatedCallback, SimulatedProvider, SimulatedSuite};

/// These protect nothing: the simulator has them too.
const TOKEN: &str = "token-of-the-demo";
const AES_KEY: &str = "abcdefghijklmnopqrstuvwxyz0123456789ABCDEFG";
const PROVIDER_ID: &str = "ww9r0v1der00000001";
const SUITE_ID: &str = "ww5u1te00000000001";

/// The settings with a provider and a suite of it.
pub(super) fn with_suite(settings: Settings) -> Settings {
    let (name, corpid) = ("acme".to_owned(), PROVIDER_ID.to_owned());
    let secret = "not-a-secret-acme-00000000000000000000000000".to_owned();
    let provider = SimulatedProvider { name, corpid, secret };
    let (name, suite_id) = ("crm".to_owned(), SUITE_ID.to_owned());
    let secret = "not-a-secret-crm-000000000000000000000000000".to_owned();
    Settings {
        providers: vec![provider],
        suites: vec![SimulatedSuite { name, suite_id, secret }],
        ..settings
    }
}

/// Their tables in proxy.toml.
pub(super) fn sections(settings: &Settings) -> String {
    let mut text = String::new();
    for SimulatedProvider { name, corpid, secret } in &settings.providers {
        text += &format!("\n[providers.{name}]\ncorpid = {corpid:?}\nsecret = {secret:?}\n");
    }
    for SimulatedSuite { name, suite_id, secret } in &settings.suites {
        text += &format!(
            "\n[suites.{name}]\nsuite_id = {suite_id:?}\nsecret = {secret:?}\nprovider = \"acme\"\ntoken = {TOKEN:?}\naes_key = {AES_KEY:?}\n"
        );
    }
    text
}

/// What would be set in WeCom's console for the suite's command URL.
pub(super) fn console_settings(proxy: SocketAddr) -> SimulatedCallback {
    SimulatedCallback {
        name: "crm".to_owned(),
        url: format!("http://{proxy}/callbacks/crm"),
        token: TOKEN.to_owned(),
        aes_key: AES_KEY.to_owned(),
        receive_id: SUITE_ID.to_owned(),
    }
}
