//! The token cache, in paused time and without a network.
//!
//! Time is tokio's paused clock. The tests do not check `first_seen` and `expires_at`, which are for people: the
//! proxy acts on Instants only.

mod budget_simulation; // refresh budgets over hours, random
mod cache; // which agents share an entry, and what is left of a removed one
mod call_limits; // how many gettokens are made
mod cooldown; // the cooldown after a refresh for refusals
mod errors;
mod failure_budget; // gettokens that fail
mod fake_gettoken; // a scripted gettoken
mod interleavings; // many short random runs
mod lifecycle; // fetched, used, refreshed
mod refresh_schedule; // when very many are refreshed
mod replica_simulation; // several replicas with one store, random
mod secret_rotation; // agents with two secrets, or with a secret from a file
mod simulation; // long random runs, compared with a model at every step
