//! Finds out whether a plain URL leads to a cluster: by asking the server, once, and before keys get their names.
//!
//! A server says so in what each new connection asks it for anyway. So an ordinary one pays nothing for it, or one command
//! where `INFO` does not tell.

use super::connector::{Connector, Destination};
use super::url::RedisUrl;
use crate::connect::error::{BusError, CLUSTER};

impl Connector {
    /// The URL as that of a cluster, where it is a plain one and its server says that it is a node of one. Connects, if
    /// nothing was connected yet: the connection is lent again.
    ///
    /// # Errors
    /// The server cannot be asked, or the URL says what a cluster does not have, such as a database.
    #[doc(hidden)]
    pub async fn find_cluster(&self) -> Result<Option<RedisUrl>, BusError> {
        // It may tell before it fails; else this says why, and the pool does not.
        if self.is_in_doubt()
            && self.pooled().await.is_err()
            && let Err(error) = self.dedicated().await
            && self.is_in_doubt()
        {
            return Err(error);
        }
        self.found_cluster()
    }

    /// Whether a plain URL leads there, and it is not known whether to a cluster: no connection was made yet.
    #[doc(hidden)]
    pub fn is_in_doubt(&self) -> bool {
        self.is_plain() && self.known.is_node().is_none()
    }

    /// The same by what is known from connections that were made.
    ///
    /// # Errors
    /// The URL says what a cluster does not have.
    #[doc(hidden)]
    pub fn found_cluster(&self) -> Result<Option<RedisUrl>, BusError> {
        if !self.is_plain() || self.known.is_node() != Some(true) {
            return Ok(None);
        }
        let url = self.url.as_of_a_node().map_err(BusError::Unsupported)?;
        Ok(Some(url))
    }

    /// Fails if a plain URL led to a node of a cluster: who connects now has named its keys already.
    pub(super) fn check_mode(&self) -> Result<(), BusError> {
        match self.found_cluster()? {
            Some(_) => Err(BusError::Unsupported(CLUSTER.into())),
            None => Ok(()),
        }
    }

    fn is_plain(&self) -> bool {
        matches!(self.place, Destination::Server { .. })
    }
}
