//! Listings of the bucket: [`Listing`] through a network.

use std::ops::Bound;
use std::time::SystemTime;

use sluice::object::{ObjectParts, ObjectRef, ObjectUrl};
use sluice::s3::listing::Listing;
use sluice::s3::{Listed, Page, StoreError};

use super::SimStore;
use crate::s3::{ReadError, Reader, SimS3, State, Stored};

/// The largest number of objects in a page: small, so that the listing of a world has a few pages,
/// between which the bucket can change.
const PAGE: usize = 25;

impl Listing for SimStore {
    async fn list(&self, prefix: &ObjectUrl, after: Option<&str>) -> Result<Page, StoreError> {
        let (s3, path) = (self.s3.clone(), prefix.path());
        let (prefix, after) = (prefix.clone(), after.map(str::to_owned));
        let list = move || s3.list(&prefix, after.as_deref(), Reader::Worker);
        self.request("S3 list", path, list).await
    }
}

impl SimS3 {
    /// Returns a page of the objects whose keys begin with that of `prefix`, by key. A continuation
    /// token is the last key of a page. Also lists objects that the reader may not read.
    fn list(
        &self,
        prefix: &ObjectUrl,
        after: Option<&str>,
        reader: Reader,
    ) -> Result<Page, ReadError> {
        let state = self.state();
        if state.faults(reader).is_unavailable {
            return Err(ReadError::Unavailable);
        }
        let mut objects = state.page(prefix, after);
        let has_more = objects.len() > PAGE;
        objects.truncate(PAGE);
        let last = objects.last().filter(|_| has_more);
        let next = last.map(|listed| listed.object.key.clone());
        Ok(Page { objects, next })
    }
}

impl State {
    /// Returns the objects of a page, and the one that follows it.
    fn page(&self, prefix: &ObjectUrl, after: Option<&str>) -> Vec<Listed> {
        let begin = after.map_or(Bound::Unbounded, Bound::Excluded);
        let objects = self.objects.range::<str, _>((begin, Bound::Unbounded));
        let objects = objects.filter(|(key, _)| key.starts_with(&prefix.key));
        let listed = objects.map(|(key, stored)| listed(&prefix.bucket, key, stored));
        listed.take(PAGE + 1).collect()
    }
}

fn listed(bucket: &str, key: &str, stored: &Stored) -> Listed {
    let object = ObjectRef::from(ObjectParts {
        bucket: bucket.to_owned(),
        key: key.to_owned(),
        etag: stored.meta.etag.clone(),
        size: stored.meta.size,
        ..ObjectParts::default()
    });
    Listed {
        object,
        // Uploads have no time: no world selects by it.
        last_modified: SystemTime::UNIX_EPOCH,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::{Client, Network};
    use crate::s3::Put;
    use crate::trace::Trace;

    #[tokio::test(start_paused = true)]
    async fn pages_follow_each_other_in_the_order_of_keys() {
        let trace = Trace::new(false);
        let s3 = SimS3::new(trace.clone());
        for number in (0..2 * PAGE + 1).rev() {
            s3.put(Put {
                key: format!("a/{number:03}"),
                body: b"video\n".to_vec(),
                is_cut: false,
            });
        }
        s3.put(Put {
            key: "b".to_owned(),
            body: Vec::new(),
            is_cut: false,
        });
        s3.refuse("a/000", Reader::Worker, true);
        let network = Network::new(fastrand::Rng::with_seed(7), trace);
        let store = s3.store(network, Client::new("backfill"));
        let prefix: ObjectUrl = "s3://uploads/a/".parse().unwrap();
        let (mut keys, mut after, mut sizes) = (Vec::new(), None, Vec::new());
        loop {
            let page = store.list(&prefix, after.as_deref()).await.unwrap();
            sizes.push(page.objects.len());
            keys.extend(page.objects.into_iter().map(|it| it.object.key.clone()));
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        assert_eq!(sizes, [PAGE, PAGE, 1]);
        let expected = (0..2 * PAGE + 1).map(|number| format!("a/{number:03}"));
        assert_eq!(keys, expected.collect::<Vec<_>>());

        s3.unavailable(Reader::Worker, true);
        let error = store.list(&prefix, None).await.unwrap_err();
        assert!(error.is_transient(), "{error}");
    }
}
