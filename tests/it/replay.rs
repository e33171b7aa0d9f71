//! `sluice rejects`: lines that became no row are listed, shown, and replayed.

use serde_json::{Value, json};
use sluice_testkit::{Site, Stack};

use crate::harness::{Sluice, drained};

fn output(sluice: &Sluice, arguments: &[&str]) -> String {
    let output = sluice.command(&[&["rejects"], arguments].concat());
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn parsed(sluice: &Sluice, arguments: &[&str]) -> Value {
    let arguments = [arguments, &["--output", "json"]].concat();
    serde_json::from_str(&output(sluice, &arguments)).unwrap()
}

/// A site, and a worker that has loaded these objects.
async fn with_objects(
    name: &str,
    objects: &[(&str, &[u8])],
    configure: impl FnOnce(Sluice) -> Sluice,
) -> (&'static Stack, Site, Sluice) {
    let stack = Stack::shared();
    let site = stack.site(name).await.unwrap();
    let mut sluice = configure(Sluice::new(stack, &site));
    sluice.migrate();
    for (key, content) in objects {
        site.put(key, *content).await.unwrap();
    }
    sluice.start();
    drained(&site).await;
    assert_eq!(sluice.stop().await.code(), Some(0));
    (stack, site, sluice)
}

#[tokio::test]
async fn pain_5_what_is_kept_is_listed_by_reason_and_object_and_shown() {
    let objects: [(&str, &[u8]); 2] = [
        ("a/1.jsonl", b"{\"note\":1}\nno JSON\n\xff\x1b[2J\n\n[1]\n"),
        ("b/2.jsonl", b"no JSON either\n{\"note\":2}\n"),
    ];
    let (_, site, sluice) = with_objects("kept", &objects, |it| it).await;
    let told = |arguments: &[&str]| {
        let told = parsed(&sluice, arguments).to_string();
        let groups: Vec<Value> = serde_json::from_str(&told.replace(&site.bucket, "B")).unwrap();
        let brief = groups.iter().map(|group| {
            assert!(group["first_kept_at"].as_str() <= group["last_kept_at"].as_str());
            let fields = ["object", "kind", "reason", "lines", "objects"].map(|key| &group[key]);
            json!(fields).to_string()
        });
        brief.collect::<Vec<_>>().join("\n")
    };
    insta::assert_snapshot!("rejects_list", told(&["list"]));
    insta::assert_snapshot!("rejects_list_by_object", told(&["list", "--by", "object"]));
    let both = r#"[null,"rejected","not JSON",2,2]"#;
    let under = format!("s3://{}/b", site.bucket);
    for (arguments, expected) in [
        (["--reason", "json"], both),
        (
            ["--prefix", &under],
            "[null,\"rejected\",\"not JSON\",1,1]\n[null,\"unmatched\",\"no event type\",1,1]",
        ),
        (
            ["--kind", "unmatched"],
            r#"[null,"unmatched","no event type",2,2]"#,
        ),
        (["--since", "0s"], ""),
        (["--limit", "1"], both),
    ] {
        assert_eq!(
            told(&[&["list"][..], &arguments].concat()),
            expected,
            "{arguments:?}"
        );
    }
    assert!(output(&sluice, &["list"]).contains("not an object"));
    assert!(output(&sluice, &["list", "--reason", "nothing"]).starts_with("no such line"));

    let url = format!("s3://{}/a/1.jsonl", site.bucket);
    let shown = output(&sluice, &["show", &url]).replace(&site.bucket, "B");
    insta::assert_snapshot!("rejects_show", shown);
    let mut whole = parsed(&sluice, &["show", &url]);
    whole["object"] = "U".into();
    for line in whole["lines"].as_array_mut().unwrap() {
        assert!(line["kept_at"].as_str() > Some("2020"));
        line["kept_at"] = "T".into();
        line["etag"] = "E".into();
    }
    insta::assert_snapshot!(
        "rejects_show_json",
        serde_json::to_string_pretty(&whole).unwrap()
    );
    assert!(output(&sluice, &["show", "s3://elsewhere/x"]).starts_with("no line"));
}
