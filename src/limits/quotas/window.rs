//! How much of one quota is used.

use std::{num::NonZeroU32, time::Duration};

use super::buckets::Buckets;
use crate::{
    config::QuotaScope,
    wecom::quotas::{DAY, UNKNOWN_LIMIT},
};

/// Buckets of a window. One more is counted than fits, so that the count is an upper bound of every window of that
/// length, wherever WeCom's begin and whether they slide or not.
const BUCKETS: u64 = 60;
/// The same where replicas count together.
const SHARED_BUCKETS: u64 = 12;
/// While at most this share of a limit is used, all of it is counted as if used last: no time matters yet, and buckets
/// would take memory for very many counters.
const ONE_BUCKET_PERCENT: u64 = 1;
/// The offset of Beijing's days, which begin 8 h before those of UTC.
const BEIJING_OFFSET_MS: u64 = 8 * 3600 * 1000;

/// The usage of one quota. Only buckets with usage take memory. Times are milliseconds since 1970.
#[derive(Debug)]
pub(super) struct Window {
    pub(super) limit: u32,
    /// Seconds.
    per: NonZeroU32,
    buckets: Buckets,
    used: u32,
    /// What other replicas used, by the last exchange, and until when that counts.
    elsewhere: u32,
    elsewhere_until: u64,
    /// Used and not exchanged with other replicas yet.
    pub(super) unreported: u32,
}

impl Window {
    pub(super) fn new(limit: u32, per: Duration) -> Self {
        Self {
            limit,
            per: u32::try_from(per.as_secs()).ok().and_then(NonZeroU32::new).unwrap_or(NonZeroU32::MIN),
            buckets: Buckets::default(),
            used: 0,
            elsewhere: 0,
            elsewhere_until: 0,
            unreported: 0,
        }
    }

    /// Its length.
    pub(super) fn per(&self) -> Duration {
        Duration::from_secs(self.per.get().into())
    }

    /// With another limit; what was counted stays.
    pub(super) fn with_limit(self, limit: u32) -> Self {
        Self { limit, ..self }
    }

    /// The quota as text: `corp 600/m /cgi-bin/oa/applyevent`.
    pub(super) fn describe(&self, scope: QuotaScope, path: &str) -> String {
        let unit = match self.per.get() {
            1 => "s",
            60 => "m",
            3600 => "h",
            86_400 => "day",
            _ => "month",
        };
        let scope = scope.name();
        match self.known_limit() {
            Some(limit) => format!("{scope} {limit}/{unit} {path}"),
            None => format!("{scope} unknown/{unit} {path}"),
        }
    }

    /// The limit, unless WeCom does not say how many calls it allows.
    pub(super) fn known_limit(&self) -> Option<u32> {
        Some(self.limit).filter(|limit| *limit != UNKNOWN_LIMIT)
    }

    /// Whether this replica used more than the limit.
    pub(super) fn is_exceeded(&self) -> bool {
        self.used > self.limit
    }

    /// A day ends at midnight; other windows may begin any time.
    fn is_day(&self) -> bool {
        self.per() == DAY
    }

    fn per_ms(&self) -> u64 {
        u64::from(self.per.get()) * 1000
    }

    fn bucket_ms(&self) -> u64 {
        let ms = self.per_ms();
        // Rounded up: shorter buckets would end before WeCom's window does.
        if self.is_day() { ms } else { ms.div_ceil(BUCKETS) }
    }

    fn bucket_at(&self, now: u64) -> u64 {
        let offset = if self.is_day() { BEIJING_OFFSET_MS } else { 0 };
        (now + offset) / self.bucket_ms()
    }

    /// How many buckets after its own a count still counts.
    fn lifetime(&self) -> u64 {
        if self.is_day() { 0 } else { BUCKETS }
    }

    /// When what was counted in this bucket no longer counts.
    fn end_of(&self, bucket: u64) -> u64 {
        let offset = if self.is_day() { BEIJING_OFFSET_MS } else { 0 };
        ((bucket + self.lifetime() + 1) * self.bucket_ms()).saturating_sub(offset)
    }

    /// Forgets what no longer counts.
    pub(super) fn advance(&mut self, now: u64) {
        self.advance_to(now, self.bucket_at(now));
    }

