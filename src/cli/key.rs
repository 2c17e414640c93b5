//! `key`: a random key for a client, shown once.

use super::{CliError, print};
use crate::{config, secret::Masked};

/// Prints a new key and the lines of the configuration that hold only its hash.
pub fn key(name: &str) -> Result<(), CliError> {
    if !config::is_valid_name(name) {
        return Err(CliError::config(format!(
            "{name:?} is no name for a client; a name is of A-Z, a-z, 0-9, _ and -, at most 64 of them"
        )));
    }
    let mut random = [0; 32];
    getrandom::fill(&mut random).map_err(CliError::other)?;
    let key = Masked::new(hex(&random));
    let hash = hex(config::KeyHash::of(key.expose()).as_bytes());
    print(format!(
        "{}\n\n\
         # Above: the key of {name}. It is shown only now; give it to that program alone.\n\
         # For proxy.toml; better than all agents are those it needs, such as [\"hr\"]:\n\
         [clients.{name}]\nkey_sha256 = \"{hash}\"\nagents = [\"*\"]\n",
        key.expose()
    ))
}

/// Hex digits: no command line, URL or file needs to quote them.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
