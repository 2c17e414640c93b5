//! Agents in trouble: those of whose requests of the last five minutes at least five, and half of all, failed, or one with
//! an errcode that an operator has to act on, or because WeCom did not respond in time.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use super::{
    failure::{AgentFailures, ReasonCount, TroubleReason, note_reason},
    pair_metrics::PairCounts,
};
use crate::{blocking, directory::Agent, time::clock};

/// How long a failure counts.
const WINDOW_TTL: Duration = Duration::from_secs(5 * 60);
const PERIOD_SECONDS: u64 = 30;
/// The periods of the window with the running one.
const PERIODS: usize = 11;
/// With fewer requests in the window, the share of failed ones says nothing.
const MIN_REQUESTS: u64 = 5;

/// The requests of the last minutes by agent.
pub(super) struct TroubleTracker {
    agents: BTreeMap<Arc<str>, AgentWindow>,
    /// Those with failures: the others, of which there can be very many, are in no trouble.
    failing: BTreeSet<Arc<str>>,
    /// The running period: a multiple of [`PERIOD_SECONDS`] since 1970.
    period: u64,
}

/// The requests of an agent. Small, because there can be very many agents.
#[derive(Default)]
pub(super) struct AgentWindow {
    /// By period, modulo [`PERIODS`].
    requests: [u32; PERIODS],
    /// Of those of whose requests one has failed.
    failures: Option<Box<RecentFailures>>,
}

#[derive(Default)]
struct RecentFailures {
    counted_as: Option<Box<str>>,
    /// Failed requests by period, modulo [`PERIODS`].
    failed: [u32; PERIODS],
    reasons: Vec<ReasonCount>,
    untrusted_address: Option<IpAddr>,
    /// The first failure since the agent was well, and the failures since then.
    failing: Option<(SystemTime, u64)>,
}

/// An agent in trouble.
#[derive(Debug, Clone)]
pub struct AgentTrouble {
    /// Its name.
    pub agent: Arc<str>,
    /// Its name in metrics.
    pub counted_as: Box<str>,
    /// Why; never empty, errcodes first.
    pub reasons: Vec<TroubleReason>,
    /// Its requests of the last minutes.
    pub requests: u64,
    /// Those of them that were outages or refusals of WeCom.
    pub failed: u64,
    /// The first failure since the agent was well.
    pub failing_since: SystemTime,
    /// The failures since then.
    pub attempts: u64,
    /// The address to add to the app's trusted ones, for 60020.
    pub untrusted_address: Option<IpAddr>,
}

impl TroubleTracker {
    pub(super) fn new(now: SystemTime) -> Self {
        Self { agents: BTreeMap::new(), failing: BTreeSet::new(), period: period_of(now) }
    }

    /// Adds the metrics of an agent to the running period.
    pub(super) fn add(&mut self, agent: &Agent, pair: &PairCounts) {
        let counted_as = Some(agent.counted_as()).filter(|counted_as| *counted_as != agent.name);
        self.add_counts(&agent.name, counted_as, pair);
    }

    fn add_counts(&mut self, name: &str, counted_as: Option<&str>, pair: &PairCounts) {
        let window = match self.agents.get_mut(name) {
            Some(window) => window,
            None => self.agents.entry(name.into()).or_default(),
        };
        let requests = u32::try_from(pair.durations.count()).unwrap_or(u32::MAX);
        let slot = self.period as usize % PERIODS;
        window.requests[slot] = window.requests[slot].saturating_add(requests);
        if let Some(failures) = &pair.agent_failures {
            let recent = window.failures.get_or_insert_default();
            if let Some(counted_as) = counted_as {
                recent.counted_as = Some(counted_as.into());
            }
            recent.failed[slot] = recent.failed[slot].saturating_add(failures.count);
            recent.add(failures);
            if !self.failing.contains(name) {
                self.failing.insert(name.into());
            }
        }
    }

