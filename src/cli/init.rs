//! `init`: writes a first configuration.

use std::{
    fs::{self, OpenOptions},
    io::{ErrorKind, Write},
    path::Path,
};

use super::{CliError, print_text};

use crate::format_text;

/// One agent and the admin listener. Comments name the place of each value in WeCom's admin console.
const FIRST_CONFIG: &str = r#"[agents.hr]
corpid = "ww1234567890abcdef"           # My Company > Company Information > Company ID (我的企业 → 企业信息 → 企业ID)
secret = { env = "WECOM_HR_SECRET" }    # App Management > Apps > the app > Secret (应用管理 → 应用 → 选择应用 → Secret)
agentid = 1000002                       # App Management > Apps > the app > AgentId (应用管理 → 应用 → 选择应用 → AgentId)

[admin]
"#;

/// Writes the file if none exists; an existing one is never changed.
pub fn init(path: &Path) -> Result<(), CliError> {
    let shown = path.display();
    let mut file = OpenOptions::new().write(true).create_new(true).open(path).map_err(|error| {
        CliError::config(match error.kind() {
            ErrorKind::AlreadyExists => format_text!(
                "{shown} exists and was not changed; --config FILE names another file to write",
                "{shown} 已存在，没有改动；--config FILE 可指定写入另一个文件"
            ),
            _ => format_text!("cannot create {shown}: {}", "无法创建 {shown}：{}", error),
        })
    })?;
    if let Err(error) = file.write_all(FIRST_CONFIG.as_bytes()) {
        // An incomplete file would make the next attempt fail.
        let _ = fs::remove_file(path);
        return Err(CliError::other(format_text!("cannot write {shown}: {}", "无法写入 {shown}：{}", error)));
    }
    let option = if path == Path::new("proxy.toml") { String::new() } else { format!(" --config {shown}") };
    print_text(&format_text!(
        "Wrote {shown}. Put the corpid and agentid of your application into it, set the environment variable \
         WECOM_HR_SECRET to its secret, and run: wecom-proxy check --online{option}\n",
        "已写入 {shown}。请填入应用的 corpid 和 agentid，把环境变量 WECOM_HR_SECRET 设为它的 Secret，然后运行：\
         wecom-proxy check --online{option}\n"
    ))
}
