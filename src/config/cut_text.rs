//! A file cut at its tables `[agents.NAME]`, of which there can be very many: each is parsed by itself, and the rest at once.
//! Parsing a whole file takes ten times its size.

use std::{cell::OnceCell, ops::Range};

use toml::de::DeTable;
use zeroize::Zeroizing;

use super::table_name::is_valid_name;
use crate::blocking;

/// A table in the text of its file.
#[derive(Clone, Copy)]
pub(super) struct TablePart<'a> {
    /// The text from the header on, up to the next header.
    pub(super) text: &'a str,
    /// The line of the header, counted from 1.
    pub(super) line: usize,
}

impl TablePart<'_> {
    /// The line of the byte at `offset` of this part.
    pub(super) fn line_at(&self, offset: usize) -> usize {
        self.line + memchr::memchr_iter(b'\n', &self.text.as_bytes()[..offset]).count()
    }
}

/// `[agents.NAME]`
#[derive(Clone, Copy)]
pub(super) struct AgentPart<'a> {
    pub(super) name: &'a str,
    pub(super) part: TablePart<'a>,
}

/// A file in parts.
pub(super) struct CutText<'a> {
    /// In the order of the file.
    pub(super) agents: Vec<AgentPart<'a>>,
    /// The text without these.
    pub(super) rest: Zeroizing<String>,
    /// The offset of each line's end in the rest, computed at the first use.
    line_ends: OnceCell<Vec<usize>>,
    /// Each place in the rest where something is missing, and how many lines are missing up to there.
    missing: Vec<(usize, usize)>,
}

impl<'a> CutText<'a> {
    /// Cuts a text; `None`: a part may mean something else by itself than in the file.
    pub(super) fn of(text: &'a str) -> Option<Self> {
        let (agents, rest_ranges) = cut(text);
        // Each range ends where a table begins, so none ends within a value that spans lines.
        if rest_ranges.len() > 1
            && !rest_ranges.iter().all(|range| DeTable::parse(&text[range.clone()]).is_ok())
        {
            return None;
        }
        let mut rest = Zeroizing::new(String::with_capacity(rest_ranges.iter().map(Range::len).sum()));
        let (mut missing, mut end, mut lines) = (Vec::new(), 0, 0);
        for range in rest_ranges {
            lines += memchr::memchr_iter(b'\n', &text.as_bytes()[end..range.start]).count();
            missing.push((rest.len(), lines));
            end = range.end;
            rest.push_str(&text[range]);
        }
        Some(Self { agents, rest, line_ends: OnceCell::new(), missing })
    }

    /// The line in the file of the byte at `offset` of the rest.
    pub(super) fn line_at(&self, offset: usize) -> usize {
        let ends = self.line_ends.get_or_init(|| line_ends(&self.rest));
        let before = self.missing.partition_point(|(place, _)| *place <= offset);
        let missing = before.checked_sub(1).map_or(0, |nth| self.missing[nth].1);
        line_of(ends, offset) + missing
    }

    /// Whether the parts are what they would be in the parsed file: there, the rest has no agents or writes them as
    /// `[agents…]` too, and none of the same name.
    pub(super) fn fits(&self, rest: &DeTable<'_>) -> bool {
        let Some((key, agents)) = rest.get_key_value("agents") else { return true };
        let is_header = self.rest[..key.span().start].ends_with('[');
        let Some(agents) = agents.get_ref().as_table().filter(|_| is_header) else {
            return self.agents.is_empty();
        };
        !self.agents.iter().any(|agent| agents.contains_key(agent.name))
    }
}

/// The offset of each line's end.
pub(super) fn line_ends(text: &str) -> Vec<usize> {
    memchr::memchr_iter(b'\n', text.as_bytes()).collect()
}

/// The line, counted from 1, of the byte at `offset`.
pub(super) fn line_of(line_ends: &[usize], offset: usize) -> usize {
    line_ends.partition_point(|end| *end < offset) + 1
}

/// The tables that can be read by themselves, and the ranges between them.
fn cut(text: &str) -> (Vec<AgentPart<'_>>, Vec<Range<usize>>) {
    let (mut agents, mut rest, mut rest_start) = (Vec::new(), Vec::new(), 0);
    for TableHeader { name, start, line, end } in blocking::in_slices(headers(text)) {
        let part = TablePart { text: &text[start..end], line };
        let Some(name) = name else { continue };
        // A corp of a suite is read with the suites.
        if memchr::memmem::find(part.text.as_bytes(), b"suite").is_some() {
            continue;
        }
        if rest_start < start {
            rest.push(rest_start..start);
        }
        rest_start = end;
        agents.push(AgentPart { name, part });
    }
    if rest_start < text.len() {
        rest.push(rest_start..text.len());
    }
    (agents, rest)
}

/// The header of a table.
struct TableHeader<'a> {
    /// If it is `[agents.NAME]`.
    name: Option<&'a str>,
    start: usize,
    line: usize,
    /// Where the next one starts, or the text ends.
    end: usize,
}

/// The lines that begin with `[`.
fn headers(text: &str) -> impl Iterator<Item = TableHeader<'_>> {
    let ends = memchr::memchr_iter(b'\n', text.as_bytes()).map(|end| end + 1);
    let starts = std::iter::once(0).chain(ends).enumerate();
    let mut starts = starts.filter(|(_, start)| text[*start..].starts_with('[')).peekable();
    std::iter::from_fn(move || {
        let (nth, start) = starts.next()?;
        let end = starts.peek().map_or(text.len(), |(_, next)| *next);
        let line = text[start..end].split('\n').next().unwrap_or_default();
        Some(TableHeader { name: agent_name(line), start, line: nth + 1, end })
    })
}

/// The name in a line `[agents.NAME]`.
fn agent_name(line: &str) -> Option<&str> {
    let name = line.strip_prefix("[agents.")?.trim_end().strip_suffix(']')?;
    is_valid_name(name).then_some(name)
}
