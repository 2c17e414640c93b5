//! The limit on open files, and how many connections it allows.

use std::fs;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors reserved for everything but connections: listeners, files, the runtimes.
const RESERVED_DESCRIPTORS: usize = 24;
/// Bounds of the admin listener's connections; the lower one applies where descriptors are scarce.
const MAX_ADMIN_CONNECTIONS: usize = 64;
const MIN_ADMIN_CONNECTIONS: usize = 4;

/// `max_connections`, lowered to what the descriptor limit allows. A quarter of the descriptors is reserved for
/// upstream connections: a request that cannot reach the upstream is useless.
pub(super) fn effective_max_connections(max_connections: usize) -> usize {
    let Some(descriptors) = descriptor_limit() else { return max_connections };
    let others = RESERVED_DESCRIPTORS + admin_connections_for(descriptors);
    let effective = (descriptors / 4 * 3).saturating_sub(others).max(1);
    if effective < max_connections {
        tracing::warn!(
            max_connections,
            descriptors,
            effective,
            "max_connections lowered to fit the limit on open files; raise that limit (LimitNOFILE= or ulimit -n)"
        );
    }
    max_connections.min(effective)
}

/// Maximum number of connections to the admin listener, which need descriptors too.
pub fn max_admin_connections() -> usize {
    descriptor_limit().map_or(MAX_ADMIN_CONNECTIONS, admin_connections_for)
}

fn admin_connections_for(descriptors: usize) -> usize {
    (descriptors / 16).clamp(MIN_ADMIN_CONNECTIONS, MAX_ADMIN_CONNECTIONS)
}

/// Raises the soft limit on open files to the hard limit.
pub fn raise_descriptor_limit() {
    let allowed = getrlimit(Resource::Nofile);
    // On failure the old limit stays in force.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: allowed.maximum, ..allowed });
}

fn descriptor_limit() -> Option<usize> {
    parse_descriptor_limit(&fs::read_to_string("/proc/self/limits").unwrap_or_default())
}

/// The soft limit on open files in `/proc/self/limits`; `None` if it is unlimited or missing.
fn parse_descriptor_limit(limits: &str) -> Option<usize> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptor_limit_is_parsed_from_proc_limits() {
        let limits = "Limit                     Soft Limit           Hard Limit           Units     \n\
                      Max processes             127                  127                  processes \n\
                      Max open files            1024                 524288               files     \n";
        assert_eq!(parse_descriptor_limit(limits), Some(1024));
        assert_eq!(parse_descriptor_limit(&limits.replace("1024  ", "unlimited")), None);
        assert_eq!(parse_descriptor_limit(""), None);
        assert!(
            fs::read_to_string("/proc/self/limits")
                .is_ok_and(|limits| parse_descriptor_limit(&limits).is_some())
        );
        assert_eq!([64, 160, 1024, 65536].map(admin_connections_for), [4, 10, 64, 64]);
    }
}
