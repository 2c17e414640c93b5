//! Signatures of WeCom's JS-SDK (developer.work.weixin.qq.com/document/path/90506).

use aws_lc_rs::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY};

use crate::secret::hex;

/// The signature for a page. `url` is the page's address as the browser shows it, up to `#`; nothing in it is encoded.
pub fn signature(ticket: &str, nonce: &str, timestamp: u64, url: &str) -> String {
    let timestamp = timestamp.to_string();
    let mut context = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
    let fields =
        [("jsapi_ticket=", ticket), ("&noncestr=", nonce), ("&timestamp=", &timestamp), ("&url=", url)];
    for (name, value) in fields {
        context.update(name.as_bytes());
        context.update(value.as_bytes());
    }
    hex::encode(context.finish().as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signature_of_the_official_sample_is_right() {
        let ticket = "sM4AOVdWfPE4DxkXGEs8VMCPGGVi4C3VM0P37wVUCFvkVAy_90u5h9nbSlYy3-Sl-HhTdfl2fzFy1AOcHKP7qg";
        let signed =
            signature(ticket, "Wm3WZYTPz0wzccnW", 1_414_587_457, "http://mp.weixin.qq.com?params=value");
        assert_eq!(signed, "0f9de62fce790f9a083d5c99e95740ceb90c27ed");
    }
}
