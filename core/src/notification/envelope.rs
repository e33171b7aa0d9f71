//! Declared envelopes: messages of other services that name written objects.

use serde::Deserialize;
use serde_json::Value;

use super::object::{Parts, check, size_of};
use super::{Announced, Ignorable, Malformed, Notification, names, time_of};
use crate::yaml;

/// The declared envelopes, in the order in which they are tried.
#[derive(Clone, Debug, Default)]
pub struct Envelopes(Vec<Envelope>);

/// Where a message has the fields of an object.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope {
    /// Shown in errors.
    name: String,
    /// The path of the event's name. Without it, every message announces written objects.
    event: Option<Path>,
    /// The events that write an object.
    #[serde(default)]
    created: Vec<String>,
    /// The events that write no object, and are acknowledged.
    #[serde(default)]
    ignored: Vec<String>,
    /// The list of files, if a message has several. The paths below begin at a file; that of the
    /// bucket may begin at the message.
    files: Option<Path>,
    bucket: Path,
    key: Path,
    size: Option<Path>,
    etag: Option<Path>,
    version: Option<Path>,
    time: Option<Path>,
}

/// The names of nested fields, outermost first; at least one.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "Vec<String>")]
struct Path(Vec<String>);

impl TryFrom<Vec<String>> for Path {
    type Error = &'static str;

    fn try_from(names: Vec<String>) -> Result<Self, Self::Error> {
        if names.is_empty() {
            return Err("a path is empty; name the fields that lead to the value");
        }
        Ok(Self(names))
    }
}

impl Path {
    fn of<'v>(&self, value: &'v Value) -> &'v Value {
        self.0
            .iter()
            .fold(value, |value, name| &value[name.as_str()])
    }

    fn text(&self, value: &Value) -> Option<String> {
        self.of(value).as_str().map(str::to_owned)
    }
}

impl Envelopes {
    /// Reads the text of a YAML file with a list `envelopes`.
    ///
    /// # Errors
    ///
    /// Names the problems of the text, or the first of an envelope.
    pub fn from_yaml(text: &str) -> Result<Self, String> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct File {
            envelopes: Vec<Envelope>,
        }
        let file: File = yaml::parse(text).map_err(|found| {
            let found: Vec<String> = found.iter().map(ToString::to_string).collect();
            found.join("; ")
        })?;
        for envelope in &file.envelopes {
            envelope.check()?;
        }
        Ok(Self(file.envelopes))
    }

    /// Reads a message with the first envelope that finds a bucket and a key in it; `None` if none
    /// does.
    pub(super) fn read(&self, message: &Value) -> Option<Result<Notification, Malformed>> {
        let envelope = self.0.iter().find(|envelope| envelope.fits(message))?;
        Some(envelope.read(message))
    }
}

impl Envelope {
    fn check(&self) -> Result<(), String> {
        if self.event.is_some() == self.created.is_empty() {
            return Err(format!(
                "envelope {}: `event` and `created` must be declared together: the path of the \
                 event's name, and the names of the events that write an object",
                self.name
            ));
        }
        Ok(())
    }

    /// Returns the files of a message, or the message itself.
    fn files<'v>(&self, message: &'v Value) -> &'v [Value] {
        match &self.files {
            Some(path) => path.of(message).as_array().map_or(&[], Vec::as_slice),
            None => std::slice::from_ref(message),
        }
    }

    fn bucket(&self, message: &Value, file: &Value) -> Option<String> {
        self.bucket.text(file).or_else(|| self.bucket.text(message))
    }

    fn fits(&self, message: &Value) -> bool {
        let has_event = self
            .event
            .as_ref()
            .is_none_or(|it| it.of(message).is_string());
        let first = self.files(message).first();
        has_event
            && first.is_some_and(|file| {
                self.bucket(message, file).is_some() && self.key.of(file).is_string()
            })
    }

    fn read(&self, message: &Value) -> Result<Notification, Malformed> {
        let event = self.event.as_ref().and_then(|path| path.text(message));
        if let Some(event) = event
            && !self.created.contains(&event)
        {
            if self.ignored.contains(&event) {
                return Ok(Notification::Ignorable(Ignorable::OtherEvents));
            }
            let problem = format!(
                "the event `{event}` is listed in neither `created` nor `ignored` of the envelope \
                 {}",
                self.name
            );
            return Err(Malformed::Record { index: 0, problem });
        }
        let files = self.files(message).iter().enumerate();
        let announced: Result<Vec<Announced>, Malformed> = files
            .map(|(index, file)| {
                let announced = self.announced(message, file);
                announced.map_err(|problem| Malformed::Record { index, problem })
            })
            .collect();
        announced.map(Notification::Objects)
    }

    fn announced(&self, message: &Value, file: &Value) -> Result<Announced, String> {
        // A field that applies to all files may be in the message itself.
        let text = |path: &Option<Path>| {
            let path = path.as_ref()?;
            path.text(file).or_else(|| path.text(message))
        };
        let object = check(Parts {
            bucket: self.bucket(message, file).ok_or("the bucket is missing")?,
            key: self.key.text(file).ok_or("the key is missing")?,
            etag: text(&self.etag),
            size: self.size.as_ref().and_then(|path| size_of(path.of(file))),
            version_id: text(&self.version),
            ..Parts::default()
        })?;
        Ok(Announced {
            event: names::ANY.to_owned(),
            at: time_of(text(&self.time).as_deref()),
            object,
        })
    }
}
