//! The egress proxies of an upstream: which of them a corp uses, and which fail.
//!
//! Rendezvous hashing gives each corp an order of its own, so that a corp stays with one address, and a proxy that is
//! added takes over its share only. A proxy is down from a connection through it that failed until one that succeeded;
//! meanwhile it comes after the others. A task probes it, because no request may do that.

use std::{
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{sleep, timeout},
};

use super::{ConnectError, Settings, dial::dial};
use crate::config;

/// The pause between two probes of a proxy that is down. With [`MAX_PROBE_TIME`], a proxy that recovers is used again
/// within 30 s.
const PROBE_INTERVAL: Duration = Duration::from_secs(5);
const MAX_PROBE_TIME: Duration = Duration::from_secs(15);

/// The egress proxies, shared by all workers and the gettoken thread, so that all of them make the same choice.
pub(super) struct EgressProxies(Vec<State>);

/// Egress proxies that a request has tried in vain, by their bits.
#[derive(Clone, Copy, Default)]
pub(super) struct TriedProxies(u32);

impl TriedProxies {
    pub(super) fn with(self, nth: usize) -> Self {
        Self(self.0 | 1 << nth)
    }

    fn contains(self, nth: usize) -> bool {
        self.0 & (1 << nth) != 0
    }
}

struct State {
    proxy: config::EgressProxy,
    hash: u64,
    is_down: AtomicBool,
    went_down: Notify,
}

impl EgressProxies {
    pub(super) fn new(proxies: &[config::EgressProxy]) -> Self {
        let states = proxies.iter().map(|proxy| State {
            proxy: proxy.clone(),
            hash: hash(&proxy.authority()),
            is_down: AtomicBool::new(false),
            went_down: Notify::new(),
        });
        Self(states.collect())
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// `None` where there is none, and connections are direct.
    pub(super) fn proxy(&self, nth: usize) -> Option<&config::EgressProxy> {
        self.0.get(nth).map(|state| &state.proxy)
    }

    /// Each with whether it is up.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&config::EgressProxy, bool)> {
        self.0.iter().map(|state| (&state.proxy, !state.is_down.load(Relaxed)))
    }

    /// The one that a corp uses now, of those that its request has not tried; one that is down only if all are.
    pub(super) fn choose(&self, corpid: &str, tried: TriedProxies) -> Option<usize> {
        let corp_hash = hash(corpid);
        let untried = self.0.iter().enumerate().filter(|(nth, _)| !tried.contains(*nth));
        let rank = |state: &State| (!state.is_down.load(Relaxed), mix(state.hash ^ corp_hash));
        untried.max_by_key(|(_, state)| rank(state)).map(|(nth, _)| nth)
    }

    /// Records that a connection was made.
    pub(super) fn mark_up(&self, nth: usize) {
        if let Some(state) = self.0.get(nth)
            && state.is_down.load(Relaxed)
            && state.is_down.swap(false, Relaxed)
        {
            tracing::info!(via = state.proxy.authority(), "egress proxy works again");
        }
    }

    /// Records that a connection could not be made, to the proxy or from there to the upstream.
    pub(super) fn mark_down(&self, nth: usize, error: &ConnectError) {
        if let Some(state) = self.0.get(nth)
            && !state.is_down.swap(true, Relaxed)
        {
            tracing::warn!(via = state.proxy.authority(), %error, "connection through the egress proxy failed");
            state.went_down.notify_one();
        }
    }
}

impl Settings {
    /// Probes an egress proxy whenever it is down, until a connection through it succeeds. Never ends.
    pub async fn probe_egress_proxy(&self, nth: usize) {
        let Some(state) = self.egress_proxies.0.get(nth) else { return };
        loop {
            state.went_down.notified().await;
            while state.is_down.load(Relaxed) {
                sleep(PROBE_INTERVAL).await;
                let connected = timeout(MAX_PROBE_TIME, dial(self, nth)).await;
                if connected.is_ok_and(|dialed| dialed.is_ok()) {
                    self.egress_proxies.mark_up(nth);
                }
            }
        }
    }
}

/// FNV-1a: the same in every version and on every machine, so that replicas agree.
fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// The finalizer of MurmurHash3.
fn mix(mut hash: u64) -> u64 {
    for factor in [0xff51_afd7_ed55_8ccd, 0xc4ce_b9fe_1a85_ec53] {
        hash = (hash ^ (hash >> 33)).wrapping_mul(factor);
    }
    hash ^ (hash >> 33)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::{EgressProtocol, EgressProxy};

    fn proxies(count: usize) -> EgressProxies {
        let proxy = |nth| EgressProxy {
            protocol: EgressProtocol::HttpConnect,
            host: format!("egress-{nth}"),
            port: 3128,
            login: None,
        };
        EgressProxies::new(&(0..count).map(proxy).collect::<Vec<_>>())
    }

    fn choose(proxies: &EgressProxies, corpid: &str) -> usize {
        proxies.choose(corpid, TriedProxies::default()).expect("an egress proxy")
    }

    fn failure() -> ConnectError {
        ConnectError::new(crate::text!("connection refused", "连接被拒绝"))
    }

    proptest! {
        #[test]
        fn added_proxy_takes_over_its_share_only(corpid in "ww[0-9a-f]{16}", count in 1usize..8) {
            let (before, after) = (choose(&proxies(count), &corpid), choose(&proxies(count + 1), &corpid));
            prop_assert!(after == before || after == count, "{} to {}", before, after);
        }

        #[test]
        fn each_proxy_is_tried_once_and_those_down_last(corpid in ".{0,20}", down in 0u32..16) {
            let proxies = proxies(4);
            (0..4).filter(|nth| down & (1 << nth) != 0).for_each(|nth| proxies.mark_down(nth, &failure()));
            let (mut tried, mut order) = (TriedProxies::default(), Vec::new());
            while let Some(nth) = proxies.choose(&corpid, tried) {
                order.push(nth);
                tried = tried.with(nth);
            }
            let is_down = |nth: &usize| down & (1 << nth) != 0;
            prop_assert!(order.is_sorted_by_key(is_down));
            order.sort_unstable();
            prop_assert_eq!(order, [0, 1, 2, 3]);
        }
    }

    #[test]
    fn corps_are_spread_over_the_proxies() {
        let proxies = proxies(3);
        let mut counts = [0; 3];
        (0..3000).for_each(|nth| counts[choose(&proxies, &format!("ww{nth:016x}"))] += 1);
        assert!(counts.iter().all(|count| (850..1150).contains(count)), "{counts:?}");
    }

    /// Replicas of two versions must agree, or a corp would be seen from two addresses.
    #[test]
    fn choice_is_the_same_in_all_versions() {
        let corps = ["ww1234567890abcdef", "ww0000000000000001", "wwabcdefabcdefabcd", ""];
        let choices = corps.map(|corpid| choose(&proxies(5), corpid));
        assert_eq!(choices, [3, 1, 0, 1]);
    }

    #[test]
    fn recovered_proxy_is_used_again() {
        let (proxies, corpid) = (proxies(2), "ww1");
        let preferred = choose(&proxies, corpid);
        proxies.mark_down(preferred, &failure());
        assert_eq!(choose(&proxies, corpid), 1 - preferred);
        proxies.mark_down(1 - preferred, &failure());
        assert_eq!(choose(&proxies, corpid), preferred, "the order holds where all are down");
        proxies.mark_up(preferred);
        assert_eq!(choose(&proxies, corpid), preferred);
    }
}
