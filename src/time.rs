//! A wall clock that is read once per second, a deadline that is cheap to move, and a throttle for log messages.

pub mod clock;
pub mod deadline;
pub mod log_throttle;
