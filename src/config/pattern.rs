//! Patterns of paths under `/cgi-bin/`, with or without a method: for `allow` of a client and `plain` of an agent.

use std::fmt;

use http::Method;

use super::error::{Error, quote};
use super::glob::matches_glob;
use super::reader::{ConfigValue, read_all};
use super::suggest::did_you_mean;
use crate::text::Text;
use crate::{format_text, text};

const PATH_PREFIX: &str = "/cgi-bin/";
/// The path of JS-SDK signatures, which the proxy makes itself.
const SIGNATURE_PATH: &str = "/jssdk/signature";

const METHODS: [(&str, Method); 7] = [
    ("GET", Method::GET),
    ("HEAD", Method::HEAD),
    ("POST", Method::POST),
    ("PUT", Method::PUT),
    ("PATCH", Method::PATCH),
    ("DELETE", Method::DELETE),
    ("OPTIONS", Method::OPTIONS),
];

/// A pattern of paths under `/cgi-bin/`. A last segment `*` matches everything below; any other `*` matches any text
/// within its segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathPattern {
    text: String,
    form: PatternForm,
}

/// What takes little time to match, as most patterns do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PatternForm {
    /// Without `*`.
    Exact,
    /// The only `*` is the last segment; the length of the text before it.
    Prefix(usize),
    /// Any other.
    Wildcards,
}

impl PathPattern {
    /// A pattern of the program itself, in the form that is read from the file.
    pub fn from_static(pattern: &'static str) -> Self {
        Self::new(pattern.to_owned())
    }

    fn new(text: String) -> Self {
        let form = match text.strip_suffix("/*") {
            Some(prefix) if !prefix.contains('*') => PatternForm::Prefix(prefix.len() + 1),
            None if !text.contains('*') => PatternForm::Exact,
            _ => PatternForm::Wildcards,
        };
        Self { text, form }
    }

    /// The pattern as written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether the pattern matches `path`, which is compared as sent upstream: without query, percent-encoding not
    /// decoded.
    pub fn matches(&self, path: &str) -> bool {
        match self.form {
            PatternForm::Exact => path == self.text,
            PatternForm::Prefix(length) => path.as_bytes().starts_with(&self.text.as_bytes()[..length]),
            PatternForm::Wildcards => self.matches_segments(path),
        }
    }

    fn matches_segments(&self, path: &str) -> bool {
        let mut segments = path.split('/');
        let mut patterns = self.text.split('/').peekable();
        while let Some(pattern) = patterns.next() {
            let Some(segment) = segments.next() else { return false };
            if pattern == "*" && patterns.peek().is_none() {
                return true;
            }
            if !matches_glob(pattern, segment) {
                return false;
            }
        }
        segments.next().is_none()
    }
}

impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Calls that a client may make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllowPattern {
    /// `None` allows every method.
    pub method: Option<Method>,
    /// The paths.
    pub path: PathPattern,
}

impl AllowPattern {
    /// What a client without `allow` may call: everything under `/cgi-bin/`, and JS-SDK signatures.
    pub fn everything() -> Vec<Self> {
        let paths = [format!("{PATH_PREFIX}*"), SIGNATURE_PATH.to_owned()];
        paths.map(|path| Self { method: None, path: PathPattern::new(path) }).into()
    }

    /// Whether the call is allowed; `path` as in [`PathPattern::matches`].
    pub fn matches(&self, method: &Method, path: &str) -> bool {
        self.method.as_ref().is_none_or(|allowed| allowed == method) && self.path.matches(path)
    }
}

impl fmt::Display for AllowPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(method) = &self.method {
            write!(f, "{method} ")?;
        }
        self.path.fmt(f)
    }
}

/// Reads an agent's `plain`.
pub(super) fn read_path_patterns(item: &ConfigValue<'_>) -> Result<Vec<PathPattern>, Error> {
    let items = item.list(text!(
        "a list of paths like [\"/cgi-bin/corpgroup/*\"]",
        "路径列表，如 [\"/cgi-bin/corpgroup/*\"]"
    ))?;
    read_all(&items, |item| {
        read_path_pattern(
            item,
            item.string(text!(
                "a path like \"/cgi-bin/corpgroup/*\"",
                "\"/cgi-bin/corpgroup/*\" 这样的路径"
            ))?,
        )
    })
}

/// Reads the path of a quota.
pub(super) fn read_path(item: &ConfigValue<'_>) -> Result<PathPattern, Error> {
    read_path_pattern(
        item,
        item.string(text!("a path like \"/cgi-bin/oa/*\"", "\"/cgi-bin/oa/*\" 这样的路径"))?,
    )
}

/// Reads a client's `allow`, which must not be empty.
pub(super) fn read_allow_patterns(item: &ConfigValue<'_>) -> Result<Vec<AllowPattern>, Error> {
    let items = item.list(text!(
        "a list like [\"POST /cgi-bin/message/send\", \"/cgi-bin/user/*\"]",
        "[\"POST /cgi-bin/message/send\", \"/cgi-bin/user/*\"] 这样的列表"
    ))?;
    if items.is_empty() {
        return Err(item.error(text!(
            "is empty, which would allow nothing; without this key everything is allowed",
            "为空，即什么都不允许；去掉此键则全部允许"
        )));
    }
    read_all(&items, read_allow_pattern)
}

