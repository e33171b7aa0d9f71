//! Names for columns, event types and files, and texts in YAML.

use std::collections::BTreeSet;

/// The length of a name, at most.
const MAX_LENGTH: usize = 60;

/// Returns a name of lower-case letters, digits and `_` for a text such as `eventTime` or
/// `http://example.com/verbs/was-at`; empty if it has neither letters nor digits.
pub(super) fn snake_case(text: &str) -> String {
    let is_url = text.contains("://");
    let end = text.trim_end_matches(['/', '#']);
    let text = if is_url {
        end.rsplit(['/', '#']).next().unwrap_or(end)
    } else {
        end
    };
    let mut name = String::new();
    let letters: Vec<char> = text.chars().collect();
    for (place, letter) in letters.iter().enumerate() {
        if !letter.is_ascii_alphanumeric() {
            name.push('_');
            continue;
        }
        let before = place.checked_sub(1).map(|before| letters[before]);
        let after = letters.get(place + 1);
        let follows = before.is_some_and(|it| it.is_ascii_lowercase() || it.is_ascii_digit());
        let begins = before.is_some_and(|it| it.is_ascii_uppercase())
            && after.is_some_and(char::is_ascii_lowercase);
        if letter.is_ascii_uppercase() && (follows || begins) {
            name.push('_');
        }
        name.push(letter.to_ascii_lowercase());
    }
    let parts: Vec<&str> = name.split('_').filter(|part| !part.is_empty()).collect();
    parts.join("_").chars().take(MAX_LENGTH).collect()
}

/// Returns a name for a column with the value at this path.
pub(super) fn column_name(path: &[String]) -> String {
    let parts: Vec<String> = path.iter().map(|key| snake_case(key)).collect();
    let parts: Vec<&str> = parts
        .iter()
        .map(String::as_str)
        .filter(|it| !it.is_empty())
        .collect();
    // The end of a long path says more than its beginning.
    let mut from = 0;
    while parts[from..].join("_").len() > MAX_LENGTH && from + 1 < parts.len() {
        from += 1;
    }
    identifier(&parts[from..].join("_"), "field")
}

/// Returns a name that begins with a letter and is not a literal of SQL.
pub(super) fn identifier(name: &str, otherwise: &str) -> String {
    let is_literal = ["null", "true", "false", "nan", "inf"].contains(&name);
    match name.chars().next() {
        None => otherwise.to_owned(),
        Some(first) if first.is_ascii_digit() || is_literal => format!("{otherwise}_{name}"),
        Some(_) => name.to_owned(),
    }
}

/// Returns the name, with a number if it is taken, and takes it.
pub(super) fn unique(name: &str, taken: &mut BTreeSet<String>) -> String {
    let numbered = (2..).map(|number| format!("{name}_{number}"));
    let mut names = std::iter::once(name.to_owned()).chain(numbered);
    let free = names.find(|name| !taken.contains(name));
    let free = free.unwrap_or_default();
    taken.insert(free.clone());
    free
}

/// Returns a text as a scalar of YAML, in quotes unless it is a plain word.
pub(super) fn scalar(text: &str) -> String {
    let mut letters = text.chars();
    let is_word = letters.next().is_some_and(|it| it.is_ascii_alphabetic())
        && letters.all(|it| it.is_ascii_alphanumeric() || "_.-".contains(it));
    let keywords = ["true", "false", "null", "yes", "no", "on", "off", "y", "n"];
    if is_word && !keywords.contains(&text.to_ascii_lowercase().as_str()) {
        text.to_owned()
    } else {
        quoted(text)
    }
}

/// Returns a text in double quotes, as YAML and JSON write it. It has no line break, and nothing
/// that a terminal or a parser could take for one.
pub(super) fn quoted(text: &str) -> String {
    let mut quoted = String::from('"');
    for letter in text.chars() {
        match letter {
            '"' | '\\' => {
                quoted.push('\\');
                quoted.push(letter);
            }
            '\n' => quoted.push_str("\\n"),
            '\t' => quoted.push_str("\\t"),
            letter if letter.is_control() || "\u{2028}\u{2029}\u{feff}".contains(letter) => {
                quoted.push_str(&format!("\\u{:04x}", u32::from(letter)));
            }
            letter => quoted.push(letter),
        }
    }
    quoted.push('"');
    quoted
}

/// Returns a path as a list of YAML.
pub(super) fn path(path: &[String]) -> String {
    let keys: Vec<String> = path.iter().map(|key| scalar(key)).collect();
    format!("[{}]", keys.join(", "))
}

/// Returns a number with commas between thousands.
pub(super) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_words_of_sql() {
        let path = |keys: &[&str]| keys.iter().map(|&key| key.to_owned()).collect::<Vec<_>>();
        for (keys, expected) in [
            (&["eventTime"][..], "event_time"),
            (&["userIdentity", "accountID"], "user_identity_account_id"),
            (&["HTTPStatus"], "http_status"),
            (&["Trip ID"], "trip_id"),
            (
                &["context", "http://example.com/x/Shop-Name/"],
                "context_shop_name",
            ),
            (&["2xx"], "field_2xx"),
            (&["é"], "field"),
            (&["a", "", "b"], "a_b"),
        ] {
            assert_eq!(column_name(&path(keys)), expected);
        }
        let mut taken = BTreeSet::new();
        let names = ["a", "a", "a_2", "a"].map(|name| unique(name, &mut taken));
        assert_eq!(names, ["a", "a_2", "a_2_2", "a_3"]);
    }

    #[test]
    fn texts_in_yaml_are_read_as_they_were() {
        for text in [
            "click",
            "null",
            "7",
            "",
            "a b",
            "a: b",
            "\"\\\n\t\r\u{1}\u{85}\u{feff}",
            "#",
            "é",
            "😀",
            "yes",
            "-",
            "~",
            "1e5",
            "0x10",
            "a#b",
            "*a",
        ] {
            let yaml = format!("[{}]", scalar(text));
            let read: Vec<String> = crate::yaml::parse(&yaml).unwrap();
            assert_eq!(read, [text], "{yaml}");
        }
    }

    #[test]
    fn thousands_are_separated() {
        let texts = [7, 999, 1_000, 1_234_567].map(count);
        assert_eq!(texts, ["7", "999", "1,000", "1,234,567"]);
    }
}
