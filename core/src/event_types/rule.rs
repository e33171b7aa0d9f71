//! Rules: which statements belong to an event type.

use super::paths::{Path, PathValues};
use crate::sql;

/// A condition on a statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rule {
    /// All of these hold.
    All(Vec<Rule>),
    /// At least one of these holds.
    Any(Vec<Rule>),
    /// This does not hold. A missing value is therefore "not equal".
    Not(Box<Rule>),
    /// The value at the path is one of these texts.
    In(Path, Vec<String>),
    /// There is a value at the path, which is not null.
    Present(Path),
}

impl Rule {
    /// Returns a condition that is 0 or 1, never NULL.
    pub(crate) fn sql(&self, values: &dyn PathValues) -> String {
        match self {
            Rule::All(rules) => join(rules, values, " AND "),
            Rule::Any(rules) => join(rules, values, " OR "),
            Rule::Not(rule) => format!("NOT ({})", rule.sql(values)),
            Rule::In(path, texts) => {
                let value = values.text(path);
                match texts.as_slice() {
                    [one] => format!("ifNull({value} = {}, 0)", sql::string(one)),
                    many => format!("ifNull({value} IN ({}), 0)", sql::strings(many)),
                }
            }
            Rule::Present(path) => format!("isNotNull({})", values.value(path)),
        }
    }

    /// Returns whether it holds without any values, and therefore for a line that is not JSON.
    pub(super) fn holds_for_nothing(&self) -> bool {
        match self {
            Rule::All(rules) => rules.iter().all(Rule::holds_for_nothing),
            Rule::Any(rules) => rules.iter().any(Rule::holds_for_nothing),
            Rule::Not(rule) => !rule.holds_for_nothing(),
            Rule::In(..) | Rule::Present(_) => false,
        }
    }

    /// Returns every path that the rule reads.
    pub(super) fn paths(&self) -> Vec<&Path> {
        match self {
            Rule::All(rules) | Rule::Any(rules) => rules.iter().flat_map(Rule::paths).collect(),
            Rule::Not(rule) => rule.paths(),
            Rule::In(path, _) | Rule::Present(path) => vec![path],
        }
    }
}

fn join(rules: &[Rule], values: &dyn PathValues, operator: &str) -> String {
    let parts: Vec<_> = rules
        .iter()
        .map(|rule| format!("({})", rule.sql(values)))
        .collect();
    parts.join(operator)
}
