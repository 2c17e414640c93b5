//! Secrets: `{ env = "NAME" }`, `{ file = "path" }` or a plain string. No message shows a secret.

use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::error::{Error, Warning, quote};
use super::files;
use super::key_hash::KeyHash;
use super::loaded_files::SecretMode;
use super::reader::{ConfigValue, read_all};
use super::source_file::SourceFile;
use crate::secret::{Masked, credential_scan::is_base64url, hex};
use crate::text::Text;
use crate::{format_text, text};

pub(super) const KEYS: &[&str] = &["env", "file"];

/// A secret that is being changed stands beside the one before.
const MAX_SECRETS: usize = 2;

const EXPECTED: Text = text!(
    "{ env = \"NAME\" }, { file = \"path\" } or a string",
    "{ env = \"NAME\" }、{ file = \"path\" } 或字符串"
);

/// The warning of a secret that stands in its file.
pub(super) const PLAIN_TEXT: Text = text!(
    "is in plain text in this file; write { env = \"NAME\" } or { file = \"path\" } instead",
    "在此文件中是明文；请改写成 { env = \"NAME\" } 或 { file = \"path\" }"
);

/// Warns of a secret in plain text that is not read again.
pub(super) fn warn_of_plain_text(source: &SourceFile<'_>, line: usize, key: String) {
    let file = source.shared_path();
    source.warn(Warning { file, line: Some(line), key: Some(key), message: PLAIN_TEXT });
}

/// Reads a secret: visible ASCII, not empty. Warns of one that is likely not what was meant.
pub(super) fn read(item: &ConfigValue<'_>) -> Result<Masked, Error> {
    let secret = read_text(item)?;
    if let Some(mistake) = mistake(secret.expose()) {
        item.location.warn(format_text!("{}; is that meant?", "{}；确实要这样吗？", mistake));
    }
    Ok(secret)
}

/// Reads a secret of WeCom, which consists of letters, digits, `-` and `_`; a wrong one counts there as an attack.
pub(super) fn read_wecom(item: &ConfigValue<'_>) -> Result<Masked, Error> {
    let secret = read_text(item)?;
    if let Some(mistake) = mistake(secret.expose()) {
        return Err(item.error(format_text!(
            "{}; write only the secret itself there",
            "{}；请只写 secret 本身",
            mistake
        )));
    }
    if !is_base64url(secret.expose()) {
        item.location.warn(text!(
            "contains a character that no secret of WeCom has: they consist of letters, digits, - and _",
            "含有企业微信的 secret 中不会出现的字符：它们只由字母、数字、- 和 _ 组成"
        ));
    }
    Ok(secret)
}

/// A secret of WeCom, and where it can be read again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourcedSecret {
    /// The secret.
    pub value: Masked,
    /// The file that it was read from; `None` for one from the environment or in plain text, which cannot change.
    pub file: Option<PathBuf>,
}

/// Reads one secret of WeCom, or a list of at most [`MAX_SECRETS`]; never empty.
pub(super) fn read_wecom_secrets(item: &ConfigValue<'_>) -> Result<Vec<SourcedSecret>, Error> {
    if !item.is_list() {
        return Ok(vec![read_sourced(item)?]);
    }
    let items = item.list(EXPECTED)?;
    if items.is_empty() || items.len() > MAX_SECRETS {
        let count = items.len();
        return Err(item.error(format_text!("lists {count} secrets; write one, or two while the secret is changed: the one in use and the other one", "列出了 {count} 个 secret；请写一个，更换期间写两个：正在使用的和另一个")));
    }
    let secrets = read_all(&items, read_sourced)?;
    if let ([first, second], [_, item]) = (&secrets[..], &items[..])
        && first.value == second.value
    {
        item.location.warn(text!(
            "is the same secret as the first one, so nothing is tried when that one is refused",
            "与第一个 secret 相同，因此第一个被拒绝时没有其他可试"
        ));
    }
    Ok(secrets)
}

fn read_sourced(item: &ConfigValue<'_>) -> Result<SourcedSecret, Error> {
    let value = read_wecom(item)?;
    let file = match item.as_str() {
        Some(_) => None,
        None => item.table(EXPECTED, KEYS)?.read_optional("file", ConfigValue::path),
    };
    Ok(SourcedSecret { value, file })
}

