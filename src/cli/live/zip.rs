//! A ZIP file of deflated entries (APPNOTE.TXT 4.3). Ours, because it is 50 lines, and a package brings a dozen others.

use std::io::{self, Write};

use flate2::{Compression, Crc, write::DeflateEncoder};

/// Version 2.0: deflate.
const VERSION_NEEDED: u16 = 20;
/// Names are UTF-8.
const UTF8_FLAG: u16 = 1 << 11;
const DEFLATE: u16 = 8;
/// 1980-01-01, the earliest date of the format: an entry's time is not of interest.
const DATE: u16 = 0x21;

/// Collects entries.
#[derive(Default)]
pub(super) struct ZipBuilder {
    bytes: Vec<u8>,
    directory: Vec<u8>,
    count: u16,
}

impl ZipBuilder {
    /// Adds a file. Errors: the archive exceeds 4 GiB.
    pub(super) fn add(&mut self, name: &str, content: &[u8]) -> io::Result<()> {
        let mut crc = Crc::new();
        crc.update(content);
        let mut encoder = DeflateEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(content)?;
        let packed = encoder.finish()?;
        let offset = size(self.bytes.len())?;
        let name_length = u16::try_from(name.len()).map_err(io::Error::other)?;
        let mut header = Vec::new();
        for field in [VERSION_NEEDED, UTF8_FLAG, DEFLATE, 0, DATE] {
            header.extend(field.to_le_bytes());
        }
        for field in [crc.sum(), size(packed.len())?, size(content.len())?] {
            header.extend(field.to_le_bytes());
        }
        header.extend(name_length.to_le_bytes());
        header.extend([0, 0]); // no extra field
        self.bytes.extend(b"PK\x03\x04");
        self.bytes.extend(&header);
        self.bytes.extend(name.as_bytes());
        self.bytes.extend(packed);

        self.directory.extend(b"PK\x01\x02");
        self.directory.extend(VERSION_NEEDED.to_le_bytes());
        self.directory.extend(&header);
        self.directory.extend([0; 10]); // no comment, disk 0, no attributes
        self.directory.extend(offset.to_le_bytes());
        self.directory.extend(name.as_bytes());
        self.count += 1;
        Ok(())
    }

    /// The whole file.
    pub(super) fn finish(mut self) -> io::Result<Vec<u8>> {
        let (offset, length) = (size(self.bytes.len())?, size(self.directory.len())?);
        self.bytes.append(&mut self.directory);
        self.bytes.extend(b"PK\x05\x06");
        self.bytes.extend([0; 4]); // one disk
        self.bytes.extend(self.count.to_le_bytes());
        self.bytes.extend(self.count.to_le_bytes());
        self.bytes.extend(length.to_le_bytes());
        self.bytes.extend(offset.to_le_bytes());
        self.bytes.extend([0, 0]); // no comment
        Ok(self.bytes)
    }
}

fn size(length: usize) -> io::Result<u32> {
    u32::try_from(length).map_err(io::Error::other)
}
