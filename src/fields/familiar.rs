//! Header lines that came before. Most programs send the same lines with each request on a connection, and a server with
//! each answer: what was made of them once serves again, and all that is left to do is to compare them. Only the number in
//! `Content-Length` may differ.

use std::{
    cell::RefCell,
    hash::{BuildHasher, Hasher},
    rc::Rc,
};

use bytes::{Bytes, BytesMut};
use foldhash::fast::RandomState;

use super::{Field, Fields, Known, Line, Lines, Span, lines_at, shown::Credentials};
use crate::secret::wiped_bytes;

/// Longest text that is remembered.
const LONGEST: usize = 1024;
/// How many are remembered on each thread, for connections that have not met them yet.
const MOST: usize = 256;
/// Most digits of a length.
const MOST_DIGITS: usize = 20;

/// The lines that one connection, or the one before it at the same table, brought last, of two kinds: a client that reads and
/// writes in turn is not strange each time.
#[derive(Default)]
pub struct Familiar([Option<Rc<Lines>>; 2]);

/// What was made of lines that came before.
pub(super) struct Ready {
    /// The number in `Content-Length`.
    length: Option<Span>,
    /// What goes on to the upstream.
    to_upstream: Bytes,
    /// What goes on to the caller, and how long its longest value is.
    to_caller: (Bytes, usize),
}

/// The number in `Content-Length`, as it is written.
#[derive(Clone, Copy)]
pub(super) struct Digits {
    number: Option<u64>,
    text: [u8; MOST_DIGITS],
    count: u8,
}

impl Familiar {
    /// The first line of a message, the lines behind it if they came before on this connection, and how long the head is.
    pub fn recognise_head<'a>(&mut self, message: &'a [u8]) -> Option<(&'a [u8], Fields, usize)> {
        let (first, rest) = message.split_at(lines_at(message)?);
        let (fields, end) = self.recognise(rest)?;
        Some((first, fields, first.len() + end))
    }

    /// The lines at the beginning of `text`, if they came before on this connection, and how many bytes they are with the
    /// empty line behind them.
    fn recognise(&mut self, text: &[u8]) -> Option<(Fields, usize)> {
        let mut known = self.0.iter().flatten().enumerate();
        let (nth, lines, (end, length)) =
            known.find_map(|(nth, lines)| lines.begin(text).map(|begin| (nth, lines.clone(), begin)))?;
        self.0.swap(0, nth);
        Some((Fields { lines, length }, end))
    }

    /// Takes note of lines that had to be read. Those that came before, if only on another connection, are recognised from now
    /// on, and come back as they are remembered.
    pub fn note(&mut self, fields: Fields) -> Fields {
        thread_local! {
            static SEEN: RefCell<Seen> = RefCell::default();
        }
        let Some(lines) = SEEN.with_borrow_mut(|seen| seen.note(&fields.lines)) else { return fields };
        self.0.rotate_right(1);
        self.0[0] = Some(lines.clone());
        let length = fields.first(Known::ContentLength).and_then(Digits::of);
        Fields { lines, length }
    }
}

/// What one thread has seen.
struct Seen {
    hasher: RandomState,
    slots: Vec<Slot>,
}

#[derive(Clone, Default)]
struct Slot {
    /// The hash of lines that came once.
    once: u64,
    /// Lines that came again, and their hash.
    again: Option<(u64, Rc<Lines>)>,
}

impl Default for Seen {
    fn default() -> Self {
        Self { hasher: RandomState::default(), slots: vec![Slot::default(); MOST] }
    }
}

impl Seen {
    /// The lines as they are remembered, if they came before.
    fn note(&mut self, lines: &Lines) -> Option<Rc<Lines>> {
        if !lines.may_come_again() {
            return None;
        }
        let parts = lines.around(lines.length());
        let mut hasher = self.hasher.build_hasher();
        parts.iter().for_each(|part| hasher.write(part));
        let hash = hasher.finish();
        let slot = &mut self.slots[hash as usize % MOST];
        // A text is compared only with one of the same hash: how long that takes tells nobody how a secret in it begins.
        if let Some((known, again)) = &slot.again
            && *known == hash
            && again.around(again.length()) == parts
        {
            return Some(again.clone());
        }
        if slot.once != hash {
            slot.once = hash;
            return None;
        }
        let again = Rc::new(lines.made_ready());
        slot.again = Some((hash, again.clone()));
        Some(again)
    }
}

