//! Traces: `admin.otlp`, and the environment variables of OpenTelemetry. What the file says wins; a value that is not
//! understood is ignored with a warning, as the specification of OpenTelemetry asks.

use std::{fmt, path::PathBuf};

use super::{
    Warning,
    otlp::{self, OtlpConfig},
    source_file::SourceFile,
};
use crate::{format_text, secret::Masked, text, text::Text};

/// `admin.otlp`, as the source of a setting.
const FILE_KEY: &str = "admin.otlp";
/// The name of the service where none is configured.
const DEFAULT_SERVICE_NAME: &str = "wecom-proxy";

/// The headers that an export has anyway, or that would break it.
const RESERVED_HEADERS: [&str; 9] = [
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "host",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Where traces are sent, which ones, and what describes this process in them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TracesConfig {
    /// The collector.
    pub collector: OtlpConfig,
    /// Sent with each export; the values are secrets.
    pub headers: Vec<(String, Masked)>,
    /// The certificates that the collector's is checked with, instead of the built-in ones.
    pub ca_file: Option<PathBuf>,
    /// Which requests are exported.
    pub sampler: TraceSampler,
    /// The attributes of the resource with `service.name`, which is the first.
    pub resource: Vec<(String, String)>,
    /// Each setting that is not a default: name, value as shown, and the key or variable that it is from.
    pub shown: Vec<(&'static str, String, &'static str)>,
}

/// Which requests are exported, if they neither failed nor were retried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceSampler {
    /// Whether the decision of the caller's trace is taken over.
    pub parent_based: bool,
    /// The share of the others, in units of 2^-63.
    pub threshold: u64,
}

/// The threshold with which every trace is exported.
const ALWAYS: u64 = 1 << 63;

impl Default for TraceSampler {
    fn default() -> Self {
        Self { parent_based: true, threshold: ALWAYS }
    }
}

/// Reads the variables of OpenTelemetry.
struct OtelEnvironment<'a> {
    source: &'a SourceFile<'a>,
    warnings: Vec<Warning>,
    shown: Vec<(&'static str, String, &'static str)>,
}

/// The settings of traces; `None` if there are none to be exported. `otlp` is `admin.otlp`.
pub(super) fn read(main: &SourceFile<'_>, otlp: Option<&OtlpConfig>) -> (Option<TracesConfig>, Vec<Warning>) {
    let mut env = OtelEnvironment { source: main, warnings: Vec::new(), shown: Vec::new() };
    let traces = env.read(otlp);
    (traces, env.warnings)
}

