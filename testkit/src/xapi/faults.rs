//! Lines that must not become rows of an event table.

use std::ops::Range;

use fastrand::Rng;
use serde_json::{Value, json};

use super::expected_rows::EventType;
use super::statement::{COMPLETED, EXPERIENCED, PAGE, VIEWED, activity, statement};

const INVALID_TIMES: [&str; 4] = [
    "yesterday",
    "2026-13-45T99:00:00Z",
    "1492-10-12T00:00:00Z",
    "2400-01-01T00:00:00Z",
];

/// Returns a line that must be rejected: it is not a JSON object, or it has an event type but no
/// usable time.
pub(super) fn malformed(
    rng: &mut Rng,
    kind: EventType,
    serial: &str,
    times: &Range<u64>,
) -> String {
    let mut whole = statement(rng, kind, serial, times);
    match rng.u32(0..8) {
        0 | 1 => first_half(&whole.to_string()),
        2 => format!("<html>504 Gateway Time-out {serial}</html>"),
        3 => json!([whole]).to_string(),
        4 => json!(serial).to_string(),
        5 => {
            if let Value::Object(fields) = &mut whole {
                fields.remove("timestamp");
            }
            whole.to_string()
        }
        6 => {
            whole["timestamp"] = Value::Null;
            whole.to_string()
        }
        _ => {
            whole["timestamp"] = json!(INVALID_TIMES[rng.usize(..INVALID_TIMES.len())]);
            whole.to_string()
        }
    }
}

/// Returns the first half of a line, as if its writer had been interrupted.
fn first_half(line: &str) -> String {
    let middle = line.len() / 2;
    let cut = (0..=middle)
        .rev()
        .find(|at| line.is_char_boundary(*at))
        .unwrap_or(0);
    line[..cut].to_owned()
}

/// Returns a well-formed statement or object that matches no event type.
pub(super) fn unmatched(rng: &mut Rng, serial: &str) -> String {
    let (verb, object) = match rng.u32(0..6) {
        0 => (
            COMPLETED,
            activity(
                "course",
                serial,
                "http://adlnet.gov/expapi/activities/course",
                "Course",
            ),
        ),
        1 => (
            VIEWED,
            activity(
                "hint",
                serial,
                "http://oli.cmu.edu/extensions/types/hint",
                "Hint",
            ),
        ),
        // An experienced page is the one case that the legacy video rule excludes.
        2 => (EXPERIENCED, activity("page", serial, PAGE, "Page")),
        3 => return json!({"note": "no verb at all", "serial": serial}).to_string(),
        _ => (
            "http://adlnet.gov/expapi/verbs/interacted",
            activity(
                "tutor",
                serial,
                "http://oli.cmu.edu/extensions/types/tutor_message",
                "Tutor",
            ),
        ),
    };
    json!({
        "actor": {"account": {"homePage": "https://torus.example.edu", "name": rng.u32(1..5000)}},
        "verb": {"id": verb},
        "object": object,
        "timestamp": "2026-07-14T12:00:00Z",
    })
    .to_string()
}