impl Lines {
    /// Whether they are worth remembering.
    fn may_come_again(&self) -> bool {
        let is_rare = |line: &Line| matches!(line.known, Known::RequestId | Known::Traceparent);
        let lengths = self.each.iter().filter(|line| line.known == Known::ContentLength);
        self.text.len() <= LONGEST && !self.each.iter().any(is_rare) && lengths.count() <= 1
    }

    /// Where the number stands in `Content-Length`, if it is one.
    fn length(&self) -> Option<Span> {
        if let Some(ready) = &self.familiar {
            return ready.length;
        }
        let line = self.each.iter().find(|line| line.known == Known::ContentLength)?;
        Digits::of(line.value.of_text(&self.text)).map(|_| line.value)
    }

    /// The text before and behind that number.
    fn around(&self, length: Option<Span>) -> [&[u8]; 2] {
        match length {
            Some(length) => [&self.text[..length.start as usize], &self.text[length.end as usize..]],
            None => [&self.text, &[]],
        }
    }

    /// Whether `text` begins with these lines: where they end, and the number that it has in `Content-Length`.
    fn begin(&self, text: &[u8]) -> Option<(usize, Option<Digits>)> {
        let length = self.length();
        let [before, behind] = self.around(length);
        let mut rest = behind_same(text, before)?;
        let digits = match length {
            Some(_) => {
                let count = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
                let digits = Digits::of(&rest[..count])?;
                rest = &rest[count..];
                Some(digits)
            }
            None => None,
        };
        let rest = behind_same(rest, behind)?;
        Some((text.len() - rest.len(), digits))
    }

    /// Most bytes that they take on the wire: a space may be missing behind each colon.
    fn laid_out_length(&self) -> usize {
        self.text.len() + self.each.len()
    }

    /// The same with a text of their own, and laid out for either direction.
    fn made_ready(&self) -> Self {
        let lines = Self::new(wiped_bytes(self.text.to_vec()), self.each.clone());
        let length = lines.length();
        let fields = Fields::from(lines);
        let longest = fields.to_caller().map(|field| field.value.len()).max().unwrap_or_default();
        let ready = Ready {
            length,
            to_upstream: laid_out(fields.to_upstream(), self.laid_out_length()),
            to_caller: (laid_out(fields.to_caller(), self.laid_out_length()), longest),
        };
        let Lines { text, each, kinds, close, keep_alive, rambles, credentials: _, familiar: _ } =
            &*fields.lines;
        Self {
            text: text.clone(),
            each: each.clone(),
            kinds: *kinds,
            close: *close,
            keep_alive: *keep_alive,
            rambles: *rambles,
            credentials: Credentials::default(),
            familiar: Some(Box::new(ready)),
        }
    }
}

/// What comes behind `known`, if `text` begins with it.
fn behind_same<'a>(text: &'a [u8], known: &[u8]) -> Option<&'a [u8]> {
    let (begin, rest) = text.split_at_checked(known.len())?;
    is_same(begin, known).then_some(rest)
}

/// Whether a text that came is one that came before. A proxy before this one may send several clients' requests on one
/// connection: how long it takes is to tell none of them how another's key begins.
pub fn is_same(text: &[u8], known: &[u8]) -> bool {
    if text.len() != known.len() {
        return false;
    }
    // Without an early exit, so that it always takes the same time for the same length. The last chunk overlaps the one
    // before it: a remainder taken byte by byte would cost more than all before it.
    if let (Some(one), Some(other)) = (text.last_chunk::<WIDE>(), known.last_chunk()) {
        let chunks = text.as_chunks().0.iter().zip(known.as_chunks().0);
        return chunks.fold(unlike([0; WIDE], one, other), |so_far, (one, other)| unlike(so_far, one, other))
            == [0; WIDE];
    }
    if let (Some((one, other)), Some((last, other_last))) =
        (text.first_chunk::<HALF>().zip(known.first_chunk()), text.last_chunk().zip(known.last_chunk()))
    {
        return unlike(unlike([0; HALF], one, other), last, other_last) == [0; HALF];
    }
    text.iter().zip(known).fold(0, |so_far, (one, other)| so_far | (one ^ other)) == 0
}

