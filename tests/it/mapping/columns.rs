//! Every column of every event type, and the event type that each statement matches.

use serde_json::{Value, json};

use super::harness::{Harness, case};
use super::statements::{SAMPLE, Statement, VIDEO, ctx, path, vid};

const COMPLETED: &str = "http://adlnet.gov/expapi/verbs/completed";
const EXPERIENCED: &str = "http://adlnet.gov/expapi/verbs/experienced";
const VIEWED: &str = "http://id.tincanapi.com/verb/viewed";
const PAGE: &str = "http://oli.cmu.edu/extensions/types/page";
const QUESTION: &str = "http://adlnet.gov/expapi/activities/question";
const PAGE_ATTEMPT: &str = "http://oli.cmu.edu/extensions/page_attempt";
const ACTIVITY_ATTEMPT: &str = "http://oli.cmu.edu/extensions/activity_attempt";

/// Asserts that the expectation covers all columns but the lineage, which differs between loads.
async fn assert_covers_all_columns(harness: &Harness, table: &str, expected: &Value) {
    let query = format!("DESCRIBE TABLE {}", harness.table(table));
    let lineage = ["source_path", "source_etag", "batch_id", "ingested_at"];
    for column in harness.rows(&query).await {
        let name = column["name"].as_str().unwrap();
        assert!(
            lineage.contains(&name) || expected.get(name).is_some(),
            "{table}.{name} is not checked"
        );
    }
}

#[tokio::test]
async fn the_sample_becomes_the_expected_row() {
    let harness = Harness::new("sample").await;
    let expected = json!({
        "event_id": "f4d9742b025094c1d1ddda4664a82e46", "timestamp": "2026-07-14 12:00:00.000", "user_id": "4321",
        "host_name": "https://torus.example.edu", "section_id": 2001, "project_id": 1001,
        "publication_id": 3001, "enrollment_id": null, "verb": COMPLETED,
        "part_attempt_guid": "7d1e", "part_attempt_number": 1, "activity_attempt_guid": "aa01",
        "activity_attempt_number": 1, "page_attempt_guid": "bb02", "page_attempt_number": 2,
        "page_id": 505, "activity_id": 606, "activity_revision_id": 707, "part_id": "part-1",
        "score": 1.0, "out_of": 2.0, "scaled_score": 0.5, "success": true, "completion": true,
        "response": r#"{"input":"42"}"#, "feedback": r#"{"content":[{"type":"p"}]}"#,
        "hints_requested": 1, "attached_objectives": "[9,10]", "session_id": "s-1",
        "batch_id": harness.batch.to_string(), "source_path": "0",
    });
    assert_covers_all_columns(&harness, "part_attempt_events", &expected).await;
    harness
        .check(&[case("sample", SAMPLE, "part_attempt_events", expected)])
        .await;
    let hash = harness
        .scalar(&format!(
            "SELECT lower(hex(sipHash128({})))",
            sluice::sql::string(SAMPLE)
        ))
        .await;
    let table = harness.table("part_attempt_events");
    assert_eq!(
        harness
            .scalar(&format!("SELECT event_id FROM {table}"))
            .await,
        hash
    );
}

