//! What `--version` and `diag` say of this build.

/// Version, commit, profile and target.
pub const VERSION: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    " (commit ",
    env!("WECOM_PROXY_COMMIT"),
    ", ",
    env!("WECOM_PROXY_BUILD"),
    ")"
);
