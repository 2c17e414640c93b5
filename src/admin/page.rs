//! `/`: the dashboard, one page without external resources.

use std::sync::LazyLock;

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http::{HeaderValue, Response, header};
use sha2::{Digest, Sha256};

use super::response::{AdminBody, with_content_type};

const TEMPLATE: &str = include_str!("page/index.html");
const STYLE: &str = concat!(include_str!("page/uplot/uPlot.min.css"), "\n", include_str!("page/style.css"));
/// One script; each part uses only the parts before it. The first is uPlot, which draws the charts, with its licence.
const SCRIPT: &str = concat!(
    "\"use strict\";\n/*!\n",
    include_str!("page/uplot/LICENSE"),
    "*/\n",
    include_str!("page/uplot/uPlot.iife.min.js"),
    include_str!("page/texts.js"),
    include_str!("page/base.js"),
    include_str!("page/charts.js"),
    include_str!("page/overview.js"),
    include_str!("page/trouble.js"),
    include_str!("page/agents.js"),
    include_str!("page/quotas.js"),
    include_str!("page/exchange.js"),
    include_str!("page/callbacks.js"),
    include_str!("page/edit.js"),
    include_str!("page/inspector.js"),
    include_str!("page/app.js"),
);

static PAGE: LazyLock<Bytes> =
    LazyLock::new(|| Bytes::from(TEMPLATE.replace("/*style*/", STYLE).replace("/*script*/", SCRIPT)));

/// Allows only the page's own script, and connections only to this listener.
static CONTENT_SECURITY_POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
    let (script, style) = (csp_hash(SCRIPT), csp_hash(STYLE));
    let policy = format!(
        "default-src 'none'; script-src '{script}'; style-src '{style}'; img-src data:; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    HeaderValue::try_from(policy).unwrap_or(HeaderValue::from_static("default-src 'none'"))
});

fn csp_hash(text: &str) -> String {
    format!("sha256-{}", BASE64_STANDARD.encode(Sha256::digest(text)))
}

/// The page.
pub(super) fn page() -> Response<AdminBody> {
    let mut response = with_content_type("text/html; charset=utf-8", AdminBody::Full(PAGE.clone()));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY.clone());
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_has_no_html_sinks_or_external_resources() {
        for forbidden in
            ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function("]
        {
            assert!(!SCRIPT.contains(forbidden), "{forbidden}");
        }
        let page = std::str::from_utf8(&PAGE).expect("UTF-8");
        for forbidden in ["src=\"http", "href=\"http", " style=\"", " onclick="] {
            assert!(!page.contains(forbidden), "{forbidden}");
        }
        assert!(!STYLE.contains("url(") && !STYLE.contains("@import"));
        assert_eq!(page.matches("</script>").count(), 1);
        assert!(page.contains(SCRIPT) && page.contains(STYLE));
    }
}
