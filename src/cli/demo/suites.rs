//! The demo of a service provider: a suite whose tickets and corps the simulator pushes to the proxy.

use tempfile::TempDir;

use super::{dashboard_urls, port_taken_note, replicas::random_store_key};
use crate::{
    app::App,
    cli::{
        CliError, print,
        simulated_suite::{console_settings, sections, with_suite},
    },
    config::Address,
    simulator::{Settings, Simulator},
};

/// A corp that authorises the suite.
const CORPID: &str = "wpDemoCorp";

/// A simulator with a provider and a suite, and no agent.
pub(super) fn simulator_settings() -> Settings {
    with_suite(Settings { agents: Vec::new(), ..Settings::default() })
}

/// The sections of the demo's proxy.toml for them; the state is in its temporary directory.
pub(super) fn config_sections(dir: &TempDir, settings: &Settings) -> String {
    let (path, key) = (dir.path().join("state.db").display().to_string(), random_store_key());
    format!("\n[state]\npath = {path:?}\nkey = {key:?}\n{}", sections(settings))
}

/// Prints commands to try, which work as printed. `ports` are the wanted ones of the proxy and of the simulator's control
/// API.
pub(super) fn print_instructions(
    app: &App,
    (wanted, wanted_control): (u16, u16),
    simulator: &Simulator,
) -> Result<(), CliError> {
    let Some(proxy) = app.addresses().first().and_then(Address::to_connect) else { return Ok(()) };
    let control = simulator.control_addr();
    simulator.add_callback(console_settings(proxy));
    let admin = dashboard_urls([app].into_iter(), "");
    let notes = port_taken_note("proxy", wanted, proxy)
        + &port_taken_note("simulator's control address", wanted_control, control);
    print(format!(
        r#"{notes}wecom-proxy demo: a proxy on http://{proxy} in front of a simulated WeCom, with the suite crm of a service provider. Paste these in another terminal:

# 1. WeCom pushes a suite_ticket; the proxy keeps it
curl -X POST 'http://{control}/control/push?callback=crm&event=suite_ticket'

# 2. A corp authorises the suite; the proxy fetches and keeps its permanent code
curl -X POST 'http://{control}/control/push?callback=crm&event=create_auth&corpid={CORPID}'

# 3. A call in the name of that corp, without any token
curl 'http://{proxy}/crm:{CORPID}/cgi-bin/user/get?userid=zhangsan'

# 4. The suite's token is voided, and the next call with it succeeds all the same: see X-Wecom-Retried
curl -s -X POST 'http://{control}/control/revoke?agent=crm' && curl -i 'http://{proxy}/crm/cgi-bin/service/get_pre_auth_code'

The suite's ticket, token and corps: curl {admin}api/suites and curl {admin}api/suites/crm/corps
Dashboard of the proxy, for a browser: {admin}
Commands of the simulator: curl http://{control}/control    Stop: Ctrl-C
"#
    ))
}
