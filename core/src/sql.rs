//! Quoting of names and text for ClickHouse SQL. Nothing else in the crate quotes by hand.

use uuid::Uuid;

/// Returns an identifier in backquotes: a database, table, column or tuple element of any name.
pub fn ident(name: &str) -> String {
    quoted(name, '`')
}

/// Returns a string literal in single quotes.
pub fn string(text: &str) -> String {
    quoted(text, '\'')
}

/// Returns the id of a batch or of an object as a literal.
pub fn id(id: Uuid) -> String {
    format!("'{id}'")
}

/// Returns the name of a table with its database: `database`.`table`.
pub fn qualified(database: &str, table: &str) -> String {
    format!("{}.{}", ident(database), ident(table))
}

/// Returns a list of string literals, for IN or an array: `'a', 'b'`.
pub fn strings<S: AsRef<str>>(texts: impl IntoIterator<Item = S>) -> String {
    texts
        .into_iter()
        .map(|text| string(text.as_ref()))
        .collect::<Vec<_>>()
        .join(", ")
}

/// Returns a condition: whether an expression of type String begins with these bytes.
pub fn starts_with(expression: &str, bytes: &[u8]) -> String {
    format!("startsWith({expression}, {})", self::bytes(bytes))
}

/// Returns arbitrary bytes as a constant expression.
pub fn bytes(bytes: &[u8]) -> String {
    let hex: String = bytes.iter().map(|byte| format!("{byte:02X}")).collect();
    format!("unhex('{hex}')")
}

/// Returns a condition that fails the statement with `text` instead of filtering rows.
pub fn throw_if(condition: &str, text: &str) -> String {
    format!("throwIf({condition}, {}) = 0", string(text))
}

/// Returns text in quotes.
///
/// ClickHouse reads the same backslash escapes in identifiers and in literals. Control characters
/// are escaped so that a NUL cannot end the query and a newline cannot end a log line.
fn quoted(text: &str, quote: char) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => {
                out.push('\\');
                out.push(c);
            }
            c if c.is_ascii_control() => out.push_str(&format!("\\x{:02X}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push(quote);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_names_are_only_wrapped() {
        assert_eq!(ident("video_events"), "`video_events`");
        assert_eq!(string("video"), "'video'");
        assert_eq!(qualified("a.b", "c"), "`a.b`.`c`");
        assert_eq!(strings(["a", "b'"]), r"'a', 'b\''");
    }

    #[test]
    fn each_kind_of_quote_escapes_itself_only() {
        assert_eq!(ident("a`b'c\"d"), "`a\\`b'c\"d`");
        assert_eq!(string("a`b'c\"d"), "'a`b\\'c\"d'");
    }

    #[test]
    fn backslashes_and_control_characters_are_escaped() {
        assert_eq!(string("a\\b"), r"'a\\b'");
        assert_eq!(string("\\'"), r"'\\\''");
        assert_eq!(string("a\nb\rc\td"), r"'a\nb\rc\td'");
        assert_eq!(string("nul\0soh\u{1}del\u{7f}"), r"'nul\x00soh\x01del\x7F'");
        assert_eq!(ident("\u{1}"), r"`\x01`");
    }

    #[test]
    fn other_text_is_left_alone() {
        assert_eq!(
            string("é 😀 {key} $1 %s /* */ --"),
            "'é 😀 {key} $1 %s /* */ --'"
        );
    }
}
