use std::collections::BTreeSet;
use std::fmt::Write;

use include_dir::{Dir, include_dir};
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::object::ObjectParts;

static CORPUS: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/src/notification/corpus");

/// Returns the names, without `.json`, and the bodies.
fn corpus() -> Vec<(&'static str, &'static str)> {
    let mut bodies: Vec<_> = CORPUS
        .files()
        .filter_map(|file| {
            let name = file.path().to_str()?.strip_suffix(".json")?;
            Some((name, file.contents_utf8()?))
        })
        .collect();
    bodies.sort_unstable();
    bodies
}

/// Formats what was read, with one fact on each line.
fn shown(read: &Result<Notification, Malformed>) -> String {
    match read {
        Ok(Notification::Objects(announced)) => {
            announced.iter().fold(String::new(), |mut text, it| {
                let ObjectParts {
                    bucket,
                    key,
                    etag,
                    size,
                    version_id,
                    sequencer,
                    region,
                } = &*it.object;
                let optional = [version_id, sequencer, region].map(|it| it.as_deref());
                let [version_id, sequencer, region] = optional.map(|it| it.unwrap_or("-"));
                let size = size.map_or_else(|| "-".to_owned(), |size| size.to_string());
                writeln!(text, "  {}: s3://{bucket}/{key}", it.event).unwrap();
                writeln!(
                    text,
                    "    etag {etag} size {size} version {version_id} sequencer {sequencer} region {region}"
                )
                .unwrap();
                text
            })
        }
        Ok(Notification::Ignorable(why)) => format!("  ignored: {}\n", why.label()),
        Err(malformed) => format!("  {malformed}\n"),
    }
}

#[test]
fn the_corpus_is_read_as_it_should_be() {
    let read = corpus().into_iter().map(|(name, body)| {
        let read = parse_notification(body);
        assert_eq!(name.starts_with("malformed-"), read.is_err(), "{name}");
        format!("{name}\n{}", shown(&read))
    });
    insta::assert_snapshot!(read.collect::<Vec<_>>().join("\n"));
}

#[test]
fn one_object_is_the_same_whichever_way_it_is_announced() {
    let ways = ["s3", "sns", "sns-raw", "event-bridge", "event-bridge-sns"];
    let ids: BTreeSet<_> = ways
        .into_iter()
        .flat_map(|way| {
            let body = CORPUS.get_file(format!("recorded-{way}-put.json")).unwrap();
            match parse_notification(body.contents_utf8().unwrap()) {
                Ok(Notification::Objects(announced)) => announced,
                other => panic!("{way}: {other:?}"),
            }
        })
        .map(|announced| (announced.event, announced.object.id()))
        .collect();
    assert_eq!(ids.len(), 1, "{ids:?}");
}

fn record(event: &str, key: &str) -> Value {
    json!({
        "awsRegion": "eu-west-1", "eventName": event,
        "s3": {"bucket": {"name": "events"}, "object": {"key": key, "size": 1024, "eTag": "d41d8cd9"}},
    })
}

/// Returns the one object that a record of S3's announces.
fn only(record: Value) -> ObjectRef {
    match read_all(&[record]) {
        Ok(Notification::Objects(mut announced)) if announced.len() == 1 => {
            announced.remove(0).object
        }
        other => panic!("{other:?}"),
    }
}

fn read_all(records: &[Value]) -> Result<Notification, Malformed> {
    parse_notification(&json!({ "Records": records }).to_string())
}

#[test]
fn decodes_keys_as_form_urlencoded() {
    for (encoded, decoded) in [
        ("plain/key.jsonl", "plain/key.jsonl"),
        ("a+b", "a b"),
        ("a%20b", "a b"),
        ("a%2Bb", "a+b"),
        ("dir%2Ffile", "dir/file"),
        ("%25%41", "%A"),
        ("caf%C3%A9", "café"),
        ("%F0%9F%98%80", "😀"),
        ("100%", "100%"),
    ] {
        match read_all(&[record("ObjectCreated:Put", encoded)]) {
            Ok(Notification::Objects(announced)) => assert_eq!(announced[0].object.key, decoded),
            other => panic!("{encoded}: {other:?}"),
        }
    }
}