    /// Starts the period of `now`, if it is a new one; forgets what is too old.
    pub(super) fn rotate(&mut self, now: SystemTime) {
        let period = period_of(now);
        if period == self.period {
            return;
        }
        // After a jump of the clock, nothing is left that could be compared.
        let passed =
            period.checked_sub(self.period).map_or(PERIODS, |passed| passed.min(PERIODS as u64) as usize);
        self.period = period;
        for window in blocking::in_slices(self.agents.values_mut()) {
            for ago in 0..passed {
                window.clear((period as usize + PERIODS - ago % PERIODS) % PERIODS);
            }
            window.expire(now);
        }
        let is_idle = |window: &AgentWindow| {
            window.request_count() == 0
                && window.failures.as_ref().is_none_or(|recent| recent.reasons.is_empty())
        };
        let idle = blocking::in_slices(&self.agents).filter(|(_, window)| is_idle(window));
        for name in blocking::in_slices(idle.map(|(name, _)| name.clone()).collect::<Vec<_>>()) {
            self.agents.remove(&name);
        }
        let is_failing = |name: &Arc<str>| self.agents.get(name).is_some_and(AgentWindow::is_failing);
        let well: Vec<_> =
            blocking::in_slices(&self.failing).filter(|name| !is_failing(name)).cloned().collect();
        for name in blocking::in_slices(well) {
            self.failing.remove(&name);
        }
    }

    /// The windows by agent, to remove some.
    pub(super) fn agents_mut(&mut self) -> &mut BTreeMap<Arc<str>, AgentWindow> {
        &mut self.agents
    }

    /// The agents in trouble.
    pub(super) fn troubles(&self, now: SystemTime) -> Vec<AgentTrouble> {
        let failing = blocking::in_slices(&self.failing);
        failing.filter_map(|name| self.agents.get(name)?.trouble(name, now)).collect()
    }
}

impl AgentWindow {
    fn clear(&mut self, slot: usize) {
        self.requests[slot] = 0;
        if let Some(recent) = &mut self.failures {
            recent.failed[slot] = 0;
        }
    }

    fn expire(&mut self, now: SystemTime) {
        let requests = self.request_count();
        if self.failures.as_mut().is_some_and(|recent| recent.expire(requests, now)) {
            self.failures = None;
        }
    }

    fn request_count(&self) -> u64 {
        self.requests.iter().copied().map(u64::from).sum()
    }

    fn is_failing(&self) -> bool {
        self.failures.as_ref().is_some_and(|recent| recent.failing.is_some())
    }

    fn trouble(&self, name: &Arc<str>, now: SystemTime) -> Option<AgentTrouble> {
        let recent = self.failures.as_ref()?;
        let (failing_since, attempts) = recent.failing?;
        let (requests, failed) = (self.request_count(), recent.failed_count());
        let counted = recent.reasons.iter().filter(|reason| is_recent(reason, now));
        let mut reasons: Vec<_> = counted.map(|reason| reason.reason).collect();
        reasons.sort_unstable();
        if requests >= MIN_REQUESTS && failed * 2 >= requests {
            reasons.push(TroubleReason::HalfFailed);
        }
        if reasons.is_empty() {
            return None;
        }
        Some(AgentTrouble {
            agent: name.clone(),
            counted_as: recent.counted_as.clone().unwrap_or_else(|| (&**name).into()),
            reasons,
            requests,
            failed,
            failing_since,
            attempts,
            untrusted_address: recent.untrusted_address,
        })
    }
}

impl RecentFailures {
    fn add(&mut self, failures: &AgentFailures) {
        for reason in &failures.reasons {
            note_reason(&mut self.reasons, *reason);
        }
        self.untrusted_address = failures.untrusted_address.or(self.untrusted_address);
        let (since, attempts) = self.failing.unwrap_or((failures.first_at, 0));
        self.failing = Some((since.min(failures.first_at), attempts + u64::from(failures.count)));
    }

    /// Forgets what is too old. Returns whether nothing is left.
    fn expire(&mut self, requests: u64, now: SystemTime) -> bool {
        self.reasons.retain(|reason| is_recent(reason, now));
        let failed = self.failed_count();
        let is_well = failed == 0 || (requests >= MIN_REQUESTS && failed * 2 < requests);
        if self.reasons.is_empty() && is_well {
            (self.failing, self.untrusted_address) = (None, None);
        }
        failed == 0 && self.reasons.is_empty()
    }

