//! The body that WeCom pushes, and the top-level fields of the message inside, in XML or JSON. Bytes are only read here:
//! what is passed on is never serialised again.

use std::borrow::Cow;

use quick_xml::{
    Reader,
    escape::resolve_xml_entity,
    events::{BytesRef, Event},
};
use serde::Deserialize;
use serde_json::Value;

/// Larger texts of a field are not kept; no code, ticket or name of an event is as long.
const MAX_FIELD_BYTES: usize = 8 * 1024;

/// A pushed body has three elements; many more come from a forger, since the body is parsed before its signature is checked.
const MAX_ENVELOPE_ELEMENTS: usize = 64;
/// The only elements of a pushed body that are kept.
const ENVELOPE_FIELDS: [&str; 3] = ["Encrypt", "ToUserName", "AgentID"];

/// Why a body or message is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// It has a document type declaration, which could define entities.
    #[error("document type declaration")]
    Dtd,
    /// Neither well-formed XML nor JSON of the expected form.
    #[error("malformed")]
    Malformed,
}

/// The format of a pushed body, in which a reply is written too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `<xml>…</xml>`, of nearly all applications.
    Xml,
    /// `{…}`, of AI bots and hardware.
    Json,
}

impl Format {
    /// The format that the first character tells; `None` if it tells neither.
    pub fn detect(text: &[u8]) -> Option<Self> {
        let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
        match text.trim_ascii_start().first() {
            Some(b'<') => Some(Self::Xml),
            Some(b'{') => Some(Self::Json),
            _ => None,
        }
    }

    /// The content type of a body in this format.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Xml => "application/xml; charset=utf-8",
            Self::Json => "application/json; charset=utf-8",
        }
    }
}

/// A pushed body. Only `encrypted` is covered by the signature.
#[derive(Clone, PartialEq, Eq)]
pub struct Envelope {
    /// XML or JSON.
    pub format: Format,
    /// The encrypted message in base64, as it stood there.
    pub encrypted: String,
    /// `ToUserName`: the corp or suite, as a rule.
    pub to_user_name: Option<String>,
    /// `AgentID`; absent and empty in commands.
    pub agent_id: Option<String>,
}

impl Envelope {
    /// Parses a pushed body.
    pub fn parse(body: &[u8]) -> Result<Self, ParseError> {
        match Format::detect(body).ok_or(ParseError::Malformed)? {
            Format::Xml => {
                let mut fields = Fields::parse_xml(body, &XmlLimits::ENVELOPE)?;
                let encrypted = fields.take_single("Encrypt")?.ok_or(ParseError::Malformed)?;
                Ok(Self {
                    format: Format::Xml,
                    encrypted,
                    to_user_name: fields.take_single("ToUserName")?,
                    agent_id: fields.take_single("AgentID")?,
                })
            }
            Format::Json => {
                let JsonEnvelope { encrypt, tousername } =
                    serde_json::from_slice(body).map_err(|_| ParseError::Malformed)?;
                let format = Format::Json;
                Ok(Self { format, encrypted: encrypt, to_user_name: tousername, agent_id: None })
            }
        }
    }
}

/// Whether a body has a document type declaration, which stands before the first element.
pub fn has_document_type(body: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(body) else { return false };
    if Format::detect(body) != Some(Format::Xml) {
        return false;
    }
    let mut reader = Reader::from_str(text);
    for _ in 0..MAX_ENVELOPE_ELEMENTS {
        match reader.read_event() {
            Ok(Event::DocType(_)) => return true,
            Ok(Event::Decl(_) | Event::Comment(_) | Event::PI(_) | Event::Text(_)) => {}
            _ => return false,
        }
    }
    false
}

#[derive(Deserialize)]
struct JsonEnvelope {
    #[serde(alias = "Encrypt")]
    encrypt: String,
    #[serde(alias = "ToUserName")]
    tousername: Option<String>,
}

/// What is kept of a text in XML, and when it is refused.
struct XmlLimits {
    /// The names of the elements that are kept; empty: any.
    names: &'static [&'static str],
    /// Larger texts of an element are not kept.
    max_bytes: usize,
    /// A text with more elements is malformed.
    max_elements: usize,
}

