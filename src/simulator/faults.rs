//! What the simulator is told to do wrong: rules that wait for the requests they fit.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;

/// One thing to go wrong, for the requests it fits: those of [`on`](Fault::on) a path and [`of`](Fault::of) an agent,
/// or all. Several may hit one request: delays add up, and of several answers the oldest rule's is given.
#[derive(Clone, Debug)]
pub struct Fault {
    kind: Kind,
    path: Option<String>,
    agent: Option<String>,
    left: Option<u64>,
    admitted_only: bool,
}

/// Where in an exchange the connection is closed. Over HTTP/2 all its streams go with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// As soon as the request's head is here: nothing is executed.
    Arrival,
    /// After the request was executed, before a byte of the answer.
    Before,
    /// After the answer's head.
    Head,
    /// In the middle of the answer's body.
    Body,
}

#[derive(Clone, Debug)]
enum Kind {
    Delay(Duration),
    Hold,
    Answer(Canned),
    Drop(When),
    Stall,
    Pieces(usize),
}

/// An answer given in place of the real one.
#[derive(Clone, Debug)]
pub(super) struct Canned {
    pub(super) status: u16,
    pub(super) errcode: Option<i64>,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Bytes,
}

impl Canned {
    fn empty(status: u16) -> Self {
        Self { status, errcode: None, headers: Vec::new(), body: Bytes::new() }
    }
}

impl Fault {
    /// The answer comes `by` later than it would. The request is judged, and executed, when it arrives.
    pub fn delay(by: Duration) -> Self {
        Self::always(Kind::Delay(by))
    }

    /// The answer waits for [`release`](super::Simulator::release). The request is judged, and executed, when it arrives.
    pub fn hold() -> Self {
        Self::always(Kind::Hold)
    }

    /// This errcode instead of the answer; nothing is executed. A token that does not serve is refused all the same.
    pub fn errcode(errcode: i64) -> Self {
        Self::always(Kind::Answer(Canned { errcode: Some(errcode), ..Canned::empty(200) })).admitted()
    }

    /// This HTTP status and an empty body instead of the answer, before the token is looked at, as a gateway would.
    pub fn status(status: u16) -> Self {
        Self::always(Kind::Answer(Canned::empty(status)))
    }

    /// These very bytes instead of the answer, before the token is looked at.
    pub fn answer(status: u16, content_type: &str, body: impl Into<Bytes>) -> Self {
        Self::always(Kind::Answer(Canned { body: body.into(), ..Canned::empty(status) }))
            .with_header("content-type", content_type)
    }

    /// The connection is closed, once unless [`times`](Fault::times) says otherwise.
    pub fn drop(when: When) -> Self {
        Self::always(Kind::Drop(when)).times(1)
    }

    /// Half of the answer's body comes, then silence.
    pub fn stall() -> Self {
        Self::always(Kind::Stall)
    }

    /// The answer comes without Content-Length, in pieces of at most this many bytes.
    pub fn pieces(bytes: usize) -> Self {
        Self::always(Kind::Pieces(bytes.max(1)))
    }

    /// Only requests for this path, e.g. `/cgi-bin/user/get`.
    pub fn on(mut self, path: &str) -> Self {
        self.path = Some(path.to_owned());
        self
    }

    /// Only requests of this agent: the owner of the token, or of the secret in gettoken.
    pub fn of(mut self, agent: &str) -> Self {
        self.agent = Some(agent.to_owned());
        self
    }

    /// Only the next `count` requests that fit.
    pub fn times(mut self, count: u64) -> Self {
        self.left = Some(count);
        self
    }

    /// Only requests whose token or secret serves: the others are refused as ever.
    pub fn admitted(mut self) -> Self {
        self.admitted_only = true;
        self
    }

    /// An answer with this header besides, e.g. `content-encoding`. One that HTTP does not allow is left out.
    pub fn with_header(mut self, name: &str, value: &str) -> Self {
        if let Kind::Answer(canned) = &mut self.kind {
            canned.headers.push((name.to_owned(), value.to_owned()));
        }
        self
    }

    /// An errcode with this HTTP status instead of 200.
    pub fn with_status(mut self, status: u16) -> Self {
        if let Kind::Answer(canned) = &mut self.kind {
            canned.status = status;
        }
        self
    }

    /// The agent it is limited to.
    pub(super) fn agent(&self) -> Option<&str> {
        self.agent.as_deref()
    }

    fn always(kind: Kind) -> Self {
        Self { kind, path: None, agent: None, left: None, admitted_only: false }
    }

    fn fits(&self, path: &str, agent: Option<&str>, admitted: bool) -> bool {
        self.left != Some(0)
            && (admitted || !self.admitted_only)
            && self.path.as_deref().is_none_or(|wanted| wanted == path)
            && self.agent.as_deref().is_none_or(|wanted| Some(wanted) == agent)
    }
}

/// The faults in force.
#[derive(Default)]
pub(super) struct Faults(Vec<Rule>);

struct Rule {
    fault: Fault,
    /// Closed when the rule goes, which lets those go who wait at it.
    gate: watch::Sender<()>,
}

impl Faults {
    pub(super) fn add(&mut self, fault: Fault) {
        self.0.push(Rule { fault, gate: watch::Sender::new(()) });
    }

    /// Lets all go that are held, and holds no more.
    pub(super) fn release(&mut self) {
        self.0.retain(|rule| !matches!(rule.fault.kind, Kind::Hold));
    }

    /// The rules in words, for people.
    pub(super) fn describe(&self) -> Vec<String> {
        self.0.iter().map(|rule| format!("{:?}", rule.fault)).collect()
    }

    /// What happens to this request; uses up one of each limited rule that fits.
    pub(super) fn meet(&mut self, path: &str, agent: Option<&str>, admitted: bool) -> Effects {
        let mut effects = Effects::default();
        for Rule { fault, gate } in &mut self.0 {
            let second_answer = matches!(fault.kind, Kind::Answer(_)) && effects.answer.is_some();
            if second_answer || !fault.fits(path, agent, admitted) {
                continue;
            }
            if let Some(left) = &mut fault.left {
                *left -= 1;
            }
            match &fault.kind {
                Kind::Delay(by) => effects.delay += *by,
                Kind::Hold => effects.gates.push(gate.subscribe()),
                Kind::Answer(canned) => effects.answer = Some(canned.clone()),
                Kind::Drop(when) => effects.drop = Some(*when),
                Kind::Stall => effects.stall = true,
                Kind::Pieces(bytes) => effects.pieces = Some(*bytes),
            }
        }
        // A rule that is used up stays only while someone may wait at it.
        self.0.retain(|rule| rule.fault.left != Some(0) || matches!(rule.fault.kind, Kind::Hold));
        effects
    }
}

/// What was decided for one request.
#[derive(Default)]
pub(super) struct Effects {
    pub(super) answer: Option<Canned>,
    pub(super) drop: Option<When>,
    pub(super) stall: bool,
    pub(super) pieces: Option<usize>,
    delay: Duration,
    gates: Vec<watch::Receiver<()>>,
}

impl Effects {
    /// Waits as long as the answer is to wait.
    pub(super) async fn wait(&mut self) {
        if !self.delay.is_zero() {
            tokio::time::sleep(self.delay).await;
        }
        for gate in &mut self.gates {
            // Nothing is ever sent: this ends, with an error, when the rule is taken away.
            while gate.changed().await.is_ok() {}
        }
    }
}