fn read_allow_pattern(item: &ConfigValue<'_>) -> Result<AllowPattern, Error> {
    let text = item.string(text!(
        "a string like \"POST /cgi-bin/message/send\" or \"/cgi-bin/user/*\"",
        "\"POST /cgi-bin/message/send\" 或 \"/cgi-bin/user/*\" 这样的字符串"
    ))?;
    let Some((method, path)) = text.split_once(' ') else {
        return Ok(AllowPattern { method: None, path: read_allowed_path(item, text)? });
    };
    let method_entry = METHODS.iter().find(|(name, _)| *name == method).ok_or_else(|| {
        let names = METHODS.map(|(name, _)| name);
        let hint = did_you_mean(method, names);
        item.error(format_text!(
            "{} is not a method; {}allowed: {}",
            "{} 不是请求方法；{}可用：{}",
            quote(method),
            hint,
            names.join(", ")
        ))
    })?;
    Ok(AllowPattern { method: Some(method_entry.1.clone()), path: read_allowed_path(item, path)? })
}

/// A path pattern, or the path of JS-SDK signatures.
fn read_allowed_path(item: &ConfigValue<'_>, path: &str) -> Result<PathPattern, Error> {
    match path {
        SIGNATURE_PATH => Ok(PathPattern::new(path.to_owned())),
        _ => read_path_pattern(item, path),
    }
}

fn read_path_pattern(item: &ConfigValue<'_>, path: &str) -> Result<PathPattern, Error> {
    let refuse = |reason: Text| Err(item.error(format_text!("{} {}", "{} {}", quote(path), reason)));
    let Some(below) = path.strip_prefix(PATH_PREFIX) else {
        return refuse(text!(
            "must start with /cgi-bin/; nothing else is forwarded",
            "必须以 /cgi-bin/ 开头；其他路径不转发"
        ));
    };
    if let Some(char) = path.chars().find(|c| !c.is_ascii_graphic() || "?#%\\\"".contains(*c)) {
        return refuse(format_text!(
            "contains {char:?}; a pattern is a plain path, without query or escapes",
            "含有 {char:?}；这里只能写普通路径，不含查询参数和转义"
        ));
    }
    if below.is_empty() || path.ends_with('/') {
        return refuse(format_text!(
            "ends in a slash; write \"{path}*\" for everything below it",
            "以斜杠结尾；要匹配其下全部路径请写 \"{path}*\""
        ));
    }
    if below.split('/').any(|segment| matches!(segment, "" | "." | ".." | "**")) {
        return refuse(text!(
            "contains an empty segment, \".\", \"..\" or \"**\"; a last \"/*\" means everything below",
            "含有空的路径段、\".\"、\"..\" 或 \"**\"；末尾的 \"/*\" 表示其下全部路径"
        ));
    }
    Ok(PathPattern::new(path.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_pattern_matches_segments_and_wildcards() {
        for (pattern, path, expected) in [
            ("/cgi-bin/user/get", "/cgi-bin/user/get", true),
            ("/cgi-bin/user/get", "/cgi-bin/user/gets", false),
            ("/cgi-bin/user/get", "/cgi-bin/user/get/", false),
            ("/cgi-bin/user/get", "/cgi-bin/user", false),
            ("/cgi-bin/user/*", "/cgi-bin/user/get", true),
            ("/cgi-bin/user/*", "/cgi-bin/user/a/b", true),
            ("/cgi-bin/user/*", "/cgi-bin/user", false),
            ("/cgi-bin/user/*", "/cgi-bin/users/get", false),
            ("/cgi-bin/*", "/cgi-bin/a/b/c", true),
            ("/cgi-bin/*/get", "/cgi-bin/user/get", true),
            ("/cgi-bin/*/get", "/cgi-bin/user/a/get", false),
            ("/cgi-bin/user/get*", "/cgi-bin/user/get_mobile", true),
            ("/cgi-bin/user/get*", "/cgi-bin/user/get/x", false),
            ("/cgi-bin/a*b*c/x", "/cgi-bin/abbc/x", true),
            ("/cgi-bin/a*b*c/x", "/cgi-bin/ac/x", false),
            ("/cgi-bin/aa*aa", "/cgi-bin/aaa", false),
            ("/cgi-bin/user/get", "/cgi-bin/user/%67et", false),
            ("/cgi-bin/user/get", "/cgi-bin/User/get", false),
        ] {
            assert_eq!(PathPattern::new(pattern.to_owned()).matches(path), expected, "{pattern} {path}");
        }
    }

    #[test]
    fn allow_pattern_with_method_matches_that_method_only() {
        let mut allow = AllowPattern::everything().remove(0);
        assert!(allow.matches(&Method::DELETE, "/cgi-bin/x"));
        allow.method = Some(Method::POST);
        assert!(allow.matches(&Method::POST, "/cgi-bin/x"));
        assert!(!allow.matches(&Method::GET, "/cgi-bin/x"));
        assert_eq!(allow.to_string(), "POST /cgi-bin/*");
    }
}
