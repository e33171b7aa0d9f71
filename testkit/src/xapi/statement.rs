//! Realistic statements of the five event types, including unusual values.

use std::ops::Range;

use fastrand::Rng;
use serde_json::{Map, Value, json};

use super::clock;
use super::expected_rows::EventType;

pub(super) const COMPLETED: &str = "http://adlnet.gov/expapi/verbs/completed";
pub(super) const EXPERIENCED: &str = "http://adlnet.gov/expapi/verbs/experienced";
pub(super) const VIEWED: &str = "http://id.tincanapi.com/verb/viewed";
pub(super) const PAGE: &str = "http://oli.cmu.edu/extensions/types/page";
const VIDEO: &str = "https://w3id.org/xapi/video";
const TORUS: &str = "https://torus.example.edu";

const TITLES: [&str; 5] = [
    "Kinetics",
    "Osmose für Anfänger",
    "\"Quoted\" \\ title",
    "line\nbreak",
    "🧪 日本語",
];
/// 75 days from 2026-05-01T00:00:00Z on. A bundle has several months, and hence several partitions.
pub(super) const RECENT: Range<u64> = 1_777_593_600..1_777_593_600 + 75 * 86_400;

/// Returns a statement that must become one row. `serial` makes it different from all others.
pub(super) fn statement(rng: &mut Rng, kind: EventType, serial: &str, times: &Range<u64>) -> Value {
    let (verb, object, result) = match kind {
        EventType::Video => video(rng),
        EventType::PageViewed => page_viewed(rng, serial),
        _ => attempt(rng, kind, serial),
    };
    let mut statement = json!({
        "actor": actor(rng),
        "verb": {"id": verb, "display": {"en-US": verb.rsplit('/').next()}},
        "object": object,
        "result": result,
        "context": {"extensions": context(rng, kind, serial)},
        "timestamp": timestamp(rng, times),
    });
    if kind == EventType::Video {
        statement["context"]["contextActivities"] =
            json!({"parent": [{"id": format!("{TORUS}/page")}]});
        statement["registration"] = json!(uuid(rng));
    }
    if rng.f64() < 0.4 {
        statement["id"] = json!(uuid(rng));
    }
    statement
}

/// Returns a random timestamp in one of the formats that producers write: in UTC, with an offset,
/// or with neither.
fn timestamp(rng: &mut Rng, times: &Range<u64>) -> String {
    let seconds = rng.u64(times.clone());
    match rng.u32(0..10) {
        0..5 => format!("{}Z", clock::without_zone(seconds)),
        5..8 => clock::iso(seconds, rng.u32(..1_000_000)),
        8 => format!("{}.250+02:00", clock::without_zone(seconds)),
        _ => clock::without_zone(seconds),
    }
}

fn actor(rng: &mut Rng) -> Value {
    let number = rng.u32(1..5000);
    let account =
        |name: Value| json!({"objectType": "Agent", "account": {"homePage": TORUS, "name": name}});
    match rng.u32(0..10) {
        0..6 => account(json!(number)),
        6..8 => account(json!(format!("student-{number}"))),
        8 => json!({"objectType": "Agent", "mbox": format!("mailto:{number}@example.edu")}),
        _ => account(Value::Null),
    }
}

fn ext(name: &str) -> String {
    format!("http://oli.cmu.edu/extensions/{name}")
}

/// Returns the usual extensions. A few ids are text or a list, which the loader must also accept.
fn context(rng: &mut Rng, kind: EventType, serial: &str) -> Map<String, Value> {
    let mut context = Map::new();
    let mut set = |name: &str, value: Value| context.insert(ext(name), value);
    let section = rng.u32(2000..2100);
    set(
        "section_id",
        match rng.u32(0..20) {
            0 => json!(section.to_string()),
            1 => json!([section]),
            _ => json!(section),
        },
    );
    set("project_id", json!(rng.u32(1000..1020)));
    set(
        "publication_id",
        if rng.f64() < 0.1 {
            Value::Null
        } else {
            json!(rng.u32(3000..3010))
        },
    );
    if rng.f64() < 0.3 {
        set("enrollment_id", json!(rng.u32(1..9000)));
    }
    if rng.f64() < 0.5 {
        set("host_name", json!("torus.example.edu"));
    }
    set("page_id", json!(rng.u32(500..600)));
    set("page_attempt_guid", json!(format!("page-{serial}")));
    set("page_attempt_number", json!(rng.u32(1..4)));
    match kind {
        EventType::Video => {
            set("content_element_id", json!(rng.u32(..).to_string()));
        }
        EventType::PageViewed | EventType::PageAttempt => {}
        EventType::ActivityAttempt | EventType::PartAttempt => {
            set("activity_id", json!(rng.u32(600..900)));
            set("activity_revision_id", json!(rng.u32(700..9000)));
            set("activity_attempt_guid", json!(format!("activity-{serial}")));
            set("activity_attempt_number", json!(rng.u32(1..4)));
        }
    }
    if kind == EventType::PartAttempt {
        set("part_attempt_guid", json!(format!("part-{serial}")));
        set("part_attempt_number", json!(rng.u32(1..4)));
        set("part_id", json!(format!("part-{}", rng.u32(1..5))));
        set(
            "hints_requested",
            if rng.bool() {
                json!(rng.u32(..3))
            } else {
                json!(["h1"])
            },
        );
        set(
            "attached_objectives",
            json!([rng.u32(1..50), rng.u32(50..99)]),
        );
        set(
            "session_id",
            if rng.f64() < 0.2 {
                Value::Null
            } else {
                json!(uuid(rng))
            },
        );
    }
    context
}