#[tokio::test]
async fn each_event_type_fills_all_its_columns() {
    let harness = Harness::new("full").await;
    let common = |statement: Statement| {
        statement
            .with(
                &path(&["actor", "account"]),
                json!({"homePage": "https://home", "name": "u-1"}),
            )
            .with(&ctx("host_name"), json!("host"))
            .with(&ctx("section_id"), json!(1))
            .with(&ctx("project_id"), json!(2))
            .with(&ctx("publication_id"), json!(3))
            .with(&ctx("enrollment_id"), json!(4))
            .with(&ctx("page_attempt_guid"), json!("page-guid"))
            .with(&ctx("page_attempt_number"), json!(5))
            .with(&ctx("page_id"), json!(6))
            .with(&ctx("activity_attempt_guid"), json!("activity-guid"))
            .with(&ctx("activity_attempt_number"), json!(7))
            .with(&ctx("activity_id"), json!(8))
            .with(&ctx("activity_revision_id"), json!(9))
    };
    let scored = |statement: Statement| {
        statement
            .with(
                &path(&["result", "score"]),
                json!({"raw": 1.5, "max": 2, "scaled": 0.75}),
            )
            .with(&path(&["result", "success"]), json!(false))
            .with(&path(&["result", "completion"]), json!(true))
    };
    let row = |id: &str, verb: &str, own: Value| {
        let mut row = json!({
            "event_id": id, "timestamp": "2026-07-14 12:00:00.000", "user_id": "u-1",
            "host_name": "host", "section_id": 1, "project_id": 2, "publication_id": 3,
            "enrollment_id": 4, "verb": verb, "page_attempt_guid": "page-guid",
            "page_attempt_number": 5, "page_id": 6,
        });
        row.as_object_mut()
            .unwrap()
            .extend(own.as_object().unwrap().clone());
        row
    };
    let video = common(Statement::bare(
        "v",
        "https://w3id.org/xapi/video/verbs/seeked",
        "x",
    ))
    .with(
        &path(&["result", "extensions", "content_element_id"]),
        json!("element"),
    )
    .with(&path(&["object", "id"]), json!("https://video/1"))
    .with(
        &path(&["object", "definition", "name", "en-US"]),
        json!("Title"),
    )
    .with(&vid("time"), json!(1.25))
    .with(&vid("length"), json!(100))
    .with(&vid("progress"), json!(0.5))
    .with(
        &path(&["result", "extensions", "video_play_time"]),
        json!(3.5),
    )
    .with(&vid("time-from"), json!(10.5))
    .with(&vid("time-to"), json!(20.5))
    .with(&vid("played-segments"), json!("0[.]10"));
    let video_row = row(
        "v",
        "https://w3id.org/xapi/video/verbs/seeked",
        json!({
            "content_element_id": "element", "video_url": "https://video/1", "video_title": "Title",
            "video_time": 1.25, "video_length": 100.0, "video_progress": 0.5, "video_play_time": 3.5,
            "video_seek_from": 10.5, "video_seek_to": 20.5, "video_played_segments": "0[.]10",
        }),
    );
    let score = json!({"score": 1.5, "out_of": 2.0, "scaled_score": 0.75, "success": false, "completion": true});
    let mut activity_row = row("a", COMPLETED, score.clone());
    activity_row.as_object_mut().unwrap().extend(
        json!({"activity_attempt_guid": "activity-guid", "activity_attempt_number": 7,
               "activity_id": 8, "activity_revision_id": 9})
        .as_object()
        .unwrap()
        .clone(),
    );
    let page_row = row("p", COMPLETED, score);
    let viewed_row = row(
        "w",
        VIEWED,
        json!({"page_sub_type": "graded", "success": false, "completion": true}),
    );
    let cases = [
        case("video", video.line(), "video_events", video_row),
        case(
            "activity",
            scored(common(Statement::bare("a", COMPLETED, ACTIVITY_ATTEMPT))).line(),
            "activity_attempt_events",
            activity_row,
        ),
        case(
            "page",
            scored(common(Statement::bare("p", COMPLETED, PAGE_ATTEMPT))).line(),
            "page_attempt_events",
            page_row,
        ),
        case(
            "viewed",
            scored(common(Statement::bare("w", VIEWED, PAGE)))
                .with(&path(&["object", "definition", "subType"]), json!("graded"))
                .line(),
            "page_viewed_events",
            viewed_row,
        ),
    ];
    for case in &cases {
        assert_covers_all_columns(&harness, case.table, &case.expected).await;
    }
    harness.check(&cases).await;
}

