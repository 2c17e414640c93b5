//! Secrets: `{ env = "NAME" }`, `{ file = "path" }` or a plain string. No message shows a secret.

use zeroize::Zeroizing;

use super::error::Error;
use super::files;
use super::reader::ConfigValue;
use crate::secret::Masked;

pub(super) const KEYS: &[&str] = &["env", "file"];

const EXPECTED: &str = "{ env = \"NAME\" }, { file = \"path\" } or a string";

/// Reads a secret: visible ASCII, not empty.
pub(super) fn read(item: &ConfigValue<'_>) -> Result<Masked, Error> {
    if let Some(text) = item.as_str() {
        let secret = validate(item, "is", text)?;
        item.location
            .warn("is in plain text in this file; write { env = \"NAME\" } or { file = \"path\" } instead");
        return Ok(secret);
    }
    let section = item.table(EXPECTED, KEYS)?;
    match (section.find("env"), section.find("file")) {
        (Some(env), None) => read_env(&env),
        (None, Some(file)) => {
            let text = files::read_secret_file(&file)?;
            validate(&file, "names a file that is", text.trim_end_matches(['\r', '\n']))
        }
        (Some(_), Some(_)) => Err(item.error("names both env and file; keep one")),
        (None, None) => Err(item.error(format!("must be {EXPECTED}"))),
    }
}

fn read_env(item: &ConfigValue<'_>) -> Result<Masked, Error> {
    let name = item.string("the name of an environment variable")?;
    let is_name = |name: &str| {
        name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
            && name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
    };
    if !is_name(name) {
        // The value is not shown: it may be the secret itself by mistake.
        return Err(item.error("must be the name of an environment variable: letters, digits and _"));
    }
    let Some(text) = item.location.source.env(name).map(Zeroizing::new) else {
        return Err(item.error(format!("the environment variable {name} is not set")));
    };
    validate(item, &format!("the environment variable {name} is"), &text)
}

/// Checks the secret `text`; `subject` is the subject of the error and its verb.
fn validate(item: &ConfigValue<'_>, subject: &str, text: &str) -> Result<Masked, Error> {
    if text.is_empty() {
        return Err(item.error(format!("{subject} empty")));
    }
    if is_placeholder(text) {
        return Err(item.error(format!("{subject} a placeholder; replace it with the real one")));
    }
    if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(item.error(format!(
            "{subject} not a secret: it contains characters other than visible ASCII, such as a space or a line break"
        )));
    }
    Ok(Masked::new(text))
}

/// Whether `text` is a placeholder for a secret. A placeholder sent to WeCom counts as a wrong secret, for which WeCom
/// bans IP addresses; as a client's key, it would be easy to guess.
fn is_placeholder(text: &str) -> bool {
    let mut chars = text.chars();
    let first = chars.next();
    let is_repeated = text.chars().nth(2).is_some() && chars.all(|char| Some(char) == first);
    is_repeated || is_placeholder_word(text)
}

/// Whether `text` is a common placeholder, such as `changeme`, `<secret>` or an unexpanded variable.
pub(super) fn is_placeholder_word(text: &str) -> bool {
    const WORDS: &[&str] = &[
        "changeme",
        "replaceme",
        "placeholder",
        "todo",
        "tbd",
        "yoursecret",
        "yourkey",
        "yoursecrethere",
        "yourcorpid",
    ];
    // Nothing is copied, because `text` may be a secret.
    let matches = |word: &str| {
        let letters = text.bytes().filter(|byte| !matches!(byte, b'-' | b'_' | b' '));
        letters.map(|byte| byte.to_ascii_lowercase()).eq(word.bytes())
    };
    let bracketed = text.starts_with('<') && text.ends_with('>');
    // A variable that was not expanded.
    let variable = text.starts_with("${") && text.ends_with('}');
    WORDS.iter().any(|word| matches(word)) || bracketed || variable || text == "…"
}

#[cfg(test)]
mod tests {
    use super::is_placeholder;

    #[test]
    fn is_placeholder_separates_placeholders_from_secrets() {
        for text in [
            "changeme",
            "Change-Me",
            "CHANGE_ME",
            "xxx",
            "XXXXXXXX",
            "***",
            "...",
            "…",
            "<secret>",
            "${SECRET}",
            "todo",
        ] {
            assert!(is_placeholder(text), "{text}");
        }
        for text in
            ["", "a", "aa", "secret", "hunter2", "s3cret-of-hr", "xxy", "$2y$10", "${A}b", "todo-list-app"]
        {
            assert!(!is_placeholder(text), "{text}");
        }
    }
}