/// Bytes compared at once: two registers of SSE2.
const WIDE: usize = 32;
const HALF: usize = WIDE / 2;

/// A bit for each in which the two differ, beside those that are set already.
#[inline]
fn unlike<const N: usize>(mut so_far: [u8; N], one: &[u8; N], other: &[u8; N]) -> [u8; N] {
    for nth in 0..N {
        so_far[nth] |= one[nth] ^ other[nth];
    }
    so_far
}

impl Ready {
    pub(super) fn to_upstream(&self) -> &[u8] {
        &self.to_upstream
    }

    /// What goes on to the caller, if none of its values is as long as that.
    pub(super) fn to_caller(&self, too_long: usize) -> Option<&[u8]> {
        let (lines, longest) = &self.to_caller;
        (*longest < too_long).then_some(lines)
    }
}

/// Lines as they go over the wire, which take at most so many bytes.
fn laid_out<'a>(fields: impl Iterator<Item = Field<'a>>, length: usize) -> Bytes {
    // Of the whole length at once: memory that it outgrows would not be wiped.
    let mut lines = BytesMut::with_capacity(length);
    fields.for_each(|field| field.put(&mut lines));
    wiped_bytes(lines.into())
}

impl Digits {
    fn of(text: &[u8]) -> Option<Self> {
        let count = u8::try_from(text.len()).ok().filter(|count| (1..=MOST_DIGITS as u8).contains(count))?;
        let number = text.iter().try_fold(Some(0u64), |sum, byte| {
            let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
            Some(sum.and_then(|sum| sum.checked_mul(10)?.checked_add(digit)))
        })?;
        let mut digits = Self { number, text: [0; MOST_DIGITS], count };
        digits.text[..text.len()].copy_from_slice(text);
        Some(digits)
    }

    /// What they say, if it is no larger than a number can be.
    pub(super) fn number(&self) -> Option<u64> {
        self.number
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.text[..usize::from(self.count)]
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Found, *};

    /// A name that no other test uses: what one of them has seen another must not know.
    fn lines(name: &str, more: &str) -> String {
        format!("Host: x\r\nX-Test: {name}\r\n{more}Accept: */*\r\n\r\n")
    }

    fn read(text: &str) -> Fields {
        let mut buffer = BytesMut::from(&*format!("GET / HTTP/1.1\r\n{text}"));
        let message = buffer.clone();
        let mut room = [httparse::EMPTY_HEADER; 16];
        let mut request = httparse::Request::new(&mut room);
        let length = request.parse(&message).expect("a head").unwrap();
        Found::new(&message[..length], request.headers).take_off(&mut buffer, length)
    }

    fn told(fields: &Fields) -> Vec<(Vec<u8>, Vec<u8>)> {
        fields.iter().map(|field| (field.name.to_vec(), field.value.to_vec())).collect()
    }

    #[test]
    fn lines_are_recognised_when_they_came_twice_whoever_brought_them() {
        let text = lines("twice", "");
        let mut first = Familiar::default();
        let fields = first.note(read(&text));
        assert!(fields.mark().is_none() && first.recognise(text.as_bytes()).is_none(), "once is not often");
        let mut other = Familiar::default();
        let fields = other.note(read(&text));
        assert!(fields.mark().is_some(), "the second time they come as they are remembered");
        let more = text.clone() + "GET /";
        let (again, end) = other.recognise(more.as_bytes()).expect("they came before");
        assert_eq!((again.mark(), end), (fields.mark(), text.len()));
        assert_eq!(told(&again), told(&read(&text)));
        assert!(first.recognise(text.as_bytes()).is_none(), "each connection looks for itself");
    }

