//! HTTP/1 on the wire (RFC 9112), shared by the server and the upstream client.

pub mod framing; // where a message body ends

pub mod headers; // header lines, and which of them are hop-by-hop

pub mod write_buf; // bytes that wait to be written to a connection

pub mod io; // byte streams as one type

pub mod buffer_pool; // read and write buffers of each thread
