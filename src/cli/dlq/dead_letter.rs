//! A message of the dead-letter queue, with the ledger's records of its objects.

use std::collections::BTreeMap;
use std::fmt;
use std::time::SystemTime;

use anyhow::Context;
use serde::{Serialize, Serializer};

use crate::cli::output::{first_words, shown, table};
use crate::ledger::DISMISSED;
use crate::ledger::history::{History, ObjectStatus};
use crate::notification::{Envelopes, Notification, parse_with_envelope_kind};
use crate::object::ObjectRef;
use crate::queue::Message;
use crate::queue::sqs::whole::{Attributes, WholeMessage};

/// The class of a message all of whose objects are loaded.
const LOADED: &str = "loaded";
const MALFORMED: &str = "malformed";
/// The class of a message that announces no object.
const IGNORABLE: &str = "ignorable";
/// The class of an object that the ledger has recorded neither as loaded nor as failed.
const UNTRIED: &str = "untried";

/// The classes that a message can have in addition to those of failed objects.
pub(super) const CLASSES: [&str; 5] = [LOADED, MALFORMED, IGNORABLE, UNTRIED, DISMISSED];

#[derive(Clone, Debug, Serialize)]
pub(super) struct DeadLetter {
    pub(super) message_id: String,
    #[serde(serialize_with = "rfc3339")]
    pub(super) sent_at: SystemTime,
    #[serde(serialize_with = "rfc3339")]
    first_received_at: SystemTime,
    receive_count: u32,
    /// Why it was dead-lettered, in one word: the class of the first object that is not loaded.
    pub(super) class: String,
    reason: String,
    pub(super) objects: Vec<Announced>,
    pub(super) attributes: Attributes,
    pub(super) body: String,
}

/// An object of a message.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Announced {
    pub(super) bucket: String,
    pub(super) key: String,
    etag: String,
    #[serde(flatten)]
    status: ObjectStatus,
}

/// Reads messages, and looks up their objects in the ledger.
pub(super) struct Reader {
    history: History,
    envelopes: Envelopes,
    clickhouse_url: String,
}

impl Reader {
    pub(super) fn new(history: History, envelopes: Envelopes, clickhouse_url: &str) -> Self {
        Self {
            history,
            envelopes,
            clickhouse_url: clickhouse_url.to_owned(),
        }
    }

    pub(super) async fn read(
        &self,
        messages: Vec<WholeMessage>,
    ) -> anyhow::Result<Vec<DeadLetter>> {
        let contents = messages.iter();
        let contents = contents.map(|whole| Contents::of(whole, &self.envelopes));
        let contents: Vec<_> = contents.collect();
        let objects: Vec<_> = contents.iter().flat_map(Contents::objects).collect();
        let claim_statuses = self.history.claim_statuses(&objects).await;
        let claim_statuses = claim_statuses
            .with_context(|| format!("failed to query ClickHouse at {}", self.clickhouse_url))?;
        let dead_letters = messages.into_iter().zip(&contents);
        Ok(dead_letters
            .map(|(message, contents)| {
                let objects = contents.objects().iter().map(|object| Announced {
                    bucket: object.bucket.clone(),
                    key: object.key.clone(),
                    etag: object.etag.clone(),
                    status: claim_statuses
                        .get(&object.id())
                        .cloned()
                        .unwrap_or_default(),
                });
                DeadLetter::new(message, contents, objects.collect())
            })
            .collect())
    }
}

enum Contents {
    Objects(Vec<ObjectRef>),
    Ignorable(&'static str),
    Malformed(String),
}

impl Contents {
    fn of(whole: &WholeMessage, envelopes: &Envelopes) -> Self {
        let (_, notification) = parse_with_envelope_kind(&whole.message.body, envelopes);
        match notification {
            Ok(Notification::Objects(announced)) => {
                Self::Objects(announced.into_iter().map(|it| it.object).collect())
            }
            Ok(Notification::Ignorable(why)) => Self::Ignorable(why.label()),
            Err(malformed) => Self::Malformed(malformed.to_string()),
        }
    }

    fn objects(&self) -> &[ObjectRef] {
        match self {
            Self::Objects(objects) => objects,
            Self::Ignorable(_) | Self::Malformed(_) => &[],
        }
    }

