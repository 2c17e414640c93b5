//! The same search in a body as it came over the wire: decompressed on the side, piece by piece, and no further than
//! needed. The body itself is not touched; it goes to the caller as it came.

use flate2::{FlushDecompress, Status};

use super::gzip::GzipHeader;
use super::inflater::Inflater;
use super::scanner::{ErrcodeScanner, Verdict};
use crate::http1::headers::{Headers, KnownHeader};

/// How much decompressed text is searched before a compressed reply is held to have no errcode: a bomb costs no more.
/// A reply that is not compressed has no such bound, for its search costs no more than its transport.
pub const MAX_DECOMPRESSED_BYTES: usize = 8 << 20;

/// What each gzip member takes from that bound beside its text, for starting one clears the 32 KiB window.
const GZIP_MEMBER_COST_BYTES: usize = 32 << 10;

/// Finds the top-level errcode in the pieces of a reply's body, whatever its Content-Encoding.
///
/// Understood are none, `identity`, `gzip` (of any number of members), `x-gzip` and `deflate` (with zlib's frame, as it
/// should be, or without, as some send it). In a body under another encoding, or several, nothing is found.
///
/// What is seen before damaged data counts; when that is more than a buffer full, how it is cut can decide how much of it
/// is seen. Checksums are left to the caller's own decoder.
#[derive(Debug)]
pub struct ResponseScanner {
    scanner: ErrcodeScanner,
    decoder: ContentDecoder,
    /// How much more text may be decompressed.
    remaining_bytes: usize,
}

#[derive(Debug)]
enum ContentDecoder {
    Identity,
    GzipHeader(GzipHeader),
    GzipBody(Inflater),
    /// So many bytes of checksum and length are left; the decompressor serves the next member.
    GzipTrailer(Inflater, u8),
    /// Zlib or raw: its first byte will tell.
    DeflateStart,
    DeflateBody(Inflater),
    /// Not readable, damaged, or over.
    Unreadable,
}

impl ResponseScanner {
    /// A scanner for the body of a response with these headers.
    pub fn new(fields: &Headers) -> Self {
        let mut decoder = ContentDecoder::Identity;
        let encodings = fields.values(KnownHeader::ContentEncoding);
        for token in encodings.flat_map(|value| value.split(|&byte| byte == b',')) {
            let token = token.trim_ascii().to_ascii_lowercase();
            decoder = match (decoder, token.as_slice()) {
                (coding, b"" | b"identity") => coding,
                (ContentDecoder::Identity, b"gzip" | b"x-gzip") => {
                    ContentDecoder::GzipHeader(GzipHeader::START)
                }
                (ContentDecoder::Identity, b"deflate") => ContentDecoder::DeflateStart,
                _ => ContentDecoder::Unreadable,
            };
        }
        Self { scanner: ErrcodeScanner::new(), decoder, remaining_bytes: MAX_DECOMPRESSED_BYTES }
    }

    /// What is known so far; for an encoding that cannot be read that is [`Verdict::None`] from the start.
    pub fn verdict(&self) -> Verdict {
        match (self.scanner.verdict(), &self.decoder) {
            (Verdict::Undecided, ContentDecoder::Unreadable) => Verdict::None,
            (verdict, _) => verdict,
        }
    }

    /// Takes the next piece of the body, encoded as it is. Once there is a verdict, it stays.
    pub fn feed(&mut self, bytes: &[u8]) -> Verdict {
        if let ContentDecoder::Identity = self.decoder {
            return self.scanner.feed(bytes);
        }
        let mut rest = bytes;
        while !rest.is_empty() && self.verdict() == Verdict::Undecided {
            let coding = std::mem::replace(&mut self.decoder, ContentDecoder::Unreadable);
            (self.decoder, rest) = self.step(coding, rest);
        }
        if self.verdict() != Verdict::Undecided {
            self.decoder = ContentDecoder::Unreadable; // the decompressor's 40 KiB are free for others
        }
        self.verdict()
    }

    /// The body has ended: what is undecided by now has no errcode.
    pub fn finish(&mut self) -> Verdict {
        self.scanner.finish()
    }

