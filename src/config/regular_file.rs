//! Opens files that are no pipes.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::path_error::unreadable_message;
use crate::text;
use crate::text::Text;

/// Lets the open of a pipe return at once (open(2), Linux on x86 and ARM).
const O_NONBLOCK: i32 = 0o4000;

/// Opens a file that is no pipe, which would block until something writes to it.
pub fn open_regular(path: &Path) -> Result<(File, Metadata), Text> {
    let unreadable = |e: io::Error| unreadable_message(path, &e);
    let file = File::options().read(true).custom_flags(O_NONBLOCK).open(path).map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(text!("is not a file", "不是文件"));
    }
    Ok((file, metadata))
}
