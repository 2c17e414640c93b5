//! A wall clock that is read once per second, a deadline that is cheap to move, a throttle for log messages, and
//! durations as text.

pub mod clock;
pub mod deadline;
pub mod log_throttle;
pub mod milliseconds;
