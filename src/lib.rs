//! wecom-proxy: a reverse proxy for the WeCom API that owns the access tokens.
//!
//! A module imports only modules listed below it; `tests/it/layers.rs` holds this.

#[doc(hidden)]
pub mod bench; // what benches/ measures inside other modules

#[doc(hidden)]
pub mod fuzz; // what fuzz/ tries inside other modules

pub mod cli; // the commands: run, check, demo, simulator, key, health, man, completions

pub mod app; // wires everything from Config: start, reload, shutdown

pub mod admin; // the admin listener: health, metrics, API, dashboard

pub mod server; // listeners, TLS, connection limit; serves HTTP/1 and HTTP/2 connections

pub mod proxy; // the life of a request: authorize, token, attempt, errcode, retry

pub mod inspector; // recent exchanges, capture, redaction

pub mod telemetry; // access log, logs, metrics, traces

pub mod directory; // agents and clients, lookup, what each may do

pub mod tokens; // access tokens: cache, gettoken, single flight, backoff, budgets; passes; tickets

pub mod limits; // rate limiter (GCRA) and concurrency limit

pub mod store; // what replicas share in Redis: records, leases, events, sealing

pub mod upstream; // connection pool, dial, TLS, HTTP/1 and HTTP/2 client

pub mod wecom; // facts of WeCom without I/O: errcodes, errcode scanner, gettoken response

pub mod request_body; // request bodies: streamed, bounded, buffered for a retry

pub mod http1; // HTTP/1 on the wire, shared by server and upstream

pub mod config; // proxy.toml, one file a section

pub mod time; // a cached wall clock, and a deadline that is cheap to move

pub mod secret; // text that is never shown, wiping it, and finding credentials in other text

pub mod simulator; // a WeCom that expires, revokes, stalls and counts; imports no other module
