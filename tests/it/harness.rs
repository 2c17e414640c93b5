//! Test support, by job.

pub mod browser; // Chromium
pub mod callback_target; // a target of callbacks
pub mod certificates; // a certificate authority, and a TLS client
mod client; // an HTTP/1 and HTTP/2 client, and its responses
pub mod http2_frames; // a raw HTTP/2 client: frames as bytes
pub mod leak_detector; // searches all output for the secrets of the tests
pub mod otlp_receiver; // an OpenTelemetry collector
pub mod process; // the real program, and helper programs
mod proxy; // starts a proxy in this process, with the simulator as WeCom
pub mod raw_http; // a raw HTTP/1 client, and an upstream that the test plays
pub mod redis_server; // Redis
pub mod scripted_upstream; // an upstream that sends what a test's steps say
mod wait; // waits for an event, with a time limit

pub use self::{
    client::{TestClient, TestResponse},
    proxy::*,
    wait::{CASE_TIMEOUT, WAIT_TIMEOUT, wait_for, wait_for_work, with_timeout},
};