    fn class_and_reason(&self, objects: &[Announced]) -> (String, String) {
        let (class, reason) = match self {
            Self::Malformed(problem) => (MALFORMED, problem.as_str()),
            Self::Ignorable(why) => (IGNORABLE, *why),
            Self::Objects(_) => match objects.iter().find(|object| !object.status.loaded) {
                Some(object) => (object.class(), object.status.reason.as_str()),
                None => (LOADED, ""),
            },
        };
        (class.to_owned(), reason.to_owned())
    }
}

impl DeadLetter {
    fn new(whole: WholeMessage, contents: &Contents, objects: Vec<Announced>) -> Self {
        let (class, reason) = contents.class_and_reason(&objects);
        let Message {
            id,
            handle: _,
            body,
            receive_count,
            age: _,
        } = whole.message;
        Self {
            message_id: id,
            sent_at: whole.sent_at,
            first_received_at: whole.first_received_at,
            receive_count,
            class,
            reason,
            objects,
            attributes: whole.attributes,
            body,
        }
    }

    /// Returns whether it announces objects, and all of them are loaded.
    pub(super) fn is_loaded(&self) -> bool {
        !self.objects.is_empty() && self.objects.iter().all(|it| it.status.loaded)
    }

    /// Returns whether the message, or an object of it that is not loaded, has this class.
    pub(super) fn is_of_class(&self, class: &str) -> bool {
        let not_loaded = |object: &&Announced| !object.status.loaded;
        let mut objects = self.objects.iter().filter(not_loaded);
        self.class == class || objects.any(|object| object.class() == class)
    }

    /// Returns the objects as one cell of a table.
    fn what(&self) -> String {
        match self.objects.as_slice() {
            [] => String::new(),
            [object] => object.to_string(),
            [first, rest @ ..] => format!("{first} and {} more", rest.len()),
        }
    }
}

pub(super) fn ids<'a>(
    dead_letters: impl IntoIterator<Item = &'a DeadLetter>,
) -> impl Iterator<Item = &'a str> {
    dead_letters
        .into_iter()
        .map(|dead_letter| dead_letter.message_id.as_str())
}

/// The number of messages of each class.
pub(super) type Classes = BTreeMap<String, u64>;

pub(super) fn count_classes(classes: &mut Classes, dead_letters: &[DeadLetter]) {
    for dead_letter in dead_letters {
        *classes.entry(dead_letter.class.clone()).or_default() += 1;
    }
}

pub(super) fn classes_table(classes: &Classes) -> String {
    let rows = classes.iter();
    let rows = rows.map(|(class, count)| vec![class.clone(), count.to_string()]);
    table(&["class", "messages"], rows)
}

pub(super) fn dead_letters_table(dead_letters: &[DeadLetter]) -> String {
    let rows = dead_letters.iter().map(|dead_letter| {
        vec![
            dead_letter.message_id.clone(),
            utc(dead_letter.sent_at),
            dead_letter.receive_count.to_string(),
            dead_letter.class.clone(),
            dead_letter.what(),
            first_words(&dead_letter.reason),
        ]
    });
    let header = [
        "message",
        "sent (UTC)",
        "receives",
        "class",
        "object",
        "reason",
    ];
    table(&header, rows)
}

impl fmt::Display for DeadLetter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "message         {}", shown(&self.message_id))?;
        writeln!(f, "sent            {}", utc(self.sent_at))?;
        writeln!(f, "first received  {}", utc(self.first_received_at))?;
        writeln!(f, "receives        {}", self.receive_count)?;
        write!(f, "class           {}", shown(&self.class))?;
        if self.objects.is_empty() {
            write!(f, ": {}", shown(&self.reason))?;
        }
        writeln!(f)?;
        for object in &self.objects {
            let etag = shown(&object.etag);
            writeln!(f, "\n{}", shown(&object.to_string()))?;
            writeln!(f, "  etag {etag}: {}", shown(object.class()))?;
            let status = &object.status;
            if status.failures > 0 {
                let (at, reason) = (&status.failed_at, shown(&status.reason));
                let last = if status.class == DISMISSED {
                    DISMISSED
                } else {
                    "last"
                };
                writeln!(
                    f,
                    "  failed {} times, {last} {at}: {reason}",
                    status.failures
                )?;
            }
        }
        if !self.attributes.is_empty() {
            let attributes = serde_json::to_string(&self.attributes).map_err(|_| fmt::Error)?;
            writeln!(f, "\nattributes\n{}", shown(&attributes))?;
        }
        writeln!(f, "\nbody\n{}", shown(&self.body))
    }
}

impl Announced {
    fn class(&self) -> &str {
        if self.status.loaded {
            LOADED
        } else if self.status.class.is_empty() {
            UNTRIED
        } else {
            &self.status.class
        }
    }
}

impl fmt::Display for Announced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}/{}", self.bucket, self.key)
    }
}

fn utc(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}

fn rfc3339<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_rfc3339_millis(*time))
}
