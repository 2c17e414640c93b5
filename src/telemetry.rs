//! Logs, metrics and traces of the proxy and its requests.

pub mod logs; // log events of the program

pub mod metrics; // counters and histograms of requests

pub mod traces; // OpenTelemetry spans and their export

pub mod access_log; // one line per request, written off the request path

mod journal; // priorities of lines for systemd's journal

mod worker_buffers; // a bounded buffer for each worker
