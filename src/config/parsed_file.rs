//! A file as it is parsed: as a whole, or cut at its agents.

use toml::de::DeTable;

use super::agent_texts::AgentTexts;
use super::cut_text::CutText;
use super::error::Error;
use super::reader::ParsedText;
use super::source_file::SourceFile;

/// A file of which the whole text or, where it was cut, the rest is parsed.
pub(super) struct ParsedFile<'a> {
    pub(super) source: &'a SourceFile<'a>,
    pub(super) cut: Option<&'a CutText<'a>>,
    pub(super) table: DeTable<'a>,
}

impl<'a> ParsedFile<'a> {
    /// `None`: the file cannot be read table by table.
    pub(super) fn new(
        source: &'a SourceFile<'a>,
        cut: Option<&'a CutText<'a>>,
    ) -> Option<Result<Self, Error>> {
        Some(match cut {
            None => source.parse().map(|table| Self { source, cut, table }),
            Some(of) => {
                let table = DeTable::parse(&of.rest).ok()?.into_inner();
                of.fits(&table).then_some(Ok(Self { source, cut, table }))?
            }
        })
    }

    pub(super) fn text(&'a self) -> (&'a SourceFile<'a>, ParsedText<'a>) {
        (self.source, self.cut.map_or(ParsedText::Whole, ParsedText::Rest))
    }
}

/// Cuts a file at its agents, if that is asked for. `None`: it cannot be.
pub(super) fn cut<'a>(source: &'a SourceFile<'_>, known: Option<&AgentTexts>) -> Option<Option<CutText<'a>>> {
    known.map_or(Some(None), |_| source.cut().map(Some))
}
