//! Removes secrets from responses of ClickHouse and other servers: ClickHouse quotes a statement
//! with a syntax error verbatim.

use crate::config::Secret;
use crate::sql;

/// The replacement of a secret.
const REDACTED: &str = "[redacted]";
/// What ClickHouse appends to a truncated quotation.
const CUT: &str = "...";

/// The secrets that must not appear in an error, each verbatim and as it is quoted in a statement.
#[derive(Clone, Default)]
pub(super) struct Redactor(Vec<String>);

impl Redactor {
    pub(super) fn new(secrets: &[Secret]) -> Self {
        let given = secrets.iter().map(Secret::expose);
        let forms = given
            .filter(|secret| !secret.is_empty())
            .flat_map(|secret| {
                let literal = sql::string(secret);
                [secret.to_owned(), literal[1..literal.len() - 1].to_owned()]
            });
        Self(forms.collect())
    }

    pub(super) fn redact(&self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(next) = rest.chars().next() {
            let longest = self.0.iter().map(|secret| shown_of(secret, rest)).max();
            match longest {
                Some(length) if length > 0 => {
                    out.push_str(REDACTED);
                    rest = &rest[length..];
                }
                _ => {
                    out.push(next);
                    rest = &rest[next.len_utf8()..];
                }
            }
        }
        out
    }
}

/// Returns how many bytes at the beginning of `text` belong to the secret: all of it, or its
/// beginning if the text is truncated.
fn shown_of(secret: &str, text: &str) -> usize {
    let common = secret
        .chars()
        .zip(text.chars())
        .take_while(|(a, b)| a == b)
        .map(|(a, _)| a.len_utf8())
        .sum();
    let rest = &text[common..];
    if common == secret.len() || rest.is_empty() || rest.starts_with(CUT) {
        common
    } else {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_redacted_whether_whole_quoted_or_truncated() {
        let redactor = Redactor::new(&[
            Secret::new("s'cr\\et"),
            Secret::new("hünter2"),
            Secret::new(""),
        ]);
        for (text, expected) in [
            ("no secret here", "no secret here"),
            ("hünter2", "[redacted]"),
            ("a hünter2, hünter2!", "a [redacted], [redacted]!"),
            ("hünter3 hün hunter2", "hünter3 hün hunter2"),
            (r"('id', 's\'cr\\et', 'One')", "('id', '[redacted]', 'One')"),
            ("raw s'cr\\et", "raw [redacted]"),
            (
                r"('id', 's\'c... Expected",
                "('id', '[redacted]... Expected",
            ),
            ("cut at hün", "cut at [redacted]"),
            ("hühünter2", "hü[redacted]"),
        ] {
            assert_eq!(redactor.redact(text), expected);
        }
    }
}
