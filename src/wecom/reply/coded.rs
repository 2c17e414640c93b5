//! The same search in a body as it came over the wire: decompressed on the side, piece by piece, and no further than
//! needed. The body itself is not touched; it goes to the caller as it came.

use flate2::{FlushDecompress, Status};

use super::gzip::GzipHead;
use super::inflater::Inflater;
use super::scanner::{ErrcodeScanner, Verdict};
use crate::fields::{Fields, Known};

/// How much decompressed text is searched before a compressed reply is held to have no errcode: a bomb costs no more.
/// A reply that is not compressed has no such bound, for its search costs no more than its transport.
pub const MAX_DECOMPRESSED: usize = 8 << 20;

/// What each gzip member takes from that bound beside its text, for starting one clears the 32 KiB window.
const MEMBER_COST: usize = 32 << 10;

/// Finds the top-level errcode in the pieces of a reply's body, whatever its Content-Encoding.
///
/// Understood are none, `identity`, `gzip` (of any number of members), `x-gzip` and `deflate` (with zlib's frame, as it
/// should be, or without, as some send it). In a body under another encoding, or several, nothing is found.
///
/// What is seen before damaged data counts; when that is more than a buffer full, how it is cut can decide how much of it
/// is seen. Checksums are left to the caller's own decoder.
#[derive(Debug)]
pub struct ReplyScanner {
    scanner: ErrcodeScanner,
    coding: Coding,
    /// How much more text may be decompressed.
    left: usize,
}

#[derive(Debug)]
enum Coding {
    Identity,
    Gzip(GzipHead),
    GzipBody(Inflater),
    /// So many bytes of checksum and length are left; the decompressor serves the next member.
    GzipTail(Inflater, u8),
    /// Zlib or raw: its first byte will tell.
    Deflate,
    DeflateBody(Inflater),
    /// Not readable, damaged, or over.
    Blind,
}

impl ReplyScanner {
    /// A scanner for the body of a response with these headers.
    pub fn new(fields: &Fields) -> Self {
        let mut coding = Coding::Identity;
        let encodings = fields.all(Known::ContentEncoding);
        for token in encodings.flat_map(|value| value.split(|&byte| byte == b',')) {
            let token = token.trim_ascii().to_ascii_lowercase();
            coding = match (coding, token.as_slice()) {
                (coding, b"" | b"identity") => coding,
                (Coding::Identity, b"gzip" | b"x-gzip") => Coding::Gzip(GzipHead::START),
                (Coding::Identity, b"deflate") => Coding::Deflate,
                _ => Coding::Blind,
            };
        }
        Self { scanner: ErrcodeScanner::new(), coding, left: MAX_DECOMPRESSED }
    }

    /// What is known so far; for an encoding that cannot be read that is [`Verdict::None`] from the start.
    pub fn verdict(&self) -> Verdict {
        match (self.scanner.verdict(), &self.coding) {
            (Verdict::Undecided, Coding::Blind) => Verdict::None,
            (verdict, _) => verdict,
        }
    }

    /// Takes the next piece of the body, encoded as it is. Once there is a verdict, it stays.
    pub fn feed(&mut self, bytes: &[u8]) -> Verdict {
        if let Coding::Identity = self.coding {
            return self.scanner.feed(bytes);
        }
        let mut rest = bytes;
        while !rest.is_empty() && self.verdict() == Verdict::Undecided {
            let coding = std::mem::replace(&mut self.coding, Coding::Blind);
            (self.coding, rest) = self.step(coding, rest);
        }
        if self.verdict() != Verdict::Undecided {
            self.coding = Coding::Blind; // the decompressor's 40 KiB are free for others
        }
        self.verdict()
    }

    /// The body has ended: what is undecided by now has no errcode.
    pub fn finish(&mut self) -> Verdict {
        self.scanner.finish()
    }

    /// Takes something off the start of `bytes`, which is not empty; gives what is expected next, and the rest.
    fn step<'a>(&mut self, coding: Coding, bytes: &'a [u8]) -> (Coding, &'a [u8]) {
        let (first, after) = (bytes[0], &bytes[1..]);
        match coding {
            Coding::Identity | Coding::Blind => (Coding::Blind, &[]),
            Coding::Gzip(head) => match head.next(first) {
                Some(GzipHead::Over) => (Coding::GzipBody(Inflater::take(false)), after),
                Some(head) => (Coding::Gzip(head), after),
                None => (Coding::Blind, after),
            },
            Coding::GzipBody(mut data) => match self.inflate(&mut data, bytes) {
                Inflated::More => (Coding::GzipBody(data), &[]),
                Inflated::End(rest) => (Coding::GzipTail(data, 8), rest),
                Inflated::Stop => (Coding::Blind, &[]),
            },
            Coding::GzipTail(_, 1) if self.left <= MEMBER_COST => (Coding::Blind, after),
            Coding::GzipTail(_, 1) => {
                self.left -= MEMBER_COST;
                (Coding::Gzip(GzipHead::START), after)
            }
            Coding::GzipTail(data, left) => (Coding::GzipTail(data, left - 1), after),
            // Zlib's first byte has method 8 in its low half; no encoder starts a raw block like that.
            Coding::Deflate => (Coding::DeflateBody(Inflater::take(first & 0x0F == 8)), bytes),
            Coding::DeflateBody(mut data) => match self.inflate(&mut data, bytes) {
                Inflated::More => (Coding::DeflateBody(data), &[]),
                Inflated::End(_) | Inflated::Stop => (Coding::Blind, &[]),
            },
        }
    }

    /// Decompresses `bytes` and searches what comes out, a small buffer at a time.
    fn inflate<'a>(&mut self, data: &mut Inflater, bytes: &'a [u8]) -> Inflated<'a> {
        let mut text = [0; 4096];
        let mut rest = bytes;
        loop {
            let (taken, given) = (data.total_in(), data.total_out());
            let status = data.decompress(rest, &mut text, FlushDecompress::None);
            let taken = (data.total_in() - taken) as usize;
            let given = ((data.total_out() - given) as usize).min(self.left);
            rest = &rest[taken..];
            self.left -= given;
            if self.scanner.feed(&text[..given]) != Verdict::Undecided || self.left == 0 {
                return Inflated::Stop;
            }
            match status {
                Ok(Status::StreamEnd) => return Inflated::End(rest),
                // Only a call that moves nothing proves that nothing is held back inside.
                Ok(_) if taken == 0 && given == 0 => return Inflated::More,
                Ok(_) => {}
                Err(_) => return Inflated::Stop,
            }
        }
    }
}

