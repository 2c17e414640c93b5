//! A strict parser of upstream requests, which accepts only the canonical form. It is written only for these tests and shares
//! no code with the proxy.

use super::recorder::TOKEN;

/// A request in canonical form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CanonicalRequest {
    pub method: String,
    pub target: String,
    /// Names and values, decoded as Latin-1.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl CanonicalRequest {
    /// Whether it is a gettoken call.
    pub fn is_gettoken(&self) -> bool {
        self.target.starts_with("/cgi-bin/gettoken?")
    }
}

/// The result of parsing the bytes of a connection.
pub enum ParseStatus {
    /// The beginning of a canonical request; `head` tells whether its head is complete.
    Partial { head: bool },
    /// A canonical request, and its length in bytes.
    Complete(CanonicalRequest, usize),
}

/// Headers about the client, its network, or a single connection.
const FORBIDDEN_HEADERS: &[&str] = &[
    "authorization",
    "connection",
    "cookie",
    "expect",
    "forwarded",
    "http2-settings",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authentication-info",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "upgrade",
    "via",
    "x-api-key",
];

/// Parses a request; the error tells what is not canonical.
pub fn parse_request(bytes: &[u8], host: &str) -> Result<ParseStatus, String> {
    let Some(end) = find(bytes, b"\r\n\r\n") else {
        return Ok(ParseStatus::Partial { head: false });
    };
    let mut lines = split_lines(&bytes[..end + 2])?.into_iter();
    let (method, target) = parse_request_line(lines.next().ok_or("no request line")?)?;
    let headers = lines.map(parse_header).collect::<Result<Vec<_>, _>>()?;
    let values_of = |name: &str| -> Vec<&str> {
        headers.iter().filter(|(found, _)| found == name).map(|(_, value)| value.as_str()).collect()
    };
    if values_of("host") != [host] {
        return Err(format!("its host is {:?}", values_of("host")));
    }
    for (name, _) in &headers {
        if FORBIDDEN_HEADERS.contains(&name.as_str())
            || name.starts_with("x-forwarded-")
            || name.starts_with("x-wecom-")
        {
            return Err(format!("it carries {name}"));
        }
    }
    let rest = &bytes[end + 4..];
    let (body, body_length) =
        match (values_of("content-length").as_slice(), values_of("transfer-encoding").as_slice()) {
            ([], []) => (Vec::new(), 0),
            ([length], []) => {
                let length = parse_decimal(length)?;
                match rest.get(..length) {
                    Some(body) => (body.to_vec(), length),
                    None => return Ok(ParseStatus::Partial { head: true }),
                }
            }
            ([], ["chunked"]) => match parse_chunks(rest)? {
                Some(read) => read,
                None => return Ok(ParseStatus::Partial { head: true }),
            },
            (lengths, codings) => return Err(format!("its framing is {lengths:?} and {codings:?}")),
        };
    Ok(ParseStatus::Complete(CanonicalRequest { method, target, headers, body }, end + 4 + body_length))
}

/// The index of the first `wanted`.
pub fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

/// The lines of a head, which must end in CR LF and contain no other CR or LF.
fn split_lines(head: &[u8]) -> Result<Vec<&[u8]>, String> {
    let mut lines = Vec::new();
    let mut rest = head;
    while let Some(end) = find(rest, b"\r\n") {
        let line = &rest[..end];
        if line.iter().any(|byte| matches!(byte, b'\r' | b'\n' | 0)) {
            return Err("a line contains a bare CR, a bare LF or NUL".to_owned());
        }
        lines.push(line);
        rest = &rest[end + 2..];
    }
    Ok(lines)
}

fn parse_request_line(line: &[u8]) -> Result<(String, String), String> {
    let parts: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let [method, target, b"HTTP/1.1"] = parts.as_slice() else {
        return Err(format!("its request line is {:?}", String::from_utf8_lossy(line)));
    };
    if ![&b"GET"[..], b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS"].contains(method) {
        return Err("its method is unknown".to_owned());
    }
    // Non-ASCII bytes are forwarded in a query, never in a path.
    let path = target.split(|byte| *byte == b'?').next().unwrap_or(target);
    if target.iter().any(|byte| matches!(byte, ..b'!' | 0x7f | b'#')) || !path.is_ascii() {
        return Err("its target contains a forbidden byte".to_owned());
    }
    let target = latin1(target);
    check_target(&target)?;
    Ok((latin1(method), target))
}

/// The path must stay below the root however often it is decoded, and the token must occur exactly once.
fn check_target(target: &str) -> Result<(), String> {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    if !path.starts_with("/cgi-bin/") {
        return Err("its path is not below /cgi-bin/".to_owned());
    }
    let mut text = path.as_bytes().to_vec();
    for _ in 0..4 {
        let dots = |segment: &[u8]| matches!(segment.split(|byte| *byte == b';').next(), Some(b"." | b".."));
        if text.split(|byte| *byte == b'/').any(dots) {
            return Err("its path has a dot segment".to_owned());
        }
        if text.iter().any(|byte| *byte < b' ' || matches!(byte, 0x7f | b'\\')) {
            return Err("its path hides a control character or a backslash".to_owned());
        }
        let decoded = decode(&text);
        if decoded.iter().filter(|byte| **byte == b'/').count()
            != text.iter().filter(|byte| **byte == b'/').count()
        {
            return Err("its path hides a slash".to_owned());
        }
        text = decoded;
    }
    let is_token = |parameter: &&str| {
        let name = parameter.split('=').next().unwrap_or(parameter);
        decode(name.as_bytes()) == b"access_token"
    };
    let tokens: Vec<&str> = query.split('&').filter(is_token).collect();
    let expected: &[String] = match path {
        "/cgi-bin/gettoken" => &[],
        _ => &[format!("access_token={TOKEN}")],
    };
    match tokens == expected {
        true => Ok(()),
        false => Err(format!("its tokens are {tokens:?}")),
    }
}

