//! What [`crate::wire`] wants of a confidant, of whom there is none here.

pub fn keep(_: &str) {}

pub fn heard(_: &str, _: &str, _: &[u8]) {}
