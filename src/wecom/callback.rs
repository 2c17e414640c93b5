//! Callbacks: the messages that WeCom pushes to an application's receiver URL, encrypted and signed.

pub mod crypto; // signature, encryption and decryption
pub mod message; // the parts of a pushed body and of a decrypted message that decide what happens with it
