//! The fields of the configuration, according to the JSON schema of `Config`.

use schemars::generate::SchemaSettings;
use serde_json::Value;

use super::layers::default_tree;
use super::problems::Problem;
use super::types::Config;

/// Returns the JSON schema of a configuration file (draft 2020-12), with
/// descriptions and defaults. No field is required: each layer may set any part.
pub fn json_schema() -> Value {
    let mut settings = SchemaSettings::draft2020_12();
    settings.inline_subschemas = true;
    let mut schema = settings
        .into_generator()
        .into_root_schema_for::<Config>()
        .to_value();
    complete(&mut schema, &default_tree());
    schema["title"] = "Sluice".into();
    schema
}

/// Adds defaults, makes all fields optional, and joins lines that are broken
/// only because of the width of the source.
fn complete(schema: &mut Value, defaults: &Value) {
    let Some(object) = schema.as_object_mut() else {
        return;
    };
    object.remove("required");
    if let Some(Value::String(description)) = object.get_mut("description") {
        *description = description.replace('\n', " ");
    }
    // schemars' names of Rust's integer types mean nothing to other tools.
    if object.get("format").is_some_and(|it| it != "password") {
        object.remove("format");
    }
    if let Some(Value::Object(properties)) = object.get_mut("properties") {
        for (key, property) in properties {
            let default = &defaults[key.as_str()];
            if !default.is_null() && !default.is_object() {
                property["default"] = default.clone();
            }
            complete(property, default);
        }
    }
    if let Some(Value::Array(variants)) = object.get_mut("oneOf") {
        for variant in variants {
            complete(variant, &Value::Null);
            // The kind distinguishes the variants.
            variant["required"] = Value::from(vec!["kind"]);
        }
    }
}

/// What a dotted path refers to.
pub(super) enum Node<'a> {
    Section,
    Field(&'a Field),
    Unknown,
}

/// One field, as the schema describes it.
pub(super) struct Field {
    pub(super) path: String,
    /// Its type, human-readable.
    pub(super) takes: String,
    pub(super) default: Option<Value>,
    pub(super) description: String,
    pub(super) optional: bool,
    pub(super) secret: bool,
    pub(super) range: Option<(u64, u64)>,
    pub(super) is_list: bool,
    /// The kinds that have the field; empty if it does not depend on a kind.
    pub(super) kinds: Vec<String>,
}

impl Field {
    /// Returns what to set the field to.
    pub(super) fn advice(&self) -> String {
        match self.default.as_ref().map(plain) {
            Some(default) if !default.is_empty() => {
                format!("set it to {}; the default is `{default}`", self.takes)
            }
            _ => format!("set it to {}", self.takes),
        }
    }
}

/// Returns a JSON scalar as text, a string without its quotes.
pub(super) fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// All fields and sections.
pub(super) struct Fields {
    /// In the order of declaration.
    pub(super) fields: Vec<Field>,
    /// Path and description, in the order of declaration.
    pub(super) sections: Vec<(String, String)>,
}

impl Fields {
    pub(super) fn new() -> Self {
        let mut all = Self {
            fields: Vec::new(),
            sections: Vec::new(),
        };
        all.collect("", &json_schema());
        all
    }

    fn collect(&mut self, prefix: &str, schema: &Value) {
        for (key, property) in properties(schema) {
            let path = match prefix {
                "" => key.clone(),
                _ => format!("{prefix}.{key}"),
            };
            let description = text(property, "description");
            if let Some(variants) = property["oneOf"].as_array() {
                self.sections.push((path.clone(), description));
                self.collect_variants(&path, variants);
            } else if property["properties"].is_object() {
                self.sections.push((path.clone(), description));
                self.collect(&path, property);
            } else {
                self.fields.push(field(path, property));
            }
        }
    }

    /// Collects the tag, then the fields of each variant.
    fn collect_variants(&mut self, prefix: &str, variants: &[Value]) {
        let kind_of = |variant: &Value| plain(&variant["properties"]["kind"]["const"]);
        let kinds: Vec<String> = variants.iter().map(kind_of).collect();
        let lines = variants
            .iter()
            .map(|variant| format!("- `{}`: {}", kind_of(variant), text(variant, "description")));
        self.fields.push(Field {
            path: format!("{prefix}.kind"),
            takes: one_of(&kinds),
            default: default_tree()
                .pointer(&format!("/{}/kind", prefix.replace('.', "/")))
                .cloned(),
            description: lines.collect::<Vec<_>>().join("\n"),
            optional: false,
            secret: false,
            range: None,
            is_list: false,
            kinds: Vec::new(),
        });
        for variant in variants {
            for (key, property) in properties(variant) {
                if key == "kind" {
                    continue;
                }
                let mut field = field(format!("{prefix}.{key}"), property);
                field.kinds = vec![kind_of(variant)];
                self.fields.push(field);
            }
        }
    }

