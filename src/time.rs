//! A wall clock that is read once per second, a deadline that is cheap to move, exponential backoff, a throttle for log
//! messages, and durations as text.

pub mod backoff;
pub mod clock;
pub mod deadline;
pub mod log_throttle;
pub mod milliseconds;
