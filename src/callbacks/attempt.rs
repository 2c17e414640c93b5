//! One attempt to deliver a message: a POST in the form that the target wants, and what its response means.

use std::time::Duration;

use bytes::Bytes;
use hmac::Mac;
use http::{HeaderValue, Request, header};
use http_body_util::Full;
use tokio::time::Instant;

use super::{
    stored_event::StoredEvent,
    target::{PushSettings, Target, TargetSettings},
};
use crate::{
    config::{DeliveryMethod, TargetForm},
    secret::{hex, hmac_with_key, random_u64},
    time::clock,
    wecom::callback::{crypto::CallbackKeys, message::Format},
};

const USER_AGENT: &str = concat!("wecom-proxy/", env!("CARGO_PKG_VERSION"));

/// Why an attempt failed, in words for operators.
pub(super) type AttemptError = String;

/// Sends a message to a target once. Returns the body of a response with 2xx; any other status is an error.
pub(super) async fn attempt(
    target: &Target,
    settings: &TargetSettings,
    event: &StoredEvent,
    timeout: Duration,
) -> Result<Bytes, AttemptError> {
    let push = settings.push.as_ref().ok_or("the target is read by clients now")?;
    let request = build_request(target, settings, push, event)?;
    let response = push.client.send(request, Instant::now() + timeout).await;
    let response = response.map_err(|error| error.to_string())?;
    match response.status.is_success() {
        true => Ok(response.body),
        false => Err(format!("HTTP {}", response.status.as_u16())),
    }
}

fn build_request(
    target: &Target,
    settings: &TargetSettings,
    push: &PushSettings,
    event: &StoredEvent,
) -> Result<Request<Full<Bytes>>, AttemptError> {
    let DeliveryMethod::Push { url, form, .. } = &settings.config.method else {
        return Err("the target is read by clients now".to_owned());
    };
    let head = &event.head;
    let format = head.format();
    let mut path = (*url.path_and_query).to_owned();
    let mut content_type = HeaderValue::from_static(format.content_type());
    let mut signature = None;
    let body = match (form, &head.raw) {
        (TargetForm::Plain { secret }, _) => {
            let of_message = Format::detect(&event.message).map_or("text/plain", Format::content_type);
            content_type = HeaderValue::from_static(of_message);
            signature = secret.as_ref().map(|secret| sign(secret.expose(), &event.message));
            event.message.to_vec()
        }
        (TargetForm::Raw, Some(raw)) => {
            append_query(&mut path, &raw.query);
            let original = raw.content_type.as_deref().and_then(|value| HeaderValue::from_str(value).ok());
            content_type = original.unwrap_or(content_type);
            event.raw_body.clone()
        }
        // It was stored for another form; a reload has changed that since.
        (TargetForm::Raw, None) => encrypt_into(&mut path, &settings.callback_keys, &head.receive_id, event)?,
        (TargetForm::Reencrypt(form), _) => {
            let keys = push.keys.as_ref().ok_or("the target's keys cannot be used")?;
            encrypt_into(&mut path, keys, &form.receive_id, event)?
        }
    };
    let builder = push
        .client
        .post(&path)
        .header(header::CONTENT_TYPE, content_type)
        .header(header::USER_AGENT, USER_AGENT)
        .header("x-wecom-callback", &target.callback)
        .header("x-wecom-event-id", &head.id)
        .header("x-wecom-attempt", head.attempts + 1);
    let builder = match HeaderValue::from_bytes(head.event.as_bytes()) {
        Ok(name) if !head.event.is_empty() => builder.header("x-wecom-event", name),
        _ => builder,
    };
    let builder = match signature {
        Some(signature) => builder.header("x-wecom-callback-signature", signature),
        None => builder,
    };
    builder.body(Full::from(body)).map_err(|error| format!("no request can be made: {error}"))
}

/// `t=UNIX,v1=HEX(HMAC-SHA256(secret, "UNIX." + body))`
fn sign(secret: &str, body: &[u8]) -> String {
    sign_at(secret, body, clock::unix_now())
}

fn sign_at(secret: &str, body: &[u8], now: u64) -> String {
    let mut mac = hmac_with_key(secret.as_bytes());
    mac.update(format!("{now}.").as_bytes());
    mac.update(body);
    format!("t={now},v1={}", hex::encode(&mac.finalize().into_bytes()))
}

fn append_query(path: &mut String, query: &str) {
    if !query.is_empty() {
        path.push(if path.contains('?') { '&' } else { '?' });
        path.push_str(query);
    }
}

/// Encrypts the message under other keys: the body as WeCom would write it, its signature in the query.
fn encrypt_into(
    path: &mut String,
    keys: &CallbackKeys,
    receive_id: &str,
    event: &StoredEvent,
) -> Result<Vec<u8>, AttemptError> {
    let encrypted = keys.encrypt(&event.message, receive_id).ok_or("the message cannot be encrypted")?;
    let timestamp = clock::unix_now().to_string();
    let nonce = (random_u64() >> 24).to_string();
    let signature = keys.sign(&timestamp, &nonce, &encrypted);
    append_query(path, &format!("msg_signature={signature}&timestamp={timestamp}&nonce={nonce}"));
    let head = &event.head;
    // Receivers take the receiveid from there.
    let to_user_name = match receive_id {
        "" => head.to_user_name.as_deref().map(plain_id).unwrap_or_default(),
        receive_id => plain_id(receive_id),
    };
    let agent_id = head.agent_id.as_deref().map(plain_id).unwrap_or_default();
    Ok(match head.format() {
        Format::Json => serde_json::json!({ "encrypt": encrypted }).to_string().into_bytes(),
        Format::Xml => format!(
            "<xml><ToUserName><![CDATA[{to_user_name}]]></ToUserName><AgentID><![CDATA[{agent_id}]]></AgentID>\
             <Encrypt><![CDATA[{encrypted}]]></Encrypt></xml>"
        )
        .into_bytes(),
    })
}

/// An id without characters that could end the CDATA section: the envelope it comes from is not signed.
fn plain_id(id: &str) -> String {
    id.chars().filter(|char| char.is_ascii_alphanumeric() || "_-@.".contains(*char)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The value is the same that `openssl dgst -sha256 -hmac` prints for `1700000000.<xml/>`.
    #[test]
    fn signature_is_hmac_of_time_and_body() {
        let signature = sign_at("secret", b"<xml/>", 1_700_000_000);
        assert_eq!(
            signature,
            "t=1700000000,v1=9e7d46ffaffecde1672bb4fd0c9d08c976176cb8d5b7cdd90431890e235450e0"
        );
    }

    #[test]
    fn query_is_appended_to_the_one_of_the_url() {
        for (path, expected) in [("/a", "/a?x=1"), ("/a?b", "/a?b&x=1")] {
            let mut path = path.to_owned();
            append_query(&mut path, "x=1");
            assert_eq!(path, expected);
        }
    }

    #[test]
    fn ids_cannot_end_a_cdata_section() {
        assert_eq!(plain_id("ww1]]><x>"), "ww1x");
    }
}
