//! `[[callbacks.NAME.to]]`: a receiver of messages, which the proxy pushes to or which reads them itself.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use super::super::error::{Error, quote};
use super::super::named_tables::is_valid_name;
use super::super::reader::{ConfigTable, ConfigValue};
use super::super::{files, secret, url, url::PrivateUrl};
use crate::secret::Masked;

pub(crate) const KEYS: &[&str] = &[
    "name",
    "url",
    "ca_file",
    "form",
    "events",
    "reply",
    "ordered",
    "secret",
    "pull",
    "clients",
    "token",
    "aes_key",
    "receive_id",
];

const URL_EXAMPLE: &str = "http://127.0.0.1:9000/wecom";

/// `[[callbacks.NAME.to]]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallbackTarget {
    /// Unique within the callback.
    pub name: String,
    /// The events, infotypes and message types that it receives; empty for all.
    pub events: BTreeSet<String>,
    /// How messages reach it.
    pub method: DeliveryMethod,
}

/// How messages reach a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeliveryMethod {
    /// The proxy sends each message in a POST.
    Push {
        /// Where to.
        url: TargetUrl,
        /// What the body is.
        form: TargetForm,
        /// Whether its response body goes back to WeCom.
        reply: bool,
        /// Whether messages are sent one at a time, in the order of arrival.
        ordered: bool,
    },
    /// Clients read the messages as server-sent events.
    Pull {
        /// The names of these clients; never empty.
        clients: BTreeSet<String>,
    },
}

/// The body of a POST to a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetForm {
    /// The decrypted message; with a secret, signed.
    Plain {
        /// The key of the signature.
        secret: Option<Masked>,
    },
    /// Query and body as WeCom sent them.
    Raw,
    /// Encrypted again under the target's keys.
    Reencrypt(ReencryptKeys),
}

/// The keys of a target that decrypts by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReencryptKeys {
    /// The token of the signature.
    pub token: Masked,
    /// The EncodingAESKey.
    pub aes_key: Masked,
    /// The receiveid.
    pub receive_id: String,
}

/// The URL of a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetUrl {
    /// What to connect to.
    pub address: TargetAddress,
    /// Path and query, beginning with a slash.
    pub path_and_query: PrivateUrl,
    /// With https: the file of the trusted certificates, in place of the built-in ones.
    pub ca_file: Option<PathBuf>,
}

/// What to connect to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum TargetAddress {
    /// A host and port.
    Tcp {
        /// Whether it is https.
        tls: bool,
        /// A name or an IP address, without brackets.
        host: String,
        /// 80 or 443 by default.
        port: u16,
    },
    /// A unix socket.
    Unix(PathBuf),
}

/// Reads the targets of a callback; there may be none.
pub(super) fn read(callback: &ConfigTable<'_>) -> Result<Vec<CallbackTarget>, Error> {
    let Some(list) = callback.find("to") else { return Ok(Vec::new()) };
    let mut targets: Vec<CallbackTarget> = Vec::new();
    let mut reply: Option<String> = None;
    let mut readers: BTreeMap<String, String> = BTreeMap::new();
    for item in list.list("tables like [[callbacks.NAME.to]]")? {
        let section = item.table("a table with name and url", KEYS)?;
        let target = read_target(&item, &section)?;
        if targets.iter().any(|other| other.name == target.name) {
            return Err(section.location_of("name").error(format!(
                "{} is the name of another target; rename one of them",
                quote(&target.name)
            )));
        }
        match &target.method {
            DeliveryMethod::Push { reply: true, .. } => {
                if let Some(other) = reply.replace(target.name.clone()) {
                    return Err(section
                        .location_of("reply")
                        .error(format!("is set for {} too; at most one target can reply", quote(&other))));
                }
            }
            DeliveryMethod::Pull { clients } => {
                for client in clients {
                    if let Some(other) = readers.insert(client.clone(), target.name.clone()) {
                        return Err(section.location_of("clients").error(format!(
                            "names {}, which reads the events of {} already; a client reads those of one target",
                            quote(client),
                            quote(&other)
                        )));
                    }
                }
            }
            DeliveryMethod::Push { .. } => {}
        }
        targets.push(target);
    }
    Ok(targets)
}

fn read_target(item: &ConfigValue<'_>, section: &ConfigTable<'_>) -> Result<CallbackTarget, Error> {
    let name = section.read_required("name", "name = \"crm\"", |item| {
        let name = item.string("a name like \"crm\"")?;
        match is_valid_name(name) {
            true => Ok(name.to_owned()),
            false => Err(item.error("is not a name; use letters, digits, _ and -, at most 64 characters")),
        }
    })?;
    let events = section.read_or("events", BTreeSet::new(), |item| {
        read_texts(item, "a list of events like [\"change_contact\"]")
    });
    let pull = section.read_or("pull", false, ConfigValue::boolean);
    let method = match (section.find("url"), pull) {
        (Some(url), false) => read_push(section, &url)?,
        (None, true) => read_pull(section)?,
        (Some(url), true) => return Err(url.error("conflicts with pull = true; keep one of the two")),
        (None, false) => {
            return Err(item.error(format!(
                "has no url; write url = \"{URL_EXAMPLE}\", or pull = true and clients = [\"NAME\"]"
            )));
        }
    };
    Ok(CallbackTarget { name, events, method })
}