    pub(super) fn field(&self, path: &str) -> Option<&Field> {
        self.fields.iter().find(|field| field.path == path)
    }

    pub(super) fn node(&self, path: &str) -> Node<'_> {
        if let Some(field) = self.field(path) {
            return Node::Field(field);
        }
        match self.sections.iter().any(|(section, _)| section == path) {
            true => Node::Section,
            false => Node::Unknown,
        }
    }

    pub(super) fn is_section(&self, path: &str) -> Problem {
        Problem::new(path, "is a section, not a field")
            .advice(format!("set its fields: {}", self.keys_of(path)))
    }

    pub(super) fn unknown(&self, path: &str) -> Problem {
        let problem = Problem::new(path, "unknown key");
        if let Some(known) = self.closest(path) {
            return problem.advice(format!("did you mean `{known}`?"));
        }
        let parent = path.rsplit_once('.').map_or("", |(parent, _)| parent);
        match self.node(parent) {
            Node::Section => {
                problem.advice(format!("the keys of {parent} are {}", self.keys_of(parent)))
            }
            Node::Field(_) => problem.advice(format!("{parent} is a field and has no keys")),
            Node::Unknown => problem.advice(format!("the sections are {}", self.keys_of(""))),
        }
    }

    fn keys_of(&self, section: &str) -> String {
        let paths = self.fields.iter().map(|field| &field.path);
        let sections = self.sections.iter().map(|(path, _)| path);
        let keys: Vec<&str> = paths
            .chain(sections)
            .filter_map(|path| match path.rsplit_once('.') {
                Some((parent, key)) => (parent == section).then_some(key),
                None => section.is_empty().then_some(path.as_str()),
            })
            .collect();
        keys.join(", ")
    }

    /// Returns the known path that was likely meant: the closest one if it differs little, or the
    /// only one that ends in the same key.
    fn closest(&self, path: &str) -> Option<&str> {
        let lower = path.to_lowercase().replace('-', "_");
        let paths = self.fields.iter().map(|field| field.path.as_str());
        let known: Vec<&str> = paths
            .chain(self.sections.iter().map(|(path, _)| path.as_str()))
            .collect();
        let distance = |known: &&str| strsim::damerau_levenshtein(&lower, known);
        let nearest = known.iter().copied().min_by_key(distance)?;
        // A word that differs by more than a third is a different word.
        if distance(&nearest) <= (lower.len() / 3).clamp(1, 3) {
            return Some(nearest);
        }
        let mut same_key = known
            .iter()
            .filter(|known| last_key(known) == last_key(&lower));
        match (same_key.next(), same_key.next()) {
            (Some(only), None) => Some(only),
            _ => None,
        }
    }
}

fn last_key(path: &str) -> &str {
    path.rsplit('.').next().unwrap_or(path)
}

fn field(path: String, schema: &Value) -> Field {
    let default = schema.get("default").cloned();
    let range = schema["minimum"].as_u64().zip(schema["maximum"].as_u64());
    Field {
        takes: takes(schema, range),
        optional: default.is_none(),
        secret: is_secret(schema),
        description: text(schema, "description"),
        kinds: Vec::new(),
        is_list: schema["type"] == "array",
        default,
        range,
        path,
    }
}

fn takes(schema: &Value, range: Option<(u64, u64)>) -> String {
    if let Some(options) = schema["enum"].as_array() {
        // One of them is null if the field can be unset.
        let options = options.iter().filter(|option| !option.is_null());
        let options: Vec<String> = options.map(plain).collect();
        return one_of(&options);
    }
    match (schema["title"].as_str(), schema["type"].as_str(), range) {
        (Some("duration"), ..) => "a duration such as `10s` or `1h30m`".to_owned(),
        (Some("size"), ..) => "a size such as `128MiB`".to_owned(),
        (Some(title), ..) => title.to_owned(),
        (_, Some("integer"), Some((min, max))) => format!("a whole number, {min} to {max}"),
        (_, Some("integer"), None) => "a whole number".to_owned(),
        (_, Some("array"), _) => "a list of strings".to_owned(),
        (_, Some("boolean"), _) => "`true` or `false`".to_owned(),
        _ if is_secret(schema) => "a secret string".to_owned(),
        _ => "a string".to_owned(),
    }
}

fn is_secret(schema: &Value) -> bool {
    schema["writeOnly"] == true
}

fn one_of(options: &[String]) -> String {
    let quoted: Vec<String> = options.iter().map(|it| format!("`{it}`")).collect();
    format!("one of {}", quoted.join(", "))
}

fn properties(schema: &Value) -> impl Iterator<Item = (&String, &Value)> {
    schema["properties"].as_object().into_iter().flatten()
}

fn text(schema: &Value, key: &str) -> String {
    schema[key].as_str().unwrap_or_default().to_owned()
}