#[tokio::test]
async fn a_bare_statement_has_defaults_and_no_made_up_zeros() {
    let harness = Harness::new("bare").await;
    let row = |id: &str, own: Value| {
        let mut row = json!({
            "event_id": id, "user_id": "", "host_name": "", "section_id": 0, "project_id": 0,
            "publication_id": 0, "enrollment_id": null, "page_attempt_guid": "",
            "page_attempt_number": 0,
        });
        row.as_object_mut()
            .unwrap()
            .extend(own.as_object().unwrap().clone());
        row
    };
    let video = row(
        "v",
        json!({
            "page_id": null, "content_element_id": "", "video_url": "", "video_title": "",
            "video_time": null, "video_length": null, "video_progress": null, "video_play_time": null,
            "video_seek_from": null, "video_seek_to": null, "video_played_segments": null,
        }),
    );
    let score = json!({"page_id": 0, "score": null, "out_of": null, "scaled_score": null, "success": null, "completion": null});
    let part = row(
        "q",
        json!({
            "part_attempt_guid": "", "part_attempt_number": 0, "activity_attempt_guid": "",
            "activity_attempt_number": 0, "page_id": 0, "activity_id": 0, "activity_revision_id": 0,
            "part_id": "", "score": null, "success": null, "response": null, "feedback": null,
            "hints_requested": null, "attached_objectives": null, "session_id": null,
        }),
    );
    let nulls = Statement::bare("q0", COMPLETED, QUESTION)
        .with(&path(&["actor"]), Value::Null)
        .with(
            &path(&["result"]),
            json!({"score": null, "response": null, "success": null, "extensions": null}),
        )
        .with(&ctx("page_id"), Value::Null)
        .with(&ctx("hints_requested"), Value::Null)
        .with(&ctx("section_id"), Value::Null);
    let mut null_row = part.clone();
    null_row["event_id"] = json!("q0");
    harness
        .check(&[
            case("video", Statement::video("v").line(), "video_events", video),
            case(
                "activity",
                Statement::bare("a", COMPLETED, ACTIVITY_ATTEMPT).line(),
                "activity_attempt_events",
                row("a", score.clone()),
            ),
            case(
                "page",
                Statement::bare("p", COMPLETED, PAGE_ATTEMPT).line(),
                "page_attempt_events",
                row("p", score),
            ),
            case(
                "viewed",
                Statement::bare("w", VIEWED, PAGE).line(),
                "page_viewed_events",
                row(
                    "w",
                    json!({"page_id": 0, "page_sub_type": "", "success": null, "completion": null}),
                ),
            ),
            case(
                "part",
                Statement::bare("q", COMPLETED, QUESTION).line(),
                "part_attempt_events",
                part,
            ),
            case(
                "part of nulls",
                nulls.line(),
                "part_attempt_events",
                null_row,
            ),
        ])
        .await;
}

