//! What the simulator is told to do wrong: rules that wait for the requests they fit.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;

/// One thing to go wrong, for the requests it fits: those of [`on`](Fault::on) a path and [`of`](Fault::of) an agent,
/// or all. Several may hit one request: delays add up, and of several answers the oldest rule's is given.
#[derive(Clone, Debug)]
pub struct Fault {
    kind: FaultKind,
    path: Option<String>,
    agent: Option<String>,
    remaining: Option<u64>,
    authorized_only: bool,
}

/// Where in an exchange the connection is closed. Over HTTP/2 all its streams go with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropPoint {
    /// As soon as the request's head is here: nothing is executed.
    OnArrival,
    /// After the request was executed, before a byte of the answer.
    BeforeResponse,
    /// After the answer's head.
    AfterHead,
    /// In the middle of the answer's body.
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

/// An answer given in place of the real one.
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
    /// The answer comes `by` later than it would. The request is judged, and executed, when it arrives.
    pub fn delay(by: Duration) -> Self {
        Self::new(FaultKind::Delay(by))
    }

    /// The answer waits for [`release`](super::Simulator::release). The request is judged, and executed, when it arrives.
    pub fn hold() -> Self {
        Self::new(FaultKind::Hold)
    }

    /// This errcode instead of the answer; nothing is executed. A token that does not serve is refused all the same.
    pub fn errcode(errcode: i64) -> Self {
        Self::new(FaultKind::Response(CannedResponse {
            errcode: Some(errcode),
            ..CannedResponse::empty(200)
        }))
        .authorized_only()
    }

    /// This HTTP status and an empty body instead of the answer, before the token is looked at, as a gateway would.
    pub fn status(status: u16) -> Self {
        Self::new(FaultKind::Response(CannedResponse::empty(status)))
    }

    /// These very bytes instead of the answer, before the token is looked at.
    pub fn response(status: u16, content_type: &str, body: impl Into<Bytes>) -> Self {
        Self::new(FaultKind::Response(CannedResponse { body: body.into(), ..CannedResponse::empty(status) }))
            .with_header("content-type", content_type)
    }

    /// The connection is closed, once unless [`times`](Fault::times) says otherwise.
    pub fn drop(when: DropPoint) -> Self {
        Self::new(FaultKind::Drop(when)).times(1)
    }

    /// Half of the answer's body comes, then silence.
    pub fn stall() -> Self {
        Self::new(FaultKind::Stall)
    }

    /// The answer comes without Content-Length, in pieces of at most this many bytes.
    pub fn chunked(bytes: usize) -> Self {
        Self::new(FaultKind::Chunked(bytes.max(1)))
    }

    /// Only requests for this path, e.g. `/cgi-bin/user/get`.
    pub fn on_path(mut self, path: &str) -> Self {
        self.path = Some(path.to_owned());
        self
    }

    /// Only requests of this agent: the owner of the token, or of the secret in gettoken.
    pub fn for_agent(mut self, agent: &str) -> Self {
        self.agent = Some(agent.to_owned());
        self
    }

    /// Only the next `count` requests that fit.
    pub fn times(mut self, count: u64) -> Self {
        self.remaining = Some(count);
        self
    }

    /// Only requests whose token or secret serves: the others are refused as ever.
    pub fn authorized_only(mut self) -> Self {
        self.authorized_only = true;
        self
    }

    /// An answer with this header besides, e.g. `content-encoding`. One that HTTP does not allow is left out.
    pub fn with_header(mut self, name: &str, value: &str) -> Self {
        if let FaultKind::Response(canned) = &mut self.kind {
            canned.headers.push((name.to_owned(), value.to_owned()));
        }
        self
    }

    /// An errcode with this HTTP status instead of 200.
    pub fn with_status(mut self, status: u16) -> Self {
        if let FaultKind::Response(canned) = &mut self.kind {
            canned.status = status;
        }
        self
    }

    /// The agent it is limited to.
    pub(super) fn agent(&self) -> Option<&str> {
        self.agent.as_deref()
    }

    fn new(kind: FaultKind) -> Self {
        Self { kind, path: None, agent: None, remaining: None, authorized_only: false }
    }

    fn matches(&self, path: &str, agent: Option<&str>, admitted: bool) -> bool {
        self.remaining != Some(0)
            && (admitted || !self.authorized_only)
            && self.path.as_deref().is_none_or(|wanted| wanted == path)
            && self.agent.as_deref().is_none_or(|wanted| Some(wanted) == agent)
    }
}

/// The faults in force.
#[derive(Default)]
pub(super) struct FaultRules(Vec<FaultRule>);

struct FaultRule {
    fault: Fault,
    /// Closed when the rule goes, which lets those go who wait at it.
    release: watch::Sender<()>,
}

impl FaultRules {
    pub(super) fn add(&mut self, fault: Fault) {
        self.0.push(FaultRule { fault, release: watch::Sender::new(()) });
    }

    /// Lets all go that are held, and holds no more.
    pub(super) fn release_held(&mut self) {
        self.0.retain(|rule| !matches!(rule.fault.kind, FaultKind::Hold));
    }

    /// The rules in words, for people.
    pub(super) fn describe(&self) -> Vec<String> {
        self.0.iter().map(|rule| format!("{:?}", rule.fault)).collect()
    }

    /// What happens to this request; uses up one of each limited rule that fits.
    pub(super) fn apply(&mut self, path: &str, agent: Option<&str>, admitted: bool) -> FaultEffects {
        let mut effects = FaultEffects::default();
        for FaultRule { fault, release: gate } in &mut self.0 {
            let second_answer = matches!(fault.kind, FaultKind::Response(_)) && effects.response.is_some();
            if second_answer || !fault.matches(path, agent, admitted) {
                continue;
            }
            if let Some(left) = &mut fault.remaining {
                *left -= 1;
            }
            match &fault.kind {
                FaultKind::Delay(by) => effects.delay += *by,
                FaultKind::Hold => effects.releases.push(gate.subscribe()),
                FaultKind::Response(canned) => effects.response = Some(canned.clone()),
                FaultKind::Drop(when) => effects.drop_point = Some(*when),
                FaultKind::Stall => effects.stall = true,
                FaultKind::Chunked(bytes) => effects.chunk_bytes = Some(*bytes),
            }
        }
        // A rule that is used up stays only while someone may wait at it.
        self.0.retain(|rule| rule.fault.remaining != Some(0) || matches!(rule.fault.kind, FaultKind::Hold));
        effects
    }
}

/// What was decided for one request.
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
    /// Waits as long as the answer is to wait.
    pub(super) async fn wait_until_due(&mut self) {
        if !self.delay.is_zero() {
            tokio::time::sleep(self.delay).await;
        }
        for gate in &mut self.releases {
            // Nothing is ever sent: this ends, with an error, when the rule is taken away.
            while gate.changed().await.is_ok() {}
        }
    }
}
