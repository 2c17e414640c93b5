//! Files: uploaded as multipart/form-data, stored in memory, downloaded as a whole or by range.

use std::collections::VecDeque;
use std::ops::RangeInclusive;

use bytes::Bytes;
use hyper::StatusCode;
use hyper::header::{ACCEPT_RANGES, CONTENT_DISPOSITION, CONTENT_RANGE, CONTENT_TYPE, RANGE};

use super::callbacks::unix_now;
use super::multipart::{self, UploadedFile};
use super::random;
use super::response::{ErrcodeJson, SimulatedResponse};
use super::routes::{ApiRequest, HandlerResult};
use super::state::State;

const MAX_STORED_BYTES: usize = 256 << 20;
const MIB: usize = 1 << 20;

/// The stored files; evicts the oldest beyond `MAX_STORED_BYTES`.
#[derive(Default)]
pub(super) struct MediaStore {
    files: VecDeque<(String, UploadedFile)>,
    bytes: usize,
}

impl MediaStore {
    pub(super) fn file_count(&self) -> usize {
        self.files.len()
    }

    fn insert(&mut self, file: UploadedFile) -> String {
        self.bytes += file.bytes.len();
        let media_id = random::url_safe_text(64);
        self.files.push_back((media_id.clone(), file));
        while self.bytes > MAX_STORED_BYTES {
            let Some((_, oldest)) = self.files.pop_front() else { break };
            self.bytes -= oldest.bytes.len();
        }
        media_id
    }

    fn find(&self, media_id: &str) -> Option<&UploadedFile> {
        self.files.iter().find(|(known, _)| known == media_id).map(|(_, file)| file)
    }
}

/// `media/upload?type=` and `webhook/upload_media?type=`
pub(super) fn upload(state: &mut State, request: &ApiRequest<'_>) -> HandlerResult {
    let kind = request.query.value("type").unwrap_or_default();
    let max_bytes = match kind.as_str() {
        "image" | "video" => 10 * MIB,
        "voice" => 2 * MIB,
        "file" => 20 * MIB,
        _ => return Err(40004),
    };
    let file = uploaded_file(request, max_bytes)?;
    let media_id = state.media.insert(file);
    ErrcodeJson::ok()
        .with("type", kind)
        .with("media_id", media_id)
        .with("created_at", unix_now().to_string())
        .into()
}

/// `media/uploadimg`: the image is not stored.
pub(super) fn upload_image(_: &mut State, request: &ApiRequest<'_>) -> HandlerResult {
    uploaded_file(request, 2 * MIB)?;
    ErrcodeJson::ok().with("url", format!("https://p.example.com/{}/0", random::url_safe_text(32))).into()
}

/// `media/get?media_id=`; the media_id `generated-<BYTES>` selects a generated file.
pub(super) fn download(state: &mut State, request: &ApiRequest<'_>) -> HandlerResult {
    let media_id = request.query.non_empty("media_id").ok_or(41006)?;
    let generated_length = media_id.strip_prefix("generated-").and_then(|bytes| bytes.parse::<u64>().ok());
    if let Some(bytes) = generated_length {
        let part = |status, from, to| SimulatedResponse::generated(status, from, to);
        return Ok(file_response(request, bytes, "application/octet-stream", "generated.bin", part));
    }
    let file = state.media.find(&media_id).ok_or(40007)?;
    let part =
        |status, from, to| SimulatedResponse::bytes(status, file.bytes.slice(from as usize..to as usize));
    Ok(file_response(request, file.bytes.len() as u64, &file.content_type, &file.name, part))
}

fn uploaded_file(request: &ApiRequest<'_>, max_bytes: usize) -> Result<UploadedFile, i64> {
    let content_type = request.head.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let file = multipart::find_file(&request.body(), content_type.unwrap_or(""), "media").ok_or(41005)?;
    match file.bytes.len() {
        0 => Err(44001),
        length if length > max_bytes => Err(40006),
        _ => Ok(file),
    }
}

fn file_response(
    request: &ApiRequest<'_>,
    total: u64,
    content_type: &str,
    name: &str,
    part: impl Fn(StatusCode, u64, u64) -> SimulatedResponse,
) -> SimulatedResponse {
    let range = request.head.headers.get(RANGE).and_then(|value| value.to_str().ok());
    let response = match range.and_then(|range| parse_range(range, total)) {
        None => part(StatusCode::OK, 0, total),
        Some(Ok(range)) => part(StatusCode::PARTIAL_CONTENT, *range.start(), *range.end() + 1)
            .header(CONTENT_RANGE, format!("bytes {}-{}/{total}", range.start(), range.end())),
        Some(Err(())) => {
            return SimulatedResponse::bytes(StatusCode::RANGE_NOT_SATISFIABLE, Bytes::new())
                .header(CONTENT_RANGE, format!("bytes */{total}"));
        }
    };
    response
        .with_errcode_ok()
        .header(CONTENT_TYPE, content_type)
        .header(CONTENT_DISPOSITION, format!("attachment; filename=\"{name}\""))
        .header(ACCEPT_RANGES, "bytes")
}

/// The requested range (RFC 9110, section 14.2). `None` if the header is invalid or lists several ranges and is ignored;
/// `Some(Err)` if the range is not satisfiable.
fn parse_range(header: &str, total: u64) -> Option<Result<RangeInclusive<u64>, ()>> {
    let (first, last) = header.strip_prefix("bytes=")?.trim().split_once('-')?;
    let range = match (first, last) {
        ("", last) => {
            let suffix_length: u64 = last.parse().ok()?;
            if suffix_length == 0 || total == 0 {
                return Some(Err(()));
            }
            total.saturating_sub(suffix_length)..=total - 1
        }
        (first, "") => first.parse().ok()?..=total.saturating_sub(1),
        (first, last) => {
            let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
            if last < first {
                return None;
            }
            first..=last.min(total.saturating_sub(1))
        }
    };
    Some(if *range.start() < total { Ok(range) } else { Err(()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn range_header_selects_the_satisfiable_part() {
        assert_eq!(parse_range("bytes=0-9", 100), Some(Ok(0..=9)));
        assert_eq!(parse_range("bytes=90-", 100), Some(Ok(90..=99)));
        assert_eq!(parse_range("bytes=-10", 100), Some(Ok(90..=99)));
        assert_eq!(parse_range("bytes=-1000", 100), Some(Ok(0..=99)));
        assert_eq!(parse_range("bytes=50-1000", 100), Some(Ok(50..=99)));
        assert_eq!(parse_range("bytes=100-", 100), Some(Err(())));
        assert_eq!(parse_range("bytes=-0", 100), Some(Err(())));
        assert_eq!(parse_range("bytes=0-", 0), Some(Err(())));
        for ignored in
            ["bytes=9-0", "bytes=0-1,3-4", "lines=1-2", "bytes=x-", "bytes=", "bytes=18446744073709551616-"]
        {
            assert_eq!(parse_range(ignored, 100), None, "{ignored}");
        }
    }
}
