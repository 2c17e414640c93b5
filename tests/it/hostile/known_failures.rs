//! Cases that do not come out as they should, and what comes of them instead. A case that comes out as it should must
//! not stand here.

/// Name of the case, and what goes wrong.
pub const KNOWN_FAILURES: &[(&str, &str)] = &[
    // A fragment belongs to no target; hyper's parser of URIs cuts it off before we see it, and the rest is served.
    ("h2: instead, :path: /hr/cgi-bin/case#x", "it was served"),
    // RFC 9113 §8.1 has no pseudo-fields in trailers. They go nowhere, but the request is malformed.
    ("h2: a path in the trailers", "it was served"),
    ("h2: a status in the trailers", "it was served"),
];
