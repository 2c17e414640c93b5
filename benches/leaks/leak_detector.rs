//! The part of the leak detector that [`crate::raw_http`] uses, without effect: secrets are not checked here.

pub fn add_secret(_: &str) {}

pub fn record_output(_: &str, _: &str, _: &[u8]) {}
