//! The header of a gzip member (RFC 1952), skipped byte by byte. Its name, time and comment are not used.

/// The position of the next byte in the header.
#[derive(Clone, Copy, Debug)]
pub(super) enum GzipHeader {
    /// The ten fixed bytes: how many were seen, and the flags once they were.
    Fixed { seen: usize, flags: u8 },
    /// The extra field's length: its low byte once it was seen.
    ExtraLength { low: Option<u8>, flags: u8 },
    /// The remaining bytes of the extra field.
    Extra { left: u16, flags: u8 },
    /// A zero-terminated name or comment.
    ZeroTerminated { flags: u8 },
    /// The remaining bytes of the header checksum.
    Checksum { left: u8 },
    /// The header is complete; compressed data follows.
    Done,
}

const MAGIC: [u8; 3] = [0x1F, 0x8B, 8];
const FLAG_HCRC: u8 = 2;
const FLAG_EXTRA: u8 = 4;
const FLAG_NAME: u8 = 8;
const FLAG_COMMENT: u8 = 16;
const RESERVED_FLAGS: u8 = 0xE0;

impl GzipHeader {
    pub(super) const START: Self = Self::Fixed { seen: 0, flags: 0 };

    /// The state after `byte`; `None` if this is no gzip header.
    pub(super) fn next(self, byte: u8) -> Option<Self> {
        Some(match self {
            Self::Fixed { seen, .. } if seen < MAGIC.len() => {
                if byte != MAGIC[seen] {
                    return None;
                }
                Self::Fixed { seen: seen + 1, flags: 0 }
            }
            Self::Fixed { seen: 3, .. } if byte & RESERVED_FLAGS != 0 => return None,
            Self::Fixed { seen: 3, .. } => Self::Fixed { seen: 4, flags: byte },
            Self::Fixed { seen: 9.., flags } => Self::next_optional(flags),
            Self::Fixed { seen, flags } => Self::Fixed { seen: seen + 1, flags },
            Self::ExtraLength { low: None, flags } => Self::ExtraLength { low: Some(byte), flags },
            Self::ExtraLength { low: Some(low), flags } => match u16::from_le_bytes([low, byte]) {
                0 => Self::next_optional(flags),
                left => Self::Extra { left, flags },
            },
            Self::Extra { left: 1, flags } => Self::next_optional(flags),
            Self::Extra { left, flags } => Self::Extra { left: left - 1, flags },
            Self::ZeroTerminated { flags } if byte == 0 => Self::next_optional(flags),
            Self::ZeroTerminated { .. } => self,
            Self::Checksum { left: 1 } => Self::Done,
            Self::Checksum { left } => Self::Checksum { left: left - 1 },
            Self::Done => return None,
        })
    }

    /// The first optional field whose flag is still set, in the order of the format.
    fn next_optional(flags: u8) -> Self {
        match flags {
            _ if flags & FLAG_EXTRA != 0 => Self::ExtraLength { low: None, flags: flags & !FLAG_EXTRA },
            _ if flags & FLAG_NAME != 0 => Self::ZeroTerminated { flags: flags & !FLAG_NAME },
            _ if flags & FLAG_COMMENT != 0 => Self::ZeroTerminated { flags: flags & !FLAG_COMMENT },
            _ if flags & FLAG_HCRC != 0 => Self::Checksum { left: 2 },
            _ => Self::Done,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Compression, GzBuilder};

    /// The length of the header.
    fn header_len(bytes: &[u8]) -> Option<usize> {
        let mut header = GzipHeader::START;
        for (at, byte) in bytes.iter().enumerate() {
            header = header.next(*byte)?;
            if matches!(header, GzipHeader::Done) {
                return Some(at + 1);
            }
        }
        None
    }

    #[test]
    fn optional_fields_are_skipped() {
        let length = |builder: GzBuilder| {
            header_len(&builder.write(Vec::new(), Compression::fast()).finish().unwrap()).unwrap()
        };
        assert_eq!(length(GzBuilder::new()), 10);
        assert_eq!(length(GzBuilder::new().filename("a.json")), 17);
        assert_eq!(length(GzBuilder::new().extra("").comment("")), 13);
        assert_eq!(length(GzBuilder::new().extra("xyz").filename("n").comment("comment")), 25);
        assert_eq!(header_len(b"\x1F\x8B\x08\x02tttt\0\0CCdata"), Some(12));
    }

    #[test]
    fn non_gzip_data_is_rejected_at_once() {
        for not in ["{", "\x1F{", "\x1F\u{8b}"] {
            assert_eq!(header_len(not.as_bytes()), None);
        }
        assert_eq!(header_len(b"\x1F\x8B\x08\x20tttt\0\0"), None, "a reserved flag");
        assert_eq!(header_len(b"\x1F\x8B\x07\0tttt\0\0"), None, "another method");
    }
}
