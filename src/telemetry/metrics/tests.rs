use std::collections::BTreeSet;

use sluice_testkit::project::assert_generated;

use super::*;

#[test]
fn names_follow_the_conventions_and_are_used_once() {
    let names: BTreeSet<&str> = ALL.iter().map(|metric| metric.name).collect();
    assert_eq!(names.len(), ALL.len());
    for metric in ALL {
        let name = metric.name;
        let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        assert!(
            name.starts_with("sluice_") && name.chars().all(is_plain),
            "{name}"
        );
        let is_total = name.ends_with("_total");
        assert_eq!(is_total, matches!(metric.kind, Counter), "{name}");
        if let Histogram(buckets) = metric.kind {
            assert_eq!(metric.unit(), "seconds", "{name}");
            assert!(buckets.is_sorted(), "{name}");
        }
    }
}

#[test]
fn the_reference_is_up_to_date() {
    assert_generated("docs/metrics.md", &reference_markdown(), "--lib metrics");
}

#[test]
fn objects_that_wait_for_their_window_are_not_backlog() {
    let backlog = |messages, objects_waiting| {
        let stats = InFlightStats {
            messages,
            objects_waiting,
            ..InFlightStats::default()
        };
        stats.backlog()
    };
    assert_eq!(backlog(5, 3), 2);
    // One message of three objects.
    assert_eq!(backlog(1, 3), 0);
}
