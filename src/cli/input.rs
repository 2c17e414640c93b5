//! The configuration of a command that only reads it: a file, or `-` for the standard input.

use std::{
    io::{self, Read},
    path::Path,
};

use zeroize::Zeroizing;

use super::process_env;
use crate::{
    config::{self, Config, SecretMode},
    format_text, text,
    text::Text,
};

/// How the standard input is named in errors.
const STDIN_NAME: &str = "stdin";
/// As for a file.
const MAX_BYTES: u64 = 16 << 20;

/// Loads the file, or the standard input where the path is `-`.
pub(super) fn load_input(path: &Path, secrets: SecretMode) -> Result<Config, config::Error> {
    if path != Path::new("-") {
        return config::load_with(path, &process_env, secrets);
    }
    let refuse = |message: Text| config::Error {
        file: STDIN_NAME.into(),
        line: None,
        key: None,
        message,
        others: Vec::new(),
    };
    let mut bytes = Zeroizing::new(Vec::new());
    let length = io::stdin().lock().take(MAX_BYTES + 1).read_to_end(&mut bytes);
    if length.map_err(|error| refuse(format_text!("cannot be read: {}", "无法读取：{}", error)))? as u64
        > MAX_BYTES
    {
        return Err(refuse(text!(
            "is too long for a configuration; at most 16MiB",
            "作为配置文件太长；最多 16MiB"
        )));
    }
    let text = config::decode_utf8(&bytes)
        .map_err(|error| config::Error { line: Some(error.line), ..refuse(error.message()) })?;
    config::load_text(STDIN_NAME, Zeroizing::new(text.to_owned()), &process_env, secrets)
}