/// Reads a record of this event, and one of EventBridge's with this type.
fn read_both(name: &str) -> [Result<Notification, Malformed>; 2] {
    let bridge = json!({
        "source": "aws.s3", "detail-type": name,
        "detail": {"bucket": {"name": "events"}, "object": {"key": "a"}},
    });
    [
        read_all(&[record(name, "a")]),
        parse_notification(&bridge.to_string()),
    ]
}

fn is_acknowledged(read: &Result<Notification, Malformed>) -> bool {
    *read == Ok(Notification::Ignorable(Ignorable::OtherEvents))
}

/// Every event but those that write objects: the names that a bucket's notifications may have in
/// the documentation of S3, EventBridge's types, and those that only Ceph and MinIO have.
const HARMLESS: &[&str] = &[
    "IntelligentTiering",
    "LifecycleExpiration:Delete",
    "LifecycleExpiration:DeleteMarkerCreated",
    "LifecycleTransition",
    "ObjectAcl:Put",
    "ObjectAnnotation:Delete",
    "ObjectAnnotation:Put",
    "ObjectRemoved:Delete",
    "ObjectRemoved:DeleteMarkerCreated",
    "ObjectRestore:Completed",
    "ObjectRestore:Delete",
    "ObjectRestore:Post",
    "ObjectTagging:Delete",
    "ObjectTagging:Put",
    "ReducedRedundancyLostObject",
    "Replication:OperationFailedReplication",
    "Replication:OperationMissedThreshold",
    "Replication:OperationNotTracked",
    "Replication:OperationReplicatedAfterThreshold",
    "TestEvent",
    "Object ACL Updated",
    "Object Access Tier Changed",
    "Object Annotation Created",
    "Object Annotation Removed",
    "Object Deleted",
    "Object Restore Completed",
    "Object Restore Expired",
    "Object Restore Initiated",
    "Object Storage Class Changed",
    "Object Tags Added",
    "Object Tags Deleted",
    "ObjectLifecycle:Expiration:Current",
    "ObjectLifecycle:Transition:NonCurrent",
    "ObjectSynced:Delete",
    "ObjectSynced:DeletionMarkerCreated",
    "Replication:Delete",
    "Replication:DeletionMarkerCreated",
    "ObjectAccessed:Get",
];

#[test]
fn events_known_to_write_nothing_are_acknowledged() {
    for name in HARMLESS {
        for name in [(*name).to_owned(), format!("s3:{name}")] {
            for read in read_both(&name) {
                assert!(is_acknowledged(&read), "{name}: {read:?}");
            }
        }
    }
}

#[test]
fn events_that_write_an_object_are_loaded_under_the_name_that_s3_uses() {
    for (name, event) in [
        ("ObjectCreated:Put", "Put"),
        ("s3:ObjectCreated:Put", "Put"),
        ("cos:ObjectCreated:Put", "Put"),
        ("oss:ObjectCreated:PutObject", "Put"),
        ("acs:oss:ObjectCreated:AppendObject", "AppendObject"),
        ("ObjectCreated", "*"),
        ("ObjectCreated:", "*"),
        ("s3:ObjectCreated:*", "*"),
        ("Object Created", "*"),
        ("PutObject", "Put"),
        ("POST Object", "Post"),
        ("PostObject", "Post"),
        ("CopyObject", "Copy"),
        ("CompleteMultipartUpload", "CompleteMultipartUpload"),
        ("s3:ObjectSynced:Create", "*"),
        ("s3:Replication:Create", "*"),
    ] {
        for read in read_both(name) {
            let Ok(Notification::Objects(announced)) = read else {
                panic!("{name}: {read:?}");
            };
            assert_eq!((announced.len(), announced[0].event.as_str()), (1, event));
        }
    }
}

