//! Logs in text, of which a regular expression finds the fields.

use super::{assert_outcomes, case};

const FORMATS: &str = r#"
- name: log
  keys: [log/**]
  regex: {pattern: '^(?P<id>\d+) (?P<a>\S+)(?: "(?P<b>(?:[^"\\]|\\.)*)")?', nulls: ["-"]}
- name: times
  keys: [times/**]
  regex: {pattern: '^\[(?P<a>[^\]]*)\] (?P<id>.*)$'}
"#;

#[tokio::test]
async fn lines_that_do_not_match_are_rejected_alone() {
    let cases = [
        case("log/1.log", "1 x\n2 - \"a \\\" b\"\n3 y", "1=x; 2; 3=y"),
        case("log/blank.log", "\n1 x\n\n  \n", "1=x"),
        case("log/crlf.log", "1 x \r\n2 y \r\n", "1=x; 2=y"),
        case("log/empty.log", "", ""),
        case(
            "log/nonsense.log",
            "1 x\nnonsense\n2 y\n",
            "1=x; rejected no match; 2=y",
        ),
        case("log/cut.log", "1 x\n2", "1=x; rejected no match"),
        case(
            "log/not-utf8.log",
            b"1 \xff\n2 y\n".to_vec(),
            "rejected bad UTF-8; 2=y",
        ),
        case("times/1.log", "[at 1] a b\n[] c\n", "a b=at 1; c"),
    ];
    let outcomes = assert_outcomes("patterns", FORMATS, &cases).await;
    // The line itself is kept.
    assert_eq!(outcomes["log/nonsense.log"].raws(), ["nonsense"]);
    assert_eq!(outcomes["log/nonsense.log"].numbers(), [0, 1, 2]);
}
