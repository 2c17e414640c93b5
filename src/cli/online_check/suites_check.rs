//! Checks each provider and each suite: its credentials at WeCom, the age of its ticket in the state, and whether the
//! running proxy answers at its command URL.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::time::Instant;

use super::{FailureStreak, Problem, StopReason};
use crate::{
    cli::listener_client::ListenerClient,
    config::{Config, ProviderConfig, StateConfig, SuiteConfig},
    secret::{Masked, random_u64},
    state::{Collection, maintenance},
    suites::{MAX_TICKET_AGE, Suites},
    text::Text,
    time::clock::unix_now,
    tokens::{
        Credentials, FetchError,
        fetch::GettokenClient,
        kinds::{provider, suite},
    },
    upstream::Settings,
    wecom::callback::crypto::CallbackKeys,
};

/// How long the running proxy may take.
const LOCAL_TIMEOUT: Duration = Duration::from_secs(5);

/// The result for one provider or suite.
#[derive(Debug)]
pub struct SuiteFinding {
    /// Its name.
    pub name: String,
    /// Its corpid or suite_id.
    pub id: String,
    /// Its token.
    pub token: TokenFinding,
    /// What concerns a suite only.
    pub suite: Option<SuiteUrls>,
    /// The duration of all calls.
    pub duration: Duration,
}

/// The result of the call for a token.
#[derive(Debug)]
pub enum TokenFinding {
    /// It was fetched.
    Passed,
    /// It was not.
    Failed(Problem),
    /// Not asked for: there is no ticket, or the check stopped before.
    Skipped,
}

/// What a suite gets from WeCom.
#[derive(Debug)]
pub struct SuiteUrls {
    /// Its newest ticket.
    pub ticket: TicketFinding,
    /// The command URL at the running proxy.
    pub callback: CommandUrlFinding,
}

/// The newest suite_ticket in the state.
#[derive(Debug, PartialEq, Eq)]
pub enum TicketFinding {
    /// It was received so long ago.
    Age(Duration),
    /// None was received yet.
    Missing,
    /// The state cannot be read.
    Unreadable(Text),
}

impl TicketFinding {
    /// Whether WeCom's pushes arrive.
    pub fn is_ok(&self) -> bool {
        matches!(self, Self::Age(age) if *age <= MAX_TICKET_AGE)
    }
}

/// What the running proxy says when its command URL is verified as WeCom does.
#[derive(Debug, PartialEq, Eq)]
pub enum CommandUrlFinding {
    /// It answers.
    Answers,
    /// No proxy runs at the address of the file.
    NotRunning,
    /// It refuses the token and aes_key of the file.
    Refused(u16),
    /// It cannot be asked from here: its listeners use TLS.
    NotChecked,
}

impl SuiteFinding {
    /// Whether all of it works; a proxy that does not run here is no fault.
    pub fn is_ok(&self) -> bool {
        matches!(self.token, TokenFinding::Passed)
            && self.suite.as_ref().is_none_or(|suite| {
                suite.ticket.is_ok() && !matches!(suite.callback, CommandUrlFinding::Refused(_))
            })
    }

    /// Why its token was not fetched.
    pub fn problem(&self) -> Option<&Problem> {
        match &self.token {
            TokenFinding::Failed(problem) => Some(problem),
            TokenFinding::Passed | TokenFinding::Skipped => None,
        }
    }
}

/// Checks all of them, one after another, and stops before repeated failures could get this machine's address banned.
pub(super) async fn check_suites(
    config: &Config,
    upstream: &Arc<Settings>,
    streak: &mut FailureStreak,
) -> (Vec<SuiteFinding>, Option<StopReason>) {
    let mut findings = Vec::new();
    for provider in config.suites.providers.values() {
        let start = Instant::now();
        let token = fetch(streak, fetch_provider_token(provider, upstream)).await;
        let (name, id) = (provider.name.clone(), provider.corpid.clone());
        findings.push(SuiteFinding { name, id, token, suite: None, duration: start.elapsed() });
    }
    for suite in config.suites.suites.values() {
        let start = Instant::now();
        let (ticket, value) = read_ticket(config, &suite.suite_id).await;
        let token = match value {
            Some(ticket) => fetch(streak, fetch_suite_token(suite, &ticket, upstream)).await,
            None => TokenFinding::Skipped,
        };
        let callback = verify_callback(config, suite).await;
        findings.push(SuiteFinding {
            name: suite.name.clone(),
            id: suite.suite_id.clone(),
            token,
            suite: Some(SuiteUrls { ticket, callback }),
            duration: start.elapsed(),
        });
    }
    (findings, streak.stopped)
}

