//! What WeCom pushes: nothing that arrives makes the receiver panic, and what it decrypts, it decrypts again after it has
//! encrypted it.

use base64::{Engine, prelude::BASE64_STANDARD};
use wecom_proxy::{
    secret::Masked,
    wecom::callback::{
        crypto::CallbackKeys,
        message::{Envelope, Fields, ParseError, has_document_type},
    },
};

const AES_KEY: &str = "jWmYm7qr5nMoAUwZRjGtBxmz3KA1tkAj3ykkR6q2B2C";

/// Input: a pushed body, which is also taken as a message, as an encrypted text and as the bytes of one.
pub fn check(data: &[u8]) {
    let keys = CallbackKeys::new(Masked::new("token"), &Masked::new(AES_KEY)).expect("a key");
    match Envelope::parse(data) {
        Ok(envelope) => {
            check_decrypt(&keys, &envelope.encrypted);
            assert_ne!(Fields::parse(data).err(), Some(ParseError::Malformed));
        }
        Err(ParseError::Dtd) => assert_eq!(Fields::parse(data).err(), Some(ParseError::Dtd)),
        Err(ParseError::Malformed) => drop(Fields::parse(data)),
    }
    if has_document_type(data) {
        assert_eq!(Envelope::parse(data).err(), Some(ParseError::Dtd));
    }
    if let Ok(text) = std::str::from_utf8(data) {
        check_decrypt(&keys, text);
    }
    check_decrypt(&keys, &BASE64_STANDARD.encode(data));
    let encrypted = keys.encrypt(data, "ww1").expect("randomness");
    let decrypted = keys.decrypt(&encrypted).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!((decrypted.message(), decrypted.receive_id()), (data, "ww1"));
}

fn check_decrypt(keys: &CallbackKeys, encrypted: &str) {
    let signature = keys.sign("1", "2", encrypted);
    assert!(keys.verify(&signature, "1", "2", encrypted));
    let Ok(decrypted) = keys.decrypt(encrypted) else { return };
    let again = keys.encrypt(decrypted.message(), decrypted.receive_id()).expect("randomness");
    let again = keys.decrypt(&again).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(again.message(), decrypted.message());
    assert_eq!(again.receive_id(), decrypted.receive_id());
}