fn video(rng: &mut Rng) -> (String, Value, Value) {
    let vid = |name: &str| format!("{VIDEO}/extensions/{name}");
    let length = f64::from(rng.u32(600..6000)) / 10.0;
    let time = length * rng.f64();
    let (verb, extensions) = match rng.u32(0..10) {
        0..4 => ("played", json!({vid("time"): time})),
        4..6 => (
            "paused",
            json!({
                vid("time"): time, vid("progress"): time / length,
                vid("played-segments"): format!("0[.]{time:.1}"), "video_play_time": time,
            }),
        ),
        6..8 => (
            "seeked",
            json!({vid("time-from"): time, vid("time-to"): length}),
        ),
        _ => (
            "completed",
            json!({vid("time"): length, vid("progress"): 1.0, vid("length"): length}),
        ),
    };
    let verb = if rng.f64() < 0.1 {
        EXPERIENCED.to_owned()
    } else {
        format!("{VIDEO}/verbs/{verb}")
    };
    let object = json!({
        "objectType": "Activity",
        "id": format!("https://video.example.edu/{:x}.mp4", rng.u32(..)),
        "definition": {
            "type": "https://w3id.org/xapi/video/activity-type/video",
            "name": {"en-US": title(rng)},
            "extensions": {vid("length"): length},
        },
    });
    (verb, object, json!({"extensions": extensions}))
}

fn page_viewed(rng: &mut Rng, serial: &str) -> (String, Value, Value) {
    let mut object = activity("page", serial, PAGE, title(rng));
    object["definition"]["subType"] = json!(if rng.bool() { "assessment" } else { "practice" });
    (
        VIEWED.to_owned(),
        object,
        json!({"success": true, "completion": rng.bool()}),
    )
}

fn attempt(rng: &mut Rng, kind: EventType, serial: &str) -> (String, Value, Value) {
    let (path, definition) = match kind {
        EventType::ActivityAttempt => ("activity_attempt", ext("activity_attempt")),
        EventType::PageAttempt => ("page_attempt", ext("page_attempt")),
        _ => (
            "part_attempt",
            String::from("http://adlnet.gov/expapi/activities/question"),
        ),
    };
    let out_of = rng.u32(1..10);
    let score = rng.u32(0..=out_of);
    let mut result = json!({
        "score": {"raw": score, "min": 0, "max": out_of, "scaled": f64::from(score) / f64::from(out_of)},
        "success": score == out_of,
        "completion": true,
    });
    if rng.f64() < 0.05 {
        result["score"] = Value::Null;
    }
    if kind == EventType::PartAttempt {
        result["response"] = match rng.u32(0..3) {
            0 => json!({"input": title(rng)}),
            1 => json!("42"),
            _ => Value::Null,
        };
        result["extensions"] = json!({ext("feedback"): {"content": [{"type": "p", "children": [{"text": title(rng)}]}]}});
    }
    (
        COMPLETED.to_owned(),
        activity(path, serial, &definition, title(rng)),
        result,
    )
}

pub(super) fn activity(path: &str, serial: &str, definition: &str, name: &str) -> Value {
    json!({
        "objectType": "Activity",
        "id": format!("{TORUS}/{path}/{serial}"),
        "definition": {"type": definition, "name": {"en-US": name}},
    })
}

fn title(rng: &mut Rng) -> &'static str {
    TITLES[rng.usize(..TITLES.len())]
}

fn uuid(rng: &mut Rng) -> String {
    let (high, low) = (rng.u64(..), rng.u64(..));
    format!(
        "{:08x}-{:04x}-4{:03x}-a{:03x}-{:012x}",
        high >> 32,
        high >> 16 & 0xffff,
        high & 0xfff,
        low >> 48 & 0xfff,
        low & 0xffff_ffff_ffff
    )
}
