//! Time: a wall clock that is read once per interval, and a deadline that is cheap to move.

pub mod clock;
pub mod deadline;
