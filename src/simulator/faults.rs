//! Fault injection: rules that apply to the requests they match.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;

/// A fault for all requests, or for those of a [path](Fault::on_path) or an [agent](Fault::for_agent). Several faults
/// may apply to one request: delays add up, and of several responses the oldest fault's is sent.
#[derive(Clone, Debug)]
pub struct Fault {
    kind: FaultKind,
    path: Option<String>,
    agent: Option<String>,
    remaining: Option<u64>,
    authorized_only: bool,
}

/// Where in an exchange the connection is closed. Over HTTP/2 this ends all its streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropPoint {
    /// When the request's head is received: nothing is executed.
    OnArrival,
    /// After the request is executed, before the first byte of the response.
    BeforeResponse,
    /// After the response's head.
    AfterHead,
    /// After half of the response's body.
    MidBody,
}

#[derive(Clone, Debug)]
enum FaultKind {
    Delay(Duration),
    Hold,
    Response(CannedResponse),
    Drop(DropPoint),
    Stall,
    Chunked(usize),
}

/// A response sent instead of the real one.
#[derive(Clone, Debug)]
pub(super) struct CannedResponse {
    pub(super) status: u16,
    pub(super) errcode: Option<i64>,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Bytes,
}

impl CannedResponse {
    fn empty(status: u16) -> Self {
        Self { status, errcode: None, headers: Vec::new(), body: Bytes::new() }
    }
}

impl Fault {
    /// Delays the response by `by`. The request is authorized and executed on arrival.
    pub fn delay(by: Duration) -> Self {
        Self::new(FaultKind::Delay(by))
    }

    /// Holds the response until [`release_held`](super::Simulator::release_held). The request is authorized and executed
    /// on arrival.
    pub fn hold() -> Self {
        Self::new(FaultKind::Hold)
    }

    /// Responds with this errcode and executes nothing. An invalid token is refused as usual.
    pub fn errcode(errcode: i64) -> Self {
        Self::new(FaultKind::Response(CannedResponse {
            errcode: Some(errcode),
            ..CannedResponse::empty(200)
        }))
        .authorized_only()
    }

    /// Responds with this HTTP status and an empty body before the token is checked, as a gateway would.
    pub fn status(status: u16) -> Self {
        Self::new(FaultKind::Response(CannedResponse::empty(status)))
    }

    /// Responds with exactly these bytes before the token is checked.
    pub fn response(status: u16, content_type: &str, body: impl Into<Bytes>) -> Self {
        Self::new(FaultKind::Response(CannedResponse { body: body.into(), ..CannedResponse::empty(status) }))
            .with_header("content-type", content_type)
    }

    /// Closes the connection, once unless [`times`](Fault::times) sets another count.
    pub fn drop(point: DropPoint) -> Self {
        Self::new(FaultKind::Drop(point)).times(1)
    }

    /// Sends half of the response's body, then nothing; the connection stays open.
    pub fn stall() -> Self {
        Self::new(FaultKind::Stall)
    }

    /// Sends the response without Content-Length, in chunks of at most `bytes` bytes.
    pub fn chunked(bytes: usize) -> Self {
        Self::new(FaultKind::Chunked(bytes.max(1)))
    }

    /// Limits the fault to this path, such as `/cgi-bin/user/get`.
    pub fn on_path(mut self, path: &str) -> Self {
        self.path = Some(path.to_owned());
        self
    }

    /// Limits the fault to this agent: the owner of the token, or of the secret in gettoken.
    pub fn for_agent(mut self, agent: &str) -> Self {
        self.agent = Some(agent.to_owned());
        self
    }

    /// Limits the fault to the next `count` matching requests.
    pub fn times(mut self, count: u64) -> Self {
        self.remaining = Some(count);
        self
    }

    /// Limits the fault to requests with a valid token or secret; others are refused as usual.
    pub fn authorized_only(mut self) -> Self {
        self.authorized_only = true;
        self
    }

