//! The whole configuration as JSON, with the defaults of omitted settings: the tables of `proxy.toml`. A secret shows only
//! that it is set, and a URL not its user, password and query.

use serde_json::{Map, Value, json};

use super::callbacks::{
    CallbackConfig, CallbackTarget, DeliveryMethod, ReencryptKeys, TargetAddress, TargetForm,
};
use super::egress::{EgressProtocol, EgressProxy};
use super::json::{is_set, non_empty, table, texts};
use super::reader::name_of;
use super::{
    AdminConfig, Config, LogConfig, LoggedRequests, PrivateUrl, ProviderConfig, QuotasConfig, RedisConfig,
    ReplayConfig, ServerConfig, StateConfig, StoreConfig, SuiteConfig, TokensConfig, Topology,
    UpstreamConfig, agent_to_json, authority, client_to_json, corp_to_json, format_duration, format_size,
    log, quotas, server, trusted_proxies,
};
use crate::secret::Masked;

/// The tables of settings: without agents, clients, callbacks, providers and suites, of which there can be very many.
pub fn effective_settings(config: &Config) -> Map<String, Value> {
    let mut root = Map::new();
    put_tables(
        &mut root,
        "upstreams",
        config.upstreams.iter().map(|(name, of)| (name.as_str(), upstream_to_json(of))),
    );
    root.extend(table(json!({
        "server": server_to_json(&config.server),
        "upstream": upstream_to_json(&config.upstream),
        "tokens": tokens_to_json(&config.tokens),
        "replay": replay_to_json(&config.replay),
        "quotas": quotas_to_json(&config.quotas),
        "log": log_to_json(&config.log),
        "admin": config.admin.as_ref().map(admin_to_json),
        "state": config.state.as_ref().map(state_to_json),
    })));
    root
}

/// The tables of the main file.
pub fn effective(config: &Config) -> Map<String, Value> {
    let mut root = effective_settings(config);
    let agents = config.agents.iter().map(|(name, of)| (name.as_str(), agent_to_json(of)));
    let corps = config.suites.corps.iter();
    let corps = corps.map(|(name, of)| (name.as_str(), corp_to_json((&of.suite, &of.corpid), &of.settings)));
    put_tables(&mut root, "agents", agents.chain(corps));
    put_tables(
        &mut root,
        "clients",
        config.clients.iter().map(|(name, of)| (name.as_str(), client_to_json(of))),
    );
    let callbacks = config.callbacks.iter().filter(|(_, of)| of.suite.is_none());
    put_tables(&mut root, "callbacks", callbacks.map(|(name, of)| (name.as_str(), callback_to_json(of))));
    let providers = config.suites.providers.iter();
    put_tables(&mut root, "providers", providers.map(|(name, of)| (name.as_str(), provider_to_json(of))));
    let suites = config.suites.suites.iter();
    let suites = suites.map(|(name, of)| (name.as_str(), suite_to_json(of, config.callbacks.get(name))));
    put_tables(&mut root, "suites", suites);
    root
}

fn put_tables<'a>(
    root: &mut Map<String, Value>,
    kind: &str,
    tables: impl Iterator<Item = (&'a str, Map<String, Value>)>,
) {
    let tables: Map<_, _> = tables.map(|(name, table)| (name.to_owned(), table.into())).collect();
    if !tables.is_empty() {
        root.insert(kind.to_owned(), tables.into());
    }
}

fn masked(secret: &Option<Masked>) -> Value {
    secret.as_ref().map_or(Value::Null, |_| is_set())
}

