//! Single flight: one fetch at a time, whose outcome all callers get that arrive meanwhile.

use tokio::sync::watch;

/// The fetch that runs, if any. Part of the state that it changes, so that one lock guards both: a caller that finds
/// no flight finds its result.
#[derive(Debug)]
pub(super) struct SingleFlight<T>(Option<Flight<T>>);

/// A running fetch to wait for.
#[derive(Debug, Clone)]
pub(super) struct Flight<T>(watch::Receiver<Option<T>>);

/// The side that fetches. Dropped before [`SingleFlight::complete`], as in a cancelled fetch or a panic, it ends the
/// flight without an outcome.
#[derive(Debug)]
pub(super) struct Leader<T>(watch::Sender<Option<T>>);

impl<T> Default for SingleFlight<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T: Clone> SingleFlight<T> {
    /// The flight to join, while its leader is at work.
    pub(super) fn running(&self) -> Option<Flight<T>> {
        self.0.clone().filter(|flight| flight.0.has_changed().is_ok())
    }

    /// Whether nothing runs that is to be completed.
    pub(super) fn is_none(&self) -> bool {
        self.0.is_none()
    }

    /// Starts a flight.
    pub(super) fn start(&mut self) -> (Leader<T>, Flight<T>) {
        let (sender, receiver) = watch::channel(None);
        let flight = Flight(receiver);
        self.0 = Some(flight.clone());
        (Leader(sender), flight)
    }

    /// Ends the flight; everything that waits for it gets this outcome.
    pub(super) fn complete(&mut self, leader: &Leader<T>, outcome: T) {
        self.0 = None;
        leader.0.send_replace(Some(outcome));
    }
}

impl<T: Clone> Flight<T> {
    /// The outcome; `None` if the flight ended without one.
    pub(super) async fn wait(mut self) -> Option<T> {
        self.0.wait_for(Option::is_some).await.ok()?.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn flight_gives_its_outcome_to_all_that_joined() {
        let mut single_flight = SingleFlight::default();
        assert!(single_flight.running().is_none());
        let (leader, first) = single_flight.start();
        let second = single_flight.running().expect("a flight");
        single_flight.complete(&leader, 7);
        assert!(single_flight.running().is_none());
        assert_eq!((first.wait().await, second.wait().await), (Some(7), Some(7)));
    }

    #[tokio::test]
    async fn flight_of_a_dropped_leader_ends_without_outcome() {
        let mut single_flight = SingleFlight::<u8>::default();
        let (leader, flight) = single_flight.start();
        drop(leader);
        assert!(single_flight.running().is_none());
        assert_eq!(flight.wait().await, None);
        let (leader, flight) = single_flight.start();
        single_flight.complete(&leader, 1);
        assert_eq!(flight.wait().await, Some(1));
    }
}
