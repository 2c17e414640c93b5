//! A WeCom upstream that behaves, and misbehaves when told to: for the demo, our tests and users' own tests. It shares
//! no code and no constant with the rest of the crate, so that a mistake there is not made here too.
//!
//! ```
//! use wecom_proxy::simulator::{Fault, Settings, Simulator};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let wecom = Simulator::local(Settings::default()).await?;
//! let url = format!("http://{}/cgi-bin/user/get?userid=zhangsan", wecom.api_addr());
//! wecom.inject(Fault::errcode(45009).on("/cgi-bin/user/get").times(1))?;
//! wecom.revoke("hr")?;
//! // … call `url` through what is to be tested …
//! wecom.wait_until(|seen| seen.executed("/cgi-bin/user/get") == 1).await?;
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
mod api; // the life of one request
mod body; // request bodies
mod company; // who there is
mod control; // the control address
mod directory; // people, departments, tags: read
mod directory_changes; // people, departments, tags: made, altered, taken away
mod echo; // what came, said back
mod errors;
mod faults; // what is to go wrong
mod listener; // listeners and connections
mod media; // files
mod messages; // messages
mod multipart; // files in forms
mod observed; // the view for conditions
mod query; // queries
mod random; // random text
mod recorder; // what was seen
mod response; // what goes back
mod routes; // the calls there are
mod state; // all in one, behind one lock // errcodes in words

#[cfg(test)]
mod tests;

pub use agents::{IssuedTokens, SimulatedAgent, UnknownAgent};
pub use faults::{DropPoint, Fault};
pub use observed::Observed;
pub use recorder::{RecordedMessage, RecordedRequest};
pub use response::generated_bytes;

use state::{Shared, State};

/// The longest that [`Simulator::wait_until`] waits.
const WAIT_TIMEOUT: Duration = Duration::from_secs(20);

/// How a simulator begins.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The applications it knows.
    pub agents: Vec<SimulatedAgent>,
    /// How long a token serves. `expires_in` says it in whole seconds, rounded up, at least 1; always all of it, also
    /// when the same token is handed out again.
    pub token_lifetime: Duration,
    /// Serves the API over TLS; HTTP/2 where its ALPN offers `h2`. The control address stays plain.
    pub tls: Option<Arc<rustls::ServerConfig>>,
    /// After so many gettoken calls of an agent the next are answered 45009.
    pub gettoken_limit: Option<u32>,
    /// The keys that `webhook/send` takes.
    pub webhook_keys: Vec<String>,
    /// Sends the undocumented headers Error-Code and Error-Msg, as captured traffic had them.
    pub errcode_headers: bool,
}

impl Default for Settings {
    /// Two agents of one company, `hr` and `ops`, with secrets that nobody takes for real ones.
    fn default() -> Self {
        Self {
            agents: vec![
                SimulatedAgent::new("hr", "not-a-secret-hr-0000000000000000000000000000", 1_000_002),
                SimulatedAgent::new("ops", "not-a-secret-ops-000000000000000000000000000", 1_000_003),
            ],
            token_lifetime: Duration::from_secs(7200),
            tls: None,
            gettoken_limit: None,
            webhook_keys: vec!["00000000-1111-2222-3333-444444444444".to_owned()],
            errcode_headers: true,
        }
    }
}

/// A running simulator. Clones are handles to the same one, which stops when the last is dropped.
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

/// Start and end.
impl Simulator {
    /// Listens on two addresses and serves in tasks of its own. Port 0 takes a free one.
    ///
    /// # Errors
    /// Where an address cannot be bound.
    pub async fn start(settings: Settings, api: SocketAddr, control: SocketAddr) -> io::Result<Self> {
        Self::serve(settings, TcpListener::bind(api).await?, TcpListener::bind(control).await?)
    }

    /// Listens on free ports of 127.0.0.1.
    ///
    /// # Errors
    /// Where no port can be bound.
    pub async fn start_local(settings: Settings) -> io::Result<Self> {
        let free = SocketAddr::from(([127, 0, 0, 1], 0));
        Self::start(settings, free, free).await
    }

    /// Serves on listeners that are already open. Needs a tokio runtime around it.
    ///
    /// # Errors
    /// Where a listener does not know its address.
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

    /// Closes the listeners and all connections, whatever other handles there are, and returns when they are closed:
    /// from then on nobody can connect, and the addresses are free for another simulator.
    pub async fn stop(&self) {
        self.0.stop.send_modify(|()| ());
        self.0.stop.closed().await;
    }
}

