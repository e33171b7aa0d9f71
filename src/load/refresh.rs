//! Looks up which versions of objects S3 has now, and their sizes.

use std::collections::HashMap;

use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::cause::FailureCause;
use super::ports::{BatchTables, ObjectStore, Ports};
use super::progress::PendingObject;
use super::{Cancelled, Loader};
use crate::batch::{Fallback, ReadBy};
use crate::clickhouse::error_class::{ErrorClass, classify};
use crate::object::ObjectRef;
use crate::s3::{ObjectMeta, StoreError};

/// Refreshing the objects' metadata failed.
pub(super) struct RefreshError {
    pub(super) items: Vec<PendingObject>,
    pub(super) cause: FailureCause,
}

impl<P: Ports> Loader<P> {
    /// Looks the objects up in S3 if any of them was announced without an etag.
    pub(super) async fn with_versions(
        &self,
        items: Vec<PendingObject>,
        read_by: ReadBy,
        cancel: &CancellationToken,
    ) -> Result<Vec<PendingObject>, RefreshError> {
        if items.iter().any(|item| item.object.etag.is_empty()) {
            self.refresh(items, read_by, cancel).await
        } else {
            Ok(items)
        }
    }

    /// Looks the objects up in S3, through the reader that will load them, and updates their etags
    /// and sizes.
    pub(super) async fn refresh(
        &self,
        items: Vec<PendingObject>,
        read_by: ReadBy,
        cancel: &CancellationToken,
    ) -> Result<Vec<PendingObject>, RefreshError> {
        if read_by == ReadBy::Stream {
            self.refresh_by_worker(items, cancel).await
        } else {
            self.refresh_by_clickhouse(items, cancel).await
        }
    }

    async fn refresh_by_worker(
        &self,
        mut items: Vec<PendingObject>,
        cancel: &CancellationToken,
    ) -> Result<Vec<PendingObject>, RefreshError> {
        for at in 0..items.len() {
            match self.head(&items[at].object, cancel).await {
                Ok(Ok(present)) => {
                    items[at].set_version(&present);
                }
                Ok(Err(error)) => {
                    let cause = error.into();
                    return Err(RefreshError { items, cause });
                }
                Err(Cancelled) => return Ok(items),
            }
        }
        Ok(items)
    }

    /// Returns the worker's view of an object in S3, or S3's error. Retries until S3 responds.
    async fn head(
        &self,
        object: &ObjectRef,
        cancel: &CancellationToken,
    ) -> Result<Result<ObjectMeta, StoreError>, Cancelled> {
        let mut tries = 0;
        loop {
            match self.parts.store.head(object).await {
                Err(error) if error.is_transient() => {
                    tries += 1;
                    warn!(object = %object, tries, error = %error, "no response from S3; retrying");
                    self.pause(tries, cancel).await?;
                }
                answer => return Ok(answer),
            }
        }
    }

    async fn refresh_by_clickhouse(
        &self,
        items: Vec<PendingObject>,
        cancel: &CancellationToken,
    ) -> Result<Vec<PendingObject>, RefreshError> {
        let refs: Vec<&ObjectRef> = items.iter().map(|item| &item.object).collect();
        let present = self
            .retry_until_ok(cancel, || async {
                match self.parts.tables.head(&refs).await {
                    Err(error) => match classify(&error) {
                        ErrorClass::ObjectFault => Ok(Err(error)),
                        ErrorClass::Stream | ErrorClass::Denied
                            if self.config.fallback == Fallback::Auto =>
                        {
                            Ok(Err(error))
                        }
                        _ => Err(error),
                    },
                    Ok(present) => Ok(Ok(present)),
                }
            })
            .await;
        let present: HashMap<String, ObjectMeta> = match present {
            Ok(Ok(present)) => present.into_iter().collect(),
            Ok(Err(error)) if classify(&error) != ErrorClass::ObjectFault => {
                return self.refresh_by_worker(items, cancel).await;
            }
            Ok(Err(error)) => {
                let cause = error.into();
                return Err(RefreshError { items, cause });
            }
            Err(Cancelled) => return Ok(items),
        };
        let refreshed = items.into_iter().map(|mut item| {
            if let Some(present) = present.get(&item.object.path()) {
                item.set_version(present);
            }
            item
        });
        Ok(refreshed.collect())
    }
}
