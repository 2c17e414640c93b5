//! The response to WeCom: the fixed answer, or what a target replied, encrypted.

use bytes::Bytes;

use super::{
    endpoint::{Endpoint, PushedMessage},
    target::TargetSettings,
};
use crate::{
    config::{DeliveryMethod, TargetForm},
    time::clock,
    wecom::callback::message::{Envelope, Format},
};

/// The content type of texts for WeCom.
pub(crate) const TEXT: &str = "text/plain; charset=utf-8";

/// The body of a response to a message, and its content type.
pub struct CallbackResponse {
    /// The body.
    pub body: Bytes,
    /// The content type.
    pub content_type: &'static str,
}

impl CallbackResponse {
    /// The response where a reply came too late: WeCom takes an empty one as received.
    pub(super) fn empty() -> Self {
        Self { body: Bytes::new(), content_type: TEXT }
    }
}

impl Endpoint {
    /// The response without a reply.
    pub(super) fn answer(&self) -> CallbackResponse {
        CallbackResponse { body: self.answer.clone(), content_type: TEXT }
    }

    /// The response with what a target replied to the message; the answer if that is nothing, or not usable.
    pub(super) fn reply(
        &self,
        message: &PushedMessage,
        target: &TargetSettings,
        reply: &[u8],
    ) -> CallbackResponse {
        self.encrypted_reply(message, target, reply).unwrap_or_else(|| self.answer())
    }

    fn encrypted_reply(
        &self,
        message: &PushedMessage,
        target: &TargetSettings,
        reply: &[u8],
    ) -> Option<CallbackResponse> {
        // What targets respond that have nothing to say.
        if matches!(reply.trim_ascii(), b"" | b"success") {
            return None;
        }
        let DeliveryMethod::Push { form, .. } = &target.config.method else { return None };
        let (format, receive_id) = (message.format(), message.decrypted.receive_id());
        let body = match form {
            TargetForm::Plain { .. } => self.encrypt_reply(format, &message.nonce, receive_id, reply)?,
            // It was encrypted under the same keys.
            TargetForm::Raw => Bytes::copy_from_slice(reply),
            TargetForm::Reencrypt(_) => {
                let keys = target.push.as_ref()?.keys.as_ref()?;
                let inner = keys.decrypt(&Envelope::parse(reply).ok()?.encrypted).ok()?;
                self.encrypt_reply(format, &message.nonce, receive_id, inner.message())?
            }
        };
        Some(CallbackResponse { body, content_type: format.content_type() })
    }

    fn encrypt_reply(&self, format: Format, nonce: &str, receive_id: &str, reply: &[u8]) -> Option<Bytes> {
        let encrypted = self.keys.encrypt(reply, receive_id)?;
        let timestamp = clock::unix_now();
        let signature = self.keys.sign(&timestamp.to_string(), nonce, &encrypted);
        Some(Bytes::from(match format {
            Format::Json => serde_json::json!({
                "encrypt": encrypted,
                "msgsignature": signature,
                "timestamp": timestamp,
                "nonce": nonce,
            })
            .to_string(),
            // The signature covers the nonce, so only WeCom can have chosen it.
            Format::Xml => format!(
                "<xml><Encrypt><![CDATA[{encrypted}]]></Encrypt><MsgSignature><![CDATA[{signature}]]></MsgSignature>\
                 <TimeStamp>{timestamp}</TimeStamp><Nonce><![CDATA[{nonce}]]></Nonce></xml>"
            ),
        }))
    }
}