fn server_to_json(server: &ServerConfig) -> Map<String, Value> {
    let ServerConfig {
        listen,
        tls,
        open,
        max_connections,
        header_timeout,
        idle_timeout,
        body_timeout,
        max_request_body,
        shutdown_grace,
        trusted,
        socket_access,
        reload,
    } = server;
    let tls = tls
        .as_ref()
        .map(|tls| table(json!({ "cert": tls.cert, "key": tls.key, "client_ca": tls.client_ca })));
    let mut networks = texts(&trusted.networks);
    networks.extend(trusted.unix.then(|| "unix".to_owned()));
    table(json!({
        "listen": texts(listen),
        "tls": tls,
        "open": open,
        "max_connections": max_connections,
        "header_timeout": format_duration(*header_timeout),
        "idle_timeout": format_duration(*idle_timeout),
        "body_timeout": format_duration(*body_timeout),
        "max_request_body": format_size(*max_request_body),
        "shutdown_grace": format_duration(*shutdown_grace),
        "trusted_proxies": networks,
        "client_address": name_of(&trusted_proxies::HEADERS, &trusted.header),
        "proxy_protocol": trusted.proxy_protocol,
        "socket_mode": socket_access.mode.map(|mode| format!("{mode:04o}")),
        "socket_group": socket_access.group.map(|group| group.to_string()),
        "reload": name_of(&server::RELOAD_TRIGGERS, reload),
    }))
}

fn upstream_to_json(upstream: &UpstreamConfig) -> Map<String, Value> {
    table(json!({
        "url": upstream.base_url(),
        "ca_file": upstream.ca_file,
        "via": non_empty(upstream.via.iter().map(egress_proxy).collect()),
        "connect_timeout": format_duration(upstream.connect_timeout),
        "response_timeout": format_duration(upstream.response_timeout),
        "body_timeout": format_duration(upstream.body_timeout),
        "idle_timeout": format_duration(upstream.idle_timeout),
        "tcp_keepalive": format_duration(upstream.tcp_keepalive),
        "max_age": format_duration(upstream.max_age),
        "max_in_flight": upstream.max_in_flight,
        "queue_timeout": format_duration(upstream.queue_timeout),
        "require_length": upstream.require_length,
    }))
}

fn egress_proxy(proxy: &EgressProxy) -> Value {
    let scheme = match proxy.protocol {
        EgressProtocol::HttpConnect => "http",
        EgressProtocol::Socks5 => "socks5",
        EgressProtocol::Socks5Hostname => "socks5h",
    };
    let url = format!("{scheme}://{}", proxy.authority());
    match &proxy.login {
        None => url.into(),
        Some(login) => {
            // Without a password, the user is one: a token of the proxy's operator.
            let user = if login.password.expose().is_empty() { "***" } else { login.user.expose() };
            json!({ "url": url, "user": user, "password": is_set() })
        }
    }
}

fn tokens_to_json(tokens: &TokensConfig) -> Map<String, Value> {
    table(json!({
        "refresh_errcodes": tokens.refresh_errcodes,
        "refresh_ahead": format_duration(tokens.refresh_ahead),
        "renewals_per_hour": tokens.renewals_per_hour,
        "pass_key": masked(&tokens.pass_key),
        "store": match &tokens.store {
            StoreConfig::Memory => json!("memory"),
            StoreConfig::Redis(redis) => store(redis).into(),
        },
    }))
}

fn store(redis: &RedisConfig) -> Map<String, Value> {
    let scheme = if redis.tls { "rediss" } else { "redis" };
    let urls = redis.nodes.iter().map(|node| format!("{scheme}://{node}/{}", redis.database));
    table(json!({
        "redis": urls.collect::<Vec<_>>(),
        "cluster": matches!(redis.topology, Topology::Cluster),
        "sentinel": match &redis.topology {
            Topology::Sentinel(master) => Some(master),
            Topology::Single | Topology::Cluster => None,
        },
        "sentinel_user": redis.sentinel_user,
        "sentinel_password": masked(&redis.sentinel_password),
        "user": redis.user,
        "password": masked(&redis.password),
        "ca_file": redis.ca_file,
        "prefix": redis.prefix,
        "key": is_set(),
        "old_key": masked(&redis.old_key),
    }))
}

fn replay_to_json(ReplayConfig { memory, disk, dir }: &ReplayConfig) -> Map<String, Value> {
    table(json!({ "memory": format_size(*memory), "disk": format_size(*disk), "dir": dir }))
}

fn quotas_to_json(QuotasConfig { mode, limits }: &QuotasConfig) -> Map<String, Value> {
    let limits = limits.iter().map(
        |row| json!({ "path": row.path.to_string(), "per": row.per.name(), "limit": row.limit.to_string() }),
    );
    table(json!({
        "mode": name_of(&quotas::MODES, mode),
        "limit": non_empty(limits.collect()),
    }))
}

