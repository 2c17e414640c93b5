//! The configuration of a command that only reads it: a file, or `-` for the standard input.

use std::{io, path::Path};

use super::process_env;
use crate::config::{self, Config, SecretMode};

/// Loads the file, or the standard input where the path is `-`.
pub(super) fn load_input(path: &Path, secrets: SecretMode) -> Result<Config, config::Error> {
    match path == Path::new("-") {
        true => config::load_input("stdin", io::stdin().lock(), &process_env, secrets),
        false => config::load_with(path, &process_env, secrets),
    }
}
