//! Recorded traffic: the last requests, the last messages, and counts since the last reset.

use std::collections::{BTreeMap, VecDeque};

use hyper::http::request::Parts;
use serde::Serialize;

const MAX_REQUESTS: usize = 10_000;
const MAX_MESSAGES: usize = 1_000;

/// A request to the API, as received. The values of tokens and of `corpsecret` in the query are replaced:
/// `access_token=token#3`, `token#?` for an unknown token, `corpsecret=***`. Headers are unchanged.
#[derive(Clone, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct RecordedRequest {
    /// Serial number of the request, from 1, in the order of authorization.
    pub seq: u64,
    /// Serial number of the connection, from 1.
    pub connection: u64,
    /// The HTTP version, such as `HTTP/1.1`.
    pub version: String,
    /// The method.
    pub method: String,
    /// The path, undecoded.
    pub path: String,
    /// The query, undecoded, with its secret values replaced.
    pub query: String,
    /// Names and values in their order; bytes that are not UTF-8 are replaced.
    pub headers: Vec<(String, String)>,
    /// The agent that the request's token or secret belongs to.
    pub agent: Option<String>,
    /// Serial number of the request's token, valid or not.
    pub token: Option<u64>,
    /// Whether the call was authorized and executed with errcode 0.
    pub executed: bool,
    /// The HTTP status of the response; `None` before it is sent.
    pub status: Option<u16>,
    /// The errcode of the response.
    pub errcode: Option<i64>,
    /// Length of the request body in bytes; 0 until it is read to its end.
    pub body_bytes: u64,
    /// SHA-256 of the body in hex; `None` until it is read to its end.
    pub body_sha256: Option<String>,
}

impl RecordedRequest {
    pub(super) fn new(seq: u64, connection: u64, head: &Parts, query: String) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let headers =
            head.headers.iter().map(|(name, value)| (name.to_string(), text(value.as_bytes()))).collect();
        Self {
            seq,
            connection,
            version: format!("{:?}", head.version),
            method: head.method.to_string(),
            path: head.uri.path().to_owned(),
            query,
            headers,
            ..Self::default()
        }
    }

    /// The values of this header; `name` is in lower case.
    pub fn header_values(&self, name: &str) -> Vec<&str> {
        self.headers.iter().filter(|(known, _)| known == name).map(|(_, value)| value.as_str()).collect()
    }
}

/// A message accepted by `message/send` or `webhook/send`.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct RecordedMessage {
    /// Serial number of its request.
    pub seq: u64,
    /// The agent whose token authorized it; `None` for a webhook.
    pub agent: Option<String>,
    /// The message as sent.
    pub body: serde_json::Value,
}

/// Traffic since the start or the last reset. Only the number of requests and messages is bounded.
#[derive(Default)]
pub(super) struct TrafficRecorder {
    pub(super) requests: VecDeque<RecordedRequest>,
    pub(super) messages: VecDeque<RecordedMessage>,
    pub(super) counts: TrafficCounts,
    last_seq: u64,
    last_connection: u64,
}

#[derive(Clone, Default, Serialize)]
pub(super) struct TrafficCounts {
    pub(super) requests: u64,
    pub(super) gettokens: u64,
    pub(super) gettokens_in_flight: u64,
    pub(super) gettokens_in_flight_max: u64,
    pub(super) in_flight: u64,
    pub(super) in_flight_max: u64,
    pub(super) connections: u64,
    pub(super) connections_open: u64,
    pub(super) executed: BTreeMap<&'static str, u64>,
    pub(super) answered: BTreeMap<i64, u64>,
}

impl TrafficRecorder {
    /// Serial number of the next request.
    pub(super) fn next_seq(&mut self) -> u64 {
        self.last_seq += 1;
        self.counts.requests += 1;
        self.last_seq
    }

    /// Serial number of the next connection.
    pub(super) fn next_connection(&mut self) -> u64 {
        self.last_connection += 1;
        self.counts.connections += 1;
        self.last_connection
    }

    pub(super) fn push_request(&mut self, record: RecordedRequest) {
        if self.requests.len() == MAX_REQUESTS {
            self.requests.pop_front();
        }
        self.requests.push_back(record);
    }

    pub(super) fn push_message(&mut self, message: RecordedMessage) {
        if self.messages.len() == MAX_MESSAGES {
            self.messages.pop_front();
        }
        self.messages.push_back(message);
    }

    /// The recorded request, unless it was evicted or cleared.
    pub(super) fn request_mut(&mut self, seq: u64) -> Option<&mut RecordedRequest> {
        let first = self.requests.front()?.seq;
        self.requests.get_mut(usize::try_from(seq.checked_sub(first)?).ok()?)
    }

    pub(super) fn request_started(&mut self, gettoken: bool) {
        let counts = &mut self.counts;
        counts.in_flight += 1;
        counts.in_flight_max = counts.in_flight_max.max(counts.in_flight);
        if gettoken {
            counts.gettokens += 1;
            counts.gettokens_in_flight += 1;
            counts.gettokens_in_flight_max = counts.gettokens_in_flight_max.max(counts.gettokens_in_flight);
        }
    }

    pub(super) fn request_ended(&mut self, gettoken: bool) {
        self.counts.in_flight -= 1;
        self.counts.gettokens_in_flight -= u64::from(gettoken);
    }

    /// Clears everything except the counts of requests in flight and open connections; serial numbers continue.
    pub(super) fn reset(&mut self) {
        self.requests.clear();
        self.messages.clear();
        let TrafficCounts { in_flight, gettokens_in_flight, connections_open, .. } = self.counts;
        self.counts = TrafficCounts {
            in_flight,
            in_flight_max: in_flight,
            gettokens_in_flight,
            gettokens_in_flight_max: gettokens_in_flight,
            connections_open,
            ..TrafficCounts::default()
        };
    }
}
