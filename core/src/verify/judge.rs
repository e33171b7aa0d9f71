//! The decision table: from evidence to verdicts.

use super::{
    Confidence, Emptied, Evidence, Judgement, Reread, RereadRows, StrayKind, TableVerdict,
};

/// Returns what the evidence shows; nothing if the table is as the ledger has it.
///
/// An explanation is given only if the evidence shows it. What remains is
/// [`TableVerdict::Unexplained`].
pub fn judge(evidence: &Evidence) -> Vec<Judgement> {
    let mut judgements = missing(evidence);
    if let Some(doubled) = evidence.found.checked_sub(evidence.expected)
        && doubled > 0
    {
        let text = format!(
            "the batches in force loaded {} rows, and the table has {} of them",
            evidence.expected, evidence.found
        );
        judgements.push(certain(TableVerdict::Doubled, doubled, text));
    }
    judgements.extend(strays(evidence, &judgements));
    judgements
}

const LOGGED: &str = "the query log shows that the table was truncated, exchanged or restored";

fn certain(verdict: TableVerdict, rows: u64, evidence: String) -> Judgement {
    Judgement {
        verdict,
        confidence: Confidence::Certain,
        rows,
        evidence,
    }
}

fn likely(verdict: TableVerdict, rows: u64, evidence: String) -> Judgement {
    Judgement {
        confidence: Confidence::Likely,
        ..certain(verdict, rows, evidence)
    }
}

fn strays(evidence: &Evidence, found: &[Judgement]) -> Vec<Judgement> {
    let merged = found.iter().filter(|it| it.verdict == TableVerdict::Merged);
    let mut merged: u64 = merged.map(|it| it.rows).sum();
    let mut judgements = Vec::new();
    for stray in &evidence.strays {
        let (verdict, why) = match stray.kind {
            StrayKind::Released => (TableVerdict::Released, "which was released"),
            StrayKind::Superseded => (TableVerdict::Released, "which a later batch superseded"),
            StrayKind::Unrecorded => (
                TableVerdict::Unknown,
                "which the ledger does not have for this object",
            ),
        };
        // A merge keeps the latest of equal rows, and that can be the one of the released batch.
        if verdict == TableVerdict::Released && stray.rows <= merged {
            merged -= stray.rows;
            continue;
        }
        let text = format!("{} rows of batch {}, {why}", stray.rows, stray.batch);
        judgements.push(certain(verdict, stray.rows, text));
    }
    judgements
}

fn missing(evidence: &Evidence) -> Vec<Judgement> {
    let missing = evidence.expected.saturating_sub(evidence.found);
    if missing == 0 {
        return Vec::new();
    }
    if evidence.has_expired {
        let text = "the table's TTL has passed since they were loaded".to_owned();
        return vec![certain(TableVerdict::Expired, missing, text)];
    }
    match &evidence.reread {
        Reread::Not(why) => vec![unread(evidence, missing, why)],
        Reread::Rows(rows) if rows.all() != evidence.expected => {
            let text = format!(
                "the object has {} rows for the table under the present declarations, and had {} \
                 when it was loaded",
                rows.all(),
                evidence.expected
            );
            vec![likely(TableVerdict::Unexplained, missing, text)]
        }
        Reread::Rows(rows) => reread(evidence, missing, rows),
    }
}

/// Judges the missing rows of an object that was read again.
fn reread(evidence: &Evidence, missing: u64, rows: &RereadRows) -> Vec<Judgement> {
    let mut judgements = Vec::new();
    if rows.expired > 0 {
        let text = "the table's TTL has passed for these rows".to_owned();
        judgements.push(certain(TableVerdict::Expired, rows.expired, text));
    }
    if rows.deleted > 0 {
        let text = "a DELETE since the load matches these rows".to_owned();
        judgements.push(certain(TableVerdict::Deleted, rows.deleted, text));
    }
    judgements.extend(absent(evidence, rows));
    let gone = rows.expired + rows.deleted + rows.absent;
    let merged = missing.saturating_sub(gone);
    if merged > 0 {
        let text = "the table has rows that are equal in the sorting key".to_owned();
        judgements.push(certain(TableVerdict::Merged, merged, text));
    }
    judgements
}

/// Judges rows that are not in the table, although they have neither expired nor been deleted by a
/// known DELETE.
fn absent(evidence: &Evidence, rows: &RereadRows) -> Vec<Judgement> {
    if rows.absent == 0 {
        return Vec::new();
    }
    if rows.uncompared > 0 {
        let text = format!(
            "{} DELETEs since the load, or TTLs, cannot be compared with the rows, or are forgotten",
            rows.uncompared
        );
        return vec![likely(TableVerdict::Unexplained, rows.absent, text)];
    }
    let mut judgements = Vec::new();
    let (mut scattered, mut emptied) = (
        rows.absent.saturating_sub(rows.in_emptied_partitions),
        rows.in_emptied_partitions,
    );
    if !evidence.is_partitioned {
        (scattered, emptied) = (rows.absent, 0);
    }
    if scattered > 0 {
        judgements.push(match evidence.emptied {
            Some(run) => likely(TableVerdict::Replaced, scattered, of_run(run)),
            None => {
                let text =
                    "the object has these rows, and the table has none with their sorting key";
                certain(TableVerdict::Missing, scattered, text.to_owned())
            }
        });
    }
    if emptied > 0 {
        judgements.push(in_emptied_partitions(evidence, rows, emptied));
    }
    judgements
}