    fn advance_to(&mut self, now: u64, current: u64) {
        // After the clock was set back, times far ahead would be kept for as long as it was set back.
        if now >= self.elsewhere_until || self.elsewhere_until > now + self.elsewhere_ms() {
            self.elsewhere = 0;
        }
        while let Some((bucket, count)) = self.buckets.back()
            && bucket > current + 1
        {
            self.used -= count;
            self.buckets.pop_back();
        }
        while let Some((bucket, count)) = self.buckets.front()
            && bucket + self.lifetime() < current
        {
            self.used -= count;
            self.buckets.pop_front();
        }
    }

    pub(super) fn add(&mut self, now: u64, count: u32) {
        let current = self.bucket_at(now);
        self.advance_to(now, current);
        let count = count.min(u32::MAX - self.used);
        self.used += count;
        self.unreported = self.unreported.saturating_add(count);
        let is_little = u64::from(self.used) * 100 <= u64::from(self.limit) * ONE_BUCKET_PERCENT;
        self.buckets.add(current, count, is_little);
    }

    /// Takes over what all replicas together used.
    pub(super) fn set_total(&mut self, total: u32, now: u64) {
        self.advance(now);
        self.elsewhere = total.saturating_sub(self.used.saturating_sub(self.unreported));
        self.elsewhere_until = now + self.elsewhere_ms();
    }

    /// How long a total of all replicas counts.
    fn elsewhere_ms(&self) -> u64 {
        (self.per_ms() / 6).max(1)
    }

    /// What this replica used, as of the last `advance` or `add`.
    pub(super) fn own(&self) -> u32 {
        self.used
    }

    /// What all replicas used.
    pub(super) fn used(&self) -> u32 {
        self.used.saturating_add(self.elsewhere)
    }

    pub(super) fn ratio(&self) -> f64 {
        f64::from(self.used()) / f64::from(self.limit.max(1))
    }

    /// Whether a request has to wait: 90 % are used.
    pub(super) fn is_nearly_spent(&self) -> bool {
        u64::from(self.used()) * 10 >= u64::from(self.limit) * 9
    }

    /// When it will no longer be nearly spent, if nothing is added.
    pub(super) fn frees_at(&self, now: u64) -> u64 {
        let mut used = u64::from(self.used());
        for (bucket, count) in self.buckets.iter() {
            used -= u64::from(count);
            if used * 10 < u64::from(self.limit) * 9 {
                return self.end_of(bucket);
            }
        }
        // Used elsewhere.
        now + self.bucket_ms()
    }

    /// The buckets in which replicas count together, fewer than here: milliseconds, how many after its own a call counts,
    /// and by how many milliseconds they begin before the epoch.
    pub(super) fn shared_buckets(&self) -> (u64, u64, u64) {
        let ms = self.per_ms();
        if self.is_day() {
            (ms, 0, BEIJING_OFFSET_MS)
        } else {
            (ms.div_ceil(SHARED_BUCKETS), SHARED_BUCKETS, 0)
        }
    }

    /// When a block by WeCom that begins now ends: it lasts as long as the window.
    pub(super) fn block_ends_at(&self, now: u64) -> u64 {
        if self.is_day() { self.end_of(self.bucket_at(now)) } else { now + self.per_ms() }
    }

