//! Statements that the tests start from, and changes to them.

use serde_json::{Value, json};

pub(super) const VIDEO: &str = "https://w3id.org/xapi/video/extensions/";

/// The sample of xapi-mapping.md, byte for byte.
pub(super) const SAMPLE: &str = r#"{"actor":{"objectType":"Agent","account":{"homePage":"https://torus.example.edu","name":4321}},"verb":{"id":"http://adlnet.gov/expapi/verbs/completed","display":{"en-US":"completed"}},"object":{"objectType":"Activity","id":"https://torus.example.edu/part_attempt/7d1e","definition":{"name":{"en-US":"Part Attempt"},"type":"http://adlnet.gov/expapi/activities/question"}},"result":{"score":{"scaled":0.5,"raw":1.0,"min":0,"max":2.0},"response":{"input":"42"},"completion":true,"success":true,"extensions":{"http://oli.cmu.edu/extensions/feedback":{"content":[{"type":"p"}]}}},"context":{"extensions":{"http://oli.cmu.edu/extensions/hints_requested":["h1"],"http://oli.cmu.edu/extensions/part_attempt_number":1,"http://oli.cmu.edu/extensions/part_attempt_guid":"7d1e","http://oli.cmu.edu/extensions/activity_attempt_number":1,"http://oli.cmu.edu/extensions/activity_attempt_guid":"aa01","http://oli.cmu.edu/extensions/page_attempt_number":2,"http://oli.cmu.edu/extensions/page_attempt_guid":"bb02","http://oli.cmu.edu/extensions/section_id":2001,"http://oli.cmu.edu/extensions/project_id":1001,"http://oli.cmu.edu/extensions/publication_id":3001,"http://oli.cmu.edu/extensions/page_id":505,"http://oli.cmu.edu/extensions/activity_id":606,"http://oli.cmu.edu/extensions/activity_revision_id":707,"http://oli.cmu.edu/extensions/part_id":"part-1","http://oli.cmu.edu/extensions/attached_objectives":[9,10],"http://oli.cmu.edu/extensions/session_id":"s-1"}},"timestamp":"2026-07-14T12:00:00Z"}"#;

/// Returns the path of a context extension.
pub(super) fn ctx(name: &str) -> Vec<String> {
    path(&[
        "context",
        "extensions",
        &format!("http://oli.cmu.edu/extensions/{name}"),
    ])
}

/// Returns the path of a result extension of a video.
pub(super) fn vid(name: &str) -> Vec<String> {
    path(&["result", "extensions", &format!("{VIDEO}{name}")])
}

pub(super) fn path(keys: &[&str]) -> Vec<String> {
    keys.iter().map(|&key| key.to_owned()).collect()
}

/// A statement that a test changes.
#[derive(Clone)]
pub(super) struct Statement(pub Value);

impl Statement {
    /// Creates the sample with an id, so that its row does not collapse with another.
    pub(super) fn part(id: &str) -> Statement {
        Statement(serde_json::from_str(SAMPLE).unwrap()).with(&path(&["id"]), json!(id))
    }

    /// Creates a statement with nothing but what its event type requires.
    pub(super) fn bare(id: &str, verb: &str, kind: &str) -> Statement {
        Statement(json!({
            "id": id,
            "timestamp": "2026-07-14T12:00:00Z",
            "verb": {"id": verb},
            "object": {"definition": {"type": kind}},
        }))
    }

    pub(super) fn video(id: &str) -> Statement {
        Statement::bare(id, "https://w3id.org/xapi/video/verbs/played", "video")
    }

    pub(super) fn with(mut self, path: &[String], value: Value) -> Statement {
        let mut place = &mut self.0;
        for key in path {
            place = place
                .as_object_mut()
                .unwrap()
                .entry(key)
                .or_insert_with(|| json!({}));
        }
        *place = value;
        self
    }

    pub(super) fn without(mut self, path: &[String]) -> Statement {
        let (last, parents) = path.split_last().unwrap();
        let place = parents
            .iter()
            .fold(&mut self.0, |place, key| &mut place[key]);
        place.as_object_mut().unwrap().remove(last);
        self
    }

    pub(super) fn line(&self) -> String {
        self.0.to_string()
    }

    /// Returns the line with the JSON text `"@"` replaced, for numbers that serde_json would write
    /// differently.
    pub(super) fn line_with(&self, raw: &str) -> String {
        let line = self.line();
        assert!(line.contains("\"@\""));
        line.replace("\"@\"", raw)
    }
}
