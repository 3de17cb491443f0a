//! The session with ZooKeeper: made when it is first needed, and made anew when it was lost.

use std::time::Duration;

use tokio::sync::Mutex;
use zookeeper_client::{Acls, Client, CreateMode, CreateOptions, Error as Failure};

use super::ZookeeperOptions;
use crate::runtime::{Error, Result};

/// Folders below the root.
pub(super) const LEASES: &str = "leases";
pub(super) const STATE: &str = "state";

/// Where the nodes are, and the session in which they are used.
pub(super) struct Sessions {
    cluster: String,
    root: String,
    timeout: Duration,
    credentials: Option<(String, String)>,
    current: Mutex<Option<Client>>,
}

impl std::fmt::Debug for Sessions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sessions").field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

impl Sessions {
    pub(super) fn new(options: ZookeeperOptions) -> Self {
        Self {
            cluster: options.servers.join(","),
            root: options.root.trim_end_matches('/').to_owned(),
            timeout: options.session_timeout,
            credentials: options.credentials,
            current: Mutex::new(None),
        }
    }

    /// The session, made if there is none or the last one has ended. Waits for a server as long as a session lasts
    /// without one. Cancel-safe: a session that nobody waits for is closed.
    pub(super) async fn client(&self) -> Result<Client> {
        let mut current = self.current.lock().await;
        if let Some(client) = current.as_ref().filter(|client| !client.state().is_terminated()) {
            return Ok(client.clone());
        }
        *current = None;
        let connector = Client::connector().with_session_timeout(self.timeout);
        let connector = match &self.credentials {
            Some((user, password)) => connector.with_auth("digest", format!("{user}:{password}").as_bytes()),
            None => connector,
        };
        let client =
            connector.connect(&self.cluster).await.map_err(|failure| self.error("connect", "", failure))?;
        for folder in [LEASES, STATE] {
            let path = self.path(folder, None);
            let made = client.mkdir(&path, &self.persistent()).await;
            made.map_err(|failure| self.error("create the folder", &path, failure))?;
        }
        tracing::info!(servers = self.cluster, session = %client.session_id(), "a session with ZooKeeper");
        Ok(current.insert(client).clone())
    }

    /// The session that there is; none while there is none.
    pub(super) async fn living(&self) -> Option<Client> {
        self.current.lock().await.clone().filter(|client| !client.state().is_terminated())
    }

    pub(super) const fn persistent(&self) -> CreateOptions<'static> {
        CreateMode::Persistent.with_acls(self.acls())
    }

    pub(super) const fn ephemeral(&self) -> CreateOptions<'static> {
        CreateMode::Ephemeral.with_acls(self.acls())
    }

    /// What is made under a user is that user's alone.
    const fn acls(&self) -> Acls<'static> {
        if self.credentials.is_some() { Acls::creator_all() } else { Acls::anyone_all() }
    }

    /// A node in a folder, or the folder.
    pub(super) fn path(&self, folder: &str, name: Option<&str>) -> String {
        let root = &self.root;
        match name {
            Some(name) => format!("{root}/{folder}/{}", escape(name)),
            None => format!("{root}/{folder}"),
        }
    }

    /// The product's error for one of ZooKeeper's.
    pub(super) fn error(&self, doing: &str, path: &str, failure: Failure) -> Error {
        let (servers, root) = (&self.cluster, if self.root.is_empty() { "/" } else { &self.root });
        let what = format!("cannot {doing} {path}").trim_end().to_owned();
        let error = match &failure {
            Failure::NoAuth | Failure::InvalidAcl | Failure::AuthFailed => {
                Error::operator(format!("{what}: ZooKeeper ({servers}) does not allow it")).mend(format!(
                    "Give the user of [coordinator.zookeeper] all rights (cdrwa) on {root} and what is below it, or set user and password"
                ))
            }
            Failure::NoNode if doing.starts_with("create") => {
                Error::operator(format!("{what}: ZooKeeper ({servers}) has no place for it"))
                    .mend("The path behind the servers has to exist; name it in [coordinator.zookeeper] root instead")
            }
            Failure::QuotaExceeded => Error::operator(format!("{what}: the quota of {root} is used up"))
                .mend("Raise it by ZooKeeper's `setquota`"),
            Failure::Unimplemented => Error::operator(format!("{what}: ZooKeeper ({servers}) does not know how"))
                .mend("Use ZooKeeper 3.5 or newer"),
            Failure::BadArguments(_) => {
                Error::operator(format!("{what}: [coordinator.zookeeper] servers = {servers:?} or root = {root:?} is none"))
            }
            _ => Error::retry(format!("{what}: no answer from ZooKeeper ({servers})"))
                .mend("Are the servers of [coordinator.zookeeper] running, and can they be reached from here?"),
        };
        error.cause(failure)
    }
}

/// A name as one node: what divides paths, and what ZooKeeper refuses, becomes `%XX`.
fn escape(name: &str) -> String {
    const SET: &percent_encoding::AsciiSet = &percent_encoding::CONTROLS.add(b'/').add(b'%');
    percent_encoding::utf8_percent_encode(name, SET).to_string()
}

/// The name of a node.
pub(super) fn unescape(node: &str) -> Option<String> {
    percent_encoding::percent_decode_str(node).decode_utf8().ok().map(std::borrow::Cow::into_owned)
}
