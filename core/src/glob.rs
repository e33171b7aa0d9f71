//! Globs on keys, with one syntax for notification filters, routes of event types and the command
//! line.
//!
//! They are compiled to regular expressions, the one syntax that Rust and ClickHouse share:
//! ClickHouse must evaluate the same pattern as Rust, which no glob library supports.

use regex::Regex;

/// A set of globs, one of which must match the whole key.
///
/// `*` matches any text without a slash, `**` any text, `**/` also the empty text, `?` one
/// character other than a slash, `{a,b}` either alternative, `[a-z]` one of these characters, and
/// `[!a-z]` one that is neither among them nor a slash. `\` escapes the next character.
#[derive(Debug, Clone)]
pub struct Globs(Regex);

impl Globs {
    /// Compiles globs.
    ///
    /// # Errors
    ///
    /// Names the first glob that is not valid.
    pub fn new<S: AsRef<str>>(globs: &[S]) -> Result<Self, String> {
        let expressions: Result<Vec<String>, String> = globs
            .iter()
            .map(|glob| {
                let glob = glob.as_ref();
                expression(glob)
                    .map_err(|problem| format!("`{glob}` is not a valid glob: {problem}"))
            })
            .collect();
        let whole = format!("^(?s:{})$", expressions?.join("|"));
        Regex::new(&whole)
            .map(Self)
            .map_err(|error| error.to_string())
    }

    /// Returns whether one of the globs matches the whole key.
    pub fn take(&self, key: &str) -> bool {
        self.0.is_match(key)
    }

    /// Returns the regular expression, in the syntax that Rust and ClickHouse share.
    pub fn expression(&self) -> &str {
        self.0.as_str()
    }
}

fn expression(glob: &str) -> Result<String, &'static str> {
    let mut out = String::new();
    let mut open = 0;
    let mut rest = glob;
    while let Some(c) = rest.chars().next() {
        let at_segment =
            out.is_empty() || rest.len() < glob.len() && before(glob, rest) == Some('/');
        let (taken, written) = match c {
            '*' if at_segment && rest.starts_with("**/") => (3, "(?:.*/)?".to_owned()),
            '*' if rest.starts_with("**") => (2, ".*".to_owned()),
            '*' => (1, "[^/]*".to_owned()),
            '?' => (1, "[^/]".to_owned()),
            '{' => {
                open += 1;
                (1, "(?:".to_owned())
            }
            ',' if open > 0 => (1, "|".to_owned()),
            '}' if open > 0 => {
                open -= 1;
                (1, ")".to_owned())
            }
            '[' => class(rest)?,
            '\\' => {
                let next = rest.chars().nth(1).ok_or("nothing follows `\\`")?;
                (1 + next.len_utf8(), regex::escape(&next.to_string()))
            }
            other => (other.len_utf8(), regex::escape(&other.to_string())),
        };
        out += &written;
        rest = &rest[taken..];
    }
    if open > 0 {
        return Err("a `{` is not closed");
    }
    Ok(out)
}

/// Returns the character before `rest`, which is a suffix of `whole`.
fn before(whole: &str, rest: &str) -> Option<char> {
    whole[..whole.len() - rest.len()].chars().next_back()
}

/// Translates the `[…]` at the beginning of `rest`: returns its length in bytes, and its
/// expression.
fn class(rest: &str) -> Result<(usize, String), &'static str> {
    let (inside, _) = rest[1..].split_once(']').ok_or("a `[` is not closed")?;
    let (negation, ranges) = match inside.strip_prefix('!') {
        Some(ranges) => ("^/", ranges),
        None => ("", inside),
    };
    if ranges.is_empty()
        || !ranges
            .chars()
            .all(|c| c.is_alphanumeric() || "-_. ".contains(c))
    {
        return Err(
            "only letters, digits, `-`, `_`, `.` and spaces are allowed between `[` and `]`",
        );
    }
    let mut ends = ranges
        .split('-')
        .map(|part| (part.chars().next(), part.chars().next_back()));
    let mut last = ends.next().and_then(|(_, last)| last);
    for (first, end) in ends {
        if last.zip(first).is_some_and(|(last, first)| last > first) {
            return Err("a range in `[…]` ends before it begins");
        }
        last = end;
    }
    Ok((inside.len() + 2, format!("[{negation}{ranges}]")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_match_whole_keys() {
        for (glob, key, takes) in [
            ("video/*.jsonl", "video/a.jsonl", true),
            ("video/*.jsonl", "video/b/a.jsonl", false),
            ("video/*.jsonl", "video/a.jsonl.gz", false),
            ("video/*.jsonl{,.gz}", "video/a.jsonl.gz", true),
            ("video/*.jsonl", "a/video/a.jsonl", false),
            ("**/video/*", "section/1/video/a", true),
            ("**/video/*", "video/a", true),
            ("**/video/*", "avideo/a", false),
            ("video/**", "video/b/a.jsonl", true),
            ("video/**/a", "video/a", true),
            ("a**z", "a/b/z", true),
            ("**", "", true),
            ("a.b+c(d)", "a.b+c(d)", true),
            ("a.b", "aXb", false),
            ("a?c", "abc", true),
            ("a?c", "a/c", false),
            ("flat-[0-9]", "flat-1", true),
            ("flat-[0-9]", "flat-12", false),
            ("[!a-c]x", "dx", true),
            ("[!a-c]x", "ax", false),
            ("[!a-c]x", "/x", false),
            ("{a,b{1,2}}", "b2", true),
            ("{a,b{1,2}}", "b", false),
            ("a,b}", "a,b}", true),
            ("\\*", "*", true),
            ("\\*", "a", false),
            ("é*", "éa", true),
            ("a*", "a\nb", true),
        ] {
            let globs = Globs::new(&[glob]).unwrap();
            assert_eq!(globs.take(key), takes, "{glob} {key}");
        }
        let either = Globs::new(&["a/**", "b/*"]).unwrap();
        assert!(either.take("a/x/y") && either.take("b/x") && !either.take("xb/x"));
    }

    #[test]
    fn an_invalid_glob_is_refused() {
        for glob in ["a[", "{a", "[z-a]", "[]", "[a&&b]", "a\\"] {
            assert!(Globs::new(&[glob]).is_err(), "{glob}");
        }
    }
}