/// Judges absent rows whose partitions have no row of a batch that was loaded by then.
fn in_emptied_partitions(evidence: &Evidence, rows: &RereadRows, absent: u64) -> Judgement {
    let partitions = "their partitions have no row that was loaded by then";
    match (evidence.was_partition_dropped, evidence.was_truncated) {
        (true, false) => {
            let text =
                format!("{partitions}, and the query log has a DROP, DETACH or MOVE PARTITION");
            likely(TableVerdict::DroppedPartition, absent, text)
        }
        (false, true) => {
            let text = format!("{partitions}, and {LOGGED}");
            likely(TableVerdict::Replaced, absent, text)
        }
        (false, false) if !rows.has_earlier_rows && rows.emptied_partitions > 1 => {
            let text = format!(
                "no partition has a row that was loaded by then, among them the {} of these rows",
                rows.emptied_partitions
            );
            likely(TableVerdict::Replaced, absent, text)
        }
        (true, true) => {
            let text = format!("{partitions}; a partition was dropped, and {LOGGED}");
            likely(TableVerdict::Unexplained, absent, text)
        }
        (false, false) => {
            let text = format!(
                "{partitions}: it was dropped, or the rows are lost; the query log shows neither"
            );
            likely(TableVerdict::Unexplained, absent, text)
        }
    }
}

/// Judges the missing rows of an object that was not read again.
fn unread(evidence: &Evidence, missing: u64, why: &str) -> Judgement {
    let unexplained = |text: String| likely(TableVerdict::Unexplained, missing, text);
    if evidence.removals > 0 {
        let text = format!(
            "{} DELETEs since the load, known or forgotten, or TTLs may have removed them; {why}",
            evidence.removals
        );
        return unexplained(text);
    }
    match evidence.emptied {
        Some(run) if evidence.was_truncated && !evidence.was_partition_dropped => {
            let text = format!("{}, and {LOGGED}", of_run(run));
            likely(TableVerdict::Replaced, missing, text)
        }
        // A single batch could have been merged into others.
        Some(run) if !evidence.is_partitioned && run.batches > 1 => {
            likely(TableVerdict::Replaced, missing, of_run(run))
        }
        Some(run) => unexplained(format!("{}; {why}", of_run(run))),
        None => unexplained(why.to_owned()),
    }
}