#[test]
fn an_unknown_event_makes_its_message_malformed_even_beside_known_events() {
    let long = "x".repeat(300_000);
    for name in [
        "",
        "GetObject",
        "UploadPart",
        "objectcreated:put",
        "NotObjectCreated:Put",
        "ObjectCreatedBy:Put",
        "ObjectCreated Put",
        "ObjectAcl:PutAll",
        "Object Moved",
        "Replication:CreateAll",
        "cos:ObjectRemoved:Delete",
        "s3:s3:TestEvent",
        "line\nbreak",
        &long,
    ] {
        for other in ["ObjectCreated:Put", "ObjectRemoved:Delete"] {
            let read = read_all(&[record(other, "good"), record(name, "a")]);
            let Err(Malformed::Record { index: 1, problem }) = read else {
                panic!("{name}: {read:?}");
            };
            let shown: String = name.chars().take(100).collect();
            assert!(problem.contains(&format!("{shown:?}")), "{problem}");
            assert!(problem.contains("sluice backfill"), "{problem}");
            assert!(problem.len() < 400 && !problem.contains('\n'), "{problem}");
        }
        for read in read_both(name) {
            assert!(matches!(read, Err(Malformed::Record { .. })), "{name}");
        }
    }
}

#[test]
fn a_request_that_failed_wrote_nothing() {
    let body = CORPUS.get_file("written-cloud-trail-put.json").unwrap();
    let mut call: Value = serde_json::from_str(body.contents_utf8().unwrap()).unwrap();
    let read = |call: &Value| parse_notification(&call.to_string());
    assert!(matches!(read(&call), Ok(Notification::Objects(_))));
    call["detail"]["errorCode"] = json!(null);
    assert!(matches!(read(&call), Ok(Notification::Objects(_))));
    call["detail"]["errorCode"] = json!("AccessDenied");
    assert!(is_acknowledged(&read(&call)));
}

#[test]
fn security_lake_announces_written_objects_without_a_type() {
    let body = CORPUS.get_file("written-security-lake.json").unwrap();
    let body = body.contents_utf8().unwrap();
    let in_sns = json!({"Type": "Notification", "TopicArn": "arn", "Message": body}).to_string();
    for (body, expected) in [
        (body, EnvelopeKind::EventBridge),
        (in_sns.as_str(), EnvelopeKind::EventBridgeSns),
    ] {
        let (form, read) = parse_with_envelope_kind(body, &Envelopes::default());
        assert_eq!(form, expected);
        assert!(matches!(read, Ok(Notification::Objects(_))), "{read:?}");
    }
}

#[test]
fn a_size_may_be_a_text_or_a_float_and_an_invalid_size_is_none() {
    for (written, size) in [
        (json!(20), Some(20)),
        (json!(20.0), Some(20)),
        (json!("20"), Some(20)),
        (json!("20.0"), Some(20)),
        (json!(u64::MAX), Some(u64::MAX)),
        (json!(0.0), Some(0)),
        (json!(null), None),
        (json!(-1), None),
        (json!(1.5), None),
        (json!(1e300), None),
        (json!(""), None),
        (json!("eight"), None),
        (json!(true), None),
        (json!([20]), None),
    ] {
        let mut record = record("ObjectCreated:Put", "a");
        record["s3"]["object"]["size"] = written.clone();
        assert_eq!(only(record).size, size, "{written}");
    }
}

#[test]
fn ceph_and_input_transformers_do_not_encode_keys() {
    for key in ["raw+plus", "raw%41percent", "raw%FF", "raw space", "é"] {
        let mut of_ceph = record("s3:ObjectCreated:Put", key);
        of_ceph["eventSource"] = json!("ceph:s3");
        let mut of_transformer = record("PutObject", key);
        assert_eq!(only(of_transformer.clone()).key, key);
        of_transformer["eventName"] = json!("Object Created");
        assert_eq!(only(of_transformer).key, key);
        assert_eq!(only(of_ceph).key, key);
    }
}

#[test]
fn the_time_of_an_event_may_be_in_lower_case() {
    let at = |text: &str| {
        let mut record = record("ObjectCreated:Put", "a");
        record["eventTime"] = json!(text);
        match read_all(&[record]) {
            Ok(Notification::Objects(announced)) => announced[0].at,
            other => panic!("{other:?}"),
        }
    };
    let noon = at("2026-07-14T12:00:00.500Z");
    assert!(noon.is_some());
    assert_eq!(at("2026-07-14t12:00:00.500z"), noon);
    assert_eq!(at("noon"), None);
}