    /// The time until it will be spent at the rate of the last sixth of the window; `None` if it will not be.
    pub(super) fn spent_in(&self, now: u64) -> Option<Duration> {
        let left = self.limit.checked_sub(self.used()).filter(|left| *left > 0);
        let Some(left) = left else { return Some(Duration::ZERO) };
        let span = if self.is_day() { 1 } else { BUCKETS / 6 };
        let first = self.bucket_at(now).saturating_sub(span - 1);
        let recent: u64 = self
            .buckets
            .iter()
            .filter(|(bucket, _)| *bucket >= first)
            .map(|(_, count)| u64::from(count))
            .sum();
        let begin =
            (first * self.bucket_ms()).saturating_sub(if self.is_day() { BEIJING_OFFSET_MS } else { 0 });
        let elapsed = now.saturating_sub(begin).max(1);
        let at_this_rate = u64::from(left).checked_mul(elapsed)?.checked_div(recent)?;
        let sustained = recent * self.per_ms() / elapsed;
        let ends =
            if self.is_day() { self.end_of(self.bucket_at(now)).saturating_sub(now) } else { u64::MAX };
        let is_spent = at_this_rate < ends && (self.is_day() || sustained > u64::from(self.limit));
        is_spent.then(|| Duration::from_millis(at_this_rate))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn window_frees_what_is_older_than_its_length() {
        let mut window = Window::new(10, MINUTE);
        for second in 0..9 {
            assert!(!window.is_nearly_spent());
            window.add(1_000_000 + second * 1000, 1);
        }
        assert!(window.is_nearly_spent());
        let frees_at = window.frees_at(1_009_000);
        assert!((1_060_000..=1_061_000).contains(&frees_at), "{frees_at}");
        window.advance(frees_at);
        assert!(!window.is_nearly_spent());
        window.advance(1_071_000);
        assert_eq!((window.used(), window.buckets.iter().count()), (0, 0));
    }

    #[test]
    fn little_use_takes_one_bucket_and_ends_a_window_after_the_last() {
        let mut window = Window::new(1000, MINUTE);
        for second in 0..10 {
            window.add(1_000_000 + second * 1000, 1);
        }
        assert!(window.buckets.iter().count() == 1);
        window.advance(1_068_000);
        assert_eq!(window.used(), 10);
        window.advance(1_071_000);
        assert_eq!(window.used(), 0);
        for second in 0..20 {
            window.add(1_100_000 + second * 1000, 1);
        }
        assert_eq!((window.used(), window.buckets.iter().count()), (20, 11));
        window.advance(1_100_000 + 76_000);
        assert_eq!(window.used(), 4, "beyond one percent, each call has its own time");
    }

    #[test]
    fn day_ends_at_midnight_in_beijing() {
        let midnight = 1_750_000_000_000 / 86_400_000 * 86_400_000 + 16 * 3_600_000;
        let mut window = Window::new(10, DAY);
        window.add(midnight - 1, 9);
        assert_eq!((window.frees_at(midnight - 1), window.block_ends_at(midnight - 1)), (midnight, midnight));
        window.advance(midnight);
        assert_eq!(window.used(), 0);
    }

    #[test]
    fn clock_set_back_keeps_no_count_for_longer_than_a_window() {
        let hour = 3_600_000;
        for (per, back) in [(MINUTE, hour), (DAY, 48 * hour)] {
            let mut window = Window::new(10, per);
            window.add(1000 * hour, 9);
            window.set_total(20, 1000 * hour);
            assert_eq!((window.own(), window.used()), (9, 29));
            let now = 1000 * hour - back;
            window.add(now, 1);
            assert_eq!((window.own(), window.used()), (1, 1));
            window.advance(now + 2 * per.as_millis() as u64);
            assert_eq!(window.used(), 0);
        }
        // A step within a bucket forgets nothing.
        let mut window = Window::new(10, MINUTE);
        window.add(1000 * hour, 9);
        window.add(1000 * hour - 500, 1);
        assert_eq!(window.used(), 10);
    }

    #[test]
    fn window_will_be_spent_at_a_rate_beyond_its_limit_only() {
        let (mut slow, mut fast) = (Window::new(600, MINUTE), Window::new(600, MINUTE));
        for second in 0..30 {
            slow.add(second * 1000, 9);
            fast.add(second * 1000, 15);
        }
        assert_eq!(slow.spent_in(30_000), None);
        let spent_in = fast.spent_in(30_000).expect("beyond its limit").as_secs();
        assert!((8..=14).contains(&spent_in), "{spent_in}");
        fast.add(30_000, 150);
        assert_eq!(fast.spent_in(30_000), Some(Duration::ZERO));
    }

    proptest! {
        #[test]
        fn admitted_calls_stay_inside_fixed_and_sliding_windows(
            limit in 1u32..40, steps in prop::collection::vec(0.0..0.07, 1..300), offset in 0u64..3_600_000,
            seconds in prop::sample::select(vec![1u64, 60, 3600]),
        ) {
            let (per, length) = (Duration::from_secs(seconds), seconds * 1000);
            let (mut window, mut now, mut admitted) = (Window::new(limit, per), 10_000_000, Vec::new());
            for step in steps {
                now += (step * length as f64) as u64;
                window.advance(now);
                if !window.is_nearly_spent() {
                    window.add(now, 1);
                    admitted.push(now);
                } else {
                    // A bucket is rounded up, so together they are longer than the window.
                    let longest = (BUCKETS + 1) * window.bucket_ms();
                    prop_assert!(window.frees_at(now) > now && window.frees_at(now) <= now + longest);
                }
            }
            for from in &admitted {
                let within = admitted.iter().filter(|at| (*from..from + length).contains(at)).count();
                prop_assert!(within as u32 <= (limit * 9).div_ceil(10));
                let fixed = (from + offset) / length;
                let within = admitted.iter().filter(|at| (**at + offset) / length == fixed).count();
                prop_assert!(within as u32 <= limit);
            }
        }
    }
}
