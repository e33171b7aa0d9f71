//! Decides what repairs an object.

use super::TableVerdict;

crate::labelled! {
    /// What `sluice repair` runs for an object.
    pub enum RepairAction {
        /// Loads the object again and replaces its rows, as `sluice backfill --force` does.
        Force = "force",
        /// Deletes rows of batches that are not in force, as workers do.
        Delete = "delete",
        /// Announces a failed object, as `sluice retry` does.
        Retry = "retry",
        /// Sends its dead letters to the queue, as `sluice dlq redrive` does.
        Redrive = "redrive",
        /// Announces an object that was never loaded, as `sluice reconcile --enqueue` does.
        Reconcile = "reconcile",
    }
}

/// What S3 has under the key of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CurrentContent {
    /// The content that was loaded.
    Same,
    Changed,
    Gone,
    /// S3 does not return it to this process, for this reason.
    Unreadable(String),
}

/// What would be done about an object, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepairPlan {
    /// In this order; none if nothing must or can be done.
    pub actions: Vec<RepairAction>,
    pub reason: String,
    /// Whether something about the object remains wrong.
    pub is_left: bool,
}

impl RepairPlan {
    fn nothing(reason: impl Into<String>, is_left: bool) -> Self {
        Self {
            actions: Vec::new(),
            reason: reason.into(),
            is_left,
        }
    }
}

/// An object that is not loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unloaded {
    /// A batch that has not ended claims it.
    InProgress,
    /// It failed with this class. `has_dead_letter` is whether a dead letter announces it, and
    /// `fails_again` whether it would fail in the same way.
    Failed {
        class: String,
        has_dead_letter: bool,
        fails_again: bool,
    },
    /// The ledger has no record of it.
    Unrecorded,
}

/// Returns what repairs an object that is loaded, from the verdicts on each table.
///
/// An object can only be loaded again as a whole. So it is not if that would bring back rows that
/// were deleted on purpose, or, without `with_unexplained`, rows that may have been.
pub fn plan(
    verdicts: &[(&str, TableVerdict)],
    content: &CurrentContent,
    with_unexplained: bool,
) -> RepairPlan {
    let tables = |is_meant: &dyn Fn(TableVerdict) -> bool| {
        let mut tables: Vec<&str> = verdicts
            .iter()
            .filter(|(_, verdict)| is_meant(*verdict))
            .map(|(table, _)| *table)
            .collect();
        tables.sort_unstable();
        tables.dedup();
        tables.join(", ")
    };
    let of = |verdict: TableVerdict| tables(&|it| it == verdict);
    let unexplained = of(TableVerdict::Unexplained);
    let is_lost = |verdict: TableVerdict| {
        matches!(
            verdict,
            TableVerdict::Missing | TableVerdict::Doubled | TableVerdict::Replaced
        )
    };
    let lost = tables(&|it| is_lost(it) || (with_unexplained && it == TableVerdict::Unexplained));
    let mut plan = if lost.is_empty() && unexplained.is_empty() {
        sound(verdicts)
    } else if !unexplained.is_empty() && !with_unexplained {
        let reason = format!(
            "it is not known why rows are missing from {unexplained}; pass --unexplained to load it \
             again all the same"
        );
        RepairPlan::nothing(reason, true)
    } else {
        reload(&lost, &tables(&TableVerdict::is_on_purpose), content)
    };
    let released = of(TableVerdict::Released);
    if !released.is_empty() {
        plan.actions.insert(0, RepairAction::Delete);
        let reason = format!("{released} has rows of batches that are not in force");
        plan.reason = match plan.reason.as_str() {
            "" => reason,
            other => format!("{reason}; {other}"),
        };
    }
    let unknown = of(TableVerdict::Unknown);
    if !unknown.is_empty() {
        plan.is_left = true;
        let reason = format!(
            "{unknown} has rows that the ledger has no record of; find out who wrote them, and \
             delete them by hand"
        );
        plan.reason = match plan.reason.as_str() {
            "" => reason,
            other => format!("{other}; {reason}"),
        };
    }
    plan
}

/// Returns the plan for an object that has lost nothing.
fn sound(verdicts: &[(&str, TableVerdict)]) -> RepairPlan {
    let mut labels: Vec<&str> = verdicts
        .iter()
        .filter(|(_, verdict)| verdict.is_sound())
        .map(|(_, verdict)| verdict.label())
        .collect();
    labels.sort_unstable();
    labels.dedup();
    let reason = if labels.is_empty() {
        String::new()
    } else {
        format!("nothing is lost: {}", labels.join(", "))
    };
    RepairPlan::nothing(reason, false)
}

