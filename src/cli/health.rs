//! `health`: one request to the admin listener, for container health checks.

use std::{path::Path, time::Duration};

use http::StatusCode;

use super::{
    CliError, block_on,
    listener_client::{AdminLocation, ListenerClient},
    print,
};

use crate::format_text;

/// Total time for connect, request and response.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Prints the response of `/readyz`; fails unless its status is 200.
pub fn health(path: &Path) -> Result<(), CliError> {
    let client = ListenerClient::admin(AdminLocation { url: None, ca_file: None, config: path })?;
    block_on(async {
        let response = client.get_within("/readyz", RESPONSE_TIMEOUT).await?;
        print(&response.body)?;
        match response.status {
            StatusCode::OK => Ok(()),
            status => Err(CliError::other(format_text!("not ready ({status})", "未就绪（{status}）"))),
        }
    })
}