/// Reads a secret of WeCom from its file again, with the checks of the first time. Blocks. The error names the file and
/// what is wrong with it, and shows nothing of the secret.
pub fn read_secret_again(path: &Path) -> Result<Masked, Text> {
    let file = files::read_secret_text(path)?;
    let text = file.text.trim_end_matches(['\r', '\n']);
    match invalid_reason(text).map(|reason| format_text!("is {}", "{}", reason)).or_else(|| mistake(text)) {
        None => Ok(Masked::new(text)),
        Some(reason) => Err(format_text!("{} {}", "{} {}", quote(&path.to_string_lossy()), reason)),
    }
}

fn read_text(item: &ConfigValue<'_>) -> Result<Masked, Error> {
    if let Some(text) = item.as_str() {
        let secret = validate(item, text!("is", ""), text)?;
        if !item.location.source.is_file() {
            return Ok(secret);
        }
        item.location.warn(PLAIN_TEXT);
        return Ok(secret);
    }
    if !item.location.source.is_file() {
        let error = item.type_error(text!("a string", "字符串"));
        return Err(item.error(format_text!(
            "{}; {{ env }} and {{ file }} are for files",
            "{}；{{ env }} 和 {{ file }} 只用于文件",
            error.message
        )));
    }
    let section = item.table(EXPECTED, KEYS)?;
    match (section.find("env"), section.find("file")) {
        (Some(env), None) => read_or_replace(&env, read_env),
        (None, Some(file)) => read_or_replace(&file, read_from_file),
        (Some(_), Some(_)) => {
            Err(item.error(text!("names both env and file; keep one", "同时写了 env 和 file；只保留一个")))
        }
        // An unknown key is reported already.
        (None, None) if section.has_unknown_keys() => Err(Error::recorded()),
        (None, None) => Err(item.error(format_text!("must be {}", "必须是 {}", EXPECTED))),
    }
}

