//! Tables with aligned columns, in colour on a terminal and in plain text elsewhere. Colours are anstyle's, their use
//! is decided by anstream, and widths are unicode-width's. The table itself stays ours: it takes 20 lines, while
//! `comfy-table` adds 3 packages, and more to measure coloured cells.

use std::io::{stderr, stdout};

use anstream::{AutoStream, ColorChoice, stream::RawStream};
use anstyle::AnsiColor;
use unicode_width::UnicodeWidthStr;

use super::language::shown;
use crate::{telemetry::access_log::is_invisible, text::Text};

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
        Self::for_stream(&stdout())
    }

    /// For stderr.
    pub(super) fn stderr() -> Self {
        Self::for_stream(&stderr())
    }

    /// In colour on a terminal, unless `NO_COLOR` or `TERM` tell otherwise.
    fn for_stream(stream: &impl RawStream) -> Self {
        Self { colour: AutoStream::choice(stream) != ColorChoice::Never }
    }

    /// `text` with the escape sequences of `style`.
    pub(super) fn apply(self, style: Style, text: &str) -> String {
        let style = match style {
            Style::Title => anstyle::Style::new().bold(),
            Style::Good => AnsiColor::Green.on_default(),
            Style::Bad => AnsiColor::Red.on_default(),
            Style::Warning => AnsiColor::Yellow.on_default(),
            Style::Plain => return text.to_owned(),
        };
        if self.colour { format!("{style}{text}{style:#}") } else { text.to_owned() }
    }

    /// Rows below their titles, each column as wide as its widest cell.
    pub(super) fn render_table(self, titles: &[Text], rows: Vec<Vec<Cell>>) -> String {
        let titles = titles.iter().map(|title| Cell::text(Style::Title, title)).collect();
        self.render_rows(std::iter::once(titles).chain(rows).collect())
    }

    /// Rows without titles.
    pub(super) fn render_rows(self, rows: Vec<Vec<Cell>>) -> String {
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

/// A text of others on one line. Characters that could change what a terminal shows are escaped.
pub(super) fn visible(text: &str) -> String {
    let escaped = text.chars().map(|char| match is_invisible(char) {
        true => char.escape_unicode().to_string(),
        false => char.to_string(),
    });
    escaped.collect()
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

    /// A text in the language of this process.
    pub(super) fn text(style: Style, text: &Text) -> Self {
        Self::styled(style, shown(text))
    }

    /// The value's text, or `-` for `None`.
    pub(super) fn optional(value: Option<impl ToString>) -> Self {
        Self::plain(value.map_or_else(|| "-".to_owned(), |value| value.to_string()))
    }

    fn width(&self) -> usize {
        self.text.width()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text;

    fn titles() -> [Text; 3] {
        [text!("名", "名"), text!("RESULT", "结果"), text!("N", "数")]
    }

    fn rows() -> Vec<Vec<Cell>> {
        vec![
            vec![Cell::plain("人事"), Cell::styled(Style::Good, "ok"), Cell::plain("1")],
            vec![Cell::plain("e\u{301}t\u{e9}"), Cell::styled(Style::Bad, "40001"), Cell::plain("")],
        ]
    }

    #[test]
    fn columns_align_with_wide_and_combining_characters() {
        let table = Styler { colour: false }.render_table(&titles(), rows());
        assert_eq!(table, "名    RESULT  N\n人事  ok      1\ne\u{301}té   40001\n");
    }

    #[test]
    fn colour_does_not_change_alignment() {
        let coloured = Styler { colour: true }.render_table(&titles(), rows());
        assert!(coloured.contains("\x1b[32mok\x1b[0m      1\n") && coloured.contains("\x1b[1m名\x1b[0m    "));
        let mut plain = coloured.replace("\x1b[0m", "");
        for code in ["1", "31", "32"] {
            plain = plain.replace(&format!("\x1b[{code}m"), "");
        }
        assert_eq!(plain, Styler { colour: false }.render_table(&titles(), rows()));
    }
}
