//! The life of a token, in paused time and without a network.
//!
//! Time here is tokio's: the wall clock stands still in these tests, so that they say nothing of `first_seen` and
//! `expires_at`, which are for people; what the proxy acts on are Instants.

mod cooldown; // the pause after a renewal for refusals
mod failures; // gettokens that fail
mod fake; // a gettoken that does as it is told
mod interleavings; // many short lives by chance
mod life; // fetched, used, renewed
mod limits; // how many calls leave the proxy
mod replicas; // several proxies with one store, by chance
mod schedule; // when very many are renewed
mod shares; // over hours, by chance
mod simulation; // long lives by chance, held against a model at every step
mod trouble; // refused, failing