    /// Takes something off the start of `bytes`, which is not empty; gives what is expected next, and the rest.
    fn step<'a>(&mut self, coding: ContentDecoder, bytes: &'a [u8]) -> (ContentDecoder, &'a [u8]) {
        let (first, after) = (bytes[0], &bytes[1..]);
        match coding {
            ContentDecoder::Identity | ContentDecoder::Unreadable => (ContentDecoder::Unreadable, &[]),
            ContentDecoder::GzipHeader(head) => match head.next(first) {
                Some(GzipHeader::Done) => (ContentDecoder::GzipBody(Inflater::acquire(false)), after),
                Some(head) => (ContentDecoder::GzipHeader(head), after),
                None => (ContentDecoder::Unreadable, after),
            },
            ContentDecoder::GzipBody(mut data) => match self.inflate(&mut data, bytes) {
                InflateResult::NeedMore => (ContentDecoder::GzipBody(data), &[]),
                InflateResult::End(rest) => (ContentDecoder::GzipTrailer(data, 8), rest),
                InflateResult::Stop => (ContentDecoder::Unreadable, &[]),
            },
            ContentDecoder::GzipTrailer(_, 1) if self.remaining_bytes <= GZIP_MEMBER_COST_BYTES => {
                (ContentDecoder::Unreadable, after)
            }
            ContentDecoder::GzipTrailer(_, 1) => {
                self.remaining_bytes -= GZIP_MEMBER_COST_BYTES;
                (ContentDecoder::GzipHeader(GzipHeader::START), after)
            }
            ContentDecoder::GzipTrailer(data, left) => (ContentDecoder::GzipTrailer(data, left - 1), after),
            // Zlib's first byte has method 8 in its low half; no encoder starts a raw block like that.
            ContentDecoder::DeflateStart => {
                (ContentDecoder::DeflateBody(Inflater::acquire(first & 0x0F == 8)), bytes)
            }
            ContentDecoder::DeflateBody(mut data) => match self.inflate(&mut data, bytes) {
                InflateResult::NeedMore => (ContentDecoder::DeflateBody(data), &[]),
                InflateResult::End(_) | InflateResult::Stop => (ContentDecoder::Unreadable, &[]),
            },
        }
    }

    /// Decompresses `bytes` and searches what comes out, a small buffer at a time.
    fn inflate<'a>(&mut self, data: &mut Inflater, bytes: &'a [u8]) -> InflateResult<'a> {
        let mut text = [0; 4096];
        let mut rest = bytes;
        loop {
            let (taken, given) = (data.total_in(), data.total_out());
            let status = data.decompress(rest, &mut text, FlushDecompress::None);
            let taken = (data.total_in() - taken) as usize;
            let given = ((data.total_out() - given) as usize).min(self.remaining_bytes);
            rest = &rest[taken..];
            self.remaining_bytes -= given;
            if self.scanner.feed(&text[..given]) != Verdict::Undecided || self.remaining_bytes == 0 {
                return InflateResult::Stop;
            }
            match status {
                Ok(Status::StreamEnd) => return InflateResult::End(rest),
                // Only a call that moves nothing proves that nothing is held back inside.
                Ok(_) if taken == 0 && given == 0 => return InflateResult::NeedMore,
                Ok(_) => {}
                Err(_) => return InflateResult::Stop,
            }
        }
    }
}

/// How far a piece led.
enum InflateResult<'a> {
    /// It is used up.
    NeedMore,
    /// The compressed data ended before this.
    End(&'a [u8]),
    /// There is a verdict, or the bound is reached, or the data are damaged.
    Stop,
}

#[cfg(test)]
mod tests {
    use super::super::generate::{deflate_compressed, gzip_compressed, scan_encoded_chunks, zlib_compressed};
    use super::*;

    const REFUSED: &[u8] = br#"{"errcode":40014,"errmsg":"invalid access_token"}"#;

    fn scanner(encodings: &[&str]) -> ResponseScanner {
        let lines: Vec<_> = encodings.iter().map(|encoding| ("Content-Encoding", *encoding)).collect();
        ResponseScanner::new(&Headers::from_pairs(&lines))
    }

    #[test]
    fn supported_encodings_are_scanned() {
        let gzip = gzip_compressed(REFUSED);
        for (encodings, body) in [
            (&[][..], REFUSED),
            (&["identity"], REFUSED),
            (&["gzip"], &gzip),
            (&["X-GZip "], &gzip),
            (&["identity", ", gzip"], &gzip),
            (&["deflate"], &zlib_compressed(REFUSED)),
            (&["deflate"], &deflate_compressed(REFUSED)),
        ] {
            assert_eq!(scanner(encodings).feed(body), Verdict::Found(40014), "{encodings:?}");
        }
    }

    #[test]
    fn unsupported_encodings_have_no_errcode() {
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
    fn object_spanning_gzip_members_is_scanned() {
        let (front, back) = REFUSED.split_at(14);
        let body = [gzip_compressed(front), gzip_compressed(b""), gzip_compressed(back)].concat();
        assert_eq!(scanner(&["gzip"]).feed(&body), Verdict::Found(40014));
        assert_eq!(
            scanner(&["gzip"]).feed(&[gzip_compressed(front), b"junk".to_vec()].concat()),
            Verdict::None
        );
    }

    #[test]
    fn truncated_body_is_undecided_until_finished() {
        let mut scanner = scanner(&["gzip"]);
        assert_eq!(scanner.feed(&gzip_compressed(b"{\"a\":[1,2")), Verdict::Undecided);
        assert_eq!(scanner.finish(), Verdict::None);
        assert_eq!(scanner.feed(b"x"), Verdict::None);
    }

    #[test]
    fn long_compressed_body_is_scanned_to_its_end() {
        let text: String = (0..20_000).map(|n| format!("\"k{n}\":{},", n * n)).collect();
        let body = gzip_compressed(format!("{{{text}\"errcode\":42001}}").as_bytes());
        for length in [1, 7, 1000, body.len()] {
            assert_eq!(scan_encoded_chunks("gzip", body.chunks(length)), Verdict::Found(42001), "{length}");
        }
    }

    #[test]
    fn decompression_bomb_is_abandoned() {
        let long = |spaces| [b"{".to_vec(), vec![b' '; spaces], REFUSED[1..].to_vec()].concat();
        assert_eq!(
            scanner(&["gzip"]).feed(&gzip_compressed(&long(MAX_DECOMPRESSED_BYTES - 100))),
            Verdict::Found(40014)
        );
        for body in [gzip_compressed(&long(MAX_DECOMPRESSED_BYTES)), gzip_compressed(b"").repeat(1000)] {
            assert_eq!(scanner(&["gzip"]).feed(&body), Verdict::None);
        }
        assert_eq!(
            scanner(&["deflate"]).feed(&zlib_compressed(&long(MAX_DECOMPRESSED_BYTES))),
            Verdict::None
        );
        assert_eq!(scanner(&[]).feed(&long(MAX_DECOMPRESSED_BYTES)), Verdict::Found(40014));
    }
}
