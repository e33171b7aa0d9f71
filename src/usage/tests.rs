use super::*;

fn requests(amounts: &[Amount]) -> Vec<(&str, &str, u64)> {
    let counted = amounts
        .iter()
        .filter(|amount| amount.kind != UsageKind::ProcessorTime.label());
    counted
        .map(|it| (it.kind, it.operation.as_str(), it.amount))
        .collect()
}

#[test]
fn what_was_used_is_taken_once_and_can_be_put_back() {
    let usage = Usage::default();
    usage.sent(Service::Sqs, "ReceiveMessage");
    usage.sent(Service::Sqs, "ReceiveMessage");
    usage.sent(Service::S3, "GetObject");
    usage.content(70);
    let taken = usage.take();
    assert_eq!(
        requests(&taken),
        [
            ("s3_bytes", "", 70),
            ("s3_requests", "GetObject", 1),
            ("sqs_requests", "ReceiveMessage", 2),
        ]
    );
    assert_eq!(requests(&usage.take()), []);
    usage.put_back(taken);
    usage.sent(Service::S3, "GetObject");
    assert_eq!(
        requests(&usage.take()),
        [
            ("s3_bytes", "", 70),
            ("s3_requests", "GetObject", 2),
            ("sqs_requests", "ReceiveMessage", 2),
        ]
    );
}

#[test]
fn processor_time_is_what_was_used_since_the_last_time() {
    let usage = Usage::default();
    let micros = || {
        let amounts = usage.take();
        let mut of_processor = amounts
            .iter()
            .filter(|it| it.kind == UsageKind::ProcessorTime.label());
        of_processor.next().map_or(0, |it| it.amount)
    };
    let all = micros();
    let before = processor_time();
    while processor_time() < before + Duration::from_millis(2) {
        std::hint::spin_loop();
    }
    let since = micros();
    assert!(all > 0 && since >= 2000, "{all} {since}");
}