#[test]
fn garbage_is_never_read_as_an_object() {
    for body in [
        "[]",
        "{}",
        "null",
        "7",
        "\"s3:TestEvent\"",
        "{\"Records\":[",
    ] {
        assert!(parse_notification(body).is_err(), "{body}");
    }
    for (spoil, value) in [
        ("/s3/object/key", json!(7)),
        ("/s3/object/key", json!("")),
        ("/s3/object/key", json!("%FF")),
        ("/s3/object/key", json!("k".repeat(1025))),
        ("/s3/object/eTag", json!("e".repeat(1025))),
        ("/s3/bucket/name", json!("")),
        ("/s3/bucket/name", json!("ab")),
        ("/s3/bucket/name", json!("a/b")),
        ("/s3/bucket/name", json!("a{b,c}")),
        ("/s3/bucket/name", json!("..")),
        ("/s3/bucket/name", json!("büro")),
        ("/s3/bucket", json!(null)),
        ("/awsRegion", json!("eu-west-1.evil.example/")),
        ("/awsRegion", json!("user@evil")),
        ("/eventName", json!(null)),
    ] {
        let mut spoilt = record("ObjectCreated:Put", "a");
        *spoilt.pointer_mut(spoil).unwrap() = value;
        // A valid record beside it makes no difference: the whole message is malformed.
        let outcome = read_all(&[record("ObjectCreated:Put", "good"), spoilt]);
        assert!(
            matches!(outcome, Err(Malformed::Record { index: 1, .. })),
            "{spoil}: {outcome:?}"
        );
    }
}

/// Checks what must hold for every object that is read from `body`.
fn check_objects(body: &str) -> Result<(), TestCaseError> {
    let Ok(Notification::Objects(announced)) = parse_notification(body) else {
        return Ok(());
    };
    prop_assert!(!announced.is_empty());
    // Only a text of the body, or of a message in it, can be a name.
    let mut texts = BTreeSet::new();
    collect_texts(&serde_json::from_str(body).unwrap(), &mut texts);
    for Announced { object, .. } in announced {
        prop_assert!((1..=1024).contains(&object.key.len()));
        prop_assert!((3..=63).contains(&object.bucket.len()));
        let in_url = object.bucket.clone() + object.region.as_deref().unwrap_or_default();
        prop_assert!(
            in_url
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        );
        prop_assert!(texts.contains(&object.bucket));
        prop_assert!(texts.iter().any(|text| decodes_to(text, &object.key)));
    }
    Ok(())
}

fn decodes_to(text: &str, key: &str) -> bool {
    let spaced = text.replace('+', " ");
    let decoded = percent_encoding::percent_decode_str(&spaced).decode_utf8_lossy();
    text == key || decoded == key
}

fn collect_texts(value: &Value, texts: &mut BTreeSet<String>) {
    match value {
        Value::String(text) => {
            if let Ok(inner) = serde_json::from_str::<Value>(text)
                && inner.is_object()
            {
                collect_texts(&inner, texts);
            }
            texts.insert(text.clone());
        }
        Value::Array(values) => values.iter().for_each(|it| collect_texts(it, texts)),
        Value::Object(fields) => fields.values().for_each(|it| collect_texts(it, texts)),
        _ => {}
    }
}

/// One change of a body: bytes at a place are replaced by others.
#[derive(Clone, Debug)]
struct Mutation {
    at: prop::sample::Index,
    remove: usize,
    insert: Vec<u8>,
}

fn mutation() -> impl Strategy<Value = Mutation> {
    // Parts of such bodies, in addition to random bytes.
    let words = [
        "\"",
        "\\\"",
        "\\u0000",
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "null",
        "-1",
        "1e999",
        "%FF",
        "%2F",
        "+",
        "../",
        "Records",
        "\"Records\":[],",
        "\"TopicArn\":0,",
        "ObjectCreated:",
        "PutObject",
        "Object Created",
        "ObjectRemoved:Delete",
        "s3:TestEvent",
    ];
    let word = prop::sample::select(words.to_vec());
    let insert = prop_oneof![
        Just(Vec::new()),
        word.prop_map(|word| word.as_bytes().to_vec()),
        prop::collection::vec(any::<u8>(), 0..4),
    ];
    let remove = prop_oneof![Just(0), 0..4usize, 0..200usize];
    (any::<prop::sample::Index>(), remove, insert).prop_map(|(at, remove, insert)| Mutation {
        at,
        remove,
        insert,
    })
}

