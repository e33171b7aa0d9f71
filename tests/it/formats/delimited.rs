//! CSV and TSV.

use super::{assert_outcomes, case};

const FORMATS: &str = r##"
- {name: csv, keys: [csv/**], csv: {nulls: ["", "NULL"], comment: "#"}}
- {name: named, keys: [named/**], csv: {columns: [id, a]}}
- {name: skipped, keys: [skipped/**], csv: {skip_lines: 2, delimiter: ";"}}
- {name: plain, keys: [plain/**], csv: {delimiter: "|", quoted: false, header: false, columns: [id, a], nulls: ["-"]}}
- {name: tsv, keys: [tsv/**], tsv: {}}
"##;

#[tokio::test]
async fn quoted_text_is_divided_into_records() {
    let cases = [
        case("csv/1.csv", "id,a\n1,x\n2,y", "1=x; 2=y"),
        case("csv/crlf.csv", "\u{feff}id,a\r\n1,x\r\n2,\r\n", "1=x; 2"),
        case("csv/order.csv", "a,b,id\nx,y,1\n", "1=x"),
        case(
            "csv/quotes.csv",
            "id,a\n1,\"x\ny\"\n2,\"say \"\"a\"\", b\"\n3,'\n",
            "1=x\ny; 2=say \"a\", b; 3='",
        ),
        case(
            "csv/null.csv",
            "id,a\n1,\n2,\"\"\n3,NULL\n4,null\n",
            "1; 2; 3; 4=null",
        ),
        case("csv/blank.csv", "id,a\n\n1,x\n\n", "1=x"),
        case("csv/comments.csv", "id,a\n#2,x\n1,x\n# text\n", "1=x"),
        case("csv/few.csv", "id,a\n1\n2,x\n", "1; 2=x"),
        case(
            "csv/many.csv",
            "id,a\n1,x,y\n2,x,y,z\n3,x\n4,x,,z\n5,x,\n",
            "rejected too many fields; rejected too many fields; 3=x; rejected too many fields; 5=x",
        ),
        case("csv/no-id.csv", "id,a\n,x\n", "unmatched"),
        case(
            "csv/not-utf8.csv",
            b"id,a\n1,\xff\n2,x\n".to_vec(),
            "rejected bad UTF-8; 2=x",
        ),
        case("csv/header-only.csv", "id,a\n", ""),
        case("csv/empty.csv", "", ""),
        // Where the quotes are broken, nobody can tell where the next record begins.
        case(
            "csv/quote.csv",
            "id,a\n1,x\n\"2\"3,y\n4,z\n",
            "failed unloadable",
        ),
        case("csv/twice.csv", "id,id\n1,2\n", "failed unloadable"),
        case("csv/other-header.csv", "x,y\n1,2\n", "failed unloadable"),
        case("named/1.csv", "a,id\nx,1\n", "1=x"),
        case("named/other-header.csv", "id,b\n1,x\n", "failed unloadable"),
        case("skipped/1.csv", "title\nmore\nid;a\n1;x\n", "1=x"),
        case("skipped/quotes.csv", "\"a;b\"\nmore\nid;a\n1;x\n", "1=x"),
        // ClickHouse would skip the first record, too.
        case(
            "skipped/open.csv",
            "\"title\nmore\"\nid;a\n1;x\n",
            "failed unloadable",
        ),
    ];
    let outcomes = assert_outcomes("csv", FORMATS, &cases).await;
    assert_eq!(outcomes["csv/no-id.csv"].raws(), [r#"{"id":null,"a":"x"}"#]);
    let many = outcomes["csv/many.csv"].raws();
    assert!(many[0].starts_with(r#"{"id":"1","a":"x","#), "{many:?}");
}

/// Each line is a record, whatever is in it.
#[tokio::test]
async fn text_without_quotes_is_divided_into_lines() {
    let cases = [
        case("plain/1.txt", "1|x\n2|-\n3", "1=x; 2; 3"),
        case("plain/crlf.txt", "1|x\r\n\r\n2|y\r\n", "1=x; 2=y"),
        case("plain/quotes.txt", "1|\"x\n\"2\"|y\n", "1=\"x; \"2\"=y"),
        case(
            "plain/many.txt",
            "1|x|y\n2|x\n",
            "rejected too many fields; 2=x",
        ),
        case(
            "plain/not-utf8.txt",
            b"1|\xff\n2|x\n".to_vec(),
            "rejected bad UTF-8; 2=x",
        ),
        case("plain/empty.txt", "", ""),
        case("tsv/1.tsv", "id\ta\n1\tx y\n2\t\n", "1=x y; 2"),
        case("tsv/crlf.tsv", "\u{feff}id\ta\r\n1\tx\r\n", "1=x"),
        case("tsv/header-only.tsv", "id\ta\n", ""),
        case("tsv/no-id.tsv", "a\tb\tid\nx\ty\t\n", "unmatched"),
    ];
    let outcomes = assert_outcomes("tsv", FORMATS, &cases).await;
    assert_eq!(
        outcomes["tsv/no-id.tsv"].raws(),
        [r#"{"a":"x","b":"y","id":null}"#]
    );
}
