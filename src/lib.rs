//! wecom-proxy: plain requests go in, the right agent's access_token goes out with them.
//!
//! The map; a room uses only rooms below it.

#[doc(hidden)]
pub mod bench; // what benches/ counts of the rooms' insides

#[doc(hidden)]
pub mod fuzz; // what fuzz/ tries of the rooms' insides

pub mod commands; // what each command of the program does

pub mod app; // wires the rooms together; the only file that knows all of them

pub mod admin; // the second port: what is well and what is not, what was counted, orders, the dashboard

pub mod telemetry; // logs

pub mod server; // the way in: connections, their time-outs, an orderly end

pub mod proxy; // the life of one request

pub mod recent; // the last exchanges, for whoever looks into them

pub mod metrics; // what is counted of requests

pub mod traces; // spans for OpenTelemetry, and their way to whoever receives them

pub mod access; // the access log: a line a request, none of which waits for it

pub mod directory; // who may call, and through which agent

pub mod tickets; // an agent's tickets, kept until shortly before they expire

pub mod limits; // how often, and how many at once

pub mod doctor; // asks WeCom about each agent, tries the store, and says what is wrong

pub mod tokens; // current, replace: one gettoken however many ask

pub mod store; // what replicas share: records, the right to make the next, news

pub mod passes; // what a client holds in place of a token

pub mod upstream; // the way out: pooled connections to WeCom

pub mod config; // proxy.toml

pub mod wecom; // facts of WeCom, no I/O

pub mod upload; // a request's body: streamed, bounded, kept for another attempt

pub mod framing; // where a body ends on an HTTP/1 connection

pub mod fields; // header lines, and which of them stop here

pub mod outbox; // what waits to be written on an HTTP/1 connection

pub mod buffers; // read and write buffers at hand on each thread

pub mod io; // byte streams as one type

pub mod deadline; // a deadline that is cheap to move

pub mod clock; // the wall clock, asked seldom

pub mod credential; // passes and keys, recognised wherever they are repeated

pub mod secret; // text that must never be shown, and wiping it

pub mod simulator; // a WeCom that expires, revokes, stalls and counts; shares nothing with the other rooms