async fn fetch(
    streak: &mut FailureStreak,
    call: impl Future<Output = Result<(), FetchError>>,
) -> TokenFinding {
    if streak.stopped.is_some() {
        return TokenFinding::Skipped;
    }
    let problem = call.await.err().map(Problem::from);
    streak.record(problem.as_ref());
    problem.map_or(TokenFinding::Passed, TokenFinding::Failed)
}

async fn fetch_provider_token(provider: &ProviderConfig, upstream: &Arc<Settings>) -> Result<(), FetchError> {
    let credentials = Credentials::new(&*provider.corpid, provider.secret.clone());
    let fetched = GettokenClient::new(upstream.clone()).call(&provider::request(&credentials)).await?;
    provider::parse(&credentials, fetched).map(drop)
}

async fn fetch_suite_token(
    suite: &SuiteConfig,
    ticket: &Masked,
    upstream: &Arc<Settings>,
) -> Result<(), FetchError> {
    let credentials = Credentials::new(&*suite.suite_id, suite.secret.clone());
    let fetched = GettokenClient::new(upstream.clone()).call(&suite::request(&credentials, ticket)).await?;
    suite::parse(&credentials, ticket, fetched).map(drop)
}

/// The newest ticket of a suite, and its value.
async fn read_ticket(config: &Config, suite_id: &str) -> (TicketFinding, Option<Masked>) {
    let Some(state) = &config.state else { return (TicketFinding::Missing, None) };
    let exists = match state {
        StateConfig::File(file) => PathBuf::from(&file.path).exists(),
        StateConfig::Shared(_) => true,
    };
    if !exists {
        return (TicketFinding::Missing, None);
    }
    match maintenance::read(state, Collection::SuiteTickets, suite_id).await {
        Err(error) => (TicketFinding::Unreadable(Text::of(&error)), None),
        Ok(record) => match record.and_then(|value| Suites::parse_ticket(&value)) {
            None => (TicketFinding::Missing, None),
            Some((ticket, received_at)) => {
                let age = SystemTime::now().duration_since(received_at).unwrap_or_default();
                (TicketFinding::Age(age), Some(ticket))
            }
        },
    }
}

/// Verifies the command URL at the address of the file as WeCom does.
async fn verify_callback(config: &Config, suite: &SuiteConfig) -> CommandUrlFinding {
    let address = config.server.listen.first().filter(|_| config.server.tls.is_none());
    let keys = CallbackKeys::new(suite.token.clone(), &suite.aes_key);
    let (Some(address), Some(keys)) = (address, keys) else { return CommandUrlFinding::NotChecked };
    let provider = suite.provider.as_ref().and_then(|name| config.suites.providers.get(name));
    let receive_id = provider.map_or("", |provider| provider.corpid.as_str());
    let echo = format!("{:016x}", random_u64());
    let Some(encrypted) = keys.encrypt(echo.as_bytes(), receive_id) else {
        return CommandUrlFinding::NotChecked;
    };
    let (timestamp, nonce) = (unix_now().to_string(), random_u64().to_string());
    let target = format!(
        "/callbacks/{}?msg_signature={}&timestamp={timestamp}&nonce={nonce}&echostr={}",
        suite.name,
        keys.sign(&timestamp, &nonce, &encrypted),
        utf8_percent_encode(&encrypted, NON_ALPHANUMERIC)
    );
    match ListenerClient::local(address).get_within(&target, LOCAL_TIMEOUT).await {
        Ok(response) if response.status.is_success() && *response.body == *echo.as_bytes() => {
            CommandUrlFinding::Answers
        }
        Ok(response) => CommandUrlFinding::Refused(response.status.as_u16()),
        Err(_) => CommandUrlFinding::NotRunning,
    }
}
