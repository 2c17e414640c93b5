//! `key`: generates a random key for a client and shows it once.

use super::{CliError, print};
use crate::{config, secret::Masked};

/// Prints a new key and the configuration lines, which contain only its hash.
pub fn key(name: &str) -> Result<(), CliError> {
    if !config::is_valid_name(name) {
        return Err(CliError::config(format!(
            "{name:?} is not a valid client name; use A-Z, a-z, 0-9, _ and -, at most 64 characters"
        )));
    }
    let mut random = [0; 32];
    getrandom::fill(&mut random).map_err(CliError::other)?;
    let key = Masked::new(hex(&random));
    let hash = hex(config::KeyHash::of(key.expose()).as_bytes());
    print(format!(
        "{}\n\n\
                  # Above: the key of {name}. It is shown only now; give it to that program only.\n\
                  # For proxy.toml; instead of all agents, name those it needs, such as [\"hr\"]:\n\
         [clients.{name}]\nkey_sha256 = \"{hash}\"\nagents = [\"*\"]\n",
        key.expose()
    ))
}

/// Encodes as hex, which needs no quoting in a command line, URL or file.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
