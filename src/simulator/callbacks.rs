//! Callbacks: pushes messages to a receiver URL as WeCom does, encrypted and signed; and receives what a program under
//! test delivers.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::cipher::{
    AES_256, DecryptingKey, DecryptionContext, EncryptingKey, EncryptionContext, UnboundCipherKey,
};
use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use aws_lc_rs::iv::FixedLength;
use base64::Engine;
use base64::engine::{GeneralPurpose, GeneralPurposeConfig};
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{HeaderMap, Request};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde::{Deserialize, Serialize};

use super::random;
use super::state::Shared;

/// How long WeCom waits for a response.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);
/// How often WeCom sends a message that is not accepted.
const MAX_ATTEMPTS: u32 = 3;
/// Deliveries that are kept.
const MAX_DELIVERIES: usize = 1000;

/// A receiver URL, as it would be set in WeCom's console.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SimulatedCallback {
    /// Its name at the control address.
    pub name: String,
    /// Its URL, `http://…`.
    pub url: String,
    /// Its token.
    pub token: String,
    /// Its EncodingAESKey.
    pub aes_key: String,
    /// The receiveid of its messages.
    pub receive_id: String,
}

/// The response to a pushed message.
#[derive(Clone, Debug, Serialize)]
pub struct PushResponse {
    /// Its HTTP status.
    pub status: u16,
    /// Its body, as it came.
    pub body: String,
    /// The attempts that it took.
    pub attempts: u32,
}

/// What was delivered to the control address.
#[derive(Clone, Debug, Serialize)]
pub struct RecordedDelivery {
    /// The headers that begin with `x-wecom-`, and `content-type`.
    pub headers: Vec<(String, String)>,
    /// The query.
    pub query: String,
    /// The body.
    pub body: String,
}

/// Receiver URLs and recorded deliveries.
#[derive(Default)]
pub(super) struct CallbackRegistry {
    callbacks: Vec<SimulatedCallback>,
    deliveries: VecDeque<RecordedDelivery>,
}

impl CallbackRegistry {
    /// Adds a receiver URL, in place of one of the same name.
    pub(super) fn add(&mut self, callback: SimulatedCallback) {
        self.callbacks.retain(|known| known.name != callback.name);
        self.callbacks.push(callback);
    }

    pub(super) fn find(&self, name: &str) -> Option<SimulatedCallback> {
        self.callbacks.iter().find(|callback| callback.name == name).cloned()
    }

    pub(super) fn record_delivery(&mut self, headers: &HeaderMap, query: &str, body: &[u8]) {
        let is_shown = |name: &str| name.starts_with("x-wecom-") || name == "content-type";
        let headers = headers.iter().filter(|(name, _)| is_shown(name.as_str())).map(|(name, value)| {
            (name.as_str().to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned())
        });
        let delivery = RecordedDelivery {
            headers: headers.collect(),
            query: query.to_owned(),
            body: String::from_utf8_lossy(body).into_owned(),
        };
        if self.deliveries.len() == MAX_DELIVERIES {
            self.deliveries.pop_front();
        }
        self.deliveries.push_back(delivery);
    }

    pub(super) fn deliveries(&self) -> impl ExactSizeIterator<Item = &RecordedDelivery> {
        self.deliveries.iter()
    }

    pub(super) fn reset(&mut self) {
        self.deliveries.clear();
    }
}

impl SimulatedCallback {
    /// A message with an event, as WeCom would write it; each differs from all others. `text` is a message of a member.
    pub fn sample_message(&self, event: &str) -> String {
        let (id, now, number) = (&self.receive_id, unix_now(), random::number() >> 12);
        match event {
            "text" => format!(
                "<xml><ToUserName><![CDATA[{id}]]></ToUserName><FromUserName><![CDATA[zhangsan]]></FromUserName><CreateTime>{now}</CreateTime><MsgType><![CDATA[text]]></MsgType><Content><![CDATA[你好]]></Content><MsgId>{number}</MsgId><AgentID>1000002</AgentID></xml>"
            ),
            event => format!(
                "<xml><ToUserName><![CDATA[{id}]]></ToUserName><FromUserName><![CDATA[sys]]></FromUserName><CreateTime>{now}</CreateTime><MsgType><![CDATA[event]]></MsgType><Event><![CDATA[{event}]]></Event><EventKey><![CDATA[{number}]]></EventKey></xml>"
            ),
        }
    }