fn log_to_json(LogConfig { format, level, access, access_file }: &LogConfig) -> Map<String, Value> {
    table(json!({
        "format": name_of(&log::FORMATS, format),
        "level": level.as_str(),
        "access": match access {
            LoggedRequests::None => json!(false),
            access => json!(name_of(&log::LOGGED_REQUESTS, access)),
        },
        "access_file": access_file,
    }))
}

fn admin_to_json(
    AdminConfig { listen, key_sha256, reader_key_sha256, recent, otlp, trace_url, metrics }: &AdminConfig,
) -> Map<String, Value> {
    table(json!({
        "listen": texts(listen),
        "key_sha256": key_sha256.as_ref().map(|_| is_set()),
        "reader_key_sha256": reader_key_sha256.as_ref().map(|_| is_set()),
        "trace_url": trace_url.as_ref().map(PrivateUrl::masked),
        "recent": recent,
        "metrics": { "per_client": metrics.per_client, "per_agent": metrics.per_agent },
        "otlp": otlp.as_ref().map(ToString::to_string),
    }))
}

fn state_to_json(state: &StateConfig) -> Map<String, Value> {
    match state {
        StateConfig::Shared(_) => table(json!({ "shared": true })),
        StateConfig::File(file) => {
            table(json!({ "path": file.path, "key": is_set(), "old_key": masked(&file.old_key) }))
        }
    }
}

fn provider_to_json(provider: &ProviderConfig) -> Map<String, Value> {
    table(json!({ "corpid": provider.corpid, "secret": is_set() }))
}

/// `command` has the settings of the suite's receiver URLs.
fn suite_to_json(suite: &SuiteConfig, command: Option<&CallbackConfig>) -> Map<String, Value> {
    table(json!({
        "suite_id": suite.suite_id,
        "secret": is_set(),
        "provider": suite.provider,
        "token": is_set(),
        "aes_key": is_set(),
        "max_age": command.map(|command| format_duration(command.max_age)),
        "after_install": suite.after_install.as_ref().map(PrivateUrl::masked),
        "limit_per_corp": suite.limit_per_corp.map(|limit| limit.to_string()),
        "to": command.and_then(targets),
    }))
}

fn callback_to_json(callback: &CallbackConfig) -> Map<String, Value> {
    table(json!({
        "receive_ids": callback.receive_ids,
        "token": is_set(),
        "aes_key": is_set(),
        "answer": callback.answer,
        "max_age": format_duration(callback.max_age),
        "to": targets(callback),
    }))
}

fn targets(callback: &CallbackConfig) -> Option<Vec<Map<String, Value>>> {
    non_empty(callback.targets.iter().map(target).collect())
}

fn target(CallbackTarget { name, events, method }: &CallbackTarget) -> Map<String, Value> {
    let events = non_empty(texts(events));
    let (url, form, reply, ordered) = match method {
        DeliveryMethod::Pull { clients } => {
            return table(json!({ "name": name, "events": events, "pull": true, "clients": clients }));
        }
        DeliveryMethod::Push { url, form, reply, ordered } => (url, form, reply, ordered),
    };
    let (ca_file, path_and_query) = (&url.ca_file, url.path_and_query.masked());
    let url = match &url.address {
        TargetAddress::Unix(path) => format!("unix:{}:{}", path.display(), path_and_query),
        TargetAddress::Tcp { tls, host, port } => {
            let scheme = if *tls { "https" } else { "http" };
            format!("{scheme}://{}{path_and_query}", authority(host, *port))
        }
    };
    let (form, secret, keys) = match form {
        TargetForm::Plain { secret } => ("plain", masked(secret), None),
        TargetForm::Raw => ("raw", Value::Null, None),
        TargetForm::Reencrypt(ReencryptKeys { receive_id, .. }) => {
            ("reencrypt", Value::Null, Some(receive_id))
        }
    };
    table(json!({
        "name": name,
        "events": events,
        "url": url,
        "ca_file": ca_file,
        "form": form,
        "reply": reply,
        "ordered": ordered,
        "secret": secret,
        "token": keys.map(|_| is_set()),
        "aes_key": keys.map(|_| is_set()),
        "receive_id": keys,
    }))
}
