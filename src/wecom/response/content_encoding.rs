//! Scans an encoded response body: decompresses it chunk by chunk beside the forwarding, and no further than
//! needed. The body itself is forwarded unchanged.

use flate2::{FlushDecompress, Status};

use super::gzip::GzipHeader;
use super::inflater::Inflater;
use super::scanner::{ErrcodeScanner, Verdict};
use crate::http1::headers::{HeaderKind, Headers};

/// How many decompressed bytes are scanned before a compressed response counts as one without an errcode: bounds
/// the cost of a decompression bomb. An uncompressed response has no such bound, because its scan costs less
/// than its transfer.
pub const MAX_DECOMPRESSED_BYTES: usize = 8 << 20;

/// What each gzip member takes from that bound beside its text, because starting one clears the 32 KiB window.
const GZIP_MEMBER_COST_BYTES: usize = 32 << 10;

/// Finds the top-level errcode in the chunks of a response body, whatever its Content-Encoding.
///
/// Supported are none, `identity`, `gzip` (of any number of members), `x-gzip` and `deflate` (with the zlib
/// header, as RFC 9110 has it, or without, as some servers send it). A body under another encoding, or under
/// several, counts as one without an errcode.
///
/// Text before damaged data counts; if that is more than one buffer, the chunk boundaries can decide how much of
/// it is scanned. Checksums are left to the client's decoder.
#[derive(Debug)]
pub struct ResponseScanner {
    scanner: ErrcodeScanner,
    decoder: ContentDecoder,
    /// How many more bytes may be decompressed.
    remaining_bytes: usize,
}

#[derive(Debug)]
enum ContentDecoder {
    Identity,
    GzipHeader(GzipHeader),
    GzipBody(Inflater),
    /// The remaining bytes of checksum and length; the inflater is reused for the next member.
    GzipTrailer(Inflater, u8),
    /// Zlib or raw; the first byte decides.
    DeflateStart,
    DeflateBody(Inflater),
    /// Unsupported, damaged, or complete.
    Unreadable,
}

impl ResponseScanner {
    /// A scanner for the body of a response with these headers.
    pub fn new(headers: &Headers) -> Self {
        let mut decoder = ContentDecoder::Identity;
        let encodings = headers.values(HeaderKind::ContentEncoding);
        for token in encodings.flat_map(|value| value.split(|&byte| byte == b',')) {
            let token = token.trim_ascii().to_ascii_lowercase();
            decoder = match (decoder, token.as_slice()) {
                (decoder, b"" | b"identity") => decoder,
                (ContentDecoder::Identity, b"gzip" | b"x-gzip") => {
                    ContentDecoder::GzipHeader(GzipHeader::START)
                }
                (ContentDecoder::Identity, b"deflate") => ContentDecoder::DeflateStart,
                _ => ContentDecoder::Unreadable,
            };
        }
        Self { scanner: ErrcodeScanner::new(), decoder, remaining_bytes: MAX_DECOMPRESSED_BYTES }
    }

    /// The verdict so far; [`Verdict::None`] from the start for an unsupported encoding.
    pub fn verdict(&self) -> Verdict {
        match (self.scanner.verdict(), &self.decoder) {
            (Verdict::Undecided, ContentDecoder::Unreadable) => Verdict::None,
            (verdict, _) => verdict,
        }
    }

    /// Scans the next chunk of the encoded body. Once there is a verdict, it stays.
    pub fn feed(&mut self, bytes: &[u8]) -> Verdict {
        if let ContentDecoder::Identity = self.decoder {
            return self.scanner.feed(bytes);
        }
        let mut rest = bytes;
        while !rest.is_empty() && self.verdict() == Verdict::Undecided {
            let decoder = std::mem::replace(&mut self.decoder, ContentDecoder::Unreadable);
            (self.decoder, rest) = self.step(decoder, rest);
        }
        if self.verdict() != Verdict::Undecided {
            self.decoder = ContentDecoder::Unreadable; // releases the decompressor's 40 KiB
        }
        self.verdict()
    }

    /// Ends the body: an undecided verdict becomes [`Verdict::None`].
    pub fn finish(&mut self) -> Verdict {
        self.scanner.finish()
    }

