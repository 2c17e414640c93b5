//! `diag`: what a maintainer needs to understand a problem, in one ZIP file without secrets.

use std::{
    fs::OpenOptions,
    io::{ErrorKind, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use super::{AdminLocation, ListenerClient, status::all_agents, zip::ZipBuilder};
use crate::{
    cli::{CliError, VERSION, block_on, load_without_secrets, print_text},
    format_text,
    text::Text,
};

/// The responses of the admin listener that are kept; none of them contains a secret or a captured body.
const RESPONSES: [(&str, &str); 8] = [
    ("readyz.json", "/readyz"),
    ("overview.json", "/api/overview"),
    ("requests.json", "/api/requests?limit=100000"),
    ("clients.json", "/api/clients"),
    ("callbacks.json", "/api/callbacks"),
    ("quotas.json", "/api/quotas"),
    ("metrics.txt", "/metrics"),
    ("errcodes.json", "/api/errcodes"),
];
/// What this machine says of itself: kernel, limits, memory, and the bounds of the container.
const SYSTEM_FILES: [&str; 8] = [
    "/proc/version",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/sys/net/core/somaxconn",
    "/proc/sys/net/ipv4/ip_local_port_range",
    "/etc/os-release",
    "/sys/fs/cgroup/cpu.max",
    "/sys/fs/cgroup/memory.max",
];

/// Writes the file; an existing one is never overwritten.
pub fn diag(location: AdminLocation<'_>, target: &Path) -> Result<(), CliError> {
    let client = ListenerClient::admin(location)?;
    let (entries, failure) = block_on(async { Ok(collect(&client, location).await) })?;
    let mut zip = ZipBuilder::default();
    let mut names = Vec::new();
    for (name, content) in &entries {
        zip.add(name, content).map_err(CliError::of)?;
        names.push(name.as_str());
    }
    let bytes = zip.finish().map_err(CliError::of)?;
    let shown = target.display();
    // For the owner only: it names clients, users' addresses and paths.
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(target);
    let mut file = file.map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists => CliError::config(format_text!(
            "{shown} exists and was not changed; name another file",
            "{shown} 已存在，没有改动；请换一个文件名"
        )),
        _ => CliError::other(format_text!("cannot create {shown}: {}", "无法创建 {shown}：{}", error)),
    })?;
    file.write_all(&bytes).map_err(|error| {
        CliError::other(format_text!("cannot write {shown}: {}", "无法写入 {shown}：{}", error))
    })?;
    print_text(&format_text!(
        "Wrote {shown}: {}.\nIt contains no secret, key or token, and no body; it names agents, clients, addresses and paths. \
         Look at it before you send it.\n",
        "已写入 {shown}：{}。\n其中没有 Secret、密钥、token 和正文，但有应用和调用方的名称、地址和路径。发送之前请先查看。\n",
        names.join(", ")
    ))?;
    match failure {
        None => Ok(()),
        Some(failure) => print_text(&format_text!(
            "The running proxy is missing from it: {}\n",
            "其中缺少运行中的代理的内容：{}\n",
            failure
        )),
    }
}

/// Names and contents of the files. What cannot be fetched is replaced by its error, so that a proxy in trouble has a
/// file too.
///
/// Returns also why the agents could not be fetched.
async fn collect(
    client: &ListenerClient,
    location: AdminLocation<'_>,
) -> (Vec<(String, Vec<u8>)>, Option<Text>) {
    let mut entries = vec![
        ("version.txt".to_owned(), format!("{}\n", VERSION).into_bytes()),
        ("system.txt".to_owned(), system_text().into_bytes()),
        ("configuration.txt".to_owned(), configuration_text(location).into_bytes()),
    ];
    let (agents, failure) = match all_agents(client, "").await {
        Ok(agents) => (agents.iter().map(|agent| format!("{agent}\n")).collect(), None),
        Err(error) => (format!("{}\n", error.message.english()), Some(error.message)),
    };
    entries.push(("agents.json".to_owned(), agents.into_bytes()));
    for (name, path) in RESPONSES {
        let content = match client.get(path).await {
            Ok(response) if response.status.is_success() => response.body.to_vec(),
            Ok(response) => {
                let mut content = format!("status {}\n", response.status.as_u16()).into_bytes();
                content.extend_from_slice(&response.body);
                content
            }
            Err(error) => format!("{}\n", error.message.english()).into_bytes(),
        };
        entries.push((name.to_owned(), content));
    }
    (entries, failure)
}

fn system_text() -> String {
    let mut text = String::new();
    for path in SYSTEM_FILES {
        let content = std::fs::read_to_string(path).unwrap_or_else(|error| format!("{error}\n"));
        text += &format!("== {path}\n{content}");
    }
    text
}

/// The file's settings where it can be read here; its secrets are masked.
fn configuration_text(location: AdminLocation<'_>) -> String {
    match load_without_secrets(location.config) {
        Ok(config) => {
            let warnings = config.warnings.iter().map(|warning| format!("warning: {warning}\n"));
            warnings.chain([format!("{config:#?}\n")]).collect()
        }
        Err(error) => format!("{}\n", error.message.english()),
    }
}
