//! `key`: generates a random key for a client and shows it once.

use super::{CliError, print};
use crate::{
    config,
    secret::{Masked, hex},
};

/// Prints a new key and the configuration lines, which contain only its hash.
pub fn key(name: &str) -> Result<(), CliError> {
    if !config::is_valid_name(name) {
        return Err(CliError::config(format!(
            "{name:?} is not a valid client name; use A-Z, a-z, 0-9, _ and -, at most 64 characters"
        )));
    }
    let mut random = [0; 32];
    getrandom::fill(&mut random).map_err(CliError::other)?;
    let key = Masked::new(hex::encode(&random));
    let hash = hex::encode(config::KeyHash::of(key.expose()).as_bytes());
    print(format!(
        "{}\n\n\
                  # Above: the key of {name}. It is shown only now; give it to that program only.\n\
                  # For proxy.toml, with the agent's name in place of AGENT:\n\
         [clients.{name}]\nkey_sha256 = \"{hash}\"\nagents = [\"AGENT\"]\n",
        key.expose()
    ))
}
