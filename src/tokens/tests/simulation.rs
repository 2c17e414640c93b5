//! Long lives by chance, held against a model at every step. Everything is drawn from a seed, and time and tasks are
//! those of one paused runtime, so that a run that fails can be repeated: `SIMULATION_SEED=17 cargo test simulation`.

pub(super) mod chance;
mod wecom; // the far side, and what it can tell of the proxy by the calls it gets

use std::{
    future::{Future, poll_fn},
    ops::AddAssign,
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use tokio::{runtime::Handle, task::JoinHandle, time::Instant};

use self::{
    chance::Chance,
    wecom::{Mood, SLOWEST, Wecom},
};
use super::super::{Credentials, Issuer, PathKey, RenewalSettings, Replacement, Token, TokenSlot};
use super::fake::{pass, path, serial};
use crate::secret::Masked;

const SEEDS: u64 = 200;
const STEPS: usize = 2_000;

/// What happened, so that a simulation in which nothing does cannot pass for one in which all went well.
#[derive(Debug, Default, Clone, Copy)]
struct Seen {
    answered: usize,
    renewed: usize,
    same_again: usize,
    held: usize,
    unavailable: usize,
    failed: usize,
    refused_again: usize,
    left: usize,
    made_anew: usize,
}

impl AddAssign for Seen {
    fn add_assign(&mut self, other: Self) {
        self.answered += other.answered;
        self.renewed += other.renewed;
        self.same_again += other.same_again;
        self.held += other.held;
        self.unavailable += other.unavailable;
        self.failed += other.failed;
        self.refused_again += other.refused_again;
        self.left += other.left;
        self.made_anew += other.made_anew;
    }
}

/// One agent as the directory has it: its slot now, and the number of its present secret.
struct Agent {
    name: String,
    secret: usize,
    slot: Arc<TokenSlot>,
    /// A few tokens it had, for refusals that come very late.
    old: Vec<Arc<Token>>,
}

/// One request, as the proxy makes it.
struct Request {
    wecom: Wecom,
    slot: Arc<TokenSlot>,
    there: Duration,
    back: Duration,
    /// It calls what its agent may not, which is refused whatever the token.
    hopeless: bool,
}

impl Request {
    async fn run(self) {
        let Self { wecom, slot, .. } = &self;
        let path = if self.hopeless { PathKey::of("/cgi-bin/forbidden") } else { path() };
        let token = match slot.ready(Instant::now()) {
            Some(token) => token,
            None => match within_reason(wecom, false, slot.current()).await {
                Ok(token) => token,
                Err(_) => return wecom.note(|seen| seen.failed += 1),
            },
        };
        if self.goes_well_with(&token).await {
            token.worked_on(path);
            return wecom.note(|seen| seen.answered += 1);
        }
        let newer = usable(slot).is_some_and(|current| !current.is_same_as(&token));
        let next = match within_reason(wecom, newer, slot.replace(&token, path)).await {
            Replacement::Renewed(next) => {
                wecom.expect(serial(&next) > serial(&token), || "an older token for a newer one".to_owned());
                wecom.note(|seen| seen.renewed += 1);
                next
            }
            Replacement::SameAgain(next) => {
                wecom.expect(next.is_same_as(&token), || "another token is said to be the same".to_owned());
                wecom.came_back(slot.credentials(), &next);
                wecom.note(|seen| seen.same_again += 1);
                next
            }
            Replacement::Held(_) => return wecom.note(|seen| seen.held += 1),
            Replacement::Unavailable(_) => return wecom.note(|seen| seen.unavailable += 1),
        };
        if self.goes_well_with(&next).await {
            next.worked_on(path);
            return wecom.note(|seen| seen.answered += 1);
        }
        slot.refused_again(&next, path);
        wecom.note(|seen| seen.refused_again += 1);
    }

    async fn goes_well_with(&self, token: &Token) -> bool {
        tokio::time::sleep(self.there).await;
        let accepted = !self.hopeless && self.wecom.accepts(self.slot.credentials(), token);
        tokio::time::sleep(self.back).await;
        accepted
    }
}

/// Nobody waits longer than for one gettoken, and who needs none does not wait at all.
async fn within_reason<T>(wecom: &Wecom, at_once: bool, asking: impl Future<Output = T>) -> T {
    let (mut asking, mut polls, began) = (pin!(asking), 0, Instant::now());
    let answer = poll_fn(|context| {
        polls += 1;
        asking.as_mut().poll(context)
    })
    .await;
    wecom.expect(!at_once || polls == 1, || "a request waits for what it does not need".to_owned());
    let waited = began.elapsed();
    wecom.expect(waited <= SLOWEST, || format!("a request waited {waited:?}"));
    answer
}

/// The current token, if it serves; seen without using it.
fn usable(slot: &TokenSlot) -> Option<Arc<Token>> {
    slot.current.load_full().filter(|token| Instant::now() < token.usable_until)
}

struct Simulation {
    chance: Chance,
    wecom: Wecom,
    issuer: Arc<Issuer>,
    agents: Vec<Agent>,
    requests: Vec<JoinHandle<()>>,
    /// Longest that a step lets pass in most of its kinds, in milliseconds.
    pace: u64,
    /// Operators ask very often.
    stormy: bool,
}

impl Simulation {
    fn new(seed: u64) -> Self {
        let mut chance = Chance::new(seed);
        let pace = chance.one_of(&[300, 3_000, 30_000]);
        let (agents, stormy) = (1 + chance.below(4), pace == 300 && chance.below(2) == 0);
        let (wecom, jitter) = (Wecom::new(chance.fork(), stormy), chance.fork().shared());
        let bounds = RenewalSettings { refresh_ahead: Duration::from_secs(300), renewals_per_hour: None };
        let issuer = Issuer::with(Box::new(wecom.clone()), Handle::current(), bounds, None);
        let issuer = Arc::new(Issuer { jitter: Box::new(move || jitter.unit()), ..issuer });
        let mut simulation =
            Self { chance, wecom, issuer, agents: Vec::new(), requests: Vec::new(), pace, stormy };
        for nth in 0..agents {
            let name = format!("agent-{nth}");
            let slot = simulation.slot(&name, 0);
            simulation.agents.push(Agent { name, secret: 0, slot, old: Vec::new() });
        }
        simulation
    }

    fn slot(&mut self, name: &str, secret: usize) -> Arc<TokenSlot> {
        let secret = Masked::new(format!("not-a-secret-{secret}"));
        let credentials = Credentials { corpid: name.to_owned(), secret };
        let slot = TokenSlot::new(name, credentials, self.issuer.clone());
        let life = self.chance.one_of(&[2, 60, 7_200, 7_200, 24 * 3_600]);
        self.wecom.open_account(&slot, Duration::from_secs(life));
        slot
    }

    async fn step(&mut self) {
        let nth = self.chance.below(self.agents.len() as u64) as usize;
        let slot = self.agents[nth].slot.clone();
        match self.chance.below(40) {
            0..=15 => self.request(slot),
            16..=18 => self.wecom.void(slot.credentials()),
            19..=20 => self.wecom.change_mood(slot.credentials(), Mood::WELL),
            21 => {
                let mood = self.chance.one_of(&Mood::ALL);
                self.wecom.change_mood(slot.credentials(), mood);
            }
            22..=23 if !self.requests.is_empty() => {
                let leaver = self.chance.below(self.requests.len() as u64) as usize;
                self.requests.swap_remove(leaver).abort();
                self.wecom.note(|seen| seen.left += 1);
            }
            24 => self.operator_asks(slot),
            27..=34 if self.stormy => self.operator_asks(slot),
            37 if self.chance.below(8) == 0 => self.reload(),
            38..=39 => self.late_refusal(nth),
            25 => pass(self.chance.below(self.pace * 30) as f64 / 1_000.0).await,
            26 if self.chance.below(20) == 0 => pass(self.chance.below(9_000) as f64).await,
            _ => pass(self.chance.below(self.pace) as f64 / 1_000.0).await,
        }
        for _ in 0..self.chance.below(4) {
            tokio::task::yield_now().await;
        }
        self.check();
    }

    fn request(&mut self, slot: Arc<TokenSlot>) {
        let request = Request {
            wecom: self.wecom.clone(),
            slot,
            there: Duration::from_millis(self.chance.below(50)),
            // Some refusals come when most of what followed is long over.
            back: Duration::from_millis(self.chance.one_of(&[0, 10, 1_000, 20_000])),
            hopeless: self.chance.below(20) == 0,
        };
        self.requests.push(tokio::spawn(request.run()));
    }

    fn operator_asks(&mut self, slot: Arc<TokenSlot>) {
        let wecom = self.wecom.clone();
        self.requests.push(tokio::spawn(async move {
            wecom.operator_asks(&slot);
            let _ = within_reason(&wecom, false, slot.refresh()).await;
        }));
    }

    /// Agents whose secret did not change keep their slots; requests under way keep the one that they have.
    fn reload(&mut self) {
        for nth in 0..self.agents.len() {
            if self.chance.below(2) == 0 {
                let (name, secret) = (self.agents[nth].name.clone(), self.agents[nth].secret + 1);
                let slot = self.slot(&name, secret);
                self.agents[nth] = Agent { name, secret, slot, old: Vec::new() };
                self.wecom.note(|seen| seen.made_anew += 1);
            }
        }
    }

    /// A refusal of a token that is not the current one any more.
    fn late_refusal(&mut self, nth: usize) {
        let Agent { slot, old, .. } = &self.agents[nth];
        let Some(current) = usable(slot) else { return };
        let Some(old) = old.iter().find(|old| !old.is_same_as(&current)) else { return };
        let polled = pin!(slot.replace(old, path())).poll(&mut Context::from_waker(Waker::noop()));
        let is_right =
            matches!(&polled, Poll::Ready(Replacement::Renewed(next)) if next.is_same_as(&current));
        self.wecom.expect(is_right, || format!("the refusal of an old token came to {polled:?}"));
    }

    /// What holds at any moment.
    fn check(&mut self) {
        for Agent { slot, old, .. } in &mut self.agents {
            let current = slot.current.load_full();
            if let Some(current) = &current {
                self.wecom.check_token(slot.credentials(), current);
                if old.last().is_none_or(|last| !last.is_same_as(current)) {
                    old.push(current.clone());
                    old.truncate(8);
                }
            }
            let kept = slot.state().flight.as_ref().is_some_and(|flight| flight.borrow().is_some());
            self.wecom.expect(!kept, || "who asks is told of a gettoken that is over".to_owned());
            let ask = || pin!(slot.current()).poll(&mut Context::from_waker(Waker::noop()));
            if let Some(current) = usable(slot) {
                let polled = ask();
                let is_right = matches!(&polled, Poll::Ready(Ok(token)) if token.is_same_as(&current));
                self.wecom.expect(is_right, || format!("a token that serves, and yet {polled:?}"));
            } else if slot.state().flight.is_none()
                && let Some(errcode) = self.wecom.left_alone_for(slot.credentials())
            {
                let polled = ask();
                let is_right = matches!(&polled, Poll::Ready(Err(failure)) if failure.errcode() == errcode);
                self.wecom.expect(is_right, || format!("left alone after {errcode}, and yet {polled:?}"));
            }
        }
        self.requests.retain(|request| !request.is_finished());
    }

    /// Once the far side answers, everybody comes to an end.
    async fn end(self) -> Seen {
        for request in self.requests {
            let ended = tokio::time::timeout(3 * SLOWEST, request).await;
            self.wecom.expect(ended.is_ok(), || "a request hangs".to_owned());
        }
        self.wecom.check_hours();
        self.wecom.seen()
    }
}

fn run(seed: u64) -> Seen {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime").block_on(async {
        let mut simulation = Simulation::new(seed);
        for step in 0..STEPS {
            simulation.step().await;
            if let Some(breach) = simulation.wecom.breach() {
                panic!("seed {seed}, step {step}: {breach}");
            }
        }
        let wecom = simulation.wecom.clone();
        let seen = simulation.end().await;
        if let Some(breach) = wecom.breach() {
            panic!("seed {seed}, at the end: {breach}");
        }
        seen
    })
}

#[test]
fn a_long_life_keeps_every_promise_at_every_step() {
    if let Some(seed) = std::env::var("SIMULATION_SEED").ok().and_then(|seed| seed.parse().ok()) {
        println!("{:?}", run(seed));
        return;
    }
    let mut seen = Seen::default();
    (1..=SEEDS).for_each(|seed| seen += run(seed));
    println!("{seen:?}");
    let Seen { answered, renewed, same_again, held, unavailable, failed, .. } = seen;
    let Seen { refused_again, left, made_anew, .. } = seen;
    let rarest = [answered, renewed, same_again, held, unavailable, failed, refused_again, left, made_anew];
    assert!(rarest.into_iter().all(|times| times > 500), "too little happened: {seen:?}");
}

#[test]
fn a_seed_tells_all() {
    assert_eq!(format!("{:?}", run(7)), format!("{:?}", run(7)));
}
