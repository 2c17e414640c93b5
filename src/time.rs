//! A wall clock that is read once per second, and a deadline that is cheap to move.

pub mod clock;
pub mod deadline;
