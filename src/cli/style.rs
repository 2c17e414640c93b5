//! Tables with aligned columns, in colour on a terminal and in plain text elsewhere.

use std::{env, ffi::OsString, io::IsTerminal};

/// The style of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    Plain,
    /// A column's title.
    Title,
    Good,
    Bad,
    /// Works, but needs attention.
    Warning,
}

/// Applies styles, if colour is enabled.
#[derive(Debug, Clone, Copy)]
pub(super) struct Styler {
    colour: bool,
}

impl Styler {
    /// For stdout.
    pub(super) fn stdout() -> Self {
        Self::for_terminal(std::io::stdout().is_terminal())
    }

    /// For stderr.
    pub(super) fn stderr() -> Self {
        Self::for_terminal(std::io::stderr().is_terminal())
    }

    fn for_terminal(terminal: bool) -> Self {
        Self::from_env(terminal, &|name| env::var_os(name))
    }

    /// A non-empty `NO_COLOR` disables colour on a terminal too (no-color.org).
    fn from_env(terminal: bool, env: &dyn Fn(&str) -> Option<OsString>) -> Self {
        let no_color = env("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = env("TERM").is_some_and(|term| term == "dumb");
        Self { colour: terminal && !no_color && !dumb }
    }

    /// `text` with the escape sequences of `style`.
    pub(super) fn apply(self, style: Style, text: &str) -> String {
        let code = match style {
            Style::Plain => return text.to_owned(),
            Style::Title => "1",
            Style::Good => "32",
            Style::Bad => "31",
            Style::Warning => "33",
        };
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// Rows below their titles, each column as wide as its widest cell.
    pub(super) fn render_table(self, titles: &[&str], rows: Vec<Vec<Cell>>) -> String {
        let titles = titles.iter().map(|title| Cell::styled(Style::Title, *title)).collect();
        let rows: Vec<Vec<Cell>> = std::iter::once(titles).chain(rows).collect();
        let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(Cell::width).max();
        let widths: Vec<_> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
        rows.iter().map(|row| self.render_row(row, &widths)).collect()
    }

    fn render_row(self, row: &[Cell], widths: &[usize]) -> String {
        let last = row.iter().rposition(|cell| !cell.text.is_empty()).unwrap_or(0);
        let mut line = String::new();
        for (nth, (cell, width)) in row.iter().zip(widths).enumerate().take(last + 1) {
            line.push_str(&self.apply(cell.style, &cell.text));
            if nth < last {
                line.push_str(&" ".repeat(width - cell.width() + 2));
            }
        }
        line + "\n"
    }
}

/// A cell of a table.
#[derive(Debug)]
pub(super) struct Cell {
    style: Style,
    text: String,
}

impl Cell {
    pub(super) fn styled(style: Style, text: impl Into<String>) -> Self {
        Self { style, text: text.into() }
    }

    pub(super) fn plain(text: impl Into<String>) -> Self {
        Self::styled(Style::Plain, text)
    }

    /// The value's text, or `-` for `None`.
    pub(super) fn optional(value: Option<impl ToString>) -> Self {
        Self::plain(value.map_or_else(|| "-".to_owned(), |value| value.to_string()))
    }

    fn width(&self) -> usize {
        self.text.chars().map(char_width).sum()
    }
}

/// The number of terminal columns of a character: 2 for CJK and other wide ones, 0 for combining ones.
fn char_width(char: char) -> usize {
    match u32::from(char) {
        0x0300..=0x036F | 0x200B..=0x200F | 0xFE00..=0xFE0F => 0,
        0x1100..=0x115F
        | 0x2E80..=0x303E
        | 0x3041..=0xA4CF
        | 0xAC00..=0xD7A3
        | 0xF900..=0xFAFF
        | 0xFE30..=0xFE6F
        | 0xFF00..=0xFF60
        | 0xFFE0..=0xFFE6
        | 0x1F300..=0x1FAFF
        | 0x20000..=0x3FFFD => 2,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<Vec<Cell>> {
        vec![
            vec![Cell::plain("人事"), Cell::styled(Style::Good, "ok"), Cell::plain("1")],
            vec![Cell::plain("e\u{301}t\u{e9}"), Cell::styled(Style::Bad, "40001"), Cell::plain("")],
        ]
    }

    #[test]
    fn columns_align_with_wide_and_combining_characters() {
        let table = Styler { colour: false }.render_table(&["名", "RESULT", "N"], rows());
        assert_eq!(table, "名    RESULT  N\n人事  ok      1\ne\u{301}té   40001\n");
    }

    #[test]
    fn colour_follows_terminal_no_color_and_term() {
        let colour = |terminal, variables: &[(&str, &str)]| {
            let variables: Vec<_> =
                variables.iter().map(|(name, value)| ((*name).to_owned(), OsString::from(value))).collect();
            let env = move |name: &str| {
                variables.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone())
            };
            Styler::from_env(terminal, &env).colour
        };
        assert!(colour(true, &[]) && colour(true, &[("NO_COLOR", ""), ("TERM", "xterm")]));
        assert!(
            !colour(false, &[]) && !colour(true, &[("NO_COLOR", "1")]) && !colour(true, &[("TERM", "dumb")])
        );
    }

    #[test]
    fn colour_does_not_change_alignment() {
        let coloured = Styler { colour: true }.render_table(&["名", "RESULT", "N"], rows());
        assert!(coloured.contains("\x1b[32mok\x1b[0m      1\n") && coloured.contains("\x1b[1m名\x1b[0m    "));
        let mut plain = coloured.replace("\x1b[0m", "");
        for code in ["1", "31", "32"] {
            plain = plain.replace(&format!("\x1b[{code}m"), "");
        }
        assert_eq!(plain, Styler { colour: false }.render_table(&["名", "RESULT", "N"], rows()));
    }
}