fn reload(lost: &str, on_purpose: &str, content: &CurrentContent) -> RepairPlan {
    if !on_purpose.is_empty() {
        let reason = format!(
            "loading it again would bring back rows that were deleted from {on_purpose} on purpose"
        );
        return RepairPlan::nothing(reason, true);
    }
    match content {
        CurrentContent::Same => RepairPlan {
            actions: vec![RepairAction::Force],
            reason: format!("the rows in {lost} are not those that were loaded"),
            is_left: false,
        },
        CurrentContent::Changed => RepairPlan::nothing("its key has other content by now", true),
        CurrentContent::Gone => RepairPlan::nothing("the object is gone", true),
        CurrentContent::Unreadable(why) => {
            RepairPlan::nothing(format!("S3 does not return it: {why}"), true)
        }
    }
}

/// Returns what repairs an object that is not loaded.
pub fn plan_unloaded(object: &Unloaded) -> RepairPlan {
    let (action, reason) = match object {
        Unloaded::InProgress => {
            return RepairPlan::nothing("a worker is loading it, or will recover its batch", true);
        }
        Unloaded::Failed {
            class,
            fails_again: true,
            ..
        } => {
            let reason = format!("it failed as {class}, and would fail again: fix it first");
            return RepairPlan::nothing(reason, true);
        }
        Unloaded::Failed {
            class,
            has_dead_letter: true,
            ..
        } => (
            RepairAction::Redrive,
            format!("it failed as {class}, and its message is a dead letter"),
        ),
        Unloaded::Failed { class, .. } => (RepairAction::Retry, format!("it failed as {class}")),
        Unloaded::Unrecorded => (
            RepairAction::Reconcile,
            "the ledger has no record of it".to_owned(),
        ),
    };
    RepairPlan {
        actions: vec![action],
        reason,
        is_left: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn actions(verdicts: &[TableVerdict], with_unexplained: bool) -> (Vec<&'static str>, bool) {
        let verdicts: Vec<_> = verdicts.iter().map(|verdict| ("t", *verdict)).collect();
        let plan = plan(&verdicts, &CurrentContent::Same, with_unexplained);
        let actions = plan.actions.iter().map(|action| action.label());
        (actions.collect(), plan.is_left)
    }

    #[test]
    fn what_is_lost_is_loaded_again_and_what_must_not_be_there_is_deleted() {
        for lost in [
            TableVerdict::Missing,
            TableVerdict::Doubled,
            TableVerdict::Replaced,
        ] {
            assert_eq!(actions(&[lost], false), (vec!["force"], false));
            let with_others = [
                lost,
                TableVerdict::Merged,
                TableVerdict::Expired,
                TableVerdict::Released,
            ];
            assert_eq!(
                actions(&with_others, false),
                (vec!["delete", "force"], false)
            );
        }
        assert_eq!(
            actions(&[TableVerdict::Released], false),
            (vec!["delete"], false)
        );
    }

    #[test]
    fn nothing_is_done_about_what_was_merged_expired_or_deleted() {
        for gone in [
            TableVerdict::Merged,
            TableVerdict::Expired,
            TableVerdict::Deleted,
            TableVerdict::DroppedPartition,
        ] {
            assert_eq!(actions(&[gone], true), (vec![], false));
        }
        assert_eq!(actions(&[], true), (vec![], false));
    }

    #[test]
    fn what_was_deleted_on_purpose_is_not_brought_back() {
        for gone in [TableVerdict::Deleted, TableVerdict::DroppedPartition] {
            assert_eq!(
                actions(&[TableVerdict::Missing, gone], true),
                (vec![], true)
            );
        }
    }

    #[test]
    fn what_is_unexplained_is_loaded_again_only_on_request() {
        let verdicts = [TableVerdict::Missing, TableVerdict::Unexplained];
        assert_eq!(actions(&verdicts, false), (vec![], true));
        assert_eq!(actions(&verdicts, true), (vec!["force"], false));
        assert_eq!(actions(&[TableVerdict::Unknown], true), (vec![], true));
    }

    #[test]
    fn only_the_content_that_was_loaded_is_loaded_again() {
        for content in [
            CurrentContent::Changed,
            CurrentContent::Gone,
            CurrentContent::Unreadable("denied".to_owned()),
        ] {
            let plan = plan(&[("t", TableVerdict::Missing)], &content, false);
            assert_eq!((plan.actions, plan.is_left), (vec![], true), "{content:?}");
        }
    }

    #[test]
    fn an_object_that_is_not_loaded_is_announced_unless_it_would_fail_again() {
        let failed = |has_dead_letter, fails_again| Unloaded::Failed {
            class: "unloadable".to_owned(),
            has_dead_letter,
            fails_again,
        };
        for (object, expected) in [
            (Unloaded::InProgress, vec![]),
            (failed(true, true), vec![]),
            (failed(true, false), vec![RepairAction::Redrive]),
            (failed(false, false), vec![RepairAction::Retry]),
            (Unloaded::Unrecorded, vec![RepairAction::Reconcile]),
        ] {
            let plan = plan_unloaded(&object);
            assert_eq!(plan.actions, expected, "{object:?}");
            assert_eq!(plan.is_left, expected.is_empty());
        }
    }
}
