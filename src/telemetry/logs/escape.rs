//! Escapes invisible characters in complete log lines, because tracing's formatters escape only some of them.

use std::{
    borrow::Cow,
    io::{self, Write},
};

use tracing::Metadata;
use tracing_subscriber::fmt::MakeWriter;

use crate::telemetry::{
    access_log::{escape_json, is_invisible},
    journal,
};

/// Makes a writer for each line that escapes it.
pub(super) struct EscapingMakeWriter<W> {
    pub(super) out: W,
    /// The syntax of escapes: JSON's or Rust's.
    pub(super) json: bool,
    /// Whether lines begin with their priority, for the journal.
    pub(super) has_priorities: bool,
}

impl<'a, W: MakeWriter<'a>> MakeWriter<'a> for EscapingMakeWriter<W> {
    type Writer = EscapingWriter<W::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        EscapingWriter { out: self.out.make_writer(), json: self.json, prefix: b"" }
    }

    fn make_writer_for(&'a self, event: &Metadata<'_>) -> Self::Writer {
        let prefix = if self.has_priorities { journal::prefix(*event.level()) } else { b"" };
        EscapingWriter { prefix, ..self.make_writer() }
    }
}

/// The writer of one line, which arrives in one write.
pub(super) struct EscapingWriter<W> {
    out: W,
    json: bool,
    prefix: &'static [u8],
}

impl<W: Write> Write for EscapingWriter<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let escaped = escape(line, self.json);
        match self.prefix.is_empty() {
            true => self.out.write_all(&escaped)?,
            // In one write, like every line.
            false => self.out.write_all(&[self.prefix, &escaped].concat())?,
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Escapes a line. Of ASCII only DEL is escaped: the formatters escape the rest, and use escape sequences themselves.
fn escape(line: &[u8], json: bool) -> Cow<'_, [u8]> {
    let is_visible_ascii = |byte: &u8| *byte < 0x7f;
    let text = match std::str::from_utf8(line) {
        Ok(text) if !line.iter().all(is_visible_ascii) => text,
        _ => return Cow::Borrowed(line),
    };
    let mut out = Vec::with_capacity(line.len() + 64);
    for char in text.chars() {
        if char < '\u{7f}' || !is_invisible(char) {
            out.extend_from_slice(char.encode_utf8(&mut [0; 4]).as_bytes());
        } else if json {
            escape_json(&mut out, char);
        } else {
            out.extend_from_slice(char.escape_unicode().to_string().as_bytes());
        }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn json_escape_preserves_value(text in "(?s).{0,20}", suffix in "[\u{7f}-\u{9f}\u{200b}-\u{202e}\u{e0041}]{0,4}") {
            let value = serde_json::json!({ "said": text + &suffix });
            let line = value.to_string();
            let escaped = escape(line.as_bytes(), true);
            let text_of_line = std::str::from_utf8(&escaped).expect("UTF-8");
            prop_assert!(!text_of_line.chars().any(is_invisible), "{}", text_of_line);
            prop_assert_eq!(serde_json::from_str::<serde_json::Value>(text_of_line).expect("JSON"), value);
        }
    }

    #[test]
    fn text_escape_matches_rust_debug() {
        assert_eq!(
            &*escape("\u{1b}[2m a=张\u{202e}\u{85}\n".as_bytes(), false),
            "\u{1b}[2m a=张\\u{202e}\\u{85}\n".as_bytes()
        );
        assert!(matches!(escape(b"all is plain\n", true), Cow::Borrowed(_)));
    }
}
