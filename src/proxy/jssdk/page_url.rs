//! The URL to sign.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

use crate::{
    config::WebOrigin,
    proxy::{
        error::{ErrorKind, ProxyError},
        query,
    },
};

/// The page's URL in the parameter `url`: decoded once and cut at `#`. A `+` in it stays, because WeCom signs what the
/// browser shows.
pub(super) fn page_url(query: &str) -> Result<Cow<'_, str>, ProxyError> {
    let mut url = None;
    for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        match name {
            "url" if url.is_none() => url = Some(value),
            "url" => return Err(bad_request("the query has two parameters url; send one")),
            _ if query::is_token_param(parameter) => {}
            _ => {
                let message = "the query may have url only; encode the page's URL: \
                               \"?url=\" + encodeURIComponent(location.href)";
                return Err(bad_request(message));
            }
        }
    }
    let url =
        url.ok_or_else(|| bad_request("url missing: send \"?url=\" + encodeURIComponent(location.href)"))?;
    let decoded = percent_decode_str(url)
        .decode_utf8()
        .map_err(|_| bad_request("url is not UTF-8 once decoded; use encodeURIComponent"))?;
    let end = decoded.find('#').unwrap_or(decoded.len());
    let page = match decoded {
        Cow::Borrowed(url) => Cow::Borrowed(&url[..end]),
        Cow::Owned(mut url) => {
            url.truncate(end);
            Cow::Owned(url)
        }
    };
    match WebOrigin::of_url(&page) {
        Some(_) if !page.contains(char::is_control) => Ok(page),
        _ => {
            Err(bad_request("url is no http or https URL of a page; send encodeURIComponent(location.href)"))
        }
    }
}

fn bad_request(message: &str) -> ProxyError {
    ErrorKind::BadRequest.error(message)
}

#[cfg(test)]
mod tests {
    use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn page_url_is_decoded_once_and_cut() {
        for (query, expected) in [
            ("url=https%3A%2F%2Fa.example%2F%3Fx%3D1%26y%3D2%23part", Some("https://a.example/?x=1&y=2")),
            ("url=https://a.example/a+b%2Bc%252B", Some("https://a.example/a+b+c%2B")),
            ("access_token=x&url=https://a.example", Some("https://a.example")),
            ("url=https://a.example/%E4%BD%A0", Some("https://a.example/你")),
            ("url=https://a.example/?x=1&y=2", None),
            ("url=https://a.example/&url=https://b.example/", None),
            ("url=https://a.example/%ff", None),
            ("url=https://a.example/%0a", None),
            ("url=%2Fpath", None),
            ("url=%23https://a.example/", None),
            ("url=", None),
            ("url", None),
            ("", None),
        ] {
            assert_eq!(page_url(query).ok().as_deref(), expected, "{query}");
        }
    }

    proptest! {
        #[test]
        fn encoded_page_url_comes_back(rest in "[a-zA-Z0-9/?&=+%;:@!'()*,~_.-]{0,60}", fragment in "(#\\PC{0,10})?") {
            let url = format!("https://a.example/{rest}");
            let text = format!("{url}{fragment}");
            let query = format!("url={}", utf8_percent_encode(&text, NON_ALPHANUMERIC));
            prop_assert_eq!(page_url(&query).expect("a page").into_owned(), url);
        }
    }
}
