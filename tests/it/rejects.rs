//! Lines that cannot become rows, and objects with too many of them.

use sluice_testkit::xapi::gzip;
use sluice_testkit::{Site, Stack};

use crate::harness::{Sluice, loaded, wait_for_dead_letters, wait_until_drained};

async fn site(name: &str) -> (&'static Stack, Site) {
    let stack = Stack::shared();
    (stack, stack.site_with_max_receives(name, 2).await.unwrap())
}

/// Returns the result of a query over the site's database as text. `$` is a placeholder for the
/// database.
async fn query(stack: &Stack, site: &Site, sql: &str) -> String {
    let sql = sql.replace('$', &site.database);
    stack.clickhouse.query(&sql).await.unwrap()
}

#[tokio::test]
async fn a_line_of_100_mib_is_rejected_alone() {
    const LONG: usize = 100 << 20;
    let (stack, site) = site("long-line").await;
    let mut sluice = Sluice::new(stack, &site);
    sluice.migrate();
    let mut long = b"{\"note\":\"before\"}\n{\"note\":\"".to_vec();
    long.resize(long.len() + LONG, b'x');
    long.extend_from_slice(b"\"}\n{\"note\":\"after\"}\n");
    site.put("long.jsonl", long).await.unwrap();
    site.put("other.jsonl", "{\"note\":\"other\"}")
        .await
        .unwrap();
    sluice.start();
    wait_until_drained(&site).await;
    assert_eq!(site.dlq_depth().await.unwrap(), 0);
    assert_eq!(loaded(&stack.clickhouse, &site.database).await, 2);
    let rejects = "SELECT row_number, reason, length(raw) FROM $.rejected_lines";
    assert_eq!(
        query(stack, &site, rejects).await,
        format!("1\ttoo large\t{}\n", LONG + 11)
    );
    let others = "SELECT JSONExtractString(raw, 'note') AS note, row_number \
                  FROM $.unmatched_statements ORDER BY note";
    assert_eq!(
        query(stack, &site, others).await,
        "after\t2\nbefore\t0\nother\t0\n"
    );
}

#[tokio::test]
async fn lines_above_the_configured_length_are_rejected() {
    for strategy in ["single_pass", "per_type"] {
        let (stack, site) = site("line-limit").await;
        let mut sluice = Sluice::new(stack, &site)
            .set("load.max_line_bytes", "1KiB")
            .set("load.strategy", strategy);
        sluice.migrate();
        let of_length = |length: usize, rest: &str| {
            let bare = format!("{{\"verb\":{{\"id\":\"x\"}},{rest}\"pad\":\"\"}}");
            bare.replace("\"\"", &format!("\"{}\"", "p".repeat(length - bare.len())))
        };
        let lines = [
            of_length(1024, ""),
            of_length(1025, ""),
            // Without the limit, this line would be read path by path.
            of_length(1025, "\"actor\":[ null],"),
            " ".repeat(1025),
            of_length(1024, "\"actor\":[ null],"),
        ];
        site.put("a.jsonl", lines.join("\n")).await.unwrap();
        sluice.start();
        wait_until_drained(&site).await;
        let rejects = "SELECT groupArray(row_number), groupUniqArray(reason), min(length(raw)) \
                    FROM (SELECT * FROM $.rejected_lines ORDER BY row_number)";
        assert_eq!(
            query(stack, &site, rejects).await,
            "[1,2,3]\t['too large']\t1025\n"
        );
        let others = "SELECT groupArray(row_number) \
                      FROM (SELECT * FROM $.unmatched_statements ORDER BY row_number)";
        assert_eq!(query(stack, &site, others).await, "[0,4]\n");
    }
}

#[tokio::test]
async fn an_object_with_too_many_rejected_lines_fails_alone_and_leaves_no_rows() {
    let (stack, site) = site("too-many").await;
    Sluice::new(stack, &site).migrate();
    // With a fallback, the object that is compressed without such a name would be streamed.
    let mut sluice = Sluice::new(stack, &site)
        .set("load.max_rejected_ratio", "0.5")
        .set("load.fallback", "never");
    let note = "{\"note\":\"good\"}\n";
    let objects = [
        ("good.jsonl", note.as_bytes().to_vec()),
        ("half.jsonl", format!("bad half\n{note}").into_bytes()),
        // Blank lines are not counted, so they cannot outweigh bad ones.
        (
            "most.jsonl",
            format!("bad\n{note}bad\n\n\n\n\n").into_bytes(),
        ),
        // Its name says that it is not compressed, but it is.
        ("garbage.jsonl", gzip(note.repeat(3000).as_bytes())),
    ];
    for (key, content) in objects {
        site.put(key, content).await.unwrap();
    }
    sluice.start();
    wait_for_dead_letters(&site, 2).await;
    wait_until_drained(&site).await;
    assert_eq!(loaded(&stack.clickhouse, &site.database).await, 2);
    let failures = "SELECT DISTINCT key, class, startsWith(reason, 'too many lines are rejected') \
                    FROM $.ledger_failures ORDER BY key";
    let expected = "garbage.jsonl\trejected\t1\nmost.jsonl\trejected\t1\n";
    assert_eq!(query(stack, &site, failures).await, expected);
    let rejected = "SELECT raw FROM $.rejected_lines";
    assert_eq!(query(stack, &site, rejected).await, "bad half\n");
    for table in ["unmatched_statements", "object_rows"] {
        let sql = format!("SELECT DISTINCT source_path FROM $.{table} ORDER BY source_path");
        let expected = ["good", "half"].map(|name| format!("{}/{name}.jsonl\n", site.bucket));
        assert_eq!(
            query(stack, &site, &sql).await,
            expected.concat(),
            "{table}"
        );
    }

    // Another attempt succeeds once the configuration allows it.
    sluice.stop().await;
    let mut sluice = Sluice::new(stack, &site);
    site.put("most.jsonl", format!("bad\n{note}bad\n\n\n\n\n"))
        .await
        .unwrap();
    sluice.start();
    wait_until_drained(&site).await;
    assert_eq!(loaded(&stack.clickhouse, &site.database).await, 3);
    let rejected = "SELECT groupArray(raw) FROM (SELECT raw FROM $.rejected_lines ORDER BY raw)";
    assert_eq!(
        query(stack, &site, rejected).await,
        "['bad','bad','bad half']\n"
    );
}

#[tokio::test]
async fn rejects_are_deleted_after_the_configured_time() {
    let (stack, site) = site("reject-ttl").await;
    Sluice::new(stack, &site)
        .set("clickhouse.reject_ttl", "3d")
        .migrate();
    for table in ["rejected_lines", "unmatched_statements"] {
        let create = query(stack, &site, &format!("SHOW CREATE TABLE $.{table}")).await;
        assert!(
            create.contains("ingested_at) + toIntervalSecond(259200)"),
            "{create}"
        );
    }
}