    /// Adds a header to the injected response, such as `content-encoding`. Ignores a header that is invalid in HTTP.
    pub fn with_header(mut self, name: &str, value: &str) -> Self {
        if let FaultKind::Response(canned) = &mut self.kind {
            canned.headers.push((name.to_owned(), value.to_owned()));
        }
        self
    }

    /// Sets the HTTP status of the injected response, 200 by default.
    pub fn with_status(mut self, status: u16) -> Self {
        if let FaultKind::Response(canned) = &mut self.kind {
            canned.status = status;
        }
        self
    }

    /// The agent that it is limited to.
    pub(super) fn agent(&self) -> Option<&str> {
        self.agent.as_deref()
    }

    fn new(kind: FaultKind) -> Self {
        Self { kind, path: None, agent: None, remaining: None, authorized_only: false }
    }

    fn matches(&self, path: &str, agent: Option<&str>, authorized: bool) -> bool {
        self.remaining != Some(0)
            && (authorized || !self.authorized_only)
            && self.path.as_deref().is_none_or(|wanted| wanted == path)
            && self.agent.as_deref().is_none_or(|wanted| Some(wanted) == agent)
    }
}

/// The active faults.
#[derive(Default)]
pub(super) struct FaultRules(Vec<FaultRule>);

struct FaultRule {
    fault: Fault,
    /// Dropped with the rule, which releases the held responses.
    release: watch::Sender<()>,
}

impl FaultRules {
    pub(super) fn add(&mut self, fault: Fault) {
        self.0.push(FaultRule { fault, release: watch::Sender::new(()) });
    }

    /// Sends all held responses and removes the hold faults.
    pub(super) fn release_held(&mut self) {
        self.0.retain(|rule| !matches!(rule.fault.kind, FaultKind::Hold));
    }

    /// The debug texts of the faults, for display.
    pub(super) fn describe(&self) -> Vec<String> {
        self.0.iter().map(|rule| format!("{:?}", rule.fault)).collect()
    }

    /// The effects on this request; decrements the count of each limited fault that applies.
    pub(super) fn apply(&mut self, path: &str, agent: Option<&str>, authorized: bool) -> FaultEffects {
        let mut effects = FaultEffects::default();
        for FaultRule { fault, release } in &mut self.0 {
            let second_response = matches!(fault.kind, FaultKind::Response(_)) && effects.response.is_some();
            if second_response || !fault.matches(path, agent, authorized) {
                continue;
            }
            if let Some(remaining) = &mut fault.remaining {
                *remaining -= 1;
            }
            match &fault.kind {
                FaultKind::Delay(by) => effects.delay += *by,
                FaultKind::Hold => effects.releases.push(release.subscribe()),
                FaultKind::Response(canned) => effects.response = Some(canned.clone()),
                FaultKind::Drop(point) => effects.drop_point = Some(*point),
                FaultKind::Stall => effects.stall = true,
                FaultKind::Chunked(bytes) => effects.chunk_bytes = Some(*bytes),
            }
        }
        // A used-up hold fault stays, because dropping it would release the held responses.
        self.0.retain(|rule| rule.fault.remaining != Some(0) || matches!(rule.fault.kind, FaultKind::Hold));
        effects
    }
}

/// The effects of the faults on one request.
#[derive(Default)]
pub(super) struct FaultEffects {
    pub(super) response: Option<CannedResponse>,
    pub(super) drop_point: Option<DropPoint>,
    pub(super) stall: bool,
    pub(super) chunk_bytes: Option<usize>,
    delay: Duration,
    releases: Vec<watch::Receiver<()>>,
}

impl FaultEffects {
    /// Waits for the delays and until all hold faults are released.
    pub(super) async fn wait_until_due(&mut self) {
        if !self.delay.is_zero() {
            tokio::time::sleep(self.delay).await;
        }
        for release in &mut self.releases {
            // Nothing is sent on the channel: the loop ends with an error when the rule is dropped.
            while release.changed().await.is_ok() {}
        }
    }
}
