//! A simulated WeCom API with fault injection, for the demo, our tests and users' own tests. It shares no code and no
//! constant with the rest of the crate, so that a mistake there is not repeated here.
//!
//! ```
//! use wecom_proxy::simulator::{Fault, Settings, Simulator};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let wecom = Simulator::start_local(Settings::default()).await?;
//! let url = format!("http://{}/cgi-bin/user/get?userid=zhangsan", wecom.api_addr());
//! wecom.inject(Fault::errcode(45009).on_path("/cgi-bin/user/get").times(1))?;
//! wecom.revoke_tokens("hr")?;
//! // … call `url` through the program under test …
//! wecom.wait_until(|observed| observed.executed_count("/cgi-bin/user/get") == 1).await?;
//! assert_eq!(wecom.gettoken_count("hr")?, 2);
//! # Ok(()) }
//! ```

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::watch;

mod agents; // secrets and tokens
mod api; // serving one request
mod body; // request bodies
mod callbacks; // pushes to receiver URLs, and what is delivered
mod company; // people, departments, tags: data
mod control; // the control address
mod directory; // people, departments, tags: read
mod directory_changes; // people, departments, tags: create, update, delete
mod echo; // calls that return the request
mod errors; // errcodes and their texts
mod faults; // fault injection
mod listener; // listeners and connections
mod media; // files
mod messages; // messages
mod multipart; // files in forms
mod observed; // a consistent view of the recorded traffic
mod query; // query strings
mod random; // random text
mod recorder; // recorded traffic
mod response; // responses and their bodies
mod routes; // the API calls
mod state; // all state, behind one lock
mod suites; // service providers, their suites and the corps that authorise these

#[cfg(test)]
mod tests;

pub use agents::{IssuedTokens, SimulatedAgent, UnknownAgent};
pub use callbacks::{PushResponse, RecordedDelivery, SimulatedCallback};
pub use faults::{DropPoint, Fault};
pub use observed::Observed;
pub use recorder::{RecordedMessage, RecordedRequest};
pub use response::generated_bytes;
pub use suites::{SimulatedProvider, SimulatedSuite, SuiteError, SuiteEvent};

use state::{Shared, State};

/// Time limit of [`Simulator::wait_until`].
const WAIT_TIMEOUT: Duration = Duration::from_secs(20);

/// The initial state of a simulator.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The known agents (applications).
    pub agents: Vec<SimulatedAgent>,
    /// The known service providers.
    pub providers: Vec<SimulatedProvider>,
    /// Their suites.
    pub suites: Vec<SimulatedSuite>,
    /// Lifetime of a token. `expires_in` is this lifetime in whole seconds, rounded up, at least 1; it is not reduced
    /// when the same token is returned again.
    pub token_lifetime: Duration,
    /// Serves the API over TLS; HTTP/2 where its ALPN offers `h2`. The control address stays plain.
    pub tls: Option<Arc<rustls::ServerConfig>>,
    /// Gettoken calls of one agent beyond this number fail with errcode 45009.
    pub gettoken_limit: Option<u32>,
    /// The keys that `webhook/send` accepts.
    pub webhook_keys: Vec<String>,
    /// Sends the undocumented headers Error-Code and Error-Msg, which captured WeCom traffic contains.
    pub errcode_headers: bool,
    /// What stands before `/cgi-bin/` in each path, such as `/prefix`; requests without it get 404.
    pub path_prefix: String,
}

impl Default for Settings {
    /// Two agents of one company, `hr` and `ops`, with secrets that are obviously not real.
    fn default() -> Self {
        Self {
            agents: vec![
                SimulatedAgent::new("hr", "not-a-secret-hr-0000000000000000000000000000", 1_000_002),
                SimulatedAgent::new("ops", "not-a-secret-ops-000000000000000000000000000", 1_000_003),
            ],
            providers: Vec::new(),
            suites: Vec::new(),
            token_lifetime: Duration::from_secs(7200),
            tls: None,
            gettoken_limit: None,
            webhook_keys: vec!["00000000-1111-2222-3333-444444444444".to_owned()],
            errcode_headers: true,
            path_prefix: String::new(),
        }
    }
}

/// Handle to a running simulator. Clones share it; it stops when the last handle is dropped.
#[derive(Clone)]
pub struct Simulator(Arc<RunningSimulator>);

struct RunningSimulator {
    shared: Arc<Shared>,
    api_addr: SocketAddr,
    control_addr: SocketAddr,
    stop: watch::Sender<()>,
}

impl fmt::Debug for Simulator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Simulator({}, control {})", self.0.api_addr, self.0.control_addr)
    }
}

