//! Cases that are known to fail, and how. A case that passes must not be listed here.

/// Name of the case, and its failure.
pub const KNOWN_FAILURES: &[(&str, &str)] = &[
    // A target has no fragment; hyper's URI parser removes it before the proxy sees it, and the rest is served.
    ("h2: with :path: /hr/cgi-bin/case#x", "it was served"),
    // RFC 9113, section 8.1, forbids pseudo-headers in trailers. They are not forwarded, but the request is malformed.
    ("h2: a path in the trailers", "it was served"),
    ("h2: a status in the trailers", "it was served"),
];
