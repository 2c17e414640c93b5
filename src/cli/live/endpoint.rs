//! The address of the admin listener: from a URL, or from the configuration file.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    path::PathBuf,
};

use http::Uri;

use super::AdminLocation;
use crate::{
    cli::{CliError, load_without_secrets},
    config::Address,
};

/// Where to connect, and what stands before each path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct AdminEndpoint {
    pub(super) target: AdminTransport,
    /// Value of `Host`.
    pub(super) authority: String,
    /// Without a final slash.
    pub(super) path_prefix: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum AdminTransport {
    Tcp { host: String, port: u16, tls: bool },
    Unix(PathBuf),
}

impl AdminEndpoint {
    pub(super) fn find(location: AdminLocation<'_>) -> Result<Self, CliError> {
        match location.url {
            Some(url) => {
                Self::from_url(url).map_err(|message| CliError::config(format!("--admin: {message}")))
            }
            None => Self::from_config(location),
        }
    }

    fn from_url(text: &str) -> Result<Self, String> {
        const EXAMPLES: &str =
            "write it like http://127.0.0.1:9090, https://proxy.example or unix:/run/wecom-proxy-admin.sock";
        if let Some(path) = text.strip_prefix("unix:").filter(|path| !path.is_empty()) {
            return Ok(Self::unix(PathBuf::from(path)));
        }
        let uri: Uri = text.parse().map_err(|_| format!("is not a URL; {EXAMPLES}"))?;
        let tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(format!("must begin with http://, https:// or unix:; {EXAMPLES}")),
        };
        let authority = uri.authority().ok_or_else(|| format!("has no host; {EXAMPLES}"))?;
        if authority.as_str().contains('@') {
            return Err("must not contain a key; set WECOM_PROXY_ADMIN_KEY to it".to_owned());
        }
        if uri.query().is_some() {
            return Err(format!("must not have a query; {EXAMPLES}"));
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = authority.port_u16().unwrap_or(if tls { 443 } else { 80 });
        Ok(Self {
            target: AdminTransport::Tcp { host, port, tls },
            authority: authority.to_string(),
            path_prefix: uri.path().trim_end_matches('/').to_owned(),
        })
    }

    fn from_config(location: AdminLocation<'_>) -> Result<Self, CliError> {
        let path = location.config.display();
        let config = load_without_secrets(location.config)?;
        let Some(address) = config.admin.as_ref().and_then(|admin| admin.listen.first()) else {
            return Err(CliError::config(format!(
                "{path}: no admin listener configured; add a line [admin] to the file, and restart the proxy"
            )));
        };
        let mut address = match address {
            Address::Unix(path) => return Ok(Self::unix(path.clone())),
            Address::Tcp(address) => *address,
        };
        if address.port() == 0 {
            return Err(CliError::config(format!(
                "{path}: admin.listen has port 0, so its address is known only from the log; name it with --admin URL"
            )));
        }
        if address.ip().is_unspecified() {
            address.set_ip(if address.is_ipv4() {
                Ipv4Addr::LOCALHOST.into()
            } else {
                Ipv6Addr::LOCALHOST.into()
            });
        }
        Ok(Self {
            target: AdminTransport::Tcp { host: address.ip().to_string(), port: address.port(), tls: false },
            authority: address.to_string(),
            path_prefix: String::new(),
        })
    }

    fn unix(path: PathBuf) -> Self {
        let (authority, path_prefix) = ("localhost".to_owned(), String::new());
        Self { target: AdminTransport::Unix(path), authority, path_prefix }
    }
}

impl std::fmt::Display for AdminEndpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.target {
            AdminTransport::Tcp { .. } => f.write_str(&self.authority),
            AdminTransport::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_or_refused() {
        let tcp = |host: &str, port, tls| AdminTransport::Tcp { host: host.to_owned(), port, tls };
        for (url, target, prefix) in [
            ("http://127.0.0.1:9090", tcp("127.0.0.1", 9090, false), ""),
            ("http://[::1]:9090/", tcp("::1", 9090, false), ""),
            ("https://proxy.example/admin/", tcp("proxy.example", 443, true), "/admin"),
            ("unix:/run/x.sock", AdminTransport::Unix("/run/x.sock".into()), ""),
        ] {
            let endpoint = AdminEndpoint::from_url(url).expect("an endpoint");
            assert_eq!((&endpoint.target, endpoint.path_prefix.as_str()), (&target, prefix), "{url}");
        }
        for url in
            ["127.0.0.1:9090", "ftp://x", "http://", "unix:", "http://op:key@127.0.0.1", "http://x/?a=b"]
        {
            assert!(AdminEndpoint::from_url(url).is_err(), "{url}");
        }
    }
}
