use super::*;

fn lines() -> Lines {
    Lines {
        filter: Some("throwIf(false) = 0".to_owned()),
        ..Lines::of_objects(
            "s3('http://s3/b/{k1,k2}', 'LineAsString', 'line String')",
            Uuid::nil(),
        )
    }
}

#[test]
fn a_small_catalog() {
    let declared = r#"
table: clicks
rule: {path: [verb], equals: click}
order_by: [at, id]
columns:
  - {name: id, type: String, path: [id], otherwise: line_hash}
  - {name: at, type: "DateTime64(3, 'UTC')", path: [at], required: true}
  - {name: shop, type: "LowCardinality(String)", path: [ctx, "http://x.y/shop"], fallbacks: [[shop]]}
  - {name: price, type: "Nullable(Float64)", path: [price]}
  - {name: sum, type: Float64, expression: "toFloat64OrNull({value}) * toFloat64OrNull({count})", path: [price], inputs: {count: [n]}}
  - {name: line, type: UInt64, expression: "{row_number}"}
"#;
    let files = [("click.yaml".to_owned(), declared.to_owned())];
    let catalog = Catalog::from_files(files).unwrap();
    let selects: Vec<_> = Target::all(&catalog)
        .into_iter()
        .map(|target| {
            format!(
                "-- {}: {:?}\n{}\n",
                target.table(),
                target.columns(),
                view_select(target, "landing")
            )
        })
        .collect();
    insta::assert_snapshot!(format!(
        "{}\n-- landing\n{}\n",
        selects.join("\n"),
        landing_select(&catalog, &lines())
    ));
}

#[test]
fn the_builtin_catalog() {
    insta::assert_snapshot!(landing_select(&Catalog::builtin(), &lines()));
}

#[test]
fn a_time_is_quoted_as_its_event_type_reads_it() {
    let declared = |name: &str, key: &str, required: bool| {
        let text = format!(
            r#"
table: {name}s
rule: {{path: [verb], equals: {name}}}
order_by: [id]
partition_by: toYYYYMM(at)
columns:
  - {{name: id, type: String, identifies: true, path: [id]}}
  - {{name: at, type: "DateTime64(3, 'UTC')", path: [{key}], required: {required}}}
"#
        );
        (format!("{name}.yaml"), text)
    };
    let files = [
        declared("click", "at", true),
        declared("press", "time", false),
    ];
    let catalog = Catalog::from_files(files).unwrap();
    assert_eq!(
        bad_value(&catalog),
        "toValidUTF8(substring(multiIf(verdict IN ('at out of range', 'invalid at'), \
         multiIf(taken IN ('click'), `$.at`, taken IN ('press'), `$.time`, NULL), NULL), 1, 200))"
    );
    let times = Some(TimeRange { start: 1, end: 2 });
    let verdicts = verdicts(&catalog, &Lines { times, ..lines() });
    let closely_read: Vec<bool> = verdicts
        .lines()
        .filter(|branch| branch.contains("out of range"))
        .map(|branch| branch.contains("match("))
        .collect();
    assert_eq!(closely_read, [false, true], "{verdicts}");
}

#[test]
fn a_per_type_select_is_the_view_over_the_landing_select() {
    let catalog = Catalog::builtin();
    for target in Target::all(&catalog) {
        let select = per_type_select(&catalog, target, &lines());
        assert!(
            select.contains(&landing_select(&catalog, &lines())),
            "{}",
            target.table()
        );
    }
}
