//! Proves that the objects of a batch are whole where ClickHouse would not notice that they are cut
//! short.
//!
//! The proof comes before the insert, so that an object that is cut short is isolated without a
//! rollback. Every object of a batch that has rows was proven, so the worker that records the batch
//! needs no proof.

use std::collections::BTreeSet;

use futures_util::stream::{self, StreamExt, TryStreamExt};
use tracing::warn;

use super::BatchRun;
use crate::batch::ReadBy;
use crate::clickhouse::error_class::ErrorClass;
use crate::ledger::drive::Inserted;
use crate::load::cause::{BatchFailure, FailureCause};
use crate::load::ports::{BatchTables, LedgerStore, ObjectStore, Ports};
use crate::load::progress::Proof;
use crate::load::truncation::Truncation;
use crate::load::{Cancelled, MAX_RETRIES};
use crate::object::{Compression, ObjectRef};
use crate::s3::{Completeness, StoreError};

/// The number of objects that are read at the same time.
const READ_AT_ONCE: usize = 16;

impl<P: Ports> BatchRun<'_, P> {
    /// Proves the objects that are not proven yet. Returns the result that ends the attempt if one
    /// of them must not be loaded.
    pub(super) async fn prove(&mut self) -> Result<Option<Inserted>, Cancelled> {
        if self.shape.read_by != ReadBy::S3 {
            // The worker's decoders detect a truncated stream themselves.
            for item in &mut self.items {
                item.proof = Proof::None;
            }
            return Ok(None);
        }
        let proofs = tokio::select! {
            biased;
            () = self.cancel.cancelled() => return Err(Cancelled),
            proofs = self.loader.parts.ledger.leased(self.batch, self.proofs()) => proofs?,
        };
        for (index, proof) in proofs {
            self.items[index].proof = proof;
        }
        let failure = self.items.iter().find_map(|item| match &item.proof {
            Proof::Failed(cause) => Some(BatchFailure::object_fault(cause.clone())),
            _ => None,
        });
        let changed = || {
            self.items.iter().find_map(|item| match &item.proof {
                Proof::Changed(error) => {
                    Some(BatchFailure::new(ErrorClass::Changed, error.clone()))
                }
                _ => None,
            })
        };
        let Some(fault) = failure.or_else(changed) else {
            return Ok(None);
        };
        // A worker of an earlier version may have inserted rows of it.
        self.rollback_only = fault.class == ErrorClass::ObjectFault;
        self.failure = Some(fault);
        Ok(Some(Inserted::ObjectFault))
    }

    /// Returns the missing proofs, each with the index of its object.
    async fn proofs(&self) -> Result<Vec<(usize, Proof)>, Cancelled> {
        let mut proofs = Vec::new();
        let mut unread = Vec::new();
        for (index, item) in self.items.iter().enumerate() {
            let is_settled = matches!(item.proof, Proof::Whole | Proof::Waived);
            // Nothing can be missing from an object of 0 bytes.
            if is_settled || item.object.size == Some(0) {
                continue;
            }
            let compression = Compression::of(&item.object.key);
            match self.truncation(compression).await? {
                Truncation::Noticed => {}
                _ if self.loader.config.accept_unproven.contains(&compression) => {
                    proofs.push((index, Proof::Waived));
                }
                truncation => unread.push(self.numbered_proof(index, truncation)),
            }
        }
        let read = stream::iter(unread).buffer_unordered(READ_AT_ONCE);
        proofs.extend(read.try_collect::<Vec<_>>().await?);
        Ok(proofs)
    }

    async fn numbered_proof(
        &self,
        index: usize,
        truncation: Truncation,
    ) -> Result<(usize, Proof), Cancelled> {
        let object = &self.items[index].object;
        Ok((index, self.proof_of(object, truncation).await?))
    }

    /// Returns what this server does with a stream of this compression that is cut short.
    async fn truncation(&self, compression: Compression) -> Result<Truncation, Cancelled> {
        let loader = self.loader;
        if compression == Compression::None {
            return Ok(Truncation::Noticed);
        }
        // A cached result must not close the breaker.
        if let Some(truncation) = loader.parts.tables.known_truncation(compression) {
            return Ok(truncation);
        }
        let ask = || loader.parts.tables.truncation(compression);
        loader.retry_until_ok(self.cancel, ask).await
    }

    /// Reads an object to its end.
    async fn proof_of(
        &self,
        object: &ObjectRef,
        truncation: Truncation,
    ) -> Result<Proof, Cancelled> {
        let mut tries = 0;
        loop {
            let error = match self.loader.parts.store.completeness(object).await {
                Ok(found) => return Ok(proof(object, found, truncation)),
                Err(error) => error,
            };
            if error.is_changed() {
                return Ok(Proof::Changed(error));
            }
            if !error.is_transient() || tries >= MAX_RETRIES {
                return Ok(self.proof_without_worker(object, &error).await);
            }
            tries += 1;
            warn!(
                object = %object, tries, error = %error,
                "failed to read an object to verify that it is whole; retrying"
            );
            self.loader.pause(tries, self.cancel).await?;
        }
    }

    /// Returns the proof of an object that the worker cannot read. If ClickHouse cannot read it
    /// either, the insert fails and shows why.
    async fn proof_without_worker(&self, object: &ObjectRef, error: &StoreError) -> Proof {
        let cause = FailureCause::Unproven {
            object: object.clone(),
            why: format!("this worker cannot read the object to verify it: {error}"),
            advice: "grant the worker's role `s3:GetObject`, compress the object with gzip",
        };
        match self.loader.probe(object, ReadBy::S3).await {
            Ok(()) => Proof::Failed(cause),
            Err(_) => Proof::Doubtful(cause),
        }
    }

    /// Returns the failure of an object that ClickHouse has loaded although it was expected to
    /// refuse it, so that it may have been loaded in part.
    pub(super) fn doubtful(&mut self) -> Option<BatchFailure> {
        let mut fault = None;
        for item in &mut self.items {
            if let Proof::Doubtful(cause) = &item.proof {
                fault.get_or_insert_with(|| BatchFailure::object_fault(cause.clone()));
                item.proof = Proof::Failed(cause.clone());
            }
        }
        fault
    }

    /// Returns the remark that the ledger records for a batch with unproven objects, or an empty
    /// string.
    pub(super) fn waiver(&self) -> String {
        let waived = self.items.iter().filter(|it| it.proof == Proof::Waived);
        let extensions: BTreeSet<&str> = waived
            .map(|item| Compression::of(&item.object.key).extension())
            .collect();
        if extensions.is_empty() {
            return String::new();
        }
        let extensions: Vec<String> = extensions.iter().map(|it| format!(".{it}")).collect();
        format!(
            "not proven to be whole: {} (load.accept_unproven)",
            extensions.join(", ")
        )
    }
}

fn proof(object: &ObjectRef, found: Completeness, truncation: Truncation) -> Proof {
    let object = object.clone();
    match found {
        Completeness::Whole => Proof::Whole,
        Completeness::Cut(problem) => Proof::Failed(FailureCause::Incomplete { object, problem }),
        // ClickHouse chooses its decoder by the name, and is expected to fail on the content.
        Completeness::Malformed(problem) => {
            Proof::Doubtful(FailureCause::Incomplete { object, problem })
        }
        Completeness::Unknown => {
            let cause = FailureCause::Unproven {
                object,
                why: "this worker has no decoder for this compression".to_owned(),
                advice: "compress the object with gzip",
            };
            if truncation == Truncation::Unreadable {
                Proof::Doubtful(cause)
            } else {
                Proof::Failed(cause)
            }
        }
    }
}
