//! A client's key as a segment of the path, `/k/KEY/cgi-bin/…`, for programs with nothing but a URL to fill in
//! (`key_in = "path"`).

use crate::secret::{Masked, credential_scan::any_decoding};

/// What is shown in place of the prefix.
pub(super) const SHOWN_PREFIX: &str = "/k/***";

/// Cuts the key off a target, before anything parses, caches, logs or captures it. The segment is removed even if it
/// cannot be a valid key.
pub(crate) fn split_path_credential(target: &str) -> (&str, Option<Masked>) {
    // A base URL with a trailing slash doubles slashes.
    let trimmed = target.trim_start_matches('/');
    let Some(after) = trimmed.strip_prefix("k/").filter(|_| trimmed.len() < target.len()) else {
        return (target, None);
    };
    let after = after.trim_start_matches('/');
    let (key, rest) = after.split_at(after.find(['/', '?', '#']).unwrap_or(after.len()));
    (if rest.starts_with('/') { rest } else { "/" }, Some(Masked::new(key)))
}

/// Whether a path, encoded or not, has a segment after one that is `k` in either case: a mistyped prefix leaves the key in
/// the path.
pub(super) fn may_contain_path_key(path: &str) -> bool {
    any_decoding(path.as_bytes(), |path| {
        memchr::memchr2_iter(b'k', b'K', path)
            .any(|at| path.get(at + 1) == Some(&b'/') && (at == 0 || path[at - 1] == b'/'))
    })
}

/// Whether a segment, encoded or not, is `k` in either case, or ends with an encoded slash and that.
pub(super) fn is_prefix_of_path_key(segment: &str) -> bool {
    any_decoding(segment.as_bytes(), |segment| {
        segment.rsplit(|byte| *byte == b'/').next().is_some_and(|last| last.eq_ignore_ascii_case(b"k"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_is_cut_off_the_target() {
        for (target, rest, key) in [
            ("/k/KEY-1_a/cgi-bin/user/get?a=b", "/cgi-bin/user/get?a=b", Some("KEY-1_a")),
            ("/k/KEY/hr/cgi-bin/user/get", "/hr/cgi-bin/user/get", Some("KEY")),
            ("//k//KEY//cgi-bin/user/get", "//cgi-bin/user/get", Some("KEY")),
            ("/k/KEY", "/", Some("KEY")),
            ("/k/KEY?a=b", "/", Some("KEY")),
            ("/k/K%45Y/cgi-bin/", "/cgi-bin/", Some("K%45Y")),
            ("/k/", "/", Some("")),
            ("/k", "/k", None),
            ("/kk/KEY/cgi-bin/", "/kk/KEY/cgi-bin/", None),
            ("/cgi-bin/k/KEY", "/cgi-bin/k/KEY", None),
            ("k/KEY", "k/KEY", None),
        ] {
            let (found, found_key) = split_path_credential(target);
            assert_eq!((found, found_key.as_ref().map(Masked::expose)), (rest, key), "{target}");
        }
    }
}
