//! wecom-proxy: a reverse proxy for the WeCom API that owns the access tokens.
//!
//! A module imports only modules listed below it; `tests/it/layers.rs` checks this.

#[doc(hidden)]
pub mod internals; // items of other modules for benches/ and fuzz/

pub mod cli; // the commands: serve, init, check, demo, simulator, key, health, state, completions, man

pub mod app; // connects all modules as Config specifies: start, reload, shutdown

pub mod admin; // the admin listener: health, metrics, API, dashboard

pub mod server; // listeners, TLS, connection limit; serves HTTP/1 and HTTP/2 connections

pub mod proxy; // a request from start to end: authorize, token, attempt, errcode, retry

pub mod inspector; // recent exchanges, capture, redaction

pub mod telemetry; // access log, logs, metrics, traces

pub mod callbacks; // what WeCom pushes: receiver URLs, queue, delivery to targets

pub mod suites; // corps that authorise suites: tickets, install, reset, cancel, stand-ins

pub mod directory; // agents and clients: lookup and permissions

pub mod tokens; // access tokens: cache, gettoken, single flight, backoff, budgets; passes; tickets

pub mod limits; // rate limiter (GCRA), concurrency limit, limits per address, quotas of WeCom

pub mod state; // what outlives the process: records in SQLite, or shared by replicas

pub mod store; // state that replicas share in Redis: records, leases, events, sealing

pub mod upstream; // connection pool, dial, TLS, HTTP/1 and HTTP/2 client

pub mod wecom; // WeCom's API without I/O: errcodes, errcode scanner, gettoken response

pub mod request_body; // request bodies: streamed, bounded, buffered for a retry

pub mod http1; // HTTP/1 on the wire, shared by server and upstream

pub mod http2; // HTTP/2 on the wire, shared by server and upstream

pub mod config; // proxy.toml, one file per section

pub mod blocking; // threads for work that blocks; no panic where none can be had

pub mod text; // texts for operators in English and Chinese

pub mod time; // cached wall clock, and a deadline that is cheap to reset

pub mod secret; // masked text that is wiped on drop, and the search for credentials in other text

pub mod simulator; // simulated WeCom with faults and counters; imports no other module
