//! `key`: generates a random key for a client and shows it once.

use super::{CliError, print_text};
use crate::{
    config, format_text,
    secret::{Masked, hex},
};

/// Prints a new key and the configuration lines, which contain only its hash.
pub fn key(name: &str) -> Result<(), CliError> {
    if !config::is_valid_name(name) {
        return Err(CliError::config(format_text!(
            "{name:?} is not a valid client name; use A-Z, a-z, 0-9, _ and -, at most 64 characters",
            "{name:?} 不是有效的调用方名；请用 A-Z、a-z、0-9、_ 和 -，最多 64 个字符"
        )));
    }
    let mut random = [0; 32];
    getrandom::fill(&mut random).map_err(CliError::foreign)?;
    let key = Masked::new(hex::encode(&random));
    let hash = hex::encode(config::KeyHash::of(key.expose()).as_bytes());
    print_text(&format_text!(
        "{}\n\n\
         # Above: the key of {name}. It is shown only now; give it to that program only.\n\
         # For proxy.toml, with the agent's name in place of AGENT:\n\
         [clients.{name}]\nkey_sha256 = \"{hash}\"\nagents = [\"AGENT\"]\n",
        "{}\n\n\
         # 上面是 {name} 的密钥，只在此时显示；只交给该程序。\n\
         # 写进 proxy.toml，并把 AGENT 换成应用名：\n\
         [clients.{name}]\nkey_sha256 = \"{hash}\"\nagents = [\"AGENT\"]\n",
        key.expose()
    ))
}