/// Percent-decodes a text once.
pub fn decode(text: &[u8]) -> Vec<u8> {
    let digit = |index: usize| text.get(index).and_then(|byte| (*byte as char).to_digit(16));
    let (mut decoded, mut index) = (Vec::new(), 0);
    while index < text.len() {
        match (text[index], digit(index + 1), digit(index + 2)) {
            (b'%', Some(high), Some(low)) => {
                decoded.push((high * 16 + low) as u8);
                index += 3;
            }
            (byte, ..) => {
                decoded.push(byte);
                index += 1;
            }
        }
    }
    decoded
}

fn parse_header(line: &[u8]) -> Result<(String, String), String> {
    let Some(colon) = line.iter().position(|byte| *byte == b':') else {
        return Err("a header line has no colon".to_owned());
    };
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    if name.is_empty() || !name.iter().copied().all(is_token) {
        return Err(format!("a header's name is {:?}", String::from_utf8_lossy(name)));
    }
    let value = value.strip_prefix(b" ").unwrap_or(value);
    if value.trim_ascii() != value
        || value.iter().any(|byte| (*byte < b' ' && *byte != b'\t') || *byte == 0x7f)
    {
        return Err(format!("a header's value is {:?}", String::from_utf8_lossy(value)));
    }
    Ok((latin1(name).to_ascii_lowercase(), latin1(value)))
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

fn latin1(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| *byte as char).collect()
}

fn parse_decimal(text: &str) -> Result<usize, String> {
    let canonical = text.parse::<usize>().ok().filter(|number| number.to_string() == text);
    canonical.ok_or_else(|| format!("its content-length is {text:?}"))
}

/// A chunked body and its encoded length in bytes; `None` while it is incomplete.
fn parse_chunks(bytes: &[u8]) -> Result<Option<(Vec<u8>, usize)>, String> {
    let (mut body, mut position) = (Vec::new(), 0);
    loop {
        let rest = &bytes[position..];
        let Some(end) = find(rest, b"\r\n") else {
            return Ok(None);
        };
        let digits = &rest[..end];
        let size = std::str::from_utf8(digits).ok().and_then(|digits| usize::from_str_radix(digits, 16).ok());
        let size = size.filter(|size| format!("{size:x}").as_bytes() == digits);
        let size = size.ok_or_else(|| format!("a chunk's size is {:?}", String::from_utf8_lossy(digits)))?;
        let rest = &rest[end + 2..];
        if rest.len() < size + 2 {
            return Ok(None);
        }
        if &rest[size..size + 2] != b"\r\n" {
            return Err("a chunk or the body has no CR LF at its end".to_owned());
        }
        body.extend_from_slice(&rest[..size]);
        position += end + 2 + size + 2;
        if size == 0 {
            return Ok(Some((body, position)));
        }
    }
}

#[test]
fn parser_accepts_only_the_canonical_form() {
    let request = |lines: &str, body: &str| {
        format!("GET /cgi-bin/a?access_token={TOKEN} HTTP/1.1\r\nhost: h\r\n{lines}\r\n{body}")
    };
    for canonical in [
        request("", ""),
        request("content-length: 2\r\n", "ab"),
        request("transfer-encoding: chunked\r\n", "2\r\nab\r\n0\r\n\r\n"),
        request("x: \u{fc} y\r\nx:\r\n", ""),
    ] {
        assert!(
            matches!(parse_request(canonical.as_bytes(), "h"), Ok(ParseStatus::Complete(_, length)) if length == canonical.len()),
            "{canonical}"
        );
    }
    for non_canonical in [
        request("content-length: 2\r\ncontent-length: 2\r\n", "ab"),
        request("content-length: 02\r\n", "ab"),
        request("content-length: +2\r\n", "ab"),
        request("content-length: 2\r\ntransfer-encoding: chunked\r\n", "2\r\nab\r\n0\r\n\r\n"),
        request("transfer-encoding: Chunked\r\n", "0\r\n\r\n"),
        request("transfer-encoding: chunked\r\n", "02\r\nab\r\n0\r\n\r\n"),
        request("transfer-encoding: chunked\r\n", "2;a\r\nab\r\n0\r\n\r\n"),
        request("transfer-encoding: chunked\r\n", "1\r\nab\r\n0\r\n\r\n"),
        request("transfer-encoding: chunked\r\n", "0\r\nx: y\r\n\r\n"),
        request("x : y\r\n", ""),
        request("x: y\r\n z\r\n", ""),
        request("x: y\rz\r\n", ""),
        request("x: y\nz: a\r\n", ""),
        request("x: y\0\r\n", ""),
        request(": y\r\n", ""),
        request("host: h\r\n", ""),
        request("via: x\r\n", ""),
        request("x-wecom-agent: x\r\n", ""),
        request("", "").replace("host: h", "x: h"),
        request("", "").replace("?access", "?access_token=x&access"),
        request("", "").replace("?access", "?%61ccess_token=x&access"),
        request("", "").replace("access_token", "token"),
        request("", "").replace("/a?", "/%252e./a?"),
        request("", "").replace("/a?", "/a%252fb?"),
        request("", "").replace("/cgi-bin/a", "/a"),
        request("", "").replace("HTTP/1.1", "HTTP/1.0"),
        request("", "").replace("GET ", "GET  "),
    ] {
        assert!(parse_request(non_canonical.as_bytes(), "h").is_err(), "{non_canonical:?}");
    }
}
