//! A YAML document as a tree, in which each node knows its place in the text.

use std::collections::HashMap;

use yaml_rust2::Yaml;
use yaml_rust2::parser::{Event, MarkedEventReceiver, Parser, Tag};
use yaml_rust2::scanner::{Marker, ScanError, TScalarStyle};

use super::{Misshapen, Position};

/// A parsed document.
#[derive(Debug)]
pub(crate) struct Document {
    pub(super) root: Node,
    duplicates: Vec<Misshapen>,
}

#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) position: Position,
    pub(super) content: Content,
}

#[derive(Debug, Clone)]
pub(super) enum Content {
    Scalar(Scalar),
    List(Vec<Node>),
    Mapping(Vec<Entry>),
}

/// A scalar: its text, and what it is without quotes.
#[derive(Debug, Clone)]
pub(super) struct Scalar {
    pub(super) text: String,
    pub(super) value: Yaml,
}

#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) key: String,
    /// That of the key.
    pub(super) position: Position,
    pub(super) value: Node,
}

impl Document {
    /// Parses a text. One without content has no keys.
    pub(crate) fn parse(text: &str) -> Result<Self, Misshapen> {
        let mut builder = Builder::default();
        let mut parser = Parser::new_from_str(text);
        parser.load(&mut builder, true).map_err(invalid)?;
        if let Some(error) = builder.error {
            return Err(error);
        }
        let is_empty = |node: &Node| match &node.content {
            Content::Scalar(scalar) => scalar.value == Yaml::Null,
            _ => false,
        };
        let root = builder.root.filter(|root| !is_empty(root));
        Ok(Self {
            root: root.unwrap_or(Node {
                position: Position { line: 1, column: 1 },
                content: Content::Mapping(Vec::new()),
            }),
            duplicates: builder.duplicates,
        })
    }

    /// Returns the keys that are in one mapping twice.
    pub(super) fn duplicates(&self) -> &[Misshapen] {
        &self.duplicates
    }

    /// Returns the position of a place such as `columns[3].type`. If nothing is there, it is that of
    /// the part of the place that exists; `None` if that is the whole document.
    pub(crate) fn position(&self, at: &str) -> Option<Position> {
        let mut found = None;
        let mut node = &self.root;
        for segment in at.split(['.', '[']) {
            let next = match (&node.content, segment.strip_suffix(']')) {
                (Content::List(items), Some(index)) => {
                    let item = index.parse().ok().and_then(|index: usize| items.get(index));
                    item.map(|item| (item.position, item))
                }
                (Content::Mapping(entries), None) => {
                    let entry = entries.iter().find(|entry| entry.key == segment);
                    entry.map(|entry| (entry.position, &entry.value))
                }
                _ => None,
            };
            let Some((position, value)) = next else {
                return found;
            };
            found = Some(position);
            node = value;
        }
        found
    }

    /// Returns the position of the item of a list that has this text at a key, such as the column
    /// with this name.
    pub(crate) fn position_of_item(&self, list: &str, key: &str, text: &str) -> Option<Position> {
        let Content::Mapping(entries) = &self.root.content else {
            return None;
        };
        let entry = entries.iter().find(|entry| entry.key == list)?;
        let Content::List(items) = &entry.value.content else {
            return None;
        };
        let item = items.iter().find(|item| item.text_at(key) == Some(text));
        item.map(|item| item.position)
    }
}

impl Node {
    fn text_at(&self, key: &str) -> Option<&str> {
        let Content::Mapping(entries) = &self.content else {
            return None;
        };
        let entry = entries.iter().find(|entry| entry.key == key)?;
        match &entry.value.content {
            Content::Scalar(scalar) => Some(&scalar.text),
            _ => None,
        }
    }
}

fn position(mark: &Marker) -> Position {
    Position {
        line: mark.line(),
        // The library counts columns from 0.
        column: mark.col() + 1,
    }
}

fn invalid(error: ScanError) -> Misshapen {
    Misshapen {
        at: String::new(),
        position: Some(position(error.marker())),
        message: format!("is not YAML: {}", error.info()),
    }
}

/// A node that is not complete.
struct Open {
    node: Node,
    anchor: usize,
    /// The key of a mapping that has no value yet.
    key: Option<(String, Position)>,
}

/// Builds the tree from the events of the parser.
#[derive(Default)]
struct Builder {
    /// The nodes that are not complete, the root first.
    open: Vec<Open>,
    root: Option<Node>,
    anchors: HashMap<usize, Node>,
    duplicates: Vec<Misshapen>,
    error: Option<Misshapen>,
}

impl MarkedEventReceiver for Builder {
    fn on_event(&mut self, event: Event, mark: Marker) {
        let position = position(&mark);
        match event {
            Event::DocumentStart if self.root.is_some() => {
                self.fail(position, "has several documents; use a file for each");
            }
            Event::SequenceStart(anchor, _) => {
                self.open(position, Content::List(Vec::new()), anchor);
            }
            Event::MappingStart(anchor, _) => {
                self.open(position, Content::Mapping(Vec::new()), anchor);
            }
            Event::SequenceEnd | Event::MappingEnd => {
                if let Some(Open { node, anchor, .. }) = self.open.pop() {
                    self.add(node, anchor);
                }
            }
            Event::Scalar(text, style, anchor, tag) => {
                let value = value(&text, style, tag.as_ref());
                let content = Content::Scalar(Scalar { text, value });
                self.add(Node { position, content }, anchor);
            }
            Event::Alias(anchor) => match self.anchors.get(&anchor).cloned() {
                Some(node) => self.add(Node { position, ..node }, 0),
                None => self.fail(position, "refers to an anchor that encloses it"),
            },
            Event::Nothing
            | Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart
            | Event::DocumentEnd => {}
        }
    }
}

/// Returns what a scalar is: text if it is in quotes or has a tag.
fn value(text: &str, style: TScalarStyle, tag: Option<&Tag>) -> Yaml {
    if style == TScalarStyle::Plain && tag.is_none() {
        Yaml::from_str(text)
    } else {
        Yaml::String(text.to_owned())
    }
}

impl Builder {
    fn fail(&mut self, position: Position, message: &str) {
        self.error.get_or_insert_with(|| Misshapen {
            at: String::new(),
            position: Some(position),
            message: message.to_owned(),
        });
    }

    fn open(&mut self, position: Position, content: Content, anchor: usize) {
        self.open.push(Open {
            node: Node { position, content },
            anchor,
            key: None,
        });
    }

    /// Adds a complete node to the one that encloses it.
    fn add(&mut self, node: Node, anchor: usize) {
        if anchor > 0 {
            self.anchors.insert(anchor, node.clone());
        }
        let Some(Open {
            node: parent, key, ..
        }) = self.open.last_mut()
        else {
            self.root.get_or_insert(node);
            return;
        };
        match (&mut parent.content, key.take()) {
            (Content::List(items), _) => items.push(node),
            (Content::Mapping(entries), Some((name, position))) => {
                if entries.iter().any(|entry| entry.key == name) {
                    self.duplicates.push(Misshapen {
                        at: name,
                        position: Some(position),
                        message: "is there twice; remove one of the two".to_owned(),
                    });
                } else {
                    entries.push(Entry {
                        key: name,
                        position,
                        value: node,
                    });
                }
            }
            (Content::Mapping(_), None) => match node.content {
                Content::Scalar(scalar) => *key = Some((scalar.text, node.position)),
                _ => self.fail(node.position, "has a key that is not a text"),
            },
            (Content::Scalar(_), _) => unreachable!("a scalar is complete and never open"),
        }
    }
}