    /// The query and body with which WeCom pushes a message now; `json` as to an AI bot.
    pub fn encrypted_push(&self, message: &[u8], json: bool) -> (String, String) {
        self.encrypted_push_at(message, json, unix_now())
    }

    /// [`Self::encrypted_push`] with this timestamp, in seconds since 1970.
    pub fn encrypted_push_at(&self, message: &[u8], json: bool, timestamp: u64) -> (String, String) {
        let encrypted = self.encrypt(message);
        let query = self.signed_query(&encrypted, timestamp);
        let body = match json {
            true => format!("{{\"encrypt\":\"{encrypted}\"}}"),
            false => format!(
                "<xml><ToUserName><![CDATA[{}]]></ToUserName><AgentID><![CDATA[1000002]]></AgentID><Encrypt><![CDATA[{encrypted}]]></Encrypt></xml>",
                self.receive_id
            ),
        };
        (query, body)
    }

    /// The query with which WeCom verifies the URL.
    pub fn verification_query(&self, echo: &str) -> String {
        let encrypted = self.encrypt(echo.as_bytes());
        let query = self.signed_query(&encrypted, unix_now());
        let escaped = encrypted.replace('+', "%2B").replace('/', "%2F").replace('=', "%3D");
        format!("{query}&echostr={escaped}")
    }

    fn signed_query(&self, encrypted: &str, timestamp: u64) -> String {
        let nonce = (random::number() >> 32).to_string();
        let signature = self.signature(&timestamp.to_string(), &nonce, encrypted);
        format!("msg_signature={signature}&timestamp={timestamp}&nonce={nonce}")
    }

    /// The signature of an encrypted text.
    pub fn signature(&self, timestamp: &str, nonce: &str, encrypted: &str) -> String {
        let mut parts = [&*self.token, timestamp, nonce, encrypted];
        parts.sort_unstable();
        let digest = digest(&SHA1_FOR_LEGACY_USE_ONLY, parts.concat().as_bytes());
        digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Encrypts a message.
    ///
    /// # Panics
    /// If `aes_key` is not an EncodingAESKey.
    pub fn encrypt(&self, message: &[u8]) -> String {
        let key = self.key();
        let length = (message.len() as u32).to_be_bytes();
        let random = random::url_safe_text(16);
        let mut text = [random.as_bytes(), &length, message, self.receive_id.as_bytes()].concat();
        let padding = 32 - text.len() % 32;
        text.extend(std::iter::repeat_n(padding as u8, padding));
        let unbound = UnboundCipherKey::new(&AES_256, &key).expect("32 bytes");
        let iv = EncryptionContext::Iv128(FixedLength::from(first_16(&key)));
        EncryptingKey::cbc(unbound)
            .and_then(|key| key.less_safe_encrypt(&mut text, iv))
            .expect("whole blocks");
        BASE64_STANDARD.encode(text)
    }

    /// Decrypts a text to the message and the receiveid; `None` for a malformed one.
    ///
    /// # Panics
    /// If `aes_key` is not an EncodingAESKey.
    pub fn decrypt(&self, encrypted: &str) -> Option<(Vec<u8>, String)> {
        let key = self.key();
        let mut text = BASE64_STANDARD.decode(encrypted).ok()?;
        let unbound = UnboundCipherKey::new(&AES_256, &key).expect("32 bytes");
        let iv = DecryptionContext::Iv128(FixedLength::from(first_16(&key)));
        DecryptingKey::cbc(unbound).ok()?.decrypt(&mut text, iv).ok()?;
        let end = text.len().checked_sub(usize::from(*text.last()?))?;
        let length = u32::from_be_bytes(text.get(16..20)?.try_into().ok()?) as usize;
        let message = text.get(20..20 + length)?.to_vec();
        let receive_id = text.get(20 + length..end)?.to_vec();
        Some((message, String::from_utf8(receive_id).ok()?))
    }

    fn key(&self) -> Vec<u8> {
        let lenient = GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true);
        let engine = GeneralPurpose::new(&base64::alphabet::STANDARD, lenient);
        let key = engine.decode(format!("{}=", self.aes_key)).expect("an EncodingAESKey");
        assert_eq!(key.len(), 32, "an EncodingAESKey has 43 characters");
        key
    }