fn mutated(body: &str, mutations: &[Mutation]) -> String {
    let mut bytes = body.as_bytes().to_vec();
    for Mutation { at, remove, insert } in mutations {
        let from = at.index(bytes.len() + 1);
        let to = (from + remove).min(bytes.len());
        bytes.splice(from..to, insert.iter().copied());
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

// To try more cases: PROPTEST_CASES=10000000 cargo test --lib notification::tests::corrupted
proptest! {
    #[test]
    fn corrupted_bodies_neither_panic_nor_announce_objects_that_they_do_not_name(
        body in prop::sample::select(corpus()),
        mutations in prop::collection::vec(mutation(), 1..6),
    ) {
        check_objects(&mutated(body.1, &mutations))?;
    }

    #[test]
    fn corrupted_text_is_read_without_a_panic(body in ".{0,300}") {
        check_objects(&body)?;
    }

    #[test]
    fn a_name_is_acknowledged_only_if_it_is_known(name in "(s3:)?(Object|Replication:)?[ A-Za-z:]{0,20}") {
        let bare = name.strip_prefix("s3:").unwrap_or(&name);
        let families = [
            "LifecycleExpiration:",
            "ObjectAccessed:",
            "ObjectAnnotation:",
            "ObjectLifecycle:",
            "ObjectRemoved:",
            "ObjectRestore:",
            "ObjectTagging:",
            "Replication:Operation",
        ];
        let is_known = HARMLESS.contains(&bare) || families.iter().any(|it| bare.starts_with(it));
        for read in read_both(&name) {
            prop_assert_eq!(is_acknowledged(&read), is_known);
        }
    }

    #[test]
    fn every_key_comes_through_encoded_or_not(key in "\\PC{1,200}") {
        let encoded: String = key
            .bytes()
            .map(|byte| match byte {
                b' ' => "+".to_owned(),
                byte if byte.is_ascii_alphanumeric() => char::from(byte).to_string(),
                byte => format!("%{byte:02X}"),
            })
            .collect();
        let bridge = json!({
            "source": "aws.s3", "detail-type": "Object Created",
            "detail": {"bucket": {"name": "events"}, "object": {"key": key}},
        });
        let direct = json!({"Records": [record("ObjectCreated:Put", &encoded)]});
        for body in [bridge.to_string(), direct.to_string(), json!({
            "Type": "Notification", "TopicArn": "arn", "Message": direct.to_string(),
        }).to_string()] {
            let read = parse_notification(&body);
            let Ok(Notification::Objects(announced)) = read else {
                return Err(TestCaseError::fail(format!("{read:?}")));
            };
            prop_assert_eq!(&announced[0].object.key, &key);
        }
    }
}

mod declared {
    use serde_json::{Value, json};

    use super::super::{
        EnvelopeKind, Envelopes, Ignorable, Malformed, Notification, parse_with_envelope_kind,
    };

    fn examples() -> Envelopes {
        Envelopes::from_yaml(include_str!("../../../config/envelopes.yaml")).unwrap()
    }

    fn parse(body: &Value) -> (EnvelopeKind, Result<Notification, Malformed>) {
        parse_with_envelope_kind(&body.to_string(), &examples())
    }

    /// Returns the URL, the etag and the size of each object.
    fn objects(body: &Value) -> Vec<(String, String, Option<u64>)> {
        let (form, Ok(Notification::Objects(announced))) = parse(body) else {
            panic!("{:?}", parse(body));
        };
        assert_eq!(form, EnvelopeKind::Declared);
        let objects = announced.into_iter().map(|it| it.object);
        objects
            .map(|it| (it.to_string(), it.etag.clone(), it.size))
            .collect()
    }

    fn r2(action: &str) -> Value {
        json!({
            "account": "3f4b7e3dcab231cbfdaa90a6a28bd548", "action": action,
            "bucket": "my-bucket", "eventTime": "2026-05-24T19:36:44.379Z",
            "object": {"key": "a+b%20c.jsonl", "size": 65536, "eTag": "c846ff7a18f28c2e262116d6e8719ef0"},
        })
    }

    fn fdr() -> Value {
        json!({
            "cid": "0123456789abcdef", "timestamp": 1_492_726_639_137_u64, "fileCount": 2,
            "totalSize": 300, "bucket": "cs-prod-cannon", "pathPrefix": "data/2026",
            "files": [
                {"path": "data/2026/part-00000.gz", "size": 100, "checksum": "69fe068c"},
                {"path": "data/2026/part-00001.gz", "size": 200, "checksum": "b2b40767"},
            ],
        })
    }

    #[test]
    fn messages_of_r2_gcs_and_the_falcon_data_replicator_name_their_objects() {
        let found = objects(&r2("PutObject"));
        let etag = "c846ff7a18f28c2e262116d6e8719ef0".to_owned();
        let url = "s3://my-bucket/a+b%20c.jsonl".to_owned();
        assert_eq!(found, [(url, etag, Some(65536))]);

        let gcs = json!({
            "kind": "storage#object", "id": "lake/a.jsonl/1700000000", "name": "a.jsonl",
            "bucket": "lake", "generation": "1700000000", "size": "352", "etag": "CMjyk4=",
            "timeCreated": "2026-05-24T19:36:44.379Z",
        });
        let url = "s3://lake/a.jsonl".to_owned();
        assert_eq!(objects(&gcs), [(url, String::new(), Some(352))]);

        let part = |number, size| {
            let url = format!("s3://cs-prod-cannon/data/2026/part-0000{number}.gz");
            (url, String::new(), Some(size))
        };
        assert_eq!(objects(&fdr()), [part(0, 100), part(1, 200)]);
    }

    #[test]
    fn a_declared_envelope_is_also_read_within_an_sns_message() {
        let body = json!({
            "Type": "Notification", "TopicArn": "arn:aws:sns:eu-west-1:1:t",
            "Message": r2("PutObject").to_string(),
        });
        assert_eq!(objects(&body).len(), 1);
    }

    #[test]
    fn ignored_events_are_acknowledged_and_undeclared_ones_are_malformed() {
        let (form, ignored) = parse(&r2("DeleteObject"));
        let expected = Ok(Notification::Ignorable(Ignorable::OtherEvents));
        assert_eq!((form, ignored), (EnvelopeKind::Declared, expected));

        let unknown = parse(&r2("RestoreObject")).1.unwrap_err().to_string();
        assert!(
            unknown.contains("neither `created` nor `ignored`"),
            "{unknown}"
        );
        let mut without_path = fdr();
        without_path["files"][1]["path"] = Value::Null;
        let missing = parse(&without_path).1.unwrap_err().to_string();
        assert!(missing.contains("record 1"), "{missing}");
        let mut elsewhere = r2("PutObject");
        elsewhere["bucket"] = json!("a@evil.example");
        assert!(parse(&elsewhere).1.is_err());
        let (form, other) = parse(&json!({"hello": "world"}));
        assert_eq!(form, EnvelopeKind::Unknown);
        assert!(matches!(other, Err(Malformed::NotAnEvent(_))), "{other:?}");
    }

    #[test]
    fn an_invalid_declaration_of_an_envelope_is_refused() {
        for (yaml, problem) in [
            ("envelopes: [{name: a, bucket: [b]}]", "key"),
            (
                "envelopes: [{name: a, bucket: [b], key: [], size: [s]}]",
                "a path is empty",
            ),
            (
                "envelopes: [{name: a, bucket: [b], key: [k], event: [e]}]",
                "must be declared together",
            ),
            (
                "envelopes: [{name: a, bucket: [b], key: [k], kee: [x]}]",
                "kee",
            ),
        ] {
            let error = Envelopes::from_yaml(yaml).unwrap_err();
            assert!(error.contains(problem), "{yaml}: {error}");
        }
    }
}
