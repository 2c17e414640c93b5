//! Stand-ins for permanent codes: random, kept as a hash, bound to suite, corp and client.

use std::sync::Arc;

use super::{
    Suites,
    records::{StandInRecord, encode, hash_name, random_secret},
};
use crate::{
    directory::{Client, Suite},
    secret::Masked,
    state::{Collection, Write, WriteError},
};

/// Prefix of every stand-in; a permanent code does not have it.
pub const STAND_IN_PREFIX: &str = "wps1-";

impl Suites {
    /// Makes a stand-in of a corp's permanent code for a client.
    pub async fn issue_stand_in(
        &self,
        suite: &Suite,
        corpid: &str,
        client: Option<&Client>,
    ) -> Result<Masked, WriteError> {
        let random = random_secret().map_err(|error| WriteError::Unavailable(error.to_string()))?;
        let stand_in = Masked::new(format!("{STAND_IN_PREFIX}{}", random.expose()));
        let record = StandInRecord {
            suite_id: suite.config.suite_id.clone(),
            corpid: corpid.to_owned(),
            client: client_name(client).to_owned(),
        };
        self.write(vec![Write::put(Collection::StandIns, hash_name(stand_in.expose()), encode(&record))])
            .await
            .map(drop)?;
        Ok(stand_in)
    }

    /// The writes that delete the stand-ins of a client, which end with it.
    pub fn stand_in_deletions(&self, client: &str) -> Vec<Write> {
        let of_client = self.stand_ins.iter().filter(|known| known.client == client);
        of_client.map(|known| Write::delete(Collection::StandIns, known.key().clone())).collect()
    }

    /// Deletes the stand-ins of clients that a reload took away, in the background.
    pub fn forget_clients(self: &Arc<Self>, names: &[String]) {
        let writes: Vec<_> = names.iter().flat_map(|name| self.stand_in_deletions(name)).collect();
        let Some(context) = self.context.get().filter(|_| !writes.is_empty()) else { return };
        let suites = self.clone();
        context.runtime.spawn(async move {
            if let Err(error) = suites.write(writes).await {
                tracing::warn!(%error, "stand-ins of removed clients not deleted");
            }
        });
    }

    /// Whether a text is this client's stand-in for the permanent code of this corp.
    pub fn is_stand_in(&self, text: &str, suite: &Suite, corpid: &str, client: Option<&Client>) -> bool {
        text.starts_with(STAND_IN_PREFIX)
            && self.stand_ins.get(&hash_name(text)).is_some_and(|known| {
                known.suite_id == suite.config.suite_id
                    && known.corpid == corpid
                    && known.client == client_name(client)
            })
    }

    /// The name of the client whose stand-in for this corp's permanent code a text is; empty for a caller of an open proxy.
    pub fn stand_in_client(&self, text: &str, suite: &Suite, corpid: &str) -> Option<String> {
        let known = text.starts_with(STAND_IN_PREFIX).then(|| self.stand_ins.get(&hash_name(text)))??;
        let is_of_corp = known.suite_id == suite.config.suite_id && known.corpid == corpid;
        is_of_corp.then(|| known.client.clone())
    }
}

fn client_name(client: Option<&Client>) -> &str {
    client.map_or("", |client| &client.config.name)
}