    /// Whether a message can be encrypted for it.
    pub(super) fn has_valid_key(&self) -> bool {
        self.aes_key.len() == 43
            && self.aes_key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+/".contains(&byte))
    }

    /// Pushes a message, up to three times until it gets a 200; as WeCom, it waits 5 s for each response.
    ///
    /// # Errors
    /// If no attempt got a response.
    pub async fn push(&self, message: &[u8], json: bool) -> Result<PushResponse, String> {
        let (query, body) = self.encrypted_push(message, json);
        let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
        let separator = if self.url.contains('?') { '&' } else { '?' };
        let uri = format!("{}{separator}{query}", self.url);
        let mut outcome = Err("not sent".to_owned());
        for attempts in 1..=MAX_ATTEMPTS {
            let request = Request::post(&uri)
                .header("content-type", if json { "application/json" } else { "text/xml" });
            let request = request.body(Full::from(body.clone())).map_err(|error| error.to_string())?;
            let exchange = async {
                let response = client.request(request).await.map_err(|error| error.to_string())?;
                let status = response.status().as_u16();
                let body =
                    response.into_body().collect().await.map_err(|error| error.to_string())?.to_bytes();
                Ok(PushResponse { status, body: String::from_utf8_lossy(&body).into_owned(), attempts })
            };
            outcome = tokio::time::timeout(RESPONSE_TIMEOUT, exchange)
                .await
                .unwrap_or_else(|_| Err("no response within 5 s".to_owned()));
            if outcome.as_ref().is_ok_and(|response| response.status == 200) {
                break;
            }
        }
        outcome
    }
}

/// The callback that a control call names, with what the call overrides.
pub(super) fn callback_of(
    shared: &Arc<Shared>,
    parameter: impl Fn(&str) -> Option<String>,
) -> Result<SimulatedCallback, String> {
    let name = parameter("callback").unwrap_or_default();
    let known = shared.read(|state| state.callbacks.find(&name));
    let value = |field: &str, known: Option<&String>| {
        parameter(field).or_else(|| known.cloned()).ok_or_else(|| {
            format!("callback {name:?} is unknown; add it by POST /control/callbacks, or pass url, token, aes_key and receive_id")
        })
    };
    let known = known.as_ref();
    let callback = SimulatedCallback {
        url: value("url", known.map(|known| &known.url))?,
        token: value("token", known.map(|known| &known.token))?,
        aes_key: value("aes_key", known.map(|known| &known.aes_key))?,
        receive_id: value("receive_id", known.map(|known| &known.receive_id))?,
        name,
    };
    match callback.has_valid_key() {
        true => Ok(callback),
        false => Err("aes_key is no EncodingAESKey: 43 letters and digits".to_owned()),
    }
}

fn first_16(key: &[u8]) -> [u8; 16] {
    std::array::from_fn(|nth| key[nth])
}

/// Seconds since 1970.
pub(super) fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn official_sample_is_signed_and_decrypted() {
        let callback = SimulatedCallback {
            name: "hr".to_owned(),
            url: String::new(),
            token: "QDG6eK".to_owned(),
            aes_key: "jWmYm7qr5nMoAUwZRjGtBxmz3KA1tkAj3ykkR6q2B2C".to_owned(),
            receive_id: "wx5823bf96d3bd56c7".to_owned(),
        };
        let encrypted =
            "P9nAzCzyDtyTWESHep1vC5X9xho/qYX3Zpb4yKa9SKld1DsH3Iyt3tP3zNdtp+4RPcs8TgAE7OaBO+FZXvnaqQ==";
        assert_eq!(
            callback.signature("1409659589", "263014780", encrypted),
            "5c45ff5e21c57e6ad56bac8758b79b1d9ac89fd3"
        );
        let (message, receive_id) = callback.decrypt(encrypted).expect("the official sample");
        assert_eq!((&*message, &*receive_id), (&b"1616140317555161061"[..], "wx5823bf96d3bd56c7"));
        let encrypted = callback.encrypt("你好".as_bytes());
        assert_eq!(callback.decrypt(&encrypted).expect("decrypted").0, "你好".as_bytes());
    }
}