impl XmlLimits {
    const ENVELOPE: Self =
        Self { names: &ENVELOPE_FIELDS, max_bytes: usize::MAX, max_elements: MAX_ENVELOPE_ELEMENTS };
    const MESSAGE: Self = Self { names: &[], max_bytes: MAX_FIELD_BYTES, max_elements: usize::MAX };

    fn has_name(&self, name: &str) -> bool {
        self.names.is_empty() || self.names.contains(&name)
    }
}

/// The top-level fields of a decrypted message. No `Debug`: they contain codes and tickets.
#[derive(Default)]
pub struct Fields(Vec<(String, String)>);

impl Fields {
    /// Parses a decrypted message. One that is neither XML nor JSON has no fields: what WeCom signed is passed on even
    /// if this program does not understand it. Fails only for a document type declaration.
    pub fn parse(message: &[u8]) -> Result<Self, ParseError> {
        let parsed = match Format::detect(message) {
            Some(Format::Xml) => Self::parse_xml(message, &XmlLimits::MESSAGE),
            Some(Format::Json) => Self::parse_json(message),
            None => Ok(Self::default()),
        };
        match parsed {
            Err(ParseError::Malformed) => Ok(Self::default()),
            parsed => parsed,
        }
    }

    /// The first field of this name.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(field, _)| field == name).map(|(_, value)| value.as_str())
    }

    /// The only field of this name; two are an error, since parsers differ in which one they take.
    fn take_single(&mut self, name: &str) -> Result<Option<String>, ParseError> {
        let mut found = self.0.iter_mut().filter(|(field, _)| field == name);
        match (found.next(), found.next()) {
            (Some((_, value)), None) => Ok(Some(std::mem::take(value))),
            (None, _) => Ok(None),
            (Some(_), Some(_)) => Err(ParseError::Malformed),
        }
    }

    /// The texts of the root's children that have no children themselves.
    fn parse_xml(text: &[u8], limits: &XmlLimits) -> Result<Self, ParseError> {
        let text = std::str::from_utf8(text).map_err(|_| ParseError::Malformed)?;
        let mut reader = Reader::from_str(text);
        let (mut fields, mut depth, mut elements) = (Self::default(), 0_usize, 0);
        let mut field: Option<(String, String)> = None;
        loop {
            let event = reader.read_event().map_err(|_| ParseError::Malformed)?;
            elements += usize::from(matches!(event, Event::Start(_) | Event::Empty(_)));
            if elements > limits.max_elements {
                return Err(ParseError::Malformed);
            }
            match event {
                Event::DocType(_) => return Err(ParseError::Dtd),
                Event::Start(start) => {
                    depth += 1;
                    let name = start.name().0;
                    field = (depth == 2 && limits.has_name(name)).then(|| (name.to_owned(), String::new()));
                }
                Event::End(_) => {
                    depth = depth.checked_sub(1).ok_or(ParseError::Malformed)?;
                    fields.0.extend(field.take().filter(|(_, value)| value.len() <= limits.max_bytes));
                }
                Event::Empty(start) if depth == 1 && limits.has_name(start.name().0) => {
                    fields.0.push((start.name().0.to_owned(), String::new()));
                }
                Event::Text(text) => append(&mut field, &text.xml10_content()),
                Event::CData(text) => append(&mut field, &text.xml10_content()),
                Event::GeneralRef(reference) => append(&mut field, &resolve(&reference)?),
                Event::Eof if depth == 0 => return Ok(fields),
                Event::Eof => return Err(ParseError::Malformed),
                Event::Empty(_) | Event::Comment(_) | Event::Decl(_) | Event::PI(_) => {}
            }
        }
    }

    /// The top-level texts and numbers; of an object `event`, its `eventtype`. Names become those of XML.
    fn parse_json(text: &[u8]) -> Result<Self, ParseError> {
        let value: serde_json::Map<String, Value> =
            serde_json::from_slice(text).map_err(|_| ParseError::Malformed)?;
        let mut fields = Self::default();
        for (name, value) in value {
            let value = match &value {
                Value::Object(event) if name == "event" => event.get("eventtype").and_then(Value::as_str),
                value => value.as_str(),
            };
            let name = JSON_NAMES.iter().find(|(json, _)| *json == name).map_or(name.as_str(), |row| row.1);
            let value = value.filter(|value| value.len() <= MAX_FIELD_BYTES);
            fields.0.extend(value.map(|value| (name.to_owned(), value.to_owned())));
        }
        Ok(fields)
    }
}

