//! Sockets inherited by socket activation (systemd `.socket` unit): descriptors from 3 on, `LISTEN_FDS` of them, for
//! the process `LISTEN_PID`.
//!
//! They stay open when the process exits, so no connection is refused between one process and the next. Each must be a
//! configured address: connections to a socket that is not served would hang.

use std::io;

use listenfd::ListenFd;

use super::{BoundListener, BoundSocket, SockRef};
use crate::{config::Address, display_text, format_text, text::Text};

/// Inherited sockets that are not used yet.
#[derive(Debug, Default)]
pub struct Inherited(Vec<BoundListener>);

/// Error in the inherited sockets.
#[derive(Debug, thiserror::Error)]
pub enum InheritedError {
    /// Not a listening stream socket.
    NotListening(usize),
    /// A unix socket without a path.
    NoPath(usize),
    /// The configuration does not contain its address.
    NotConfigured(Address, Vec<Address>),
}

display_text!(InheritedError);

impl InheritedError {
    /// What is wrong with the socket, and what to do.
    pub fn text(&self) -> Text {
        match self {
            Self::NotListening(descriptor) => format_text!(
                "descriptor {} from LISTEN_FDS is not a listening TCP or unix stream socket; with systemd, Accept=no and \
                 ListenStream= are needed",
                "LISTEN_FDS 中的描述符 {} 不是监听中的 TCP 或 unix 流套接字；在 systemd 中需要 Accept=no 和 ListenStream=",
                descriptor
            ),
            Self::NoPath(descriptor) => format_text!(
                "descriptor {} from LISTEN_FDS is an abstract or unnamed unix socket; only one with a path is supported",
                "LISTEN_FDS 中的描述符 {} 是抽象的或未命名的 unix 套接字；只支持有路径的",
                descriptor
            ),
            Self::NotConfigured(address, configured) => {
                let configured = configured.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
                format_text!(
                    "inherited socket {address} (LISTEN_FDS) is not in server.listen or admin.listen, which name \
                     {configured}: write the same address there and in the socket unit",
                    "继承的套接字 {address}（LISTEN_FDS）不在 server.listen 和 admin.listen 中，其中是 {configured}：请在那里和 \
                     socket 单元中写同一地址"
                )
            }
        }
    }
}

impl Inherited {
    /// Takes the sockets that the environment names. Must be called before the process opens descriptors or starts
    /// threads.
    pub fn from_env() -> Result<Self, InheritedError> {
        let mut listenfd = ListenFd::from_env();
        let all = (0..listenfd.len()).map(|nth| {
            let socket =
                take_socket(&mut listenfd, nth).map_err(|_| InheritedError::NotListening(nth + 3))?;
            let address = socket_address(&socket)
                .map_err(|_| InheritedError::NotListening(nth + 3))?
                .ok_or(InheritedError::NoPath(nth + 3))?;
            Ok(BoundListener { socket, address, is_inherited: true, socket_file: None })
        });
        all.collect::<Result<_, _>>().map(Self)
    }

    /// Removes the socket with this address, if there is one.
    pub fn take_for_address(&mut self, address: &Address) -> Option<BoundListener> {
        let nth = self.0.iter().position(|bound| bound.address == *address)?;
        Some(self.0.swap_remove(nth))
    }

    /// Fails if there is a socket that none of these addresses will take.
    pub fn ensure_configured(&self, addresses: &[Address]) -> Result<(), InheritedError> {
        let mut left = addresses.to_vec();
        for bound in &self.0 {
            match left.iter().position(|address| *address == bound.address) {
                Some(nth) => drop(left.swap_remove(nth)),
                None => return Err(InheritedError::NotConfigured(bound.address.clone(), addresses.to_vec())),
            }
        }
        Ok(())
    }
}

/// Takes a socket that listens.
fn take_socket(listenfd: &mut ListenFd, nth: usize) -> io::Result<BoundSocket> {
    let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
    let (socket, listens) = match listenfd.take_tcp_listener(nth) {
        Ok(tcp) => {
            let tcp = tcp.ok_or_else(invalid)?;
            tcp.set_nonblocking(true)?;
            SockRef::from(&tcp).set_tcp_nodelay(true)?;
            let listens = SockRef::from(&tcp).is_listener()?;
            (BoundSocket::Tcp(tcp), listens)
        }
        Err(_) => {
            let unix = listenfd.take_unix_listener(nth)?.ok_or_else(invalid)?;
            unix.set_nonblocking(true)?;
            let listens = SockRef::from(&unix).is_listener()?;
            (BoundSocket::Unix(unix), listens)
        }
    };
    if listens { Ok(socket) } else { Err(invalid()) }
}

/// The address of a socket; `None` for a unix socket without a path.
fn socket_address(socket: &BoundSocket) -> io::Result<Option<Address>> {
    Ok(match socket {
        BoundSocket::Tcp(tcp) => Some(Address::Tcp(tcp.local_addr()?)),
        BoundSocket::Unix(unix) => {
            unix.local_addr()?.as_pathname().map(|path| Address::Unix(path.to_owned()))
        }
    })
}
