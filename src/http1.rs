//! HTTP/1 messages and connections (RFC 9112), shared by the server and the upstream client.

pub mod framing; // where a message body ends

pub mod head; // which message heads are accepted

pub mod headers; // headers, and which of them are hop-by-hop

pub mod write_buf; // write buffer of a connection

pub mod io; // TCP, unix and TLS streams as one type

pub mod buffer_pool; // pooled read and write buffers per thread
