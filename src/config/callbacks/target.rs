//! `[[callbacks.NAME.to]]`: a receiver of messages, which the proxy pushes to or which reads them itself.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use super::super::error::{Error, quote};
use super::super::reader::{ConfigTable, ConfigValue, read_all};
use super::super::table_name::is_valid_name;
use super::super::{files, secret, url, url::PrivateUrl};
use crate::secret::Masked;
use crate::text::Text;
use crate::{format_text, text};

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
    let items = list.list(text!("tables like [[callbacks.NAME.to]]", "[[callbacks.NAME.to]] 这样的表"))?;
    read_all(&items, |item| {
        let section = item.table(text!("a table with name and url", "含 name 和 url 的表"), KEYS)?;
        let target = read_target(item, &section)?;
        if targets.iter().any(|other| other.name == target.name) {
            return Err(section.location_of("name").error(format_text!(
                "{} is the name of another target; rename one of them",
                "{} 是另一个目标的名字；请改其中一个",
                quote(&target.name)
            )));
        }
        match &target.method {
            DeliveryMethod::Push { reply: true, .. } => {
                if let Some(other) = reply.replace(target.name.clone()) {
                    return Err(section.location_of("reply").error(format_text!(
                        "is set for {} too; at most one target can reply",
                        "{} 也设置了此项；最多一个目标可以回复",
                        quote(&other)
                    )));
                }
            }
            DeliveryMethod::Pull { clients } => {
                for client in clients {
                    if let Some(other) = readers.insert(client.clone(), target.name.clone()) {
                        return Err(section.location_of("clients").error(format_text!("names {}, which reads the events of {} already; a client reads those of one target", "指定的 {} 已在读取 {} 的事件；一个调用方只能读取一个目标",
                            quote(client),
                            quote(&other))));
                    }
                }
            }
            DeliveryMethod::Push { .. } => {}
        }
        targets.push(target);
        Ok(())
    })?;
    Ok(targets)
}

fn read_target(item: &ConfigValue<'_>, section: &ConfigTable<'_>) -> Result<CallbackTarget, Error> {
    let name = section.read_required("name", "name = \"crm\"", |item| {
        let name = item.string(text!("a name like \"crm\"", "\"crm\" 这样的名字"))?;
        if !is_valid_name(name) {
            return Err(item.error(text!(
                "is not a name; use letters, digits, _ and -, at most 64 characters",
                "不是名字；请用字母、数字、_ 和 -，最多 64 个字符"
            )));
        }
        Ok(name.to_owned())
    })?;
    let events = section.read_or("events", BTreeSet::new(), |item| {
        read_texts(
            item,
            text!("a list of events like [\"change_contact\"]", "事件列表，如 [\"change_contact\"]"),
        )
    });
    let pull = section.read_or("pull", false, ConfigValue::boolean);
    let method = match (section.find("url"), pull) {
        (Some(url), false) => read_push(section, &url)?,
        (None, true) => read_pull(section)?,
        (Some(url), true) => {
            return Err(url.error(text!(
                "conflicts with pull = true; keep one of the two",
                "与 pull = true 冲突；两者只保留一个"
            )));
        }
        (None, false) => {
            return Err(item.error(format_text!(
                "has no url; write url = \"{URL_EXAMPLE}\", or pull = true and clients = [\"NAME\"]",
                "没有 url；请写 url = \"{URL_EXAMPLE}\"，或 pull = true 和 clients = [\"NAME\"]"
            )));
        }
    };
    Ok(CallbackTarget { name, events, method })
}

fn read_pull(section: &ConfigTable<'_>) -> Result<DeliveryMethod, Error> {
    refuse_keys(
        section,
        &["ca_file", "form", "reply", "ordered", "secret", "token", "aes_key", "receive_id"],
        text!("has no meaning with pull = true", "在 pull = true 时没有意义"),
    )?;
    let clients = section.read_required("clients", "clients = [\"desktop\"]", |item| {
        read_texts(item, text!("a list of clients like [\"desktop\"]", "调用方列表，如 [\"desktop\"]"))
    })?;
    Ok(DeliveryMethod::Pull { clients })
}

fn read_push(section: &ConfigTable<'_>, url: &ConfigValue<'_>) -> Result<DeliveryMethod, Error> {
    refuse_keys(section, &["clients"], text!("needs pull = true", "需要 pull = true"))?;
    let form = read_form(section)?;
    let reply = section.read_or("reply", false, ConfigValue::boolean);
    let ordered = section.read_or("ordered", false, ConfigValue::boolean);
    if reply && ordered {
        let message = text!(
            "conflicts with reply = true: a reply cannot wait for the messages before it",
            "与 reply = true 冲突：回复不能等待前面的消息"
        );
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
            text!(
                "signs plain messages only; take it out, or write form = \"plain\"",
                "只用于给明文消息签名；请去掉，或写 form = \"plain\""
            ),
        )?;
    }
    if form != Form::Reencrypt {
        refuse_keys(
            section,
            &["token", "aes_key", "receive_id"],
            text!("needs form = \"reencrypt\"", "需要 form = \"reencrypt\""),
        )?;
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
                |item| {
                    item.string(text!("a corpid or suite_id, or \"\"", "corpid 或 suite_id，或 \"\""))
                        .map(str::to_owned)
                },
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
        _ => refuse_keys(section, &["ca_file"], text!("needs a url with https", "需要 https 的 url"))?,
    }
    Ok(url)
}

fn parse_url(item: &ConfigValue<'_>) -> Result<TargetUrl, Error> {
    let text = item.string(format_text!(
        "a URL like \"{URL_EXAMPLE}\" or \"unix:/run/app.sock:/path\"",
        "\"{URL_EXAMPLE}\" 或 \"unix:/run/app.sock:/path\" 这样的 URL"
    ))?;
    if let Some(rest) = text.strip_prefix("unix:") {
        let (socket, path) = rest.split_once(":/").unwrap_or((rest, ""));
        if socket.is_empty() || rest.contains('\0') {
            return Err(item.error(text!(
                "has no socket; write one like \"unix:/run/app.sock:/path\"",
                "没有套接字；请写成 \"unix:/run/app.sock:/path\""
            )));
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
    if !text.bytes().all(is_valid) {
        return Err(item.error(text!(
            "has a path with a character that must be percent-encoded, or a \"#\"",
            "的路径中有必须百分号编码的字符，或有 \"#\""
        )));
    }
    Ok(text)
}

/// A list of texts, not empty.
fn read_texts(item: &ConfigValue<'_>, expected: Text) -> Result<BTreeSet<String>, Error> {
    let texts = item.list(expected.clone())?;
    let texts = read_all(&texts, |text| match text.string(text!("a name", "名字"))? {
        "" => Err(text.error(text!("is empty", "为空"))),
        text => Ok(text.to_owned()),
    })?;
    let texts: BTreeSet<_> = texts.into_iter().collect();
    match texts.is_empty() {
        true => Err(item.error(format_text!("is empty; write {}", "为空；请写{}", expected))),
        false => Ok(texts),
    }
}

fn refuse_keys(section: &ConfigTable<'_>, keys: &[&'static str], message: Text) -> Result<(), Error> {
    match keys.iter().find_map(|key| section.find(key)) {
        Some(item) => Err(item.error(message)),
        None => Ok(()),
    }
}