/// Start and stop.
impl Simulator {
    /// Binds both addresses and serves in spawned tasks. Port 0 selects a free port.
    ///
    /// # Errors
    /// If an address cannot be bound.
    pub async fn start(settings: Settings, api: SocketAddr, control: SocketAddr) -> io::Result<Self> {
        Self::serve(settings, TcpListener::bind(api).await?, TcpListener::bind(control).await?)
    }

    /// Listens on free ports of 127.0.0.1.
    ///
    /// # Errors
    /// If no port can be bound.
    pub async fn start_local(settings: Settings) -> io::Result<Self> {
        let free = SocketAddr::from(([127, 0, 0, 1], 0));
        Self::start(settings, free, free).await
    }

    /// Serves on bound listeners. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// If a listener's local address cannot be read.
    pub fn serve(settings: Settings, api: TcpListener, control: TcpListener) -> io::Result<Self> {
        let (api_addr, control_addr) = (api.local_addr()?, control.local_addr()?);
        listener::set_backlog(&api)?;
        let (stop, stopped) = watch::channel(());
        let tls = settings.tls.clone();
        let shared = Arc::new(Shared::new(settings));
        tokio::spawn(listener::serve_api(shared.clone(), api, tls, stopped.clone()));
        tokio::spawn(listener::serve_control(shared.clone(), control, stopped));
        Ok(Self(Arc::new(RunningSimulator { shared, api_addr, control_addr, stop })))
    }

    /// The address of the API.
    pub fn api_addr(&self) -> SocketAddr {
        self.0.api_addr
    }

    /// The address of the control calls.
    pub fn control_addr(&self) -> SocketAddr {
        self.0.control_addr
    }

    /// Closes the listeners and all connections, even if other handles exist, and returns once they are closed. The
    /// addresses are then free for another simulator.
    pub async fn stop(&self) {
        self.0.stop.send_modify(|()| ());
        self.0.stop.closed().await;
    }
}

/// Control. Each method has its counterpart at the control address.
impl Simulator {
    /// Revokes all tokens of an agent: calls with them get errcode 40014.
    ///
    /// # Errors
    /// `UnknownAgent` if no agent has this name; the same holds for all methods that take an agent's name.
    pub fn revoke_tokens(&self, agent: &str) -> Result<(), UnknownAgent> {
        self.update(|state| state.change_agent(agent, |agents, at| agents.revoke_tokens(at)))
    }

    /// Expires all tokens of an agent: calls with them get errcode 42001.
    pub fn expire_tokens(&self, agent: &str) -> Result<(), UnknownAgent> {
        self.update(|state| state.change_agent(agent, |agents, at| agents.expire_tokens(at)))
    }

    /// Changes the secret of an agent; tokens and tickets issued for the old secret are revoked.
    pub fn reset_secret(&self, agent: &str, secret: &str) -> Result<(), UnknownAgent> {
        self.update(|state| state.change_agent(agent, |agents, at| agents.change_secret(at, secret)))
    }

    /// Makes gettoken return the agent's newest token even if it is revoked or expired.
    pub fn reissue_same_token(&self, agent: &str, on: bool) -> Result<(), UnknownAgent> {
        self.update(|state| state.change_agent(agent, |agents, at| agents.set_reissue_same_token(at, on)))
    }

    /// Adds an agent. Replaces the agent of the same name, whose tokens are revoked.
    pub fn add_agent(&self, agent: SimulatedAgent) {
        self.update(|state| state.agents.add(agent));
    }

    /// Adds a receiver URL for [`SimulatedCallback::push`] at the control address.
    pub fn add_callback(&self, callback: SimulatedCallback) {
        self.update(|state| state.callbacks.add(callback));
    }

    /// Adds a fault.
    pub fn inject(&self, fault: Fault) -> Result<(), UnknownAgent> {
        self.update(|state| state.inject(fault))
    }

    /// Sends all responses that [`Fault::hold`] holds, and removes these faults.
    pub fn release_held(&self) {
        self.update(|state| state.faults.release_held());
    }

    /// Closes all connections to the API, idle or not.
    pub fn close_connections(&self) {
        self.0.shared.close_connections();
    }

    /// Removes all faults and clears the recorded traffic; agents, secrets, tokens, people and media stay.
    pub fn reset(&self) {
        self.update(State::reset);
    }

    fn update<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        self.0.shared.update(change)
    }
}

/// Suites. Each method has its counterpart at the control address.
impl Simulator {
    /// Makes a new suite_ticket and returns it; those before stay valid until [`Self::expire_tickets`].
    ///
    /// # Errors
    /// If no suite has this name; the same holds for all methods that take a suite's name.
    pub fn issue_ticket(&self, suite: &str) -> Result<String, SuiteError> {
        self.update(|state| state.issue_ticket(suite))
    }

