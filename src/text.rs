//! Texts for operators in English and Chinese. Both are written where a text is made, so none can lack a language.

mod shared_str;

use std::{fmt, io, net::IpAddr, path, sync::Arc};

pub use shared_str::SharedStr;

/// The language of a terminal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Language {
    /// English, which is also the language of logs.
    #[default]
    English,
    /// Simplified Chinese.
    Chinese,
}

impl Language {
    /// The language of a POSIX locale; `None` for one that selects none. Output is UTF-8, so that a locale with another
    /// encoding has English.
    pub fn of_locale(locale: &str) -> Option<Self> {
        if locale.is_empty() {
            return None;
        }
        let name = locale.split('@').next().unwrap_or_default();
        let (language, encoding) = name.split_once('.').unwrap_or((name, "UTF-8"));
        let is_utf8 = encoding.eq_ignore_ascii_case("UTF-8") || encoding.eq_ignore_ascii_case("utf8");
        let is_chinese = language == "zh" || language.starts_with("zh_") || language.starts_with("zh-");
        Some(if is_chinese && is_utf8 { Self::Chinese } else { Self::English })
    }

    /// The language of the environment: the first of `LC_ALL`, `LC_MESSAGES` and `LANG` that is not empty.
    pub fn of_environment(env: &dyn Fn(&str) -> Option<String>) -> Self {
        let locales = ["LC_ALL", "LC_MESSAGES", "LANG"].into_iter().filter_map(env);
        locales.filter_map(|locale| Self::of_locale(&locale)).next().unwrap_or_default()
    }
}

/// A text in both languages. It has no `Display`, so that it cannot become part of another text in the wrong language.
#[derive(Clone)]
pub struct Text(Content);

/// English and Chinese.
#[derive(Clone)]
enum Content {
    Fixed(&'static str, &'static str),
    /// Behind a pointer, because texts are moved as part of errors.
    Formatted(Arc<[String; 2]>),
}

impl Text {
    /// For [`text!`](crate::text!).
    pub const fn fixed(english: &'static str, chinese: &'static str) -> Self {
        Self(Content::Fixed(english, chinese))
    }

    /// For [`format_text!`](crate::format_text!).
    pub fn formatted(english: String, chinese: String) -> Self {
        Self(Content::Formatted(Arc::new([english, chinese])))
    }

    /// The text of a value.
    pub fn of(value: &(impl Localized + ?Sized)) -> Self {
        Self::formatted(english(value).to_string(), chinese(value).to_string())
    }

    /// Whether both are the same fixed text.
    pub fn is_same_as(&self, other: &Self) -> bool {
        matches!((&self.0, &other.0), (Content::Fixed(one, _), Content::Fixed(two, _)) if one == two)
    }

    /// The English text.
    pub fn english(&self) -> &str {
        self.get(Language::English)
    }

    /// The text in a language.
    pub fn get(&self, language: Language) -> &str {
        match (&self.0, language) {
            (Content::Fixed(english, _), Language::English) => english,
            (Content::Fixed(_, chinese), Language::Chinese) => chinese,
            (Content::Formatted(texts), Language::English) => &texts[0],
            (Content::Formatted(texts), Language::Chinese) => &texts[1],
        }
    }

    /// Both texts, changed in the same way.
    pub fn map(&self, change: impl Fn(&str) -> String) -> Self {
        Self::formatted(change(self.english()), change(self.get(Language::Chinese)))
    }

    /// Whether there is no text.
    pub fn is_empty(&self) -> bool {
        self.english().is_empty()
    }
}

impl Default for Text {
    fn default() -> Self {
        Self::fixed("", "")
    }
}

impl PartialEq for Text {
    fn eq(&self, other: &Self) -> bool {
        let is_same = |language| self.get(language) == other.get(language);
        is_same(Language::English) && is_same(Language::Chinese)
    }
}

impl Eq for Text {}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Text").field(&self.english()).field(&self.get(Language::Chinese)).finish()
    }
}

/// A text in both languages, without parameters: `text!("is empty", "为空")`.
#[macro_export]
macro_rules! text {
    ($english:literal, $chinese:literal $(,)?) => {
        $crate::text::Text::fixed($english, $chinese)
    };
}

/// A text in both languages with parameters, like [`format!`]. Only positional ones can differ between the languages:
/// `format_text!("{} is not {}", "{} 不是{}", name, expected)`.
#[macro_export]
macro_rules! format_text {
    ($english:literal, $chinese:literal $(, $value:expr)* $(,)?) => {
        $crate::text::Text::formatted(
            format!($english $(, $crate::text::english(&$value))*),
            format!($chinese $(, $crate::text::chinese(&$value))*),
        )
    };
}

/// Shows a type by its method `text`: in English where it is displayed, as in logs.
#[macro_export]
macro_rules! display_text {
    ($type:ty) => {
        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.text().english())
            }
        }

        impl $crate::text::Localized for $type {
            fn write(
                &self,
                language: $crate::text::Language,
                f: &mut std::fmt::Formatter<'_>,
            ) -> std::fmt::Result {
                f.write_str(self.text().get(language))
            }
        }
    };
}