/// Reads what an environment variable or a file has, or takes a placeholder for it, where secrets need not be there.
fn read_or_replace(
    item: &ConfigValue<'_>,
    read: impl FnOnce(&ConfigValue<'_>) -> Result<Masked, Error>,
) -> Result<Masked, Error> {
    match (item.location.source.secrets(), item.as_str()) {
        (SecretMode::Required, _) | (_, None) => read(item),
        (SecretMode::Optional, Some(source)) => Ok(read(item).unwrap_or_else(|_| unread_secret(source))),
        (SecretMode::Unread, Some(source)) => Ok(unread_secret(source)),
    }
}

fn read_from_file(item: &ConfigValue<'_>) -> Result<Masked, Error> {
    let text = files::read_secret_file(item)?;
    validate(item, text!("names a file that is", "指定的文件"), text.trim_end_matches(['\r', '\n']))
}

/// What the placeholder of a secret that was not read begins with.
const UNREAD_PREFIX: &str = "UnreadSecret";

/// A placeholder for a secret: 43 letters and digits, as an EncodingAESKey has. Two secrets from one place are the same
/// secret, others are not.
fn unread_secret(source: &str) -> Masked {
    let hash = hex::encode(KeyHash::of(source).as_bytes());
    Masked::new(format!("{UNREAD_PREFIX}{}", &hash[..43 - UNREAD_PREFIX.len()]))
}

/// Whether it is the placeholder of a secret that was not read.
pub fn is_unread(secret: &Masked) -> bool {
    secret.expose().starts_with(UNREAD_PREFIX)
}

/// Reads a secret of the proxy's own, from which keys are derived.
pub(super) fn read_long(item: &ConfigValue<'_>) -> Result<Masked, Error> {
    const MIN_BYTES: usize = 32;
    let secret = read(item)?;
    if secret.expose().len() < MIN_BYTES {
        return Err(item.error(format_text!(
            "is too short; it must have {MIN_BYTES} characters or more",
            "太短；至少需要 {MIN_BYTES} 个字符"
        )));
    }
    Ok(secret)
}

/// Reads an EncodingAESKey.
pub(super) fn read_aes_key(item: &ConfigValue<'_>) -> Result<Masked, Error> {
    const CHARS: usize = 43;
    let key = read(item)?;
    let (length, is_base64) = (
        key.expose().len(),
        key.expose().bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+/".contains(&byte)),
    );
    if length != CHARS {
        return Err(item.error(format_text!("has {length} characters; an EncodingAESKey has {CHARS}, without the \"=\" that completes its base64", "有 {length} 个字符；EncodingAESKey 有 {CHARS} 个，不含补全 base64 的 \"=\"")));
    }
    if !is_base64 {
        return Err(item.error(text!(
            "is no EncodingAESKey: it consists of letters and digits, as shown in the console",
            "不是 EncodingAESKey：它由字母和数字组成，以管理后台显示的为准"
        )));
    }
    Ok(key)
}

fn read_env(item: &ConfigValue<'_>) -> Result<Masked, Error> {
    let name = item.string(text!("the name of an environment variable", "环境变量名"))?;
    let is_name = |name: &str| {
        name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
            && name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
    };
    if !is_name(name) {
        // The value is not shown: it may be the secret itself by mistake.
        return Err(item.error(text!(
            "must be the name of an environment variable: letters, digits and _",
            "必须是环境变量名：字母、数字和 _"
        )));
    }
    let Some(text) = item.location.source.env(name).map(Zeroizing::new) else {
        return Err(item.error(format_text!(
            "the environment variable {name} is not set; set it where this command and the proxy run",
            "环境变量 {name} 没有设置；请在运行此命令和代理的环境中设置它"
        )));
    };
    validate(item, format_text!("the environment variable {name} is", "环境变量 {name} "), &text)
}

/// Checks the secret `text`; `subject` is the subject of the error and its verb.
fn validate(item: &ConfigValue<'_>, subject: Text, text: &str) -> Result<Masked, Error> {
    match invalid_reason(text) {
        None => Ok(Masked::new(text)),
        Some(reason) => Err(item.error(format_text!("{} {}", "{}{}", subject, reason))),
    }
}

/// Why `text` cannot be a secret.
fn invalid_reason(text: &str) -> Option<Text> {
    if text.is_empty() {
        return Some(text!("empty", "为空"));
    }
    if is_placeholder(text) {
        return Some(text!("a placeholder; replace it with the real one", "是占位文字；请换成真正的值"));
    }
    let is_visible = text.bytes().all(|byte| byte.is_ascii_graphic());
    (!is_visible).then_some(text!(
        "not a secret: it contains characters other than visible ASCII, such as a space or a line break",
        "不是密钥：含有可见 ASCII 以外的字符，如空格或换行"
    ))
}

/// What was likely copied along with the secret, or in its place.
fn mistake(text: &str) -> Option<Text> {
    let is_quoted = |quote| text.len() > 1 && text.starts_with(quote) && text.ends_with(quote);
    if ['"', '\'', '`'].into_iter().any(is_quoted) {
        return Some(text!(
            "has quotes around it, which docker-compose's list form and --env-file keep",
            "带有引号：docker-compose 的列表写法和 --env-file 会保留引号"
        ));
    }
    let is_name = |name: &str| {
        name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    };
    match text.split_once('=') {
        // The signs at the end of base64 are no value.
        Some((name, value)) if is_name(name) && !value.bytes().all(|byte| byte == b'=') => {
            return Some(text!("begins like NAME=value", "的开头像 NAME=value"));
        }
        _ => {}
    }
    text.strip_prefix('$').is_some_and(is_name).then_some(text!(
        "is the name of a variable ($NAME) that nothing replaced",
        "是没有被替换的变量名（$NAME）"
    ))
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
    // `your_wecom_secret`
    let is_yours = ["your_", "your-"]
        .iter()
        .any(|start| text.get(..start.len()).is_some_and(|found| found.eq_ignore_ascii_case(start)));
    WORDS.iter().any(|word| matches(word)) || is_yours || bracketed || variable || text == "…"
}

#[cfg(test)]
mod tests {
    use super::{is_placeholder, mistake};

    #[test]
    fn mistake_names_what_was_copied_along() {
        for (text, expected) in [
            ("\"abc\"", "quotes"),
            ("'abc'", "quotes"),
            ("WECOM_HR_SECRET=abc", "NAME=value"),
            ("$WECOM_SECRET", "variable"),
        ] {
            assert!(mistake(text).is_some_and(|mistake| mistake.english().contains(expected)), "{text}");
        }
        for text in ["abc", "\"", "a\"b", "YWJj==", "$2y$10$x", "a-b=c", "=x", "9a=b"] {
            assert_eq!(mistake(text), None, "{text}");
        }
    }

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
            "your_wecom_secret",
            "YOUR-secret",
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
