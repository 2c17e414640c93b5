//! What was counted in a window, by the time at which it was.

use std::collections::VecDeque;

/// Numbers of buckets and their counts, oldest first. The first one takes no memory of its own: with very many counters,
/// most have one.
#[derive(Debug, Default)]
pub(super) struct Buckets {
    first_number: u64,
    /// 0: there is no bucket.
    first_count: u32,
    #[expect(clippy::box_collection, reason = "most have none, and a window is smaller by a third")]
    more: Option<Box<VecDeque<(u64, u32)>>>,
}

impl Buckets {
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, u32)> {
        let first = self.front().into_iter();
        first.chain(self.more.iter().flat_map(|more| more.iter().copied()))
    }

    pub(super) fn front(&self) -> Option<(u64, u32)> {
        (self.first_count > 0).then_some((self.first_number, self.first_count))
    }

    pub(super) fn back(&self) -> Option<(u64, u32)> {
        self.more.as_ref().and_then(|more| more.back().copied()).or_else(|| self.front())
    }

    pub(super) fn pop_front(&mut self) {
        let next = self.more.as_mut().and_then(|more| more.pop_front());
        (self.first_number, self.first_count) = next.unwrap_or_default();
    }

    pub(super) fn pop_back(&mut self) {
        if self.more.as_mut().and_then(|more| more.pop_back()).is_none() {
            self.first_count = 0;
        }
    }

    /// Adds to this bucket, or to a later one that there is after the clock was set back by less than a bucket. If
    /// `is_little`, an only bucket becomes this one.
    pub(super) fn add(&mut self, number: u64, count: u32, is_little: bool) {
        if count == 0 {
            return;
        }
        if is_little && self.more.is_none() {
            self.first_number = self.first_number.max(number);
            self.first_count += count;
            return;
        }
        match self.more.as_mut().and_then(|more| more.back_mut()) {
            Some((last, counted)) if *last >= number => *counted += count,
            None if self.first_count > 0 && self.first_number >= number => self.first_count += count,
            None if self.first_count == 0 => (self.first_number, self.first_count) = (number, count),
            _ => self.more.get_or_insert_default().push_back((number, count)),
        }
    }
}