#[tokio::test]
async fn a_missing_value_falls_back_to_the_next_path() {
    let harness = Harness::new("fallbacks").await;
    let length = format!("{VIDEO}length");
    let fallbacks = Statement::video("all")
        .with(
            &path(&["actor"]),
            json!({"mbox": "mailto:a@b", "account": {"homePage": "https://home"}}),
        )
        .with(&ctx("attempt_guid"), json!("guid"))
        .with(&ctx("attempt_number"), json!(3))
        .with(&ctx("resource_id"), json!("55"))
        .with(&ctx("content_element_id"), json!("element"))
        .with(&path(&["context", "extensions", &length]), json!("60.5"))
        .with(
            &path(&["object", "definition", "extensions", &length]),
            json!(70),
        );
    let row = json!({
        "user_id": "mailto:a@b", "host_name": "https://home", "page_attempt_guid": "guid",
        "page_attempt_number": 3, "page_id": 55, "content_element_id": "element", "video_length": 60.5,
    });
    let by_null = fallbacks
        .clone()
        .with(&path(&["id"]), json!("null"))
        .with(&ctx("page_attempt_guid"), Value::Null)
        .with(&vid("length"), Value::Null)
        .with(&path(&["context", "extensions", &length]), Value::Null)
        .with(&path(&["actor", "account", "name"]), Value::Null);
    let first = fallbacks
        .clone()
        .with(&path(&["id"]), json!("first"))
        .with(&ctx("page_attempt_guid"), json!("own"))
        .with(&ctx("page_attempt_number"), json!(0))
        .with(&ctx("page_id"), json!(1))
        .with(&ctx("host_name"), json!("host"))
        .with(
            &path(&["result", "extensions", "content_element_id"]),
            json!("own"),
        )
        .with(&vid("length"), json!(0))
        .with(&path(&["actor", "account", "name"]), json!(7));
    harness.check(&[
        case("all", fallbacks.line(), "video_events", row),
        case("null falls back too", by_null.line(), "video_events",
            json!({"page_attempt_guid": "guid", "video_length": 70.0, "user_id": "mailto:a@b"})),
        case("the first wins", first.line(), "video_events", json!({
            "page_attempt_guid": "own", "page_attempt_number": 0, "page_id": 1, "host_name": "host",
            "content_element_id": "own", "video_length": 0.0, "user_id": "7",
        })),
    ]).await;
}

#[tokio::test]
async fn each_rule_matches_only_its_own_statements() {
    let harness = Harness::new("rules").await;
    let mut cases = Vec::new();
    let mut add = |verb: &str, kind: Option<&str>, table: &'static str| {
        let id = cases.len().to_string();
        let mut statement = Statement::bare(&id, verb, kind.unwrap_or_default());
        if kind.is_none() {
            statement = statement.without(&path(&["object"]));
        }
        let expected = if table == "unmatched_statements" {
            json!({"raw": statement.line(), "reason": "no event type"})
        } else {
            json!({"event_id": id, "verb": verb})
        };
        cases.push(case(
            &format!("{verb} {kind:?}"),
            statement.line(),
            table,
            expected,
        ));
    };
    for verb in ["played", "paused", "seeked", "completed"] {
        let verb = format!("https://w3id.org/xapi/video/verbs/{verb}");
        add(
            &verb,
            Some("https://w3id.org/xapi/video/activity-type/video"),
            "video_events",
        );
        add(&verb, Some(PAGE), "video_events");
        add(&verb, Some(QUESTION), "video_events");
        add(&verb, None, "video_events");
    }
    add(EXPERIENCED, Some("anything"), "video_events");
    add(EXPERIENCED, Some(QUESTION), "video_events");
    add(EXPERIENCED, None, "video_events");
    add(EXPERIENCED, Some(PAGE), "unmatched_statements");
    add(COMPLETED, Some(ACTIVITY_ATTEMPT), "activity_attempt_events");
    add(COMPLETED, Some(PAGE_ATTEMPT), "page_attempt_events");
    add(COMPLETED, Some(QUESTION), "part_attempt_events");
    add(COMPLETED, Some(PAGE), "unmatched_statements");
    add(COMPLETED, None, "unmatched_statements");
    add(VIEWED, Some(PAGE), "page_viewed_events");
    add(VIEWED, Some(PAGE_ATTEMPT), "unmatched_statements");
    add(VIEWED, None, "unmatched_statements");
    add(
        "https://w3id.org/xapi/video/verbs/initialized",
        None,
        "unmatched_statements",
    );
    add(
        "https://w3id.org/xapi/video/verbs/PLAYED",
        None,
        "unmatched_statements",
    );
    add(
        " http://adlnet.gov/expapi/verbs/completed",
        Some(QUESTION),
        "unmatched_statements",
    );
    cases.push(case(
        "empty object",
        "{}",
        "unmatched_statements",
        json!({"raw": "{}"}),
    ));
    harness.check(&cases).await;
}