/// How far a piece led.
enum Inflated<'a> {
    /// It is used up.
    More,
    /// The compressed data ended before this.
    End(&'a [u8]),
    /// There is a verdict, or the bound is reached, or the data are damaged.
    Stop,
}

#[cfg(test)]
mod tests {
    use super::super::generate::{deflated, gzipped, raw_deflated, scanned_as};
    use super::*;

    const REFUSED: &[u8] = br#"{"errcode":40014,"errmsg":"invalid access_token"}"#;

    fn scanner(encodings: &[&str]) -> ReplyScanner {
        let lines: Vec<_> = encodings.iter().map(|encoding| ("Content-Encoding", *encoding)).collect();
        ReplyScanner::new(&Fields::of(&lines))
    }

    #[test]
    fn reads_what_it_understands() {
        let gzip = gzipped(REFUSED);
        for (encodings, body) in [
            (&[][..], REFUSED),
            (&["identity"], REFUSED),
            (&["gzip"], &gzip),
            (&["X-GZip "], &gzip),
            (&["identity", ", gzip"], &gzip),
            (&["deflate"], &deflated(REFUSED)),
            (&["deflate"], &raw_deflated(REFUSED)),
        ] {
            assert_eq!(scanner(encodings).feed(body), Verdict::Found(40014), "{encodings:?}");
        }
    }

    #[test]
    fn is_blind_for_the_rest_from_the_start() {
        for encodings in
            [&["br"][..], &["zstd"], &["gzip, gzip"], &["deflate", "gzip"], &["gzip, br"], &["compress"]]
        {
            let mut scanner = scanner(encodings);
            assert_eq!(scanner.verdict(), Verdict::None, "{encodings:?}");
            assert_eq!(scanner.feed(REFUSED), Verdict::None);
            assert_eq!(scanner.finish(), Verdict::None);
        }
        assert_eq!(scanner(&["gzip"]).feed(REFUSED), Verdict::None, "not gzip at all");
        assert_eq!(scanner(&["deflate"]).feed(REFUSED), Verdict::None, "not deflate at all");
    }

    #[test]
    fn an_object_may_span_gzip_members() {
        let (front, back) = REFUSED.split_at(14);
        let body = [gzipped(front), gzipped(b""), gzipped(back)].concat();
        assert_eq!(scanner(&["gzip"]).feed(&body), Verdict::Found(40014));
        assert_eq!(scanner(&["gzip"]).feed(&[gzipped(front), b"junk".to_vec()].concat()), Verdict::None);
    }

    #[test]
    fn a_cut_off_body_is_undecided_until_it_ends() {
        let mut scanner = scanner(&["gzip"]);
        assert_eq!(scanner.feed(&gzipped(b"{\"a\":[1,2")), Verdict::Undecided);
        assert_eq!(scanner.finish(), Verdict::None);
        assert_eq!(scanner.feed(b"x"), Verdict::None);
    }

    #[test]
    fn text_longer_than_any_buffer_is_searched_to_its_end() {
        let text: String = (0..20_000).map(|n| format!("\"k{n}\":{},", n * n)).collect();
        let body = gzipped(format!("{{{text}\"errcode\":42001}}").as_bytes());
        for length in [1, 7, 1000, body.len()] {
            assert_eq!(scanned_as("gzip", body.chunks(length)), Verdict::Found(42001), "{length}");
        }
    }

    #[test]
    fn a_bomb_is_given_up() {
        let long = |spaces| [b"{".to_vec(), vec![b' '; spaces], REFUSED[1..].to_vec()].concat();
        assert_eq!(scanner(&["gzip"]).feed(&gzipped(&long(MAX_DECOMPRESSED - 100))), Verdict::Found(40014));
        for body in [gzipped(&long(MAX_DECOMPRESSED)), gzipped(b"").repeat(1000)] {
            assert_eq!(scanner(&["gzip"]).feed(&body), Verdict::None);
        }
        assert_eq!(scanner(&["deflate"]).feed(&deflated(&long(MAX_DECOMPRESSED))), Verdict::None);
        assert_eq!(scanner(&[]).feed(&long(MAX_DECOMPRESSED)), Verdict::Found(40014));
    }
}
