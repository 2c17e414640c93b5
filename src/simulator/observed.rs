//! A view of what was seen, all at one moment.

use super::recorder::{RecordedMessage, RecordedRequest};
use super::state::State;

/// What the simulator has seen since its start or the last reset, at one moment.
#[derive(Clone, Copy)]
pub struct Observed<'a>(pub(super) &'a State);

impl<'a> Observed<'a> {
    /// The last 10,000 requests, the oldest first.
    pub fn requests(self) -> impl DoubleEndedIterator<Item = &'a RecordedRequest> + ExactSizeIterator {
        self.0.recorder.requests.iter()
    }

    /// The last 1,000 messages, the oldest first.
    pub fn messages(self) -> impl DoubleEndedIterator<Item = &'a RecordedMessage> + ExactSizeIterator {
        self.0.recorder.messages.iter()
    }

    /// How many requests came, gettoken included.
    pub fn request_count(self) -> u64 {
        self.0.recorder.counts.requests
    }

    /// How many requests came with this path, among the last 10,000.
    pub fn received_count(self, path: &str) -> usize {
        self.requests().filter(|record| record.path == path).count()
    }

    /// How often this call was carried out with errcode 0.
    pub fn executed_count(self, path: &str) -> u64 {
        self.0.recorder.counts.executed.get(path).copied().unwrap_or(0)
    }

    /// How many answers had this errcode.
    pub fn errcode_count(self, errcode: i64) -> u64 {
        self.0.recorder.counts.answered.get(&errcode).copied().unwrap_or(0)
    }

    /// How often gettoken was called with this agent's corpid and secret; 0 for an unknown agent.
    pub fn gettoken_count_of(self, agent: &str) -> u64 {
        let agents = &self.0.agents;
        agents.find(agent).map_or(0, |agent| agents.gettoken_count(agent))
    }

    /// How often gettoken was called, with right or wrong secrets.
    pub fn gettoken_count(self) -> u64 {
        self.0.recorder.counts.gettokens
    }

    /// The most gettoken calls that were under way at once.
    pub fn max_gettokens_in_flight(self) -> u64 {
        self.0.recorder.counts.gettokens_in_flight_max
    }

    /// How many requests are under way: from the head of the request to the last byte of the answer.
    pub fn in_flight(self) -> u64 {
        self.0.recorder.counts.in_flight
    }

    /// The most requests that were under way at once.
    pub fn max_in_flight(self) -> u64 {
        self.0.recorder.counts.in_flight_max
    }

    /// How many connections to the API were opened.
    pub fn connection_count(self) -> u64 {
        self.0.recorder.counts.connections
    }

    /// How many connections to the API are open.
    pub fn open_connections(self) -> u64 {
        self.0.recorder.counts.connections_open
    }
}