impl OtelEnvironment<'_> {
    fn read(&mut self, otlp: Option<&OtlpConfig>) -> Option<TracesConfig> {
        if let Some(name) = self.disabling_variable() {
            if otlp.is_some() {
                self.warn(
                    name,
                    format_text!(
                        "switches traces off, although {FILE_KEY} is set",
                        "关闭了链路追踪，尽管设置了 {FILE_KEY}"
                    ),
                );
            }
            return None;
        }
        let collector = match otlp {
            Some(otlp) => {
                self.shown.push(("endpoint", otlp.to_string(), FILE_KEY));
                otlp.clone()
            }
            None => self.collector()?,
        };
        let headers = self.headers();
        let sampler = self.sampler();
        let (resource, ca_file) = (self.resource(), self.ca_file());
        if sampler.threshold == 0 && !sampler.parent_based {
            return None;
        }
        let shown = std::mem::take(&mut self.shown);
        Some(TracesConfig { collector, headers, ca_file, sampler, resource, shown })
    }

    /// The value of a variable; an empty one counts as unset.
    fn variable(&self, name: &str) -> Option<String> {
        let value = self.source.inputs()?.env(name)?;
        Some(value.trim().to_owned()).filter(|value| !value.is_empty())
    }

    /// The first of these variables that is set, with its name.
    fn first_of(&self, names: [&'static str; 2]) -> Option<(&'static str, String)> {
        names.into_iter().find_map(|name| self.variable(name).map(|value| (name, value)))
    }

    fn warn(&mut self, name: &str, message: Text) {
        let (file, key) = (self.source.path().to_owned(), Some(name.to_owned()));
        self.warnings.push(Warning { file: file.into(), line: None, key, message });
    }

    /// The variable that switches traces off, if one does.
    fn disabling_variable(&mut self) -> Option<&'static str> {
        let (disabled, exporter) = ("OTEL_SDK_DISABLED", "OTEL_TRACES_EXPORTER");
        match self.variable(disabled).map(|value| value.to_ascii_lowercase()).as_deref() {
            Some("true") => return Some(disabled),
            Some("false") | None => {}
            Some(_) => self.warn(
                disabled,
                text!(
                    "this variable must be true or false; it is ignored",
                    "此变量必须是 true 或 false；已忽略"
                ),
            ),
        }
        match self.variable(exporter).as_deref() {
            Some("none") => return Some(exporter),
            Some("otlp") | None => {}
            Some(_) => self.warn(
                exporter,
                text!("only otlp and none are supported; otlp is used", "只支持 otlp 和 none；使用 otlp"),
            ),
        }
        None
    }

    fn collector(&mut self) -> Option<OtlpConfig> {
        let names = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];
        let (name, url) = self.first_of(names)?;
        let grpc = self.is_grpc();
        match otlp::from_environment(&url, name == names[0], grpc) {
            Ok(collector) => {
                self.shown.push(("endpoint", collector.to_string(), name));
                Some(collector)
            }
            Err(reason) => {
                self.warn(
                    name,
                    format_text!(
                        "this variable {}; no traces are exported",
                        "此变量{}；不导出链路追踪",
                        reason
                    ),
                );
                None
            }
        }
    }

    /// Whether the protocol is gRPC; `None` where no variable says so.
    fn is_grpc(&mut self) -> Option<bool> {
        let names = ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"];
        let (name, protocol) = self.first_of(names)?;
        match &*protocol {
            "grpc" => Some(true),
            "http/protobuf" => Some(false),
            _ => {
                self.warn(
                    name,
                    text!(
                        "only grpc and http/protobuf are supported; the protocol follows from the endpoint",
                        "只支持 grpc 和 http/protobuf；协议由地址决定"
                    ),
                );
                None
            }
        }
    }

    fn headers(&mut self) -> Vec<(String, Masked)> {
        let names = ["OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS"];
        let Some((name, list)) = self.first_of(names) else { return Vec::new() };
        let is_header = |(key, value): &(String, String)| {
            let name = http::HeaderName::from_bytes(key.as_bytes()).ok();
            name.is_some_and(|name| !RESERVED_HEADERS.contains(&name.as_str()))
                && http::HeaderValue::from_str(value).is_ok()
        };
        let Some(pairs) = parse_pairs(&list).filter(|pairs| pairs.iter().all(is_header)) else {
            self.warn(
                name,
                text!(
                    "this variable must be headers like name=value,name=value, without those that belong to the connection or \
                     the body, such as Content-Type; it is ignored",
                    "此变量必须是 name=value,name=value 这样的请求头，不含属于连接或请求体的请求头（如 Content-Type）；已忽略"
                ),
            );
            return Vec::new();
        };
        let shown: Vec<_> = pairs.iter().map(|(key, _)| format!("{key}=***")).collect();
        self.shown.push(("headers", shown.join(","), name));
        pairs.into_iter().map(|(key, value)| (key.to_ascii_lowercase(), Masked::new(value))).collect()
    }

    fn ca_file(&mut self) -> Option<PathBuf> {
        let names = ["OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE", "OTEL_EXPORTER_OTLP_CERTIFICATE"];
        let (name, path) = self.first_of(names)?;
        self.shown.push(("certificate", path.clone(), name));
        Some(path.into())
    }

    fn sampler(&mut self) -> TraceSampler {
        let name = "OTEL_TRACES_SAMPLER";
        let Some(sampler) = self.variable(name) else { return TraceSampler::default() };
        let parent_based = sampler.starts_with("parentbased_");
        let threshold = match sampler.trim_start_matches("parentbased_") {
            "always_on" => ALWAYS,
            "always_off" => 0,
            "traceidratio" => self.sampler_threshold(),
            _ => {
                self.warn(
                    name,
                    text!(
                        "this sampler is not supported; parentbased_always_on is used",
                        "不支持这种采样方式；使用 parentbased_always_on"
                    ),
                );
                return TraceSampler::default();
            }
        };
        let sampler = TraceSampler { parent_based, threshold };
        self.shown.push(("sampler", sampler.to_string(), name));
        sampler
    }

    fn sampler_threshold(&mut self) -> u64 {
        let name = "OTEL_TRACES_SAMPLER_ARG";
        let ratio = match self.variable(name).map(|ratio| ratio.parse::<f64>()) {
            None => 1.0,
            Some(Ok(ratio)) if (0.0..=1.0).contains(&ratio) => ratio,
            Some(_) => {
                self.warn(
                    name,
                    text!(
                        "this variable must be a number from 0 to 1; 1 is used",
                        "此变量必须是 0 到 1 之间的数；使用 1"
                    ),
                );
                1.0
            }
        };
        (ratio * ALWAYS as f64) as u64
    }

    /// The attributes of the resource, `service.name` first.
    fn resource(&mut self) -> Vec<(String, String)> {
        let name = "OTEL_RESOURCE_ATTRIBUTES";
        let mut attributes = match self.variable(name).map(|list| (parse_pairs(&list), list)) {
            None => Vec::new(),
            Some((Some(attributes), list)) => {
                self.shown.push(("resource", list, name));
                attributes
            }
            Some((None, _)) => {
                self.warn(
                    name,
                    text!(
                        "this variable must be attributes like name=value,name=value; it is ignored",
                        "此变量必须是 name=value,name=value 这样的属性；已忽略"
                    ),
                );
                Vec::new()
            }
        };
        let key = "service.name";
        let in_list = attributes.iter().rposition(|(name, _)| name == key);
        let in_list = in_list.map(|index| attributes.swap_remove(index).1);
        attributes.retain(|(name, _)| name != key);
        let variable = self.variable("OTEL_SERVICE_NAME");
        if let Some(service) = &variable {
            self.shown.push((key, service.clone(), "OTEL_SERVICE_NAME"));
        }
        let service = variable.or(in_list).unwrap_or_else(|| DEFAULT_SERVICE_NAME.to_owned());
        attributes.insert(0, (key.to_owned(), service));
        attributes
    }
}

impl TracesConfig {
    /// A resource attribute by its name.
    pub fn resource_attribute(&self, name: &str) -> Option<&str> {
        self.resource.iter().rev().find(|(key, _)| key == name).map(|(_, value)| &**value)
    }
}

impl fmt::Display for TraceSampler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.parent_based {
            f.write_str("parentbased_")?;
        }
        match self.threshold {
            0 => f.write_str("always_off"),
            ALWAYS => f.write_str("always_on"),
            threshold => write!(f, "traceidratio {}", threshold as f64 / ALWAYS as f64),
        }
    }
}

/// `name=value,name=value` with values in percent-encoding, as in W3C Baggage; `None` if one of them is wrong.
fn parse_pairs(list: &str) -> Option<Vec<(String, String)>> {
    let items = list.split(',').map(str::trim).filter(|item| !item.is_empty());
    let pair = |item: &str| {
        let (name, value) = item.split_once('=')?;
        let (name, value) = (name.trim(), value.trim());
        let is_valid = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic());
        let value = percent_encoding::percent_decode_str(value).decode_utf8().ok()?;
        is_valid.then(|| (name.to_owned(), value.into_owned()))
    };
    items.map(pair).collect()
}
