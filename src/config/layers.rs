//! The layers: reads each value with its origin, and merges them. Later layers
//! win.

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use config::builder::DefaultState;
use config::{ConfigBuilder, ConfigError, File, FileFormat, Map, Source, Value, ValueKind};

use super::fields::{Fields, Node};
use super::problems::{Findings, Problem};

const DEFAULTS: &str = include_str!("../../config/default.yaml");

/// The prefix of the environment variables of Sluice's configuration.
const ENV_PREFIX: &str = "SLUICE__";

/// Where a configuration comes from. It has no `Debug`, since it may contain
/// secrets.
#[derive(Clone, Default)]
pub struct Sources {
    /// The file of `--config`.
    pub file: Option<PathBuf>,
    /// The environment; variables that are not Sluice's are ignored.
    pub env: Vec<(String, String)>,
    /// Dotted paths and their values; the last value of a path wins.
    pub flags: Vec<(String, String)>,
}

/// Returns the environment of this process, for [`Sources::env`]. Unlike
/// `std::env::vars`, it does not panic on a variable that is not Unicode; one of
/// Sluice's is reported.
pub fn process_environment() -> Vec<(String, String)> {
    let lossy = |text: OsString| text.to_string_lossy().into_owned();
    env::vars_os()
        .map(|(name, value)| (lossy(name), lossy(value)))
        .collect()
}

/// The merged layers.
pub(super) struct Merged {
    pub(super) tree: serde_json::Value,
    pub(super) origins: Origins,
}

/// Where each value came from, for those that are not built-in defaults.
#[derive(Default)]
pub(super) struct Origins(BTreeMap<String, String>);

impl Origins {
    pub(super) fn of(&self, path: &str) -> Option<&str> {
        self.0.get(path).map(String::as_str)
    }
}

/// Returns the variable that sets the field at `path`.
pub(super) fn variable_name(path: &str) -> String {
    format!("{ENV_PREFIX}{}", path.to_uppercase().replace('.', "__"))
}

/// Returns the built-in defaults.
pub(super) fn default_tree() -> serde_json::Value {
    let merged = ConfigBuilder::<DefaultState>::default()
        .add_source(File::from_str(DEFAULTS, FileFormat::Yaml))
        .build()
        .and_then(|defaults| defaults.collect())
        .expect("config/default.yaml is built in and parses");
    to_json(table_of(merged), "", &mut Origins::default())
}

/// Merges the layers. Invalid keys are reported and left out, so that the rest can still be
/// checked.
pub(super) fn merge(sources: Sources, fields: &Fields, findings: &mut Findings) -> Merged {
    let mut builder = ConfigBuilder::<DefaultState>::default()
        .add_source(File::from_str(DEFAULTS, FileFormat::Yaml));
    if let Some(file) = &sources.file {
        builder = builder.add_source(file_layer(file, fields, findings));
    }
    for layer in env_layers(&sources.env, fields, findings) {
        builder = builder.add_source(layer);
    }
    for (path, value) in &sources.flags {
        let origin = "a flag on the command line".to_owned();
        if fields.field(path).is_some_and(|field| field.secret) {
            findings.add(secret_flag(path).origin(Some(&origin)));
        } else if let Some(layer) = single(path, value, origin, fields, findings) {
            builder = builder.add_source(layer);
        }
    }
    let merged = builder
        .build()
        .and_then(|merged| merged.collect())
        .expect("the layers are parsed, and merging them cannot fail");
    let mut origins = Origins::default();
    let tree = to_json(table_of(merged), "", &mut origins);
    Merged { tree, origins }
}

/// A layer that has been parsed and checked for invalid keys.
#[derive(Debug, Clone)]
struct Layer(Map<String, Value>);

impl Source for Layer {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, ConfigError> {
        Ok(self.0.clone())
    }
}

fn file_layer(path: &Path, fields: &Fields, findings: &mut Findings) -> Layer {
    match read_file(path) {
        Ok(table) => {
            let origin = format!("file {}", path.display());
            Layer(known_only(table, "", &origin, fields, findings))
        }
        Err(problem) => {
            findings.add(problem);
            Layer(Map::new())
        }
    }
}

fn read_file(path: &Path) -> Result<Map<String, Value>, Problem> {
    let name = path.display().to_string();
    let text = fs::read_to_string(path).map_err(|error| {
        Problem::new(&name, format!("failed to read the file: {error}"))
            .advice("set --config to the path of a readable YAML file")
    })?;
    // The parser reads a file of comments alone as null; it means no settings.
    if text.lines().all(is_blank) {
        return Ok(Map::new());
    }
    File::from_str(&text, FileFormat::Yaml)
        .collect()
        .map_err(|error| {
            Problem::new(&name, syntax(&error))
                .advice("write the file in the format that `sluice config show` prints")
        })
}

fn is_blank(line: &str) -> bool {
    let line = line.trim();
    line.is_empty() || line.starts_with('#') || line == "---"
}

/// Returns the error of the YAML parser, unless it could quote values: other errors are about a
/// root that is not a mapping, and print it.
fn syntax(error: &ConfigError) -> String {
    match error {
        ConfigError::FileParse { cause, .. } if cause.is::<yaml_rust2::ScanError>() => {
            format!("invalid YAML: {cause}")
        }
        _ => "is not a single YAML document of keys and values".to_owned(),
    }
}

