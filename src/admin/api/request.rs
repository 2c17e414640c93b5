//! What a request of the API says beside its body, and its body.

use std::time::Duration;

use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::{Body, Incoming};
use percent_encoding::percent_decode_str;
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::super::{error::ApiError, query::parameters};

/// Longer than any agent or client.
const MAX_BODY_BYTES: usize = 1 << 20;
/// Bounds the time for a body.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// What a path under `/api/` names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::admin) enum Resource {
    /// `/api/agents/NAME`
    Agent(String),
    /// `/api/clients`
    Clients,
    /// `/api/clients/NAME`
    Client(String),
    /// `/api/clients/NAME/keys`
    Keys(String),
    /// `/api/clients/NAME/keys/ID`
    Key(String, String),
}

impl Resource {
    /// The resource of a path; `None` for a path of another part of the admin listener.
    pub(in crate::admin) fn from_path(path: &str) -> Option<Self> {
        let segments: Vec<_> = path.strip_prefix("/api/")?.split('/').map(decode).collect::<Option<_>>()?;
        let segments: Vec<_> = segments.iter().map(String::as_str).collect();
        match *segments {
            ["agents", name] if !name.is_empty() => Some(Self::Agent(name.to_owned())),
            ["clients"] => Some(Self::Clients),
            ["clients", name] if !name.is_empty() => Some(Self::Client(name.to_owned())),
            ["clients", name, "keys"] => Some(Self::Keys(name.to_owned())),
            ["clients", name, "keys", id] => Some(Self::Key(name.to_owned(), id.to_owned())),
            _ => None,
        }
    }

    /// The methods, as in `Allow`.
    pub(super) fn methods(&self) -> &'static str {
        match self {
            Self::Agent(_) | Self::Client(_) => "GET, HEAD, PUT, PATCH, DELETE",
            Self::Clients => "GET, HEAD",
            Self::Keys(_) => "POST",
            Self::Key(..) => "DELETE",
        }
    }

    pub(super) fn allows(&self, method: &Method) -> bool {
        self.methods().split(", ").any(|allowed| allowed == method.as_str())
    }
}

fn decode(segment: &str) -> Option<String> {
    percent_decode_str(segment).decode_utf8().ok().map(Into::into)
}

/// The parameters of a write.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct WriteOptions {
    /// Checks only.
    pub(super) dry_run: bool,
    /// Fetches a token first.
    pub(super) verify: bool,
}

impl WriteOptions {
    pub(super) fn from_query(query: Option<&str>) -> Result<Self, ApiError> {
        let mut options = Self::default();
        for (name, value) in parameters(query) {
            let value = match &*value {
                "1" | "true" => true,
                "0" | "false" => false,
                _ => return Err(ApiError::bad_request("write 1 or 0 for a parameter, as in ?dry_run=1")),
            };
            match name {
                "dry_run" => options.dry_run = value,
                "verify" => options.verify = value,
                _ => return Err(ApiError::bad_request("unknown parameter; use dry_run or verify")),
            }
        }
        Ok(options)
    }
}

/// Refuses a body of another type. A form of another site's page can send none of these types.
pub(super) fn check_content_type(
    method: &Method,
    headers: &HeaderMap,
    body: &Incoming,
) -> Result<(), ApiError> {
    if body.is_end_stream() && !matches!(*method, Method::PUT | Method::PATCH) {
        return Ok(());
    }
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kind = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let is_patch = *method == Method::PATCH;
    if kind == "application/json" || is_patch && kind == "application/merge-patch+json" {
        return Ok(());
    }
    let unsupported = StatusCode::UNSUPPORTED_MEDIA_TYPE;
    Err(match is_patch {
        true => ApiError::new(
            unsupported,
            "send a body with \"Content-Type: application/merge-patch+json\" or \"Content-Type: application/json\"",
        )
        .with_header(
            http::HeaderName::from_static("accept-patch"),
            HeaderValue::from_static("application/merge-patch+json, application/json"),
        ),
        false => ApiError::new(unsupported, "send a body with \"Content-Type: application/json\""),
    })
}

/// Reads the whole body.
pub(super) async fn read_body(body: Incoming) -> Result<Zeroizing<Vec<u8>>, ApiError> {
    let collected = timeout(BODY_TIMEOUT, Limited::new(body, MAX_BODY_BYTES).collect()).await;
    match collected {
        Ok(Ok(body)) => Ok(Zeroizing::new(body.to_bytes().to_vec())),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "the body is longer than 1 MiB"))
        }
        Ok(Err(_)) => Err(ApiError::bad_request("the body is incomplete")),
        Err(_) => Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "the body did not arrive within 30 s")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_their_resources() {
        let name = || "hr".to_owned();
        for (path, expected) in [
            ("/api/agents/hr", Some(Resource::Agent(name()))),
            ("/api/agents/crm%3Aww1", Some(Resource::Agent("crm:ww1".to_owned()))),
            ("/api/agents/%68r", Some(Resource::Agent(name()))),
            ("/api/clients", Some(Resource::Clients)),
            ("/api/clients/hr", Some(Resource::Client(name()))),
            ("/api/clients/hr/keys", Some(Resource::Keys(name()))),
            ("/api/clients/hr/keys/a1", Some(Resource::Key(name(), "a1".to_owned()))),
            ("/api/agents", None),
            ("/api/agents/", None),
            ("/api/clients/", None),
            ("/api/agents/hr/refresh", None),
            ("/api/agents/%ff", None),
            ("/api/clients/hr/keys/a/b", None),
            ("/agents/hr", None),
        ] {
            assert_eq!(Resource::from_path(path), expected, "{path}");
        }
    }

    #[test]
    fn options_are_read_from_the_query() {
        let options = |query| WriteOptions::from_query(Some(query)).ok();
        let (both, none) = (WriteOptions { dry_run: true, verify: true }, WriteOptions::default());
        assert_eq!(options("dry_run=1&verify=true"), Some(both));
        assert_eq!((options(""), options("dry_run=0&verify=false")), (Some(none), Some(none)));
        for invalid in ["dry_run", "dry_run=", "dry_run=2", "dryrun=1", "verify=yes", "=1"] {
            assert_eq!(options(invalid), None, "{invalid}");
        }
    }
}