    /// Carries out an event of a suite and pushes it to the suite's command URL, as `callback` has it, whose name is the
    /// suite's.
    ///
    /// # Errors
    /// If the suite or the corp is unknown, or no attempt got a response.
    pub async fn push_suite_event(
        &self,
        event: SuiteEvent,
        callback: &SimulatedCallback,
        corpid: Option<&str>,
    ) -> Result<PushResponse, String> {
        let message = self.update(|state| state.suite_message(event, callback, corpid));
        callback.push(message.map_err(|error| error.to_string())?.as_bytes(), false).await
    }

    /// Ends the validity of all tickets of a suite.
    pub fn expire_tickets(&self, suite: &str) -> Result<(), SuiteError> {
        self.update(|state| state.suites.expire_tickets(suite))
    }

    /// An administrator of a corp authorises the suite; returns the auth_code. Its agent is named `SUITE:CORPID`.
    pub fn authorize_corp(&self, suite: &str, corpid: &str) -> Result<String, SuiteError> {
        self.update(|state| state.suites.authorize(suite, corpid))
    }

    /// A corp withdraws its authorisation: its permanent code and tokens are void.
    pub fn cancel_corp(&self, suite: &str, corpid: &str) -> Result<(), SuiteError> {
        self.update(|state| state.cancel_corp(suite, corpid))
    }

    /// The permanent code of an authorised corp.
    pub fn permanent_code(&self, suite: &str, corpid: &str) -> Option<String> {
        self.0.shared.read(|state| state.suites.permanent_code(suite, corpid))
    }

    /// The corp that authorised `suite` as if its permanent code had been fetched: returns the code.
    pub fn add_authorized_corp(&self, suite: &str, corpid: &str) -> Result<String, SuiteError> {
        self.update(|state| state.add_authorized_corp(suite, corpid))
    }
}

/// Recorded traffic.
impl Simulator {
    /// The last 10,000 requests to the API, oldest first.
    pub fn requests(&self) -> Vec<RecordedRequest> {
        self.observe(|observed| observed.requests().cloned().collect())
    }

    /// The last 1,000 accepted messages, oldest first.
    pub fn messages(&self) -> Vec<RecordedMessage> {
        self.observe(|observed| observed.messages().cloned().collect())
    }

    /// The last 1,000 deliveries to the control address, oldest first.
    pub fn deliveries(&self) -> Vec<RecordedDelivery> {
        self.0.shared.read(|state| state.callbacks.deliveries().cloned().collect())
    }

    /// Number of gettoken calls with this agent's corpid and secret, whatever their response.
    pub fn gettoken_count(&self, agent: &str) -> Result<u64, UnknownAgent> {
        self.0.shared.read(|state| Ok(state.agents.gettoken_count(state.agents.find(agent)?)))
    }

    /// A live view of the issued tokens, which later tokens are added to.
    pub fn issued_tokens(&self) -> IssuedTokens {
        self.0.shared.read(|state| state.agents.issued())
    }

    /// Number of executions of this call with errcode 0.
    pub fn executed_count(&self, path: &str) -> u64 {
        self.observe(|observed| observed.executed_count(path))
    }

    /// Agents, faults and counts as the control address shows them, without secrets and tokens.
    pub fn state_json(&self) -> Value {
        self.0.shared.read(State::describe)
    }

    /// Reads a consistent view of the recorded traffic. `read` runs under the simulator's lock: it must not call the
    /// simulator, and should be quick.
    pub fn observe<T>(&self, read: impl FnOnce(Observed<'_>) -> T) -> T {
        self.0.shared.read(|state| read(Observed(state)))
    }

    /// Waits until the condition holds; evaluates it at once and after every change. As in
    /// [`observe`](Self::observe), it must not call the simulator.
    ///
    /// # Errors
    /// `TimedOut` after 20 s; the error text contains the counts.
    pub async fn wait_until(&self, condition: impl Fn(Observed<'_>) -> bool) -> io::Result<()> {
        let mut changes = self.0.shared.subscribe_changes();
        let met = async {
            while !self.observe(&condition) {
                // Cannot fail: the sender is in `self`.
                let _ = changes.changed().await;
            }
        };
        tokio::time::timeout(WAIT_TIMEOUT, met).await.map_err(|_| {
            let text = format!("timed out waiting for the simulator: {}", self.state_json());
            io::Error::new(io::ErrorKind::TimedOut, text)
        })
    }
}
