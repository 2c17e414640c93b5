//! What a browser says about the page that sends a request (Fetch standard; Fetch Metadata).

use crate::{
    config::WebOrigin,
    http1::headers::Headers,
    proxy::error::{ErrorKind, ProxyError},
};

/// The headers that only a browser sets; no page can change them.
pub(super) struct BrowserRequest<'a> {
    origins: Vec<&'a [u8]>,
    is_cross_site: bool,
}

impl<'a> BrowserRequest<'a> {
    pub(super) fn new(headers: &'a Headers) -> Self {
        let values = |name: &'static str| {
            headers
                .iter()
                .filter(move |header| header.name.eq_ignore_ascii_case(name.as_bytes()))
                .map(|header| header.value)
        };
        let is_cross_site = values("sec-fetch-site").any(|site| matches!(site, b"cross-site" | b"same-site"));
        Self { origins: values("origin").collect(), is_cross_site }
    }

    /// The origin of the page, if the header was sent. `null`, and whatever else is no origin, is refused.
    pub(super) fn origin(&self) -> Result<Option<WebOrigin>, ProxyError> {
        match self.origins[..] {
            [] => Ok(None),
            [origin] => std::str::from_utf8(origin)
                .ok()
                .and_then(WebOrigin::parse)
                .map(Some)
                .ok_or_else(origin_not_allowed),
            _ => Err(ErrorKind::BadRequest.error("duplicate Origin header")),
        }
    }

    /// Refuses a request of another site's page without a key, if its origin was not allowed: an open proxy serves
    /// programs, and not every page that a browser on the same machine shows.
    pub(super) fn reject_cross_site(&self) -> Result<(), ProxyError> {
        if self.origins.is_empty() && !self.is_cross_site { Ok(()) } else { Err(origin_not_allowed()) }
    }

    /// Checks the URL of a page that sends no key: its origin is allowed, and is the one of the page that asks.
    pub(super) fn check_page(&self, url: &str, allowed: &[WebOrigin]) -> Result<(), ProxyError> {
        let origin = WebOrigin::of_url(url).filter(|origin| allowed.contains(origin));
        let origin = origin.ok_or_else(|| {
            let message =
                "the URL's origin is not among the agent's jssdk_origins, for which no key is needed";
            ErrorKind::Forbidden.error(message)
        })?;
        match self.origin()? {
            Some(asking) if asking != origin => {
                let message = "the URL is of another origin than the page that asks for its signature";
                Err(ErrorKind::Forbidden.error(message))
            }
            _ => Ok(()),
        }
    }
}

pub(super) fn origin_not_allowed() -> ProxyError {
    let message = "this origin is not among the agent's jssdk_origins, where the operator can add it";
    ErrorKind::Forbidden.error(message)
}
