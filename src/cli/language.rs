//! The language of what a command prints: `--lang`, else the locale. Help and logs are in English.

use std::sync::OnceLock;

use super::process_env;
use crate::text::{Language, Text};

static LANGUAGE: OnceLock<Language> = OnceLock::new();

/// Sets the language for the rest of the process; only the first call counts.
pub fn set_language(language: Language) {
    let _ = LANGUAGE.set(language);
}

/// The language of this process.
pub(super) fn language() -> Language {
    *LANGUAGE.get_or_init(|| Language::of_environment(&process_env))
}

/// The text in the language of this process.
pub(super) fn shown(text: &Text) -> &str {
    text.get(language())
}