/// Names of fields in JSON messages, and those of the same in XML.
const JSON_NAMES: [(&str, &str); 5] = [
    ("event", "Event"),
    ("msgtype", "MsgType"),
    ("infotype", "InfoType"),
    ("auth_code", "AuthCode"),
    ("token", "Token"),
];

fn append(field: &mut Option<(String, String)>, text: &str) {
    if let Some((_, value)) = field {
        value.push_str(text);
    }
}

/// The text of a reference to a character or to one of XML's own entities; there are no others without a DTD.
fn resolve(reference: &BytesRef<'_>) -> Result<Cow<'static, str>, ParseError> {
    if let Some(char) = reference.resolve_char_ref().map_err(|_| ParseError::Malformed)? {
        return Ok(char.to_string().into());
    }
    let text = resolve_xml_entity(&reference.xml10_content()).ok_or(ParseError::Malformed)?;
    Ok(text.into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fields(message: &str) -> Fields {
        Fields::parse(message.as_bytes()).unwrap_or_else(|error| panic!("{error}: {message}"))
    }

    #[test]
    fn envelopes_of_both_formats_are_parsed() {
        let xml = b"<xml><ToUserName><![CDATA[ww1]]></ToUserName><AgentID><![CDATA[218]]></AgentID><Encrypt><![CDATA[AA+/=]]></Encrypt></xml>";
        let Ok(envelope) = Envelope::parse(xml) else { panic!("valid") };
        assert_eq!((&*envelope.encrypted, envelope.format), ("AA+/=", Format::Xml));
        assert_eq!(envelope.to_user_name.as_deref(), Some("ww1"));
        assert_eq!(envelope.agent_id.as_deref(), Some("218"));
        for json in [r#"{"encrypt":"AA=="}"#, r#" {"Encrypt":"AA==","x":[{}]}"#] {
            let Ok(envelope) = Envelope::parse(json.as_bytes()) else { panic!("{json}") };
            assert_eq!((&*envelope.encrypted, envelope.format), ("AA==", Format::Json));
        }
    }

    #[test]
    fn odd_but_well_formed_envelopes_are_parsed() {
        for xml in [
            "\u{feff}<?xml version=\"1.0\"?>\r\n<xml>\n<Encrypt>AA==</Encrypt>\n</xml>\n",
            "<xml><!-- --><AgentID/><Encrypt><![CDATA[A]]>A=&#61;</Encrypt></xml>",
            "<xml><x><Encrypt>no</Encrypt></x><Encrypt>AA==</Encrypt></xml>",
        ] {
            let Ok(envelope) = Envelope::parse(xml.as_bytes()) else { panic!("{xml}") };
            assert_eq!(envelope.encrypted, "AA==", "{xml}");
        }
    }

    #[test]
    fn malformed_envelopes_are_refused() {
        for body in [
            "",
            "text",
            "<xml>",
            "<xml></xml>",
            "</xml>",
            "<xml><Encrypt>A</Encrypt><Encrypt>B</Encrypt></xml>",
            "<xml><Encrypt>A</Wrong></xml>",
            "<xml><Encrypt>&x;</Encrypt></xml>",
            "<xml><Encrypt>&#xFFFFFF;</Encrypt></xml>",
            "{}",
            "{\"encrypt\":1}",
            "{\"encrypt\":\"A\"",
            "{\"encrypt\":\"A\"}x",
            "[]",
        ] {
            assert_eq!(Envelope::parse(body.as_bytes()).err(), Some(ParseError::Malformed), "{body}");
        }
        assert_eq!(Envelope::parse(b"<xml><Encrypt>\xff</Encrypt></xml>").err(), Some(ParseError::Malformed));
        for body in [
            "<!DOCTYPE xml><xml><Encrypt>A</Encrypt></xml>",
            "<!doctype xml [<!ENTITY e \"x\">]><xml><Encrypt>&e;</Encrypt></xml>",
        ] {
            assert_eq!(Envelope::parse(body.as_bytes()).err(), Some(ParseError::Dtd), "{body}");
        }
    }

    #[test]
    fn document_type_is_found_before_the_first_element_only() {
        for (body, expected) in [
            ("<!DOCTYPE xml><xml/>", true),
            ("\u{feff}<?xml version=\"1.0\"?>\n<!-- --> <!doctype x [<!ENTITY e \"x\">]><xml/>", true),
            ("<xml><!DOCTYPE xml></xml>", false),
            ("<xml/>", false),
            ("text <!DOCTYPE xml>", false),
            ("{}", false),
            ("", false),
        ] {
            assert_eq!(has_document_type(body.as_bytes()), expected, "{body}");
        }
        let late = format!("{}<!DOCTYPE x>", "<!---->".repeat(100_000));
        assert!(!has_document_type(late.as_bytes()), "few events are read");
        assert!(!has_document_type(b"\xff<!DOCTYPE x>"));
    }

    #[test]
    fn envelope_keeps_few_elements() {
        let body = |others: usize| format!("<xml>{}<Encrypt>AA==</Encrypt></xml>", "<a/>".repeat(others));
        assert!(Envelope::parse(body(60).as_bytes()).is_ok());
        for others in [64, 200_000] {
            assert_eq!(Envelope::parse(body(others).as_bytes()).err(), Some(ParseError::Malformed));
        }
        let nested = format!("{}<Encrypt>AA==</Encrypt>", "<a>".repeat(200_000));
        assert_eq!(Envelope::parse(nested.as_bytes()).err(), Some(ParseError::Malformed));
        let text = body(50);
        let Ok(kept) = Fields::parse_xml(text.as_bytes(), &XmlLimits::ENVELOPE) else { panic!("valid") };
        assert_eq!(kept.0, [("Encrypt".to_owned(), "AA==".to_owned())]);
        assert_eq!(fields(&body(1000)).0.len(), 1001, "a message, whose signature was checked");
    }

    #[test]
    fn fields_of_messages_are_the_top_level_texts() {
        let message = fields(
            "<xml><ToUserName><![CDATA[ww1]]></ToUserName><MsgType>event</MsgType><Event><![CDATA[kf_msg_or_event]]></Event><Token>T</Token><Items><Event>inner</Event></Items></xml>",
        );
        assert_eq!(message.get("Event"), Some("kf_msg_or_event"));
        assert_eq!((message.get("Token"), message.get("AuthCode")), (Some("T"), None));
        let bot = fields(r#"{"msgid":"m","msgtype":"event","event":{"eventtype":"enter_chat"},"n":1}"#);
        assert_eq!((bot.get("Event"), bot.get("MsgType")), (Some("enter_chat"), Some("event")));
        for unknown in ["", "text", "<xml>", "{", "[1]"] {
            assert!(fields(unknown).0.is_empty(), "{unknown}");
        }
        assert_eq!(Fields::parse(b"<!DOCTYPE x><xml/>").err(), Some(ParseError::Dtd));
    }

    proptest! {
        #[test]
        fn parse_never_panics(text in "[<>/!\\[\\]&;#x{}\":,a-eCDAT DOCTYPE-]{0,60}") {
            let _ = (Envelope::parse(text.as_bytes()).is_ok(), Fields::parse(text.as_bytes()).is_ok());
        }

        #[test]
        fn field_keeps_its_text(text in "[ -~人]{0,40}") {
            prop_assume!(!text.contains("]]>"));
            let message = format!("<xml><Event><![CDATA[{text}]]></Event></xml>");
            let fields = fields(&message);
            prop_assert_eq!(fields.get("Event"), Some(&*text));
        }
    }
}