fn read_pull(section: &ConfigTable<'_>) -> Result<DeliveryMethod, Error> {
    refuse_keys(
        section,
        &["ca_file", "form", "reply", "ordered", "secret", "token", "aes_key", "receive_id"],
        "has no meaning with pull = true",
    )?;
    let clients = section.read_required("clients", "clients = [\"desktop\"]", |item| {
        read_texts(item, "a list of clients like [\"desktop\"]")
    })?;
    Ok(DeliveryMethod::Pull { clients })
}

fn read_push(section: &ConfigTable<'_>, url: &ConfigValue<'_>) -> Result<DeliveryMethod, Error> {
    refuse_keys(section, &["clients"], "needs pull = true")?;
    let form = read_form(section)?;
    let reply = section.read_or("reply", false, ConfigValue::boolean);
    let ordered = section.read_or("ordered", false, ConfigValue::boolean);
    if reply && ordered {
        let message = "conflicts with reply = true: a reply cannot wait for the messages before it";
        return Err(section.location_of("ordered").error(message));
    }
    Ok(DeliveryMethod::Push { url: read_url(section, url)?, form, reply, ordered })
}

fn read_form(section: &ConfigTable<'_>) -> Result<TargetForm, Error> {
    #[derive(Clone, Copy, PartialEq)]
    enum Form {
        Plain,
        Raw,
        Reencrypt,
    }
    let names = [("plain", Form::Plain), ("raw", Form::Raw), ("reencrypt", Form::Reencrypt)];
    let form = section.read_or("form", Form::Plain, |item| item.one_of(&names));
    if form != Form::Plain {
        refuse_keys(
            section,
            &["secret"],
            "signs plain messages only; take it out, or write form = \"plain\"",
        )?;
    }
    if form != Form::Reencrypt {
        refuse_keys(section, &["token", "aes_key", "receive_id"], "needs form = \"reencrypt\"")?;
    }
    Ok(match form {
        Form::Raw => TargetForm::Raw,
        Form::Plain => TargetForm::Plain { secret: section.read_optional("secret", secret::read) },
        Form::Reencrypt => TargetForm::Reencrypt(ReencryptKeys {
            token: section.read_required(
                "token",
                "token = { env = \"CRM_CALLBACK_TOKEN\" }",
                secret::read,
            )?,
            aes_key: section.read_required(
                "aes_key",
                "aes_key = { env = \"CRM_CALLBACK_AES_KEY\" }",
                secret::read_aes_key,
            )?,
            receive_id: section.read_required(
                "receive_id",
                "receive_id = \"ww1234567890abcdef\"",
                |item| item.string("a corpid or suite_id, or \"\"").map(str::to_owned),
            )?,
        }),
    })
}

fn read_url(section: &ConfigTable<'_>, item: &ConfigValue<'_>) -> Result<TargetUrl, Error> {
    let mut url = parse_url(item)?;
    match url.address {
        TargetAddress::Tcp { tls: true, .. } => {
            url.ca_file = section.read_optional("ca_file", files::read_file_path);
        }
        _ => refuse_keys(section, &["ca_file"], "needs a url with https")?,
    }
    Ok(url)
}

fn parse_url(item: &ConfigValue<'_>) -> Result<TargetUrl, Error> {
    let text = item.string(&format!("a URL like \"{URL_EXAMPLE}\" or \"unix:/run/app.sock:/path\""))?;
    if let Some(rest) = text.strip_prefix("unix:") {
        let (socket, path) = rest.split_once(":/").unwrap_or((rest, ""));
        if socket.is_empty() || rest.contains('\0') {
            return Err(item.error("has no socket; write one like \"unix:/run/app.sock:/path\""));
        }
        let address = TargetAddress::Unix(item.location.source.resolve(socket));
        let path_and_query = read_path(item, &format!("/{path}"))?.into();
        return Ok(TargetUrl { address, path_and_query, ca_file: None });
    }
    let url = url::read(item, &["http", "https"], URL_EXAMPLE)?.require_no_userinfo(item)?;
    let tls = url.scheme == "https";
    let path_and_query = read_path(item, if url.rest.is_empty() { "/" } else { url.rest })?.into();
    let address =
        TargetAddress::Tcp { tls, port: url.port.unwrap_or(if tls { 443 } else { 80 }), host: url.host };
    Ok(TargetUrl { address, path_and_query, ca_file: None })
}

fn read_path(item: &ConfigValue<'_>, text: &str) -> Result<String, Error> {
    let text = if text.starts_with('?') { format!("/{text}") } else { text.to_owned() };
    let is_valid = |byte: u8| byte.is_ascii_graphic() && !br#""<>\^`{|}#"#.contains(&byte);
    match text.bytes().all(is_valid) {
        true => Ok(text),
        false => Err(item.error("has a path with a character that must be percent-encoded, or a \"#\"")),
    }
}

/// A list of texts, not empty.
fn read_texts(item: &ConfigValue<'_>, expected: &str) -> Result<BTreeSet<String>, Error> {
    let texts = item.list(expected)?;
    let texts = texts.iter().map(|text| match text.string("a name")? {
        "" => Err(text.error("is empty")),
        text => Ok(text.to_owned()),
    });
    let texts = texts.collect::<Result<BTreeSet<_>, _>>()?;
    match texts.is_empty() {
        true => Err(item.error(format!("is empty; write {expected}"))),
        false => Ok(texts),
    }
}

fn refuse_keys(section: &ConfigTable<'_>, keys: &[&'static str], message: &str) -> Result<(), Error> {
    match keys.iter().find_map(|key| section.find(key)) {
        Some(item) => Err(item.error(message)),
        None => Ok(()),
    }
}