    #[test]
    fn a_length_may_differ_and_nothing_else() {
        let mut familiar = Familiar::default();
        for length in ["12", "7"] {
            let fields = familiar.note(read(&lines("length", &format!("Content-Length: {length}\r\n"))));
            assert_eq!(fields.first(Known::ContentLength), Some(length.as_bytes()));
        }
        for length in ["0", "7", "00000000000000000012", "99999999999999999999"] {
            let text = lines("length", &format!("Content-Length: {length}\r\n"));
            let (fields, end) = familiar.recognise(text.as_bytes()).expect("only the length differs");
            assert_eq!(end, text.len());
            assert_eq!(told(&fields), told(&read(&text)));
        }
        for strange in ["", "-1", "+7", "7 ", " 7", "7,7", "0x7", "7\r\nA: b", "111111111111111111111"] {
            let text = lines("length", &format!("Content-Length: {strange}\r\n"));
            assert!(familiar.recognise(text.as_bytes()).is_none(), "{strange:?}");
        }
        let text = lines("length", "Content-Length: 7\r\n");
        for at in 0..text.len() {
            let mut other = text.clone().into_bytes();
            other[at] = other[at].wrapping_add(1);
            let recognised = familiar.recognise(&other);
            assert_eq!(recognised.is_some(), text.as_bytes()[at] == b'7', "byte {at}");
            assert!(familiar.recognise(&text.as_bytes()[..at]).is_none(), "it is not whole");
        }
    }

    #[test]
    fn a_connection_knows_two_kinds() {
        let [reads, writes, third] = ["reads", "writes", "third"].map(|name| lines(name, ""));
        let mut familiar = Familiar::default();
        for text in [&reads, &writes, &third] {
            (0..2).for_each(|_| drop(familiar.note(read(text))));
        }
        for _ in 0..3 {
            for text in [&writes, &third] {
                assert!(familiar.recognise(text.as_bytes()).is_some());
            }
        }
        assert!(familiar.recognise(reads.as_bytes()).is_none());
    }

    #[test]
    fn what_is_never_the_same_is_not_remembered() {
        let long = format!("X-Long: {}\r\n", "a".repeat(LONGEST));
        let twice = "Content-Length: 7\r\ncontent-length: 7\r\n";
        for more in ["X-Request-Id: 1\r\n", "traceparent: 00-1\r\n", twice, &long] {
            let text = lines("rare", more);
            let mut familiar = Familiar::default();
            (0..3).for_each(|_| assert!(familiar.note(read(&text)).mark().is_none()));
            assert!(familiar.recognise(text.as_bytes()).is_none(), "{more}");
        }
    }

    #[test]
    fn what_is_ready_is_what_would_be_written() {
        let more = "Connection: close, X-Mine\r\nX-Mine: 1\r\nAuthorization: Bearer k\r\nCookie: a\r\nDate: now\r\n\
                    Content-Length: 5\r\nX-Request-Agent: hr\r\nX-Wecom-Retried: 1\r\n";
        let text = lines("ready", more);
        let mut familiar = Familiar::default();
        let anew = familiar.note(read(&text));
        let again = familiar.note(read(&text));
        let to_upstream = |fields: &Fields| {
            let mut out = BytesMut::new();
            fields.put_to_upstream(&mut out);
            out
        };
        assert_eq!(to_upstream(&again), to_upstream(&anew));
        assert_eq!(
            (again.says_close(), again.says_keep_alive()),
            (anew.says_close(), anew.says_keep_alive())
        );
        assert!(anew.ready_for_caller(usize::MAX).is_none());
        let ready = again.ready_for_caller(usize::MAX).expect("it is ready");
        assert_eq!(ready, laid_out(anew.to_caller(), text.len()));
        // The longest value that goes on to the caller, of `Authorization`.
        assert!(again.ready_for_caller(8).is_none() && again.ready_for_caller(9).is_some());
    }

    #[test]
    fn texts_are_the_same_only_if_every_byte_is() {
        for length in 0..100 {
            let known = vec![b'a'; length];
            assert!(is_same(&known, &known), "{length}");
            assert!(!is_same(&[&known[..], b"a"].concat(), &known), "{length}");
            for at in 0..length {
                let mut other = known.clone();
                other[at] ^= 1 << (at % 8);
                assert!(!is_same(&other, &known), "{at} of {length}");
            }
        }
    }
}
