//! A consistent view of the recorded traffic.

use super::recorder::{RecordedMessage, RecordedRequest};
use super::state::State;

/// A consistent view of the traffic since the start or the last reset.
#[derive(Clone, Copy)]
pub struct Observed<'a>(pub(super) &'a State);

impl<'a> Observed<'a> {
    /// The last 10,000 requests, oldest first.
    pub fn requests(self) -> impl DoubleEndedIterator<Item = &'a RecordedRequest> + ExactSizeIterator {
        self.0.recorder.requests.iter()
    }

    /// The last 1,000 messages, oldest first.
    pub fn messages(self) -> impl DoubleEndedIterator<Item = &'a RecordedMessage> + ExactSizeIterator {
        self.0.recorder.messages.iter()
    }

    /// Number of requests, gettoken included.
    pub fn request_count(self) -> u64 {
        self.0.recorder.counts.requests
    }

    /// Number of requests with this path among the last 10,000.
    pub fn received_count(self, path: &str) -> usize {
        self.requests().filter(|record| record.path == path).count()
    }

    /// Number of executions of this call with errcode 0.
    pub fn executed_count(self, path: &str) -> u64 {
        self.0.recorder.counts.executed.get(path).copied().unwrap_or(0)
    }

    /// Number of responses with this errcode.
    pub fn errcode_count(self, errcode: i64) -> u64 {
        self.0.recorder.counts.answered.get(&errcode).copied().unwrap_or(0)
    }

    /// Number of gettoken calls with this agent's corpid and secret; 0 for an unknown agent.
    pub fn gettoken_count_of(self, agent: &str) -> u64 {
        let agents = &self.0.agents;
        agents.find(agent).map_or(0, |agent| agents.gettoken_count(agent))
    }

    /// Number of gettoken calls, with right or wrong secrets.
    pub fn gettoken_count(self) -> u64 {
        self.0.recorder.counts.gettokens
    }

    /// Number of requests in flight: from the head of the request to the last byte of the response.
    pub fn in_flight(self) -> u64 {
        self.0.recorder.counts.in_flight
    }

    /// Maximum number of concurrent requests.
    pub fn max_in_flight(self) -> u64 {
        self.0.recorder.counts.in_flight_max
    }

    /// Number of connections opened to the API.
    pub fn connection_count(self) -> u64 {
        self.0.recorder.counts.connections
    }

    /// Number of open connections to the API.
    pub fn open_connections(self) -> u64 {
        self.0.recorder.counts.connections_open
    }
}