    fn failed_count(&self) -> u64 {
        self.failed.iter().copied().map(u64::from).sum()
    }
}

fn period_of(time: SystemTime) -> u64 {
    clock::unix_seconds(time) / PERIOD_SECONDS
}

fn is_recent(reason: &ReasonCount, now: SystemTime) -> bool {
    now.duration_since(reason.last_at).is_ok_and(|age| age < WINDOW_TTL) || reason.last_at > now
}

#[cfg(test)]
mod tests {
    use super::*;

    const AGENT: &str = "hr";

    struct Tracked {
        tracker: TroubleTracker,
        now: SystemTime,
    }

    impl Tracked {
        fn new() -> Self {
            let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
            Self { tracker: TroubleTracker::new(now), now }
        }

        fn advance(&mut self, seconds: u64) {
            self.now += Duration::from_secs(seconds);
            self.tracker.rotate(self.now);
        }

        fn add(&mut self, requests: u32, failed: u32, reason: Option<TroubleReason>) {
            let mut counts = PairCounts::default();
            counts.durations.add(0, requests.into(), 0);
            if failed > 0 {
                let mut failures = AgentFailures::new(self.now);
                failures.count = failed;
                failures.reasons.extend(reason.map(|reason| ReasonCount { reason, last_at: self.now }));
                counts.agent_failures = Some(Box::new(failures));
            }
            self.tracker.add_counts(AGENT, None, &counts);
        }

        fn reasons(&self) -> String {
            let troubles = self.tracker.troubles(self.now);
            let reasons: Vec<_> =
                troubles.iter().flat_map(|it| &it.reasons).map(ToString::to_string).collect();
            reasons.join(" ")
        }
    }

    #[test]
    fn half_of_five_requests_is_trouble() {
        let mut tracked = Tracked::new();
        tracked.add(4, 4, None);
        assert_eq!(tracked.reasons(), "", "too few requests");
        tracked.add(4, 0, None);
        assert_eq!(tracked.reasons(), "half-failed");
        tracked.add(1, 0, None);
        assert_eq!(tracked.reasons(), "", "less than half failed");
    }

    #[test]
    fn one_errcode_is_trouble_for_five_minutes() {
        let mut tracked = Tracked::new();
        tracked.add(100, 1, Some(TroubleReason::Errcode(60020)));
        tracked.add(1, 1, Some(TroubleReason::UpstreamTimeout));
        assert_eq!(tracked.reasons(), "60020 upstream-timeout");
        tracked.advance(299);
        assert_eq!(tracked.reasons(), "60020 upstream-timeout");
        tracked.advance(1);
        assert_eq!(tracked.reasons(), "");
        tracked.advance(60);
        let TroubleTracker { agents, failing, .. } = &tracked.tracker;
        assert!(agents.is_empty() && failing.is_empty(), "an agent without requests is forgotten");
    }

    #[test]
    fn failing_since_outlives_the_window_and_ends_with_the_trouble() {
        let mut tracked = Tracked::new();
        let begun = tracked.now;
        for _ in 0..20 {
            tracked.add(2, 2, None);
            tracked.advance(30);
        }
        let [trouble] = &tracked.tracker.troubles(tracked.now)[..] else { panic!("one agent") };
        assert_eq!((trouble.failing_since, trouble.attempts), (begun, 40));
        assert_eq!((trouble.requests, trouble.failed), (20, 20), "of the last five minutes");
        for _ in 0..11 {
            tracked.add(50, 0, None);
            tracked.advance(30);
        }
        tracked.add(10, 10, None);
        tracked.add(1, 1, Some(TroubleReason::Errcode(48002)));
        let since = tracked.tracker.troubles(tracked.now)[0].failing_since;
        assert_eq!(since, tracked.now, "a new trouble");
    }

    #[test]
    fn jump_of_the_clock_forgets_the_window() {
        let mut tracked = Tracked::new();
        tracked.add(10, 10, None);
        assert_eq!(tracked.reasons(), "half-failed");
        tracked.now -= Duration::from_secs(3600);
        tracked.tracker.rotate(tracked.now);
        assert_eq!(tracked.reasons(), "");
    }
}