/// What it is told to do. Each has its counterpart at the control address.
impl Simulator {
    /// Voids all tokens of an agent: 40014.
    ///
    /// # Errors
    /// Where no agent has this name; so in all calls that take one.
    pub fn revoke_tokens(&self, agent: &str) -> Result<(), UnknownAgent> {
        self.update(|state| state.change_agent(agent, |agents, at| agents.revoke_tokens(at)))
    }

    /// Ends all tokens of an agent: 42001.
    pub fn expire_tokens(&self, agent: &str) -> Result<(), UnknownAgent> {
        self.update(|state| state.change_agent(agent, |agents, at| agents.expire_tokens(at)))
    }

    /// Gives an agent another secret; tokens and tickets got with the old one are void.
    pub fn reset_secret(&self, agent: &str, secret: &str) -> Result<(), UnknownAgent> {
        self.update(|state| state.change_agent(agent, |agents, at| agents.change_secret(at, secret)))
    }

    /// From now on gettoken hands out the agent's last token, even one that no longer serves.
    pub fn reissue_same_token(&self, agent: &str, on: bool) -> Result<(), UnknownAgent> {
        self.update(|state| state.change_agent(agent, |agents, at| agents.set_reissue_same_token(at, on)))
    }

    /// Adds an agent. The one with the same name goes, and its tokens with it.
    pub fn add_agent(&self, agent: SimulatedAgent) {
        self.update(|state| state.agents.add(agent));
    }

    /// Lets something go wrong.
    pub fn inject(&self, fault: Fault) -> Result<(), UnknownAgent> {
        self.update(|state| state.inject(fault))
    }

    /// Lets all requests go that [`Fault::hold`] holds, and holds no more.
    pub fn release_held(&self) {
        self.update(|state| state.faults.release_held());
    }

    /// Closes all connections to the API, idle or not.
    pub fn close_connections(&self) {
        self.0.shared.close_connections();
    }

    /// Takes all faults away and forgets what was seen; agents, secrets, tokens, people and media stay.
    pub fn reset(&self) {
        self.update(State::reset);
    }

    fn update<T>(&self, alter: impl FnOnce(&mut State) -> T) -> T {
        self.0.shared.update(alter)
    }
}

/// What it has seen.
impl Simulator {
    /// The last 10,000 requests to the API, the oldest first.
    pub fn requests(&self) -> Vec<RecordedRequest> {
        self.observe(|seen| seen.requests().cloned().collect())
    }

    /// The last 1,000 messages that were accepted, the oldest first.
    pub fn messages(&self) -> Vec<RecordedMessage> {
        self.observe(|seen| seen.messages().cloned().collect())
    }

    /// How often gettoken was called with this agent's corpid and secret, however it was answered.
    pub fn gettoken_count(&self, agent: &str) -> Result<u64, UnknownAgent> {
        self.0.shared.read(|state| Ok(state.agents.gettoken_count(state.agents.find(agent)?)))
    }

    /// The tokens that it has issued and will issue.
    pub fn issued_tokens(&self) -> IssuedTokens {
        self.0.shared.read(|state| state.agents.issued())
    }

    /// How often this call was carried out with errcode 0.
    pub fn executed_count(&self, path: &str) -> u64 {
        self.observe(|seen| seen.executed_count(path))
    }

    /// Everything in one, as the control address shows it: no secrets and no tokens.
    pub fn state_json(&self) -> Value {
        self.0.shared.read(State::describe)
    }

    /// Looks at all that was seen at one moment. `look` runs under the simulator's lock: it must not call the
    /// simulator, and should be quick.
    pub fn observe<T>(&self, look: impl FnOnce(Observed<'_>) -> T) -> T {
        self.0.shared.read(|state| look(Observed(state)))
    }

    /// Waits until the condition holds; it is tried at once and after every change. As in [`look`](Self::look), it
    /// must not call the simulator.
    ///
    /// # Errors
    /// `TimedOut` after 20 s; the text has the counts.
    pub async fn wait_until(&self, condition: impl Fn(Observed<'_>) -> bool) -> io::Result<()> {
        let mut changes = self.0.shared.subscribe_changes();
        let met = async {
            while !self.observe(&condition) {
                // Cannot fail: the sender is in `self`.
                let _ = changes.changed().await;
            }
        };
        tokio::time::timeout(WAIT_TIMEOUT, met).await.map_err(|_| {
            let text = format!("the simulator waited in vain: {}", self.state_json());
            io::Error::new(io::ErrorKind::TimedOut, text)
        })
    }
}
