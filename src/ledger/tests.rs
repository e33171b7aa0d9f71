use serde_json::{from_value, to_value};

use super::*;
use crate::batch::StatementShape;
use crate::statements::insert::Planner;
use crate::statements::s3_source::S3Access;
use sluice_core::fixtures::{object, planner};

/// Returns the object as a recovery reads it back from a claim.
fn recovered(object: &ObjectRef) -> ObjectRef {
    let row = ManifestRow::of(
        BatchId(Uuid::nil()),
        &Claim::of(object),
        StatementShape::default(),
    );
    let listed: Listed = from_value(to_value(row).unwrap()).unwrap();
    listed.into()
}

fn statements(planner: &Planner, objects: &[ObjectRef]) -> String {
    let objects: Vec<_> = objects.iter().collect();
    let shape = planner.shape(&objects, StatementShape::of(ReadBy::S3));
    let inserts = planner.inserts(BatchId(Uuid::nil()), &objects, shape, "guard");
    format!("{shape:?} {inserts:?}")
}

/// A different statement under the same token would be dropped, or would duplicate rows.
#[test]
fn a_recovery_sends_the_same_statements_as_the_worker_that_claimed() {
    let mut planner = planner(S3Access::Server, None);
    planner.max_bytes = 256 << 20;
    let sizes = [
        None,
        Some(0),
        Some(1),
        Some(64 << 10),
        Some(1 << 20),
        Some(1 << 40),
    ];
    for key in ["a.jsonl", "a.jsonl.gz"] {
        for first in sizes {
            for second in sizes {
                let objects = [("1", first), ("2", second)].map(|(prefix, size)| {
                    ObjectRef::from(ObjectParts {
                        size,
                        version_id: Some("v".to_owned()),
                        sequencer: Some("1".to_owned()),
                        ..object("b", &format!("{prefix}/{key}"), "e").into_parts()
                    })
                });
                let again = objects.each_ref().map(recovered);
                let claimed = statements(&planner, &objects);
                assert_eq!(claimed, statements(&planner, &again), "{objects:?}");
            }
        }
    }
}
