//! The key that a client presents in its headers, and the check whether a text is a credential.

use base64::{Engine, prelude::BASE64_STANDARD};

use super::{
    error::{ErrorKind, ProxyError},
    query,
    request::Request,
};
use crate::{
    http1::headers::{HeaderKind, Headers},
    secret::{Masked, credential_scan},
};

/// A presented key: as received, or decoded from HTTP Basic.
pub(super) enum PresentedKey<'a> {
    Verbatim(&'a str),
    Decoded(Masked),
}

impl PresentedKey<'_> {
    pub(super) fn expose(&self) -> &str {
        match self {
            Self::Verbatim(key) => key,
            Self::Decoded(key) => key.expose(),
        }
    }
}

/// The key in `Authorization`: Bearer, or the password of Basic.
pub(super) fn authorization_key(headers: &Headers) -> Result<Option<PresentedKey<'_>>, ProxyError> {
    let Some(value) = single_value(headers, HeaderKind::Authorization, "Authorization")? else {
        return Ok(None);
    };
    let space = memchr::memchr(b' ', value.as_bytes()).unwrap_or(value.len());
    let (scheme, rest) = (&value[..space], value[space..].trim_ascii());
    if scheme.eq_ignore_ascii_case("bearer") {
        return Ok(Some(PresentedKey::Verbatim(rest)));
    }
    if scheme.eq_ignore_ascii_case("basic") {
        let pair =
            BASE64_STANDARD.decode(rest).ok().and_then(|pair| String::from_utf8(pair).ok()).map(Masked::new);
        let password =
            pair.as_ref().and_then(|pair| pair.expose().split_once(':')).map(|(_, password)| password);
        return match password {
            Some(password) => Ok(Some(PresentedKey::Decoded(Masked::new(password)))),
            None => Err(ProxyError::new(
                ErrorKind::Unauthenticated,
                "malformed Basic credentials: expected base64 of USER:KEY",
            )),
        };
    }
    Err(ProxyError::new(ErrorKind::Unauthenticated, "unsupported Authorization scheme; use Bearer or Basic"))
}

pub(super) fn api_key(headers: &Headers) -> Result<Option<PresentedKey<'_>>, ProxyError> {
    Ok(single_value(headers, HeaderKind::ApiKey, "X-Api-Key")?.map(PresentedKey::Verbatim))
}

/// Whether a text is or contains a pass, or is a credential of this request: its key, what its `Authorization` contains, or
/// any parameter of a gettoken.
pub(super) fn is_credential(request: &Request, text: &str) -> bool {
    let (headers, target) = (&request.headers, &request.target);
    // For any scheme: the credentials after it.
    let is_authorization_key = |value: &[u8]| {
        let prefix = value.trim_ascii().strip_suffix(text.as_bytes());
        prefix.is_some_and(|prefix| prefix.is_empty() || prefix.ends_with(b" "))
    };
    credential_scan::has_pass_prefix(text)
        || credential_scan::contains_pass(text.as_bytes())
        || headers.presented_keys().any(|key| credential_scan::contains_key(text.as_bytes(), key))
        || headers.values(HeaderKind::ApiKey).any(|value| value.trim_ascii() == text.as_bytes())
        || headers.values(HeaderKind::Authorization).any(is_authorization_key)
        || matches!(authorization_key(headers), Ok(Some(PresentedKey::Decoded(key))) if key.expose() == text)
        || (target.path().ends_with("/gettoken")
            && query::param_values(target.query().unwrap_or_default()).any(|value| *value == text))
}

/// The value of a header that must occur at most once, with only printable ASCII characters and tabs.
pub(super) fn single_value<'a>(
    headers: &'a Headers,
    header: HeaderKind,
    name: &str,
) -> Result<Option<&'a str>, ProxyError> {
    let mut values = headers.values(header);
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        let message = format!("duplicate header {name}; send it once");
        return Err(ProxyError::new(ErrorKind::BadRequest, message));
    }
    let printable =
        |so_far: bool, byte: &u8| so_far & (((*byte >= b' ') & (*byte <= b'~')) | (*byte == b'\t'));
    match std::str::from_utf8(value) {
        Ok(text) if value.iter().fold(true, printable) => Ok(Some(text)),
        _ => {
            let message = format!("the header {name} must contain only printable ASCII characters and tabs");
            Err(ProxyError::new(ErrorKind::BadRequest, message))
        }
    }
}
