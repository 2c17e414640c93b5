//! The address of a listener: from a URL, from the configuration file, or given.

use std::path::{Path, PathBuf};

use http::Uri;

use crate::{
    cli::{CliError, load_without_secrets},
    config::Address,
    format_text, text,
    text::Text,
};

/// Where the admin listener is.
#[derive(Debug, Clone, Copy)]
pub struct AdminLocation<'a> {
    /// Its URL; without one, it is taken from the configuration file.
    pub url: Option<&'a str>,
    /// The authorities of an `https://` URL, in PEM; without them, the public ones.
    pub ca_file: Option<&'a Path>,
    /// The configuration file.
    pub config: &'a Path,
}

/// Where to connect, and what stands before each path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ListenerEndpoint {
    pub(super) transport: ListenerTransport,
    /// Value of `Host`.
    pub(super) authority: String,
    /// Without a final slash.
    pub(super) path_prefix: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ListenerTransport {
    Tcp { host: String, port: u16, tls: bool, ca_file: Option<PathBuf> },
    Unix(PathBuf),
}

/// What URLs look like.
const EXAMPLES: Text = text!(
    "write it like http://127.0.0.1:9090, https://proxy.example or unix:/run/wecom-proxy-admin.sock",
    "请写成 http://127.0.0.1:9090、https://proxy.example 或 unix:/run/wecom-proxy-admin.sock"
);

impl ListenerEndpoint {
    /// The admin listener.
    pub(super) fn find(location: AdminLocation<'_>) -> Result<Self, CliError> {
        match location.url {
            Some(url) => {
                let mut endpoint = Self::from_url(url).map_err(|message| {
                    CliError::config(format_text!("--admin: {}", "--admin：{}", message))
                })?;
                if let ListenerTransport::Tcp { ca_file, .. } = &mut endpoint.transport {
                    *ca_file = location.ca_file.map(Path::to_owned);
                }
                Ok(endpoint)
            }
            None => Self::from_config(location),
        }
    }

    /// A listener on this machine, without TLS.
    pub(super) fn of_listener(address: &Address) -> Self {
        let tcp = match address {
            Address::Unix(path) => return Self::unix(path.clone()),
            Address::Tcp(listening) => address.to_connect().unwrap_or(*listening),
        };
        let (host, port) = (tcp.ip().to_string(), tcp.port());
        Self {
            transport: ListenerTransport::Tcp { host, port, tls: false, ca_file: None },
            authority: tcp.to_string(),
            path_prefix: String::new(),
        }
    }

    fn from_url(text: &str) -> Result<Self, Text> {
        if let Some(path) = text.strip_prefix("unix:").filter(|path| !path.is_empty()) {
            return Ok(Self::unix(PathBuf::from(path)));
        }
        let uri: Uri =
            text.parse().map_err(|_| format_text!("is not a URL; {}", "不是 URL；{}", EXAMPLES))?;
        let tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => {
                return Err(format_text!(
                    "must begin with http://, https:// or unix:; {}",
                    "必须以 http://、https:// 或 unix: 开头；{}",
                    EXAMPLES
                ));
            }
        };
        let authority =
            uri.authority().ok_or_else(|| format_text!("has no host; {}", "没有主机；{}", EXAMPLES))?;
        if authority.as_str().contains('@') {
            return Err(text!(
                "must not contain a key; set WECOM_PROXY_ADMIN_KEY to it",
                "不能包含密钥；请把 WECOM_PROXY_ADMIN_KEY 设为它"
            ));
        }
        if uri.query().is_some() {
            return Err(format_text!("must not have a query; {}", "不能有查询参数；{}", EXAMPLES));
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = authority.port_u16().unwrap_or(if tls { 443 } else { 80 });
        Ok(Self {
            transport: ListenerTransport::Tcp { host, port, tls, ca_file: None },
            authority: authority.to_string(),
            path_prefix: uri.path().trim_end_matches('/').to_owned(),
        })
    }

    fn from_config(location: AdminLocation<'_>) -> Result<Self, CliError> {
        let path = location.config.display();
        let config = load_without_secrets(location.config)?;
        let Some(address) = config.admin.as_ref().and_then(|admin| admin.listen.first()) else {
            return Err(CliError::config(format_text!(
                "{path}: no admin listener configured; add a line [admin] to the file, and restart the proxy",
                "{path}：没有配置管理端口；请在文件中添加一行 [admin]，然后重启代理"
            )));
        };
        if matches!(address, Address::Tcp(address) if address.port() == 0) {
            return Err(CliError::config(format_text!(
                "{path}: admin.listen has port 0, so its address is known only from the log; name it with --admin URL",
                "{path}：admin.listen 的端口是 0，实际地址只在日志中；请用 --admin URL 指定"
            )));
        }
        Ok(Self::of_listener(address))
    }

    fn unix(path: PathBuf) -> Self {
        let (authority, path_prefix) = ("localhost".to_owned(), String::new());
        Self { transport: ListenerTransport::Unix(path), authority, path_prefix }
    }
}

impl std::fmt::Display for ListenerEndpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.transport {
            ListenerTransport::Tcp { .. } => f.write_str(&self.authority),
            ListenerTransport::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_or_refused() {
        let tcp = |host: &str, port, tls| ListenerTransport::Tcp {
            host: host.to_owned(),
            port,
            tls,
            ca_file: None,
        };
        for (url, target, prefix) in [
            ("http://127.0.0.1:9090", tcp("127.0.0.1", 9090, false), ""),
            ("http://[::1]:9090/", tcp("::1", 9090, false), ""),
            ("https://proxy.example/admin/", tcp("proxy.example", 443, true), "/admin"),
            ("unix:/run/x.sock", ListenerTransport::Unix("/run/x.sock".into()), ""),
        ] {
            let endpoint = ListenerEndpoint::from_url(url).expect("an endpoint");
            assert_eq!((&endpoint.transport, endpoint.path_prefix.as_str()), (&target, prefix), "{url}");
        }
        for url in
            ["127.0.0.1:9090", "ftp://x", "http://", "unix:", "http://op:key@127.0.0.1", "http://x/?a=b"]
        {
            assert!(ListenerEndpoint::from_url(url).is_err(), "{url}");
        }
    }
}
