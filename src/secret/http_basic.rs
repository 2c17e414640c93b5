//! The credentials of HTTP Basic (RFC 7617).

use base64::{Engine, prelude::BASE64_STANDARD};
use zeroize::Zeroizing;

use super::Masked;

/// The password in base64 of `USER:PASSWORD`; `None` for anything else.
pub fn basic_password(credentials: &[u8]) -> Option<Masked> {
    let decoded = Zeroizing::new(BASE64_STANDARD.decode(credentials).ok()?);
    let (_, password) = std::str::from_utf8(&decoded).ok()?.split_once(':')?;
    Some(Masked::new(password))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn password_follows_the_first_colon() {
        for (credentials, expected) in [
            (&b"Y3JtOmtleS1vZi1jcm0tMQ=="[..], Some("key-of-crm-1")),
            (b"YTpiOmM=", Some("b:c")),
            (b"Y3JtOg==", Some("")),
            (b"Y3Jt", None),
            (b"Og", None),
            (b"Ov8=", None),
            (b"!", None),
            (b"", None),
        ] {
            let password = basic_password(credentials);
            assert_eq!(password.as_ref().map(Masked::expose), expected, "{credentials:?}");
        }
    }
}
