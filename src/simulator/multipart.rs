//! Extraction of a file from a multipart/form-data body (RFC 7578).

use bytes::Bytes;
use memchr::memmem;

/// An uploaded file.
pub(super) struct UploadedFile {
    pub(super) name: String,
    pub(super) content_type: String,
    pub(super) bytes: Bytes,
}

/// The file in the field of this name. Ignores other fields, and non-standard parameters such as WeCom's `filelength`.
pub(super) fn find_file(body: &Bytes, content_type: &str, field: &str) -> Option<UploadedFile> {
    if !content_type.to_ascii_lowercase().starts_with("multipart/form-data") {
        return None;
    }
    let boundary = parameter(content_type, "boundary").filter(|boundary| !boundary.is_empty())?;
    let delimiter = format!("\r\n--{boundary}");
    let first_delimiter = &delimiter.as_bytes()[2..];
    let mut position = if body.starts_with(first_delimiter) {
        first_delimiter.len()
    } else {
        memmem::find(body, delimiter.as_bytes())? + delimiter.len()
    };
    while body[position..].starts_with(b"\r\n") {
        let head_end = position + memmem::find(&body[position..], b"\r\n\r\n")?;
        let head = String::from_utf8_lossy(&body[position..head_end]).into_owned();
        let from = head_end + 4;
        let to = from - 2 + memmem::find(&body[from - 2..], delimiter.as_bytes())?;
        if let Some(file) = parse_part(&head, field, || body.slice(from.min(to)..to)) {
            return Some(file);
        }
        position = to + delimiter.len();
    }
    None
}

fn parse_part(head: &str, field: &str, bytes: impl FnOnce() -> Bytes) -> Option<UploadedFile> {
    let header = |wanted_name: &str| {
        let of = |line: &str| {
            line.split_once(':')
                .filter(|(name, _)| name.eq_ignore_ascii_case(wanted_name))
                .map(|(_, value)| value.trim().to_owned())
        };
        head.lines().find_map(of)
    };
    let disposition = header("content-disposition")?;
    if parameter(&disposition, "name")? != field {
        return None;
    }
    let name = parameter(&disposition, "filename")?;
    // A download returns the name as a quoted string in Content-Disposition.
    let name: String = name.chars().filter(|c| !c.is_control() && *c != '"' && *c != '\\').collect();
    let content_type = header("content-type").unwrap_or_else(|| "application/octet-stream".to_owned());
    Some(UploadedFile { name, content_type, bytes: bytes() })
}

/// A parameter of a header value, unquoted.
fn parameter(value: &str, wanted: &str) -> Option<String> {
    let mut rest = value;
    loop {
        rest = &rest[rest.find(';')? + 1..];
        let (name, after) = rest.split_once('=')?;
        let (parameter_value, tail) = match after.trim_start().strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => after.split_at(after.find(';').unwrap_or(after.len())),
        };
        if name.trim().eq_ignore_ascii_case(wanted) {
            return Some(parameter_value.trim().to_owned());
        }
        rest = tail;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BODY: &[u8] = b"--b\r\nContent-Disposition: form-data; name=\"note\"\r\n\r\nhello\r\n\
        --b\r\nContent-Disposition: form-data; name=\"media\"; filename=\"a;b.txt\"; filelength=6\r\n\
        Content-Type: text/plain\r\n\r\n\r\n--a\n\r\n--b--\r\n";

    #[test]
    fn file_among_other_fields_is_found() {
        let file =
            find_file(&Bytes::from_static(BODY), "multipart/form-data; boundary=\"b\"", "media").unwrap();
        assert_eq!((file.name.as_str(), file.content_type.as_str()), ("a;b.txt", "text/plain"));
        assert_eq!(&file.bytes[..], b"\r\n--a\n");
    }

    #[test]
    fn empty_file_is_found() {
        let body = "--b\r\nContent-Disposition: form-data; name=media; filename=x\r\n\r\n\r\n--b--";
        assert_eq!(
            find_file(&Bytes::from(body), "multipart/form-data; boundary=b", "media").unwrap().bytes.len(),
            0
        );
    }

    #[test]
    fn truncated_body_does_not_panic() {
        for end in 0..BODY.len() {
            find_file(&Bytes::from_static(&BODY[..end]), "multipart/form-data; boundary=b", "media");
        }
        assert!(find_file(&Bytes::from_static(BODY), "application/json", "media").is_none());
        assert!(find_file(&Bytes::from_static(BODY), "multipart/form-data", "media").is_none());
    }
}
