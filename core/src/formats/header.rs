//! The header of delimited text.

use super::Delimited;

/// Returns the names of the fields in a header. A field without a name is called `column_N`, where
/// N is its position from 1.
///
/// # Errors
///
/// Fails if a name occurs twice, or if a quoted name is continued on the next line.
pub(crate) fn names(line: &str, delimited: &Delimited) -> Result<Vec<String>, String> {
    let line = line.strip_prefix('\u{feff}').unwrap_or(line);
    let line = line.strip_suffix('\r').unwrap_or(line);
    let mut names = if delimited.quoted {
        quoted_fields(line, delimited.delimiter)?
    } else {
        line.split(delimited.delimiter).map(str::to_owned).collect()
    };
    for (name, position) in names.iter_mut().zip(1..) {
        if name.trim().is_empty() {
            *name = format!("column_{position}");
        }
    }
    match duplicate(&names) {
        Some(name) => Err(format!(
            "its header has the name {name:?} twice (header: {}); set `columns` and `header: \
             false`, with `skip_lines: {}`",
            shown(&names),
            delimited.skip_lines + 1
        )),
        None => Ok(names),
    }
}

/// Returns names for a message.
pub(crate) fn shown(names: &[String]) -> String {
    const MAX_CHARS: usize = 500;
    let all = names.join("; ");
    match all.char_indices().nth(MAX_CHARS) {
        Some((end, _)) => format!("{}…", &all[..end]),
        None => all,
    }
}

/// Returns the first name that is there twice.
pub(crate) fn duplicate(names: &[String]) -> Option<&String> {
    let mut seen = std::collections::BTreeSet::new();
    names.iter().find(|name| !seen.insert(name.as_str()))
}

/// Returns the fields of a line as ClickHouse's format CSV reads them.
fn quoted_fields(line: &str, delimiter: char) -> Result<Vec<String>, String> {
    let mut fields = Vec::new();
    let mut rest = line;
    loop {
        let start = rest.trim_start_matches(|c| c == ' ' && c != delimiter);
        let (field, after) = match start.strip_prefix('"') {
            Some(inside) => quoted_field(inside)?,
            None => {
                let end = rest.find(delimiter).unwrap_or(rest.len());
                (rest[..end].to_owned(), &rest[end..])
            }
        };
        fields.push(field);
        match after.find(delimiter) {
            Some(at) => rest = &after[at + delimiter.len_utf8()..],
            None => return Ok(fields),
        }
    }
}

/// Returns the content of a quoted field, and what follows its closing quote.
fn quoted_field(inside: &str) -> Result<(String, &str), String> {
    let mut content = String::new();
    let mut rest = inside;
    loop {
        let Some((before, after)) = rest.split_once('"') else {
            return Err(
                "its header has a name that is continued on the next line; set `columns` and \
                 `header: false`, with `skip_lines` for the lines of the header"
                    .to_owned(),
            );
        };
        content.push_str(before);
        match after.strip_prefix('"') {
            Some(more) => {
                content.push('"');
                rest = more;
            }
            None => return Ok((content, after)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delimited(delimiter: char, quoted: bool) -> Delimited {
        Delimited {
            delimiter,
            header: true,
            columns: None,
            quoted,
            nulls: Vec::new(),
            comment: None,
            skip_lines: 0,
        }
    }

    #[test]
    fn the_names_are_those_between_the_delimiters() {
        for (line, delimiter, quoted, expected) in [
            ("a,b", ',', true, &["a", "b"][..]),
            ("\u{feff}a,b\r", ',', true, &["a", "b"]),
            (
                "\"Trip ID\",\"a\"\"b\",\"x,y\"",
                ',',
                true,
                &["Trip ID", "a\"b", "x,y"],
            ),
            (",a,", ',', true, &["column_1", "a", "column_3"]),
            ("a;\"b\" ;c", ';', true, &["a", "b", "c"]),
            ("a-b c d", ' ', false, &["a-b", "c", "d"]),
            ("\"a\",b", ',', false, &["\"a\"", "b"]),
            ("one", ',', true, &["one"]),
        ] {
            assert_eq!(
                names(line, &delimited(delimiter, quoted)).unwrap(),
                expected,
                "{line}"
            );
        }
    }

    #[test]
    fn a_header_that_cannot_name_fields_is_refused() {
        let refused = |line: &str| names(line, &delimited(',', true)).unwrap_err();
        assert!(refused("a,b,a").contains("\"a\" twice (header: a; b; a)"));
        assert!(refused("a,\"b").contains("continued on the next line"));
    }
}
