//! The header of the PROXY protocol, versions 1 and 2 (HAProxy's `proxy-protocol.txt`), with which a load balancer names
//! the client's address before it passes on the client's bytes.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use tokio::io::{AsyncRead, AsyncReadExt};

/// What a header of version 2 begins with.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Longest header of version 1 with its CRLF.
const MAX_V1_BYTES: usize = 107;
/// Maximum bytes after the fixed part of version 2, which may hold more than addresses.
const MAX_V2_BYTES: u16 = 4096;

/// Reads the header, and nothing after it. Returns the client's address; `None` if the header names none, as for health
/// checks of the load balancer itself. Errors: `InvalidData` for anything else.
pub(super) async fn read_header(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<IpAddr>> {
    // Shorter than any header, so nothing after it is read.
    let mut start = [0; SIGNATURE.len()];
    stream.read_exact(&mut start).await?;
    match &start {
        SIGNATURE => read_v2(stream).await,
        [b'P', b'R', b'O', b'X', b'Y', b' ', ..] => read_v1(stream, &start).await,
        _ => Err(invalid()),
    }
}

fn invalid() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "no PROXY protocol header")
}

async fn read_v1(stream: &mut (impl AsyncRead + Unpin), start: &[u8]) -> io::Result<Option<IpAddr>> {
    let mut line = start.to_vec();
    while !line.ends_with(b"\r\n") {
        if line.len() == MAX_V1_BYTES {
            return Err(invalid());
        }
        line.push(stream.read_u8().await?);
    }
    let line = std::str::from_utf8(&line[..line.len() - 2]).map_err(|_| invalid())?;
    let parts: Vec<_> = line.split(' ').collect();
    match parts[..] {
        ["PROXY", "UNKNOWN", ..] => Ok(None),
        ["PROXY", family @ ("TCP4" | "TCP6"), source, _, source_port, _] => {
            let source = source.parse::<IpAddr>().map_err(|_| invalid())?;
            let is_valid = source.is_ipv4() == (family == "TCP4") && source_port.parse::<u16>().is_ok();
            is_valid.then(|| Some(source.to_canonical())).ok_or_else(invalid)
        }
        _ => Err(invalid()),
    }
}

async fn read_v2(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<IpAddr>> {
    let (command, family, length) =
        (stream.read_u8().await?, stream.read_u8().await?, stream.read_u16().await?);
    if length > MAX_V2_BYTES {
        return Err(invalid());
    }
    let mut addresses = vec![0; length.into()];
    stream.read_exact(&mut addresses).await?;
    match (command, family) {
        // LOCAL: a connection of the load balancer's own.
        (0x20, _) => Ok(None),
        (0x21, 0x11) if length >= 12 => {
            let source = addresses.first_chunk::<4>().ok_or_else(invalid)?;
            Ok(Some(Ipv4Addr::from(*source).into()))
        }
        (0x21, 0x21) if length >= 36 => {
            let source = addresses.first_chunk::<16>().ok_or_else(invalid)?;
            Ok(Some(IpAddr::from(Ipv6Addr::from(*source)).to_canonical()))
        }
        // Unspecified, or unix sockets.
        (0x21, 0x00 | 0x31) => Ok(None),
        _ => Err(invalid()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The address, and the bytes left behind the header.
    async fn read(bytes: &[u8]) -> Result<(String, Vec<u8>), io::ErrorKind> {
        let mut rest = bytes;
        let address = read_header(&mut rest).await.map_err(|error| error.kind())?;
        Ok((address.map_or("none".to_owned(), |address| address.to_string()), rest.to_vec()))
    }

    fn v2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let length = (body.len() as u16).to_be_bytes();
        [&SIGNATURE[..], &[command, family], &length, body, b"GET /"].concat()
    }

    #[tokio::test]
    async fn headers_of_both_versions_name_the_client() {
        let v4 = [192, 0, 2, 1, 10, 0, 0, 1, 0x12, 0x67, 0, 80];
        let v6 = [&[0x20, 1, 0x0d, 0xb8], &[0; 11][..], &[1], &[0; 20][..]].concat();
        let with_tlv = [&v4[..], &[4, 0, 1, 0]].concat();
        for (bytes, expected) in [
            (b"PROXY TCP4 192.0.2.1 10.0.0.1 4711 80\r\nGET /".to_vec(), "192.0.2.1"),
            (b"PROXY TCP6 2001:db8::1 ::1 4711 80\r\nGET /".to_vec(), "2001:db8::1"),
            (b"PROXY UNKNOWN\r\nGET /".to_vec(), "none"),
            (b"PROXY UNKNOWN ffff:f::1 ::1 65535 1\r\nGET /".to_vec(), "none"),
            (v2(0x21, 0x11, &v4), "192.0.2.1"),
            (v2(0x21, 0x11, &with_tlv), "192.0.2.1"),
            (v2(0x21, 0x21, &v6), "2001:db8::1"),
            (v2(0x20, 0x00, &[]), "none"),
            (v2(0x21, 0x31, &[0; 216]), "none"),
        ] {
            assert_eq!(read(&bytes).await, Ok((expected.to_owned(), b"GET /".to_vec())), "{bytes:?}");
        }
    }

    #[tokio::test]
    async fn other_bytes_are_refused() {
        let long = [b"PROXY UNKNOWN ".to_vec(), vec![b'x'; 200]].concat();
        for bytes in [
            b"GET / HTTP/1.1\r\n\r\n".to_vec(),
            b"PROXY TCP4 2001:db8::1 ::1 4711 80\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.1 10.0.0.1 4711\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.1 10.0.0.1 66666 80\r\n".to_vec(),
            b"PROXY TCP9 192.0.2.1 10.0.0.1 4711 80\r\n".to_vec(),
            long,
            v2(0x21, 0x11, &[1, 2, 3]),
            v2(0x22, 0x11, &[0; 12]),
            v2(0x21, 0x11, &[0; 5000]),
        ] {
            assert_eq!(read(&bytes).await, Err(io::ErrorKind::InvalidData), "{bytes:?}");
        }
        assert_eq!(read(b"PROXY TCP4 192").await, Err(io::ErrorKind::UnexpectedEof));
    }
}
