//! The life of a token, in paused time and without a network.