fn of_run(run: Emptied) -> String {
    let Emptied {
        batches,
        from_the_first,
    } = run;
    if from_the_first {
        format!("the table has no row of the first {batches} batches")
    } else {
        format!("the table has no row of {batches} batches that were loaded one after another")
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::super::Stray;
    use super::*;

    /// Ten rows, of which the table has `found`, and which were not read again.
    fn evidence(found: u64) -> Evidence {
        Evidence {
            expected: 10,
            found,
            strays: Vec::new(),
            has_expired: false,
            reread: Reread::Not("the object is gone".to_owned()),
            emptied: None,
            is_partitioned: true,
            was_partition_dropped: false,
            was_truncated: false,
            removals: 0,
        }
    }

    fn read(found: u64, rows: RereadRows) -> Evidence {
        Evidence {
            reread: Reread::Rows(rows),
            ..evidence(found)
        }
    }

    fn stray(kind: StrayKind, rows: u64) -> Stray {
        Stray {
            batch: Uuid::nil(),
            rows,
            kind,
        }
    }

    fn verdicts(evidence: &Evidence) -> Vec<(&'static str, u64)> {
        let judgements = judge(evidence).into_iter();
        let verdicts = judgements.map(|it| (it.verdict.label(), it.rows));
        verdicts.collect()
    }

    #[test]
    fn a_table_that_agrees_has_no_verdict() {
        assert_eq!(verdicts(&evidence(10)), []);
    }

    #[test]
    fn more_rows_are_doubled() {
        assert_eq!(verdicts(&evidence(12)), [("doubled", 2)]);
    }

    #[test]
    fn rows_of_other_batches_are_named() {
        let with = |kind| Evidence {
            strays: vec![stray(kind, 3)],
            ..evidence(10)
        };
        assert_eq!(verdicts(&with(StrayKind::Released)), [("released", 3)]);
        assert_eq!(verdicts(&with(StrayKind::Superseded)), [("released", 3)]);
        assert_eq!(verdicts(&with(StrayKind::Unrecorded)), [("unknown", 3)]);
    }

    #[test]
    fn rows_with_an_equal_one_are_merged_whichever_batch_it_is_of() {
        let rows = RereadRows {
            kept: 10,
            ..RereadRows::default()
        };
        assert_eq!(verdicts(&read(7, rows)), [("merged", 3)]);
        let survivors = Evidence {
            strays: vec![stray(StrayKind::Released, 3)],
            ..read(7, rows)
        };
        assert_eq!(verdicts(&survivors), [("merged", 3)]);
        let more = Evidence {
            strays: vec![stray(StrayKind::Released, 4)],
            ..read(7, rows)
        };
        assert_eq!(verdicts(&more), [("merged", 3), ("released", 4)]);
    }

    #[test]
    fn each_missing_row_is_explained_by_itself() {
        let rows = RereadRows {
            kept: 5,
            expired: 1,
            deleted: 2,
            absent: 2,
            ..RereadRows::default()
        };
        let expected = [
            ("expired", 1),
            ("deleted", 2),
            ("missing", 2),
            ("merged", 1),
        ];
        assert_eq!(verdicts(&read(4, rows)), expected);
    }

    #[test]
    fn an_object_that_has_other_rows_now_explains_nothing() {
        let rows = RereadRows {
            kept: 8,
            absent: 4,
            ..RereadRows::default()
        };
        assert_eq!(verdicts(&read(8, rows)), [("unexplained", 2)]);
    }

    #[test]
    fn a_delete_that_cannot_be_compared_leaves_absent_rows_unexplained() {
        let rows = RereadRows {
            kept: 6,
            absent: 4,
            uncompared: 1,
            ..RereadRows::default()
        };
        assert_eq!(verdicts(&read(6, rows)), [("unexplained", 4)]);
    }

    /// Returns the verdict on ten rows of one partition that has no earlier row.
    fn of_partition(change: impl FnOnce(&mut Evidence, &mut RereadRows)) -> &'static str {
        let mut rows = RereadRows {
            absent: 10,
            in_emptied_partitions: 10,
            emptied_partitions: 1,
            has_earlier_rows: true,
            ..RereadRows::default()
        };
        let mut evidence = evidence(0);
        change(&mut evidence, &mut rows);
        evidence.reread = Reread::Rows(rows);
        let verdicts = verdicts(&evidence);
        assert_eq!(verdicts.len(), 1, "{verdicts:?}");
        verdicts[0].0
    }

    #[test]
    fn an_empty_partition_was_dropped_only_if_a_log_shows_it() {
        assert_eq!(of_partition(|_, _| {}), "unexplained");
        let dropped = of_partition(|evidence, _| evidence.was_partition_dropped = true);
        assert_eq!(dropped, "dropped_partition");
        let truncated = of_partition(|evidence, _| evidence.was_truncated = true);
        assert_eq!(truncated, "replaced");
        let both = of_partition(|evidence, _| {
            evidence.was_truncated = true;
            evidence.was_partition_dropped = true;
        });
        assert_eq!(both, "unexplained");
        let all_partitions = of_partition(|_, rows| {
            rows.emptied_partitions = 2;
            rows.has_earlier_rows = false;
        });
        assert_eq!(all_partitions, "replaced");
        let of_others = of_partition(|_, rows| rows.in_emptied_partitions = 0);
        assert_eq!(of_others, "missing");
        let unpartitioned = of_partition(|evidence, _| evidence.is_partitioned = false);
        assert_eq!(unpartitioned, "missing");
    }

    const RUN: Option<Emptied> = Some(Emptied {
        batches: 4,
        from_the_first: true,
    });

    #[test]
    fn whole_batches_without_rows_were_replaced() {
        let rows = RereadRows {
            absent: 10,
            ..RereadRows::default()
        };
        let of_read = Evidence {
            emptied: RUN,
            is_partitioned: false,
            ..read(0, rows)
        };
        assert_eq!(verdicts(&of_read), [("replaced", 10)]);
        let unread = |is_partitioned, was_truncated| Evidence {
            emptied: RUN,
            is_partitioned,
            was_truncated,
            ..evidence(0)
        };
        assert_eq!(verdicts(&unread(false, false)), [("replaced", 10)]);
        assert_eq!(verdicts(&unread(true, true)), [("replaced", 10)]);
        assert_eq!(verdicts(&unread(true, false)), [("unexplained", 10)]);
    }

    #[test]
    fn an_object_that_was_not_read_is_explained_by_its_age_alone() {
        assert_eq!(verdicts(&evidence(9)), [("unexplained", 1)]);
        let removals = Evidence {
            removals: 1,
            emptied: RUN,
            is_partitioned: false,
            ..evidence(0)
        };
        assert_eq!(verdicts(&removals), [("unexplained", 10)]);
        let old = Evidence {
            has_expired: true,
            ..evidence(9)
        };
        assert_eq!(verdicts(&old), [("expired", 1)]);
    }
}
