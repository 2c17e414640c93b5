//! Why the proxy could not start.

use std::{io, path::PathBuf};

use crate::{
    config::Address, display_text, format_text, server::InheritedError, state::OpenError, text, text::Text,
};

/// The proxy could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address cannot be listened on.
    Listen {
        /// The address, as configured.
        address: Address,
        /// The error of bind or listen.
        error: io::Error,
    },
    /// The file of the access log cannot be written.
    AccessLog {
        /// The file, as configured.
        path: PathBuf,
        /// The error of open.
        error: io::Error,
    },
    /// An inherited socket cannot be used.
    Inherited(#[from] InheritedError),
    /// The proxy would be open on an address that other machines can reach.
    Open(#[from] crate::config::Error),
    /// The state cannot be opened.
    State(#[from] OpenError),
    /// The callbacks cannot be served.
    Callbacks(#[source] io::Error),
    /// A thread or runtime could not be created.
    Worker(#[from] io::Error),
}

display_text!(StartError);

impl StartError {
    fn text(&self) -> Text {
        match self {
            Self::Listen { address, error } => format_text!(
                "cannot listen on {address}: {}; {}",
                "无法监听 {address}：{}；{}",
                error,
                listen_hint(error)
            ),
            Self::AccessLog { path, error } => format_text!(
                "log.access_file: cannot open {} for writing: {}; make its directory, and let this user write there",
                "log.access_file：无法打开 {} 写入：{}；请创建其目录，并允许本用户写入",
                path.display(),
                error
            ),
            Self::Inherited(error) => error.text(),
            Self::Open(error) => Text::of(error),
            Self::State(error) => error.text(),
            Self::Callbacks(error) => {
                format_text!("cannot serve callbacks: {}", "无法接收回调：{}", error)
            }
            Self::Worker(error) => format_text!("cannot start a worker: {}", "无法启动工作线程：{}", error),
        }
    }
}

fn listen_hint(error: &io::Error) -> Text {
    match error.kind() {
        io::ErrorKind::PermissionDenied => text!(
            "a port below 1024 needs root or CAP_NET_BIND_SERVICE, a unix socket a directory that may be written to",
            "1024 以下的端口需要 root 或 CAP_NET_BIND_SERVICE，unix 套接字需要可写的目录"
        ),
        io::ErrorKind::AddrNotAvailable => text!("this machine has no such address", "请写本机有的地址"),
        io::ErrorKind::NotFound => text!("make the directory first", "请先创建目录"),
        _ => text!("choose another address, or stop what listens there", "请换一个地址，或停止占用它的程序"),
    }
}
