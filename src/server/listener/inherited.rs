//! Sockets that who started the program has opened, as systemd does for a service with a `.socket` unit: from descriptor 3
//! on, as many as `LISTEN_FDS` says, for the process that `LISTEN_PID` names.
//!
//! They stay open when the program ends, and so nobody is refused between one process and the next. Each must be one of
//! the configured addresses: a socket that nobody serves would swallow connections.

use std::io;

use listenfd::ListenFd;

use super::{BoundListener, BoundSocket, SockRef};
use crate::config::Address;

/// Sockets that were handed over and not yet used.
#[derive(Debug, Default)]
pub struct Inherited(Vec<BoundListener>);

/// What was handed over cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum InheritedError {
    /// It is no listening stream socket.
    #[error(
        "descriptor {0} from LISTEN_FDS is not a listening TCP or unix stream socket; with systemd, Accept=no and ListenStream= are needed"
    )]
    NotListening(usize),
    /// The configuration does not name its address.
    #[error(
        "a socket that listens on {0} was handed over (LISTEN_FDS), but neither server.listen nor admin.listen names this address"
    )]
    NotConfigured(Address),
}

impl Inherited {
    /// Takes what the surroundings hand over. Must be called before the program opens descriptors or starts threads.
    pub fn from_env() -> Result<Self, InheritedError> {
        let mut handed = ListenFd::from_env();
        let all = (0..handed.len()).map(|nth| {
            let unusable = |_: io::Error| InheritedError::NotListening(nth + 3);
            take_socket(&mut handed, nth).map_err(unusable)
        });
        all.collect::<Result<_, _>>().map(Self)
    }

    /// The one that listens on this address.
    pub fn take_for_address(&mut self, address: &Address) -> Option<BoundListener> {
        let nth = self.0.iter().position(|bound| bound.address == *address)?;
        Some(self.0.swap_remove(nth))
    }

    /// That all were used.
    pub fn ensure_all_used(self) -> Result<(), InheritedError> {
        match self.0.into_iter().next() {
            Some(bound) => Err(InheritedError::NotConfigured(bound.address)),
            None => Ok(()),
        }
    }
}

fn take_socket(handed: &mut ListenFd, nth: usize) -> io::Result<BoundListener> {
    let unusable = || io::Error::from(io::ErrorKind::InvalidInput);
    let (socket, address) = match handed.take_tcp_listener(nth) {
        Ok(tcp) => {
            let tcp = tcp.ok_or_else(unusable)?;
            tcp.set_nonblocking(true)?;
            SockRef::from(&tcp).set_tcp_nodelay(true)?;
            let address = Address::Tcp(tcp.local_addr()?);
            (BoundSocket::Tcp(tcp), address)
        }
        Err(_) => {
            let unix = handed.take_unix_listener(nth)?.ok_or_else(unusable)?;
            unix.set_nonblocking(true)?;
            let path = unix.local_addr()?.as_pathname().ok_or_else(unusable)?.to_owned();
            (BoundSocket::Unix(unix), Address::Unix(path))
        }
    };
    let listens = match &socket {
        BoundSocket::Tcp(tcp) => SockRef::from(tcp).is_listener()?,
        BoundSocket::Unix(unix) => SockRef::from(unix).is_listener()?,
    };
    if !listens {
        return Err(unusable());
    }
    Ok(BoundListener { socket, address, is_inherited: true, socket_file: None })
}
