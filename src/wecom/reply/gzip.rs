//! The head of a gzip member (RFC 1952), skipped byte by byte. What it says (name, time, comment) is of no use here.

/// Where in the head the next byte is.
#[derive(Clone, Copy, Debug)]
pub(super) enum GzipHead {
    /// So many of the ten fixed bytes have been seen; the flags, once seen.
    Fixed { seen: usize, flags: u8 },
    /// The low byte of the extra field's length, once seen.
    ExtraLength { low: Option<u8>, flags: u8 },
    /// So much of the extra field is left.
    Extra { left: u16, flags: u8 },
    /// A name or a comment, which ends with a zero.
    Text { flags: u8 },
    /// So many bytes of the head's checksum are left.
    Checksum { left: u8 },
    /// What follows is compressed data.
    Over,
}

const MAGIC: [u8; 3] = [0x1F, 0x8B, 8];
const CHECKSUM: u8 = 2;
const EXTRA: u8 = 4;
const NAME: u8 = 8;
const COMMENT: u8 = 16;
const RESERVED: u8 = 0xE0;

impl GzipHead {
    pub(super) const START: Self = Self::Fixed { seen: 0, flags: 0 };

    /// What follows `byte`; `None` where this is no gzip.
    pub(super) fn next(self, byte: u8) -> Option<Self> {
        Some(match self {
            Self::Fixed { seen, .. } if seen < MAGIC.len() => {
                if byte != MAGIC[seen] {
                    return None;
                }
                Self::Fixed { seen: seen + 1, flags: 0 }
            }
            Self::Fixed { seen: 3, .. } if byte & RESERVED != 0 => return None,
            Self::Fixed { seen: 3, .. } => Self::Fixed { seen: 4, flags: byte },
            Self::Fixed { seen: 9.., flags } => Self::optional(flags),
            Self::Fixed { seen, flags } => Self::Fixed { seen: seen + 1, flags },
            Self::ExtraLength { low: None, flags } => Self::ExtraLength { low: Some(byte), flags },
            Self::ExtraLength { low: Some(low), flags } => match u16::from_le_bytes([low, byte]) {
                0 => Self::optional(flags),
                left => Self::Extra { left, flags },
            },
            Self::Extra { left: 1, flags } => Self::optional(flags),
            Self::Extra { left, flags } => Self::Extra { left: left - 1, flags },
            Self::Text { flags } if byte == 0 => Self::optional(flags),
            Self::Text { .. } => self,
            Self::Checksum { left: 1 } => Self::Over,
            Self::Checksum { left } => Self::Checksum { left: left - 1 },
            Self::Over => return None,
        })
    }

    /// The first optional part of those whose flags are still set, in the order in which they stand.
    fn optional(flags: u8) -> Self {
        match flags {
            _ if flags & EXTRA != 0 => Self::ExtraLength { low: None, flags: flags & !EXTRA },
            _ if flags & NAME != 0 => Self::Text { flags: flags & !NAME },
            _ if flags & COMMENT != 0 => Self::Text { flags: flags & !COMMENT },
            _ if flags & CHECKSUM != 0 => Self::Checksum { left: 2 },
            _ => Self::Over,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Compression, GzBuilder};

    /// How many bytes the head takes.
    fn head(bytes: &[u8]) -> Option<usize> {
        let mut head = GzipHead::START;
        for (at, byte) in bytes.iter().enumerate() {
            head = head.next(*byte)?;
            if matches!(head, GzipHead::Over) {
                return Some(at + 1);
            }
        }
        None
    }

    #[test]
    fn every_optional_part_is_skipped() {
        let length = |builder: GzBuilder| {
            head(&builder.write(Vec::new(), Compression::fast()).finish().unwrap()).unwrap()
        };
        assert_eq!(length(GzBuilder::new()), 10);
        assert_eq!(length(GzBuilder::new().filename("a.json")), 17);
        assert_eq!(length(GzBuilder::new().extra("").comment("")), 13);
        assert_eq!(length(GzBuilder::new().extra("xyz").filename("n").comment("comment")), 25);
        assert_eq!(head(b"\x1F\x8B\x08\x02tttt\0\0CCdata"), Some(12));
    }

    #[test]
    fn what_is_no_gzip_is_seen_at_once() {
        for not in ["{", "\x1F{", "\x1F\u{8b}"] {
            assert_eq!(head(not.as_bytes()), None);
        }
        assert_eq!(head(b"\x1F\x8B\x08\x20tttt\0\0"), None, "a reserved flag");
        assert_eq!(head(b"\x1F\x8B\x07\0tttt\0\0"), None, "another method");
    }
}
