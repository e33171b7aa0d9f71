//! Checks of declared rules.

use super::super::declaration::DeclaredRule;
use super::super::rule::Rule;
use super::Report;
use super::columns::check_path;

pub(super) fn check_rule(rule: &DeclaredRule, at: &str, report: &mut Report<'_>) -> Option<Rule> {
    let DeclaredRule {
        all,
        any,
        not,
        path,
        equals,
        one_of,
        present,
    } = rule;
    let many = |rules: &[DeclaredRule], what: &str, report: &mut Report<'_>| {
        if rules.is_empty() {
            report.add(format!("{at}.{what}"), "is an empty list; add a condition");
        }
        let checked: Vec<_> = rules
            .iter()
            .enumerate()
            .map(|(index, rule)| check_rule(rule, &format!("{at}.{what}[{index}]"), report))
            .collect();
        checked.into_iter().collect::<Option<Vec<_>>>()
    };
    match (all, any, not, path, equals, one_of, present) {
        (Some(rules), None, None, None, None, None, None) => {
            many(rules, "all", report).map(Rule::All)
        }
        (None, Some(rules), None, None, None, None, None) => {
            many(rules, "any", report).map(Rule::Any)
        }
        (None, None, Some(rule), None, None, None, None) => {
            check_rule(rule, &format!("{at}.not"), report).map(|rule| Rule::Not(Box::new(rule)))
        }
        (None, None, None, Some(path), Some(value), None, None) => {
            check_path(path, at, report);
            Some(Rule::In(path.clone(), vec![value.clone()]))
        }
        (None, None, None, Some(path), None, Some(values), None) => {
            check_path(path, at, report);
            if values.is_empty() {
                report.add(format!("{at}.in"), "is an empty list; add a value");
            }
            Some(Rule::In(path.clone(), values.clone()))
        }
        (None, None, None, Some(path), None, None, Some(true)) => {
            check_path(path, at, report);
            Some(Rule::Present(path.clone()))
        }
        _ => {
            report.add(at, "must be one of `all: […]`, `any: […]`, `not: {…}`, `{path: […], equals: …}`, `{path: […], in: […]}` and `{path: […], present: true}`");
            None
        }
    }
}
