//! A copy of a message's body, for the members that the message goes to.

use std::{borrow::Cow, cell::RefCell, rc::Rc};

use bytes::Bytes;
use serde::Deserialize;

use super::body_tap::tap;
use crate::request_body::RequestBody;

/// Larger bodies are not looked at; a message is far smaller.
pub(super) const MAX_BODY_BYTES: usize = 64 * 1024;

/// A copy of a message's body.
pub(super) enum MessageBody {
    Complete(Bytes),
    Streamed(Rc<RefCell<Vec<u8>>>),
}

impl MessageBody {
    /// The body, which was read to its end.
    pub(super) fn into_bytes(self) -> Bytes {
        match self {
            Self::Complete(body) => body,
            Self::Streamed(body) => body.take().into(),
        }
    }
}

/// The same body, and a copy of it unless it is too large.
pub(super) fn copied(body: RequestBody) -> (RequestBody, Option<MessageBody>) {
    match body {
        RequestBody::Complete(bytes) if bytes.len() <= MAX_BODY_BYTES => {
            (RequestBody::Complete(bytes.clone()), Some(MessageBody::Complete(bytes)))
        }
        RequestBody::None | RequestBody::Complete(_) => (body, None),
        RequestBody::Streamed(source) => {
            let copy = Rc::<RefCell<Vec<u8>>>::default();
            let message = MessageBody::Streamed(copy.clone());
            let body = tap(source, move |chunk, _| {
                let mut copied = copy.borrow_mut();
                let free = (MAX_BODY_BYTES + 1).saturating_sub(copied.len());
                copied.extend_from_slice(&chunk[..chunk.len().min(free)]);
            });
            (body, Some(message))
        }
    }
}

/// The members in `touser`, separated by vertical bars.
pub(super) fn touser(body: &[u8]) -> Option<Cow<'_, str>> {
    #[derive(Deserialize)]
    struct Message<'a> {
        #[serde(borrow)]
        touser: Cow<'a, str>,
    }
    let body = Some(body).filter(|body| body.len() <= MAX_BODY_BYTES)?;
    if let Some(touser) = leading_touser(body) {
        return Some(Cow::Borrowed(touser));
    }
    serde_json::from_slice::<Message<'_>>(body).ok().map(|message| message.touser)
}

/// The members of a body that begins with them, as most do: the rest need not be parsed.
fn leading_touser(body: &[u8]) -> Option<&str> {
    let rest = body.strip_prefix(br#"{"touser":""#)?;
    let end = memchr::memchr2(b'"', b'\\', rest).filter(|end| rest[*end] == b'"')?;
    std::str::from_utf8(&rest[..end]).ok()
}

/// Each member of `touser`; how many `@all` are is not known.
pub(super) fn members(touser: &str) -> Vec<&str> {
    touser.split('|').map(str::trim).filter(|member| !member.is_empty() && *member != "@all").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn touser_is_found_anywhere_in_a_message() {
        for (body, expected) in [
            (r#"{"touser":"a|b","msgtype":"text"}"#, Some("a|b")),
            (r#"{"touser":"\u4f60","msgtype":"text"}"#, Some("你")),
            (r#"{"touser":"a"#, None),
            (r#"{"text":{"touser":"x"},"touser":"\u4f60"}"#, Some("你")),
            (r#"{"text":{"touser":"x"}}"#, None),
            (r#"{"touser":1}"#, None),
            (r#"{"touser":"a"#, None),
            ("", None),
        ] {
            assert_eq!(touser(body.as_bytes()).as_deref(), expected, "{body}");
        }
    }
}