    /// Consumes bytes from the start of `bytes`, which is not empty; returns the next state and the rest.
    fn step<'a>(&mut self, decoder: ContentDecoder, bytes: &'a [u8]) -> (ContentDecoder, &'a [u8]) {
        let (first, after) = (bytes[0], &bytes[1..]);
        match decoder {
            ContentDecoder::Identity | ContentDecoder::Unreadable => (ContentDecoder::Unreadable, &[]),
            ContentDecoder::GzipHeader(head) => match head.next(first) {
                Some(GzipHeader::Done) => (ContentDecoder::GzipBody(Inflater::acquire(false)), after),
                Some(head) => (ContentDecoder::GzipHeader(head), after),
                None => (ContentDecoder::Unreadable, after),
            },
            ContentDecoder::GzipBody(mut inflater) => match self.inflate(&mut inflater, bytes) {
                InflateResult::NeedMore => (ContentDecoder::GzipBody(inflater), &[]),
                InflateResult::End(rest) => (ContentDecoder::GzipTrailer(inflater, 8), rest),
                InflateResult::Stop => (ContentDecoder::Unreadable, &[]),
            },
            ContentDecoder::GzipTrailer(_, 1) if self.remaining_bytes <= GZIP_MEMBER_COST_BYTES => {
                (ContentDecoder::Unreadable, after)
            }
            ContentDecoder::GzipTrailer(_, 1) => {
                self.remaining_bytes -= GZIP_MEMBER_COST_BYTES;
                (ContentDecoder::GzipHeader(GzipHeader::START), after)
            }
            ContentDecoder::GzipTrailer(inflater, left) => {
                (ContentDecoder::GzipTrailer(inflater, left - 1), after)
            }
            // The first byte of a zlib header has method 8 in its low half; no encoder starts a raw block like
            // that.
            ContentDecoder::DeflateStart => {
                (ContentDecoder::DeflateBody(Inflater::acquire(first & 0x0F == 8)), bytes)
            }
            ContentDecoder::DeflateBody(mut inflater) => match self.inflate(&mut inflater, bytes) {
                InflateResult::NeedMore => (ContentDecoder::DeflateBody(inflater), &[]),
                InflateResult::End(_) | InflateResult::Stop => (ContentDecoder::Unreadable, &[]),
            },
        }
    }

    /// Decompresses `bytes` and scans the text, one small buffer at a time.
    fn inflate<'a>(&mut self, inflater: &mut Inflater, bytes: &'a [u8]) -> InflateResult<'a> {
        let mut text = [0; 4096];
        let mut rest = bytes;
        loop {
            let (consumed, produced) = (inflater.total_in(), inflater.total_out());
            let status = inflater.decompress(rest, &mut text, FlushDecompress::None);
            let consumed = (inflater.total_in() - consumed) as usize;
            let produced = ((inflater.total_out() - produced) as usize).min(self.remaining_bytes);
            rest = &rest[consumed..];
            self.remaining_bytes -= produced;
            if self.scanner.feed(&text[..produced]) != Verdict::Undecided || self.remaining_bytes == 0 {
                return InflateResult::Stop;
            }
            match status {
                Ok(Status::StreamEnd) => return InflateResult::End(rest),
                // Only a call that consumes and produces nothing proves that no output is buffered in the
                // decompressor.
                Ok(_) if consumed == 0 && produced == 0 => return InflateResult::NeedMore,
                Ok(_) => {}
                Err(_) => return InflateResult::Stop,
            }
        }
    }
}

/// The result of inflating a chunk.
enum InflateResult<'a> {
    /// The chunk is consumed.
    NeedMore,
    /// The compressed data ended; this is the rest.
    End(&'a [u8]),
    /// There is a verdict, the bound is reached, or the data is damaged.
    Stop,
}

#[cfg(test)]
mod tests {
    use super::super::tests::generate::{
        deflate_compressed, gzip_compressed, scan_encoded_chunks, zlib_compressed,
    };
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
    fn text_before_damaged_data_is_scanned() {
        // A stored block (RFC 1951 §3.2.4), and one of a type that does not exist.
        let length = REFUSED.len() as u8;
        let block = [&[0, length, 0, !length, 0xFF], REFUSED, &[7]].concat();
        let gzip = [b"\x1F\x8B\x08\0\0\0\0\0\0\xFF", &block[..]].concat();
        for (encoding, body) in [("deflate", &block), ("gzip", &gzip)] {
            for chunk_length in [1, 7, body.len()] {
                let verdict = scan_encoded_chunks(encoding, body.chunks(chunk_length));
                assert_eq!(verdict, Verdict::Found(40014), "{encoding}, {chunk_length}");
            }
        }
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
