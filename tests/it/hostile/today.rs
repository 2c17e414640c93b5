//! Cases that do not come out as they should, and what comes of them instead. A case that comes out as it should must
//! not stand here.

/// Name of the case, and what goes wrong.
pub const TODAY: &[(&str, &str)] = &[
    // White space behind a chunk's size is none of its digits (RFC 9112 §7.1); hyper passes over it.
    ("size 5 ", "it was served as POST"),
    ("second size 5 ", "it was served as POST"),
    ("size 5\\t", "it was served as POST"),
    ("second size 5\\t", "it was served as POST"),
    ("size 5 \\t ", "it was served as POST"),
    ("second size 5 \\t ", "it was served as POST"),
    ("a space behind the last chunk's size", "it was served as POST"),
    // A chunk's extension holds no control characters; hyper passes over all but LF.
    ("extension ;a\\x00", "it was served as POST"),
    ("last extension ;a\\x00", "it was served as POST"),
    ("extension ;a=\\x00", "it was served as POST"),
    ("last extension ;a=\\x00", "it was served as POST"),
    ("extension ;a=\\x01", "it was served as POST"),
    ("last extension ;a=\\x01", "it was served as POST"),
    ("extension ;a=\\x7f", "it was served as POST"),
    ("last extension ;a=\\x7f", "it was served as POST"),
    // hyper takes what is behind a trailer section that ends with LF for more trailers, and throws the next request away.
    ("LF at the end", "GET /cgi-bin/canary was served behind it"),
    ("a trailer that ends with LF", "GET /cgi-bin/canary was served behind it"),
    // What was refused for its Transfer-Encoding was read by its chunks all the same, and the connection goes on.
    ("coding  identity, chunked", "GET /cgi-bin/hidden was served behind it"),
    ("coding  gzip, chunked", "GET /cgi-bin/hidden was served behind it"),
    ("coding  deflate, chunked", "GET /cgi-bin/hidden was served behind it"),
    ("coding  x, chunked", "GET /cgi-bin/hidden was served behind it"),
    ("coding  chunked, chunked", "GET /cgi-bin/hidden was served behind it"),
    ("coding  ,chunked", "GET /cgi-bin/hidden was served behind it"),
    (
        "lines Transfer-Encoding: chunked\\r\\nTransfer-Encoding: chunked\\r\\n",
        "GET /cgi-bin/hidden was served behind it",
    ),
    (
        "lines Transfer-Encoding: identity\\r\\nTransfer-Encoding: chunked\\r\\n",
        "GET /cgi-bin/hidden was served behind it",
    ),
    (
        "lines Transfer-Encoding: x\\r\\nTransfer-encoding: chunked\\r\\n",
        "GET /cgi-bin/hidden was served behind it",
    ),
    (
        "lines Transfer-Encoding:\\r\\nTransfer-Encoding: chunked\\r\\n",
        "GET /cgi-bin/hidden was served behind it",
    ),
    (
        "lines Transfer-Encoding: gzip\\r\\nTransfer-Encoding: chunked\\r\\n",
        "GET /cgi-bin/hidden was served behind it",
    ),
    // hyper keeps this one number for itself.
    ("length 18446744073709551615", "it was answered 431"),
    ("nothing behind a length 18446744073709551615", "it was answered 431"),
    // A value of Connection that is not ASCII is passed over with all the names in it.
    ("named beside a high byte", "it was served with x-y"),
    // They are no hosts (RFC 9112 §3.2); the parser of authorities takes them for some.
    ("hosts Host: a:b\\r\\n", "it was served as GET"),
    ("hosts Host: a:-1\\r\\n", "it was served as GET"),
    ("hosts Host: a:+80\\r\\n", "it was served as GET"),
    ("hosts Host: a:0x50\\r\\n", "it was served as GET"),
    ("hosts Host: [::1]x\\r\\n", "it was served as GET"),
    ("hosts Host: [x]\\r\\n", "it was served as GET"),
    // A fragment belongs to no target; the parser of URIs cuts it off, and the rest is served.
    ("path /hr/cgi-bin/case#", "it was served as POST"),
    ("path /hr/cgi-bin/case#x", "it was served as POST"),
    ("path /hr/cgi-bin/case#?a=b", "it was served as POST"),
    ("path /hr/cgi-bin/case?a=b#c", "it was served as POST"),
    ("path /hr/cgi-bin/case?#&access_token=x", "it was served as POST"),
    ("target http://OWN/hr/cgi-bin/case#x, host proxy.test", "it was served as GET"),
    ("target http://OWN/hr/cgi-bin/case#x, host OWN", "it was served as GET"),
    // Only http and https lead here; the scheme is looked at by nobody.
    ("target ://OWN/hr/cgi-bin/case, host proxy.test", "it was served as GET"),
    ("target ://OWN/hr/cgi-bin/case, host OWN", "it was served as GET"),
    ("target ftp://OWN/hr/cgi-bin/case, host proxy.test", "it was served as GET"),
    ("target ftp://OWN/hr/cgi-bin/case, host OWN", "it was served as GET"),
    ("target file://OWN/hr/cgi-bin/case, host proxy.test", "it was served as GET"),
    ("target file://OWN/hr/cgi-bin/case, host OWN", "it was served as GET"),
    ("target ws://OWN/hr/cgi-bin/case, host proxy.test", "it was served as GET"),
    ("target ws://OWN/hr/cgi-bin/case, host OWN", "it was served as GET"),
    ("target gopher://OWN/hr/cgi-bin/case, host proxy.test", "it was served as GET"),
    ("target gopher://OWN/hr/cgi-bin/case, host OWN", "it was served as GET"),
    ("target javascript://OWN/hr/cgi-bin/case, host proxy.test", "it was served as GET"),
    ("target javascript://OWN/hr/cgi-bin/case, host OWN", "it was served as GET"),
    ("target x://OWN/hr/cgi-bin/case, host proxy.test", "it was served as GET"),
    ("target x://OWN/hr/cgi-bin/case, host OWN", "it was served as GET"),
    // The same over HTTP/2.
    ("h2: instead, :path: /hr/cgi-bin/case#x", "it was served"),
    ("h2: instead, :scheme: ", "it was served"),
    ("h2: instead, :scheme: ftp", "it was served"),
    // RFC 9113 §8.3.1 has no user in an authority.
    ("h2: instead, :authority: user@proxy.test", "it was served"),
    // RFC 9113 §8.1 has no pseudo-fields in trailers. They go nowhere, but the request is malformed.
    ("h2: a path in the trailers", "it was served"),
    ("h2: a status in the trailers", "it was served"),
    // RFC 9113 §8.2.1 has no space around a value. It goes out with the value as it came.
    ("h2: a space before a value", "the upstream got what is not canonical: a header's value is \" z\""),
    ("h2: a space behind a value", "the upstream got what is not canonical: a header's value is \"z \""),
];
