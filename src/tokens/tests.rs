//! The life of a token, in paused time and without a network.
//!
//! Time here is tokio's: the wall clock stands still in these tests, so that they say nothing of `first_seen` and
//! `expires_at`, which are for people; what the proxy acts on are Instants.

mod budget_simulation; // over hours, by chance
mod call_limits; // how many calls leave the proxy
mod cooldown; // the pause after a renewal for refusals
mod errors;
mod failure_budget; // gettokens that fail
mod fake_gettoken; // a gettoken that does as it is told
mod interleavings; // many short lives by chance
mod lifecycle; // fetched, used, renewed
mod refresh_schedule; // when very many are renewed
mod replica_simulation; // several proxies with one store, by chance
mod simulation; // long lives by chance, held against a model at every step // refused, failing
