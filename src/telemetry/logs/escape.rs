//! Escapes in whole lines of the log what a viewer would not see: the formatters pass most of it on as it came.

use std::{
    borrow::Cow,
    io::{self, Write},
};

use tracing_subscriber::fmt::MakeWriter;

use crate::telemetry::access_log::{escape_json, is_invisible};

/// A writer for each line, which is escaped on its way.
pub(super) struct EscapingMakeWriter<W> {
    pub(super) out: W,
    /// How an escape is written: as JSON does it, or as Rust does.
    pub(super) json: bool,
}

impl<'a, W: MakeWriter<'a>> MakeWriter<'a> for EscapingMakeWriter<W> {
    type Writer = EscapingWriter<W::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        EscapingWriter { out: self.out.make_writer(), json: self.json }
    }
}

/// Where one line goes. The log hands it over whole.
pub(super) struct EscapingWriter<W> {
    out: W,
    json: bool,
}

impl<W: Write> Write for EscapingWriter<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.out.write_all(&escape(line, self.json))?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// The line with escapes. Of ASCII only DEL is escaped here: the formatters escape the rest, and use some of it themselves.
fn escape(line: &[u8], json: bool) -> Cow<'_, [u8]> {
    let is_plain = |byte: &u8| *byte < 0x7f;
    let text = match std::str::from_utf8(line) {
        Ok(text) if !line.iter().all(is_plain) => text,
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
        fn json_escape_preserves_value(text in "(?s).{0,20}", odd in "[\u{7f}-\u{9f}\u{200b}-\u{202e}\u{e0041}]{0,4}") {
            let value = serde_json::json!({ "said": text + &odd });
            let line = value.to_string();
            let escaped = escape(line.as_bytes(), true);
            let shown = std::str::from_utf8(&escaped).expect("UTF-8");
            prop_assert!(!shown.chars().any(is_invisible), "{}", shown);
            prop_assert_eq!(serde_json::from_str::<serde_json::Value>(shown).expect("JSON"), value);
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
