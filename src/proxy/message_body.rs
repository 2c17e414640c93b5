//! A copy of a message's body, for the members that the message goes to.

use std::{borrow::Cow, cell::RefCell, rc::Rc};

use bytes::Bytes;
use serde::Deserialize;

use super::body_tap::tap;
use crate::request_body::{BodyCopy, ReplayBudget, RequestBody};

/// Larger bodies are not looked at; a message is far smaller.
pub(super) const MAX_BODY_BYTES: usize = 64 * 1024;

/// A copy of a message's body, as far as its members are known from it.
pub(super) enum MessageBody {
    Complete(Bytes),
    Streamed(Rc<RefCell<BodyCopy>>),
}

impl MessageBody {
    /// The copy of the body, which was read to its end.
    pub(super) fn into_bytes(self) -> Bytes {
        match self {
            Self::Complete(body) => body,
            Self::Streamed(copy) => copy.borrow_mut().take().into(),
        }
    }
}

/// The same body, and a copy of it unless it is too large or there is no memory.
pub(super) fn copied(body: RequestBody, budget: &ReplayBudget) -> (RequestBody, Option<MessageBody>) {
    match body {
        RequestBody::Complete(bytes) if bytes.len() <= MAX_BODY_BYTES => {
            (RequestBody::Complete(bytes.clone()), Some(MessageBody::Complete(bytes)))
        }
        RequestBody::None | RequestBody::Complete(_) => (body, None),
        RequestBody::Streamed(source) => {
            let copy = Rc::new(RefCell::new(BodyCopy::new(budget)));
            let message = MessageBody::Streamed(copy.clone());
            let mut is_ended = false;
            let body = tap(source, move |chunk, _| {
                if !is_ended {
                    is_ended = !extend(&mut copy.borrow_mut(), chunk);
                }
            });
            (body, Some(message))
        }
    }
}

/// Appends a chunk; false when the members are known, and when they will not be.
fn extend(copy: &mut BodyCopy, chunk: &[u8]) -> bool {
    let free = MAX_BODY_BYTES - copy.bytes().len();
    free > 0 && copy.extend(&chunk[..chunk.len().min(free)]) && leading_touser(copy.bytes()).is_none()
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
    fn body_is_copied_until_its_members_are_known_and_while_there_is_memory() {
        let budget = ReplayBudget::new(64 * 1024, 0, std::env::temp_dir());
        let mut copy = BodyCopy::new(&budget);
        assert!(extend(&mut copy, br#"{"touser":"a|"#) && !extend(&mut copy, br#"b","text":"#));
        assert_eq!((touser(copy.bytes()).as_deref(), budget.memory_used()), (Some("a|b"), 1024));
        let mut later = BodyCopy::new(&budget);
        assert!(extend(&mut later, br#"{"text":"","#) && extend(&mut later, br#""touser":"c"}"#));
        assert_eq!(touser(later.bytes()).as_deref(), Some("c"));
        let mut large = BodyCopy::new(&budget);
        assert!(extend(&mut large, &[b' '; 30_000]) && !extend(&mut large, &[b' '; 10_000]));
        assert_eq!((touser(large.bytes()), large.bytes()), (None, &b""[..]));
        drop((copy, later));
        assert!(extend(&mut large, &[b' '; 60_000]) && extend(&mut large, &[b' '; 10_000]));
        assert_eq!((extend(&mut large, b" "), large.bytes().len()), (false, MAX_BODY_BYTES));
    }

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