/// A parameter of a text.
pub trait Localized {
    /// Writes the value in the language.
    fn write(&self, language: Language, f: &mut fmt::Formatter<'_>) -> fmt::Result;
}

/// A value that is shown in one language.
pub struct Shown<'a, T: ?Sized>(&'a T, Language);

/// The value in English.
pub fn english<T: ?Sized>(value: &T) -> Shown<'_, T> {
    Shown(value, Language::English)
}

/// The value in Chinese.
pub fn chinese<T: ?Sized>(value: &T) -> Shown<'_, T> {
    Shown(value, Language::Chinese)
}

impl<T: Localized + ?Sized> fmt::Display for Shown<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.write(self.1, f)
    }
}

impl<T: fmt::Debug + ?Sized> fmt::Debug for Shown<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<T: Localized + ?Sized> Localized for &T {
    fn write(&self, language: Language, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).write(language, f)
    }
}

impl Localized for Text {
    fn write(&self, language: Language, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.get(language))
    }
}

/// Names, numbers, paths and addresses are the same in every language.
macro_rules! impl_same_in_every_language {
    ($($type:ty),*) => {$(
        impl Localized for $type {
            fn write(&self, _: Language, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    )*};
}

impl_same_in_every_language!(char, str, String, i64, u16, u32, u64, u128, usize, path::Display<'_>, IpAddr);

/// A text as the cause of an [`io::Error`], which keeps both languages.
#[derive(Debug)]
pub struct TextError(pub Text);

impl fmt::Display for TextError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.english())
    }
}

impl std::error::Error for TextError {}

/// In Chinese, the system's own text only of errors that are rare here.
impl Localized for io::Error {
    fn write(&self, language: Language, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(TextError(text)) = self.get_ref().and_then(|cause| cause.downcast_ref()) {
            return f.write_str(text.get(language));
        }
        let chinese = match self.kind() {
            _ if language == Language::English => None,
            io::ErrorKind::NotFound => Some("文件或目录不存在"),
            io::ErrorKind::PermissionDenied => Some("权限不足"),
            io::ErrorKind::AlreadyExists => Some("已存在"),
            io::ErrorKind::IsADirectory => Some("是目录"),
            io::ErrorKind::NotADirectory => Some("不是目录"),
            io::ErrorKind::StorageFull => Some("磁盘空间不足"),
            io::ErrorKind::ReadOnlyFilesystem => Some("文件系统只读"),
            io::ErrorKind::QuotaExceeded => Some("超出磁盘配额"),
            io::ErrorKind::AddrInUse => Some("地址已被占用"),
            io::ErrorKind::AddrNotAvailable => Some("本机没有该地址"),
            io::ErrorKind::ConnectionRefused => Some("连接被拒绝"),
            io::ErrorKind::ConnectionReset => Some("连接被重置"),
            io::ErrorKind::ConnectionAborted => Some("连接被中断"),
            io::ErrorKind::HostUnreachable => Some("主机不可达"),
            io::ErrorKind::NetworkUnreachable => Some("网络不可达"),
            io::ErrorKind::TimedOut => Some("超时"),
            io::ErrorKind::BrokenPipe => Some("管道已关闭"),
            io::ErrorKind::UnexpectedEof => Some("数据提前结束"),
            io::ErrorKind::OutOfMemory => Some("内存不足"),
            io::ErrorKind::InvalidFilename => Some("文件名无效"),
            _ => None,
        };
        match (chinese, self.raw_os_error()) {
            (Some(chinese), Some(code)) => write!(f, "{chinese} (os error {code})"),
            (Some(chinese), None) => f.write_str(chinese),
            (None, _) => fmt::Display::fmt(self, f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn language_follows_locale_in_posix_order() {
        let of = |variables: &[(&str, &str)]| {
            let variables: std::collections::HashMap<_, _> = variables.iter().copied().collect();
            Language::of_environment(&|name| variables.get(name).map(|&value| value.to_owned()))
        };
        for (variables, expected) in [
            (&[][..], Language::English),
            (&[("LANG", "zh_CN.UTF-8")], Language::Chinese),
            (&[("LANG", "zh_CN.utf8")], Language::Chinese),
            (&[("LANG", "zh_TW")], Language::Chinese),
            (&[("LANG", "zh_CN.GB18030")], Language::English),
            (&[("LANG", "zha_CN.UTF-8")], Language::English),
            (&[("LANG", "zh_CN.UTF-8"), ("LC_ALL", "C")], Language::English),
            (&[("LANG", "zh_CN.UTF-8"), ("LC_ALL", "")], Language::Chinese),
            (&[("LANG", "en_US.UTF-8"), ("LC_MESSAGES", "zh_CN.UTF-8")], Language::Chinese),
            (&[("LC_MESSAGES", "zh_CN.UTF-8"), ("LC_ALL", "en_US.UTF-8")], Language::English),
        ] {
            assert_eq!(of(variables), expected, "{variables:?}");
        }
    }

    #[test]
    fn parameters_are_in_the_language_of_the_text() {
        let (what, reason) = (io::Error::from(io::ErrorKind::NotFound), text!("a list", "列表"));
        let text = format_text!("{}: not {}", "{}：不是{}", what, reason);
        assert_eq!(text.get(Language::English), "entity not found: not a list");
        assert_eq!(text.get(Language::Chinese), "文件或目录不存在：不是列表");
    }
}