/// Returns the part of a file's table that has known keys and the right shape.
fn known_only(
    table: Map<String, Value>,
    prefix: &str,
    origin: &str,
    fields: &Fields,
    findings: &mut Findings,
) -> Map<String, Value> {
    let mut known = Map::new();
    for (key, value) in table.into_iter().collect::<BTreeMap<_, _>>() {
        let path = join(prefix, &key);
        let kept = match (fields.node(&path), value.kind) {
            // At the top level, the merge would interpret such a key as a path.
            _ if key.contains('.') => Err(Problem::new(&path, "contains a dot in its key")
                .advice("nest the keys: one line for each part of the path")),
            (Node::Unknown, _) => Err(fields.unknown(&path)),
            (Node::Section, ValueKind::Table(table)) => {
                let table = known_only(table, &path, origin, fields, findings);
                Ok(Some(ValueKind::Table(table)))
            }
            (Node::Section, ValueKind::Nil) => Ok(None),
            (Node::Section, _) => Err(fields.is_section(&path)),
            (Node::Field(field), kind @ ValueKind::Array(_)) if field.is_list => Ok(Some(kind)),
            (Node::Field(_), ValueKind::Table(_) | ValueKind::Array(_)) => Err(Problem::new(
                &path,
                "takes a single value, not a list or mapping",
            )),
            (Node::Field(field), ValueKind::Nil) if field.optional => Ok(None),
            (Node::Field(_), ValueKind::Nil) => Err(Problem::new(&path, "has no value")
                .advice("set a value, or remove the key to use the default")),
            (Node::Field(_), kind) => Ok(Some(kind)),
        };
        match kept {
            Ok(Some(kind)) => {
                known.insert(key, Value::new(Some(&origin.to_owned()), kind));
            }
            Ok(None) => {}
            Err(problem) => findings.add(problem.origin(Some(origin))),
        }
    }
    known
}

fn env_layers(env: &[(String, String)], fields: &Fields, findings: &mut Findings) -> Vec<Layer> {
    let mut layers = Vec::new();
    let mut seen = BTreeMap::new();
    for (name, value) in env {
        let upper = name.to_uppercase();
        let Some(rest) = upper.strip_prefix(ENV_PREFIX) else {
            continue;
        };
        let path = rest.to_lowercase().replace("__", ".");
        let origin = format!("environment variable {name}");
        // The names differ only in case, so their order is not meaningful.
        if let Some(other) = seen.insert(path.clone(), name) {
            let problem = Problem::new(&path, format!("is also set by {other}"))
                .origin(Some(&origin))
                .advice("unset one of the two variables");
            findings.add(problem);
            continue;
        }
        layers.extend(single(&path, value, origin, fields, findings));
    }
    layers
}

fn secret_flag(path: &str) -> Problem {
    let variable = variable_name(path);
    Problem::new(
        path,
        "is a secret, and command lines are visible to every user of the machine",
    )
    .advice(format!(
        "set it as {variable}, or in a file named by {path}_file"
    ))
}

/// Returns a layer of one field, for sources that consist of paths and strings.
fn single(
    path: &str,
    value: &str,
    origin: String,
    fields: &Fields,
    findings: &mut Findings,
) -> Option<Layer> {
    let problem = match fields.node(path) {
        Node::Field(_) if value.contains(char::REPLACEMENT_CHARACTER) => {
            Problem::new(path, "is not Unicode").advice("encode it in UTF-8")
        }
        Node::Field(_) => {
            let value = Value::new(Some(&origin), ValueKind::String(value.to_owned()));
            return Some(Layer(nest(path, value)));
        }
        Node::Section => fields.is_section(path),
        Node::Unknown => fields.unknown(path),
    };
    findings.add(problem.origin(Some(&origin)));
    None
}

fn nest(path: &str, value: Value) -> Map<String, Value> {
    match path.split_once('.') {
        None => Map::from_iter([(path.to_owned(), value)]),
        Some((section, rest)) => {
            let inner = Value::new(None, ValueKind::Table(nest(rest, value)));
            Map::from_iter([(section.to_owned(), inner)])
        }
    }
}

fn to_json(value: Value, path: &str, origins: &mut Origins) -> serde_json::Value {
    if let (Some(origin), false) = (value.origin(), path.is_empty()) {
        origins.0.insert(path.to_owned(), origin.to_owned());
    }
    match value.kind {
        ValueKind::Nil => serde_json::Value::Null,
        ValueKind::Boolean(value) => value.into(),
        ValueKind::I64(value) => value.into(),
        ValueKind::U64(value) => value.into(),
        ValueKind::Float(value) => value.into(),
        ValueKind::String(value) => value.into(),
        // The parsers used here do not produce these. Their fields parse them from text.
        ValueKind::I128(value) => value.to_string().into(),
        ValueKind::U128(value) => value.to_string().into(),
        ValueKind::Array(values) => values
            .into_iter()
            .map(|value| to_json(value, path, origins))
            .collect(),
        ValueKind::Table(table) => table
            .into_iter()
            .collect::<BTreeMap<_, _>>()
            .into_iter()
            .map(|(key, value)| {
                let value = to_json(value, &join(path, &key), origins);
                (key, value)
            })
            .collect(),
    }
}

fn table_of(table: Map<String, Value>) -> Value {
    Value::new(None, ValueKind::Table(table))
}

fn join(prefix: &str, key: &str) -> String {
    match prefix {
        "" => key.to_owned(),
        _ => format!("{prefix}.{key}"),
    }
}
