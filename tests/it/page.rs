//! The live page, in Chromium.

use anyhow::ensure;
use serde_json::{Value, json};
use sluice_testkit::browser::Browser;
use sluice_testkit::project::{self, updates_docs};
use sluice_testkit::proxy::{Fault, Proxy};
use sluice_testkit::xapi::{EventType, ExpectedRows, Generator};
use sluice_testkit::{Requirement, Site, Stack, free_port, wait_for};

use crate::harness::{BOUND, Sluice, line, upload, wait_until_drained};

const WIDE: u32 = 1180;
const PHONE: u32 = 390;

/// Opens the worker's page.
async fn open(sluice: &Sluice) -> Browser {
    wait_for("the worker to listen", BOUND, async || {
        Ok(Some(sluice.get("/healthz").await?))
    })
    .await;
    let mut browser = Browser::start().await.unwrap();
    browser.resize(WIDE, 1).await.unwrap();
    let url = format!("http://{}/", sluice.admin_address().unwrap());
    browser.open(&url).await.unwrap();
    browser
}

/// A script that returns the visible content of the page.
const READ: &str = r##"(() => {
    const text = (selector, root = document) => {
        const found = root.querySelector(selector);
        return (found?.innerText ?? found?.textContent ?? "").trim();
    };
    const rows = (id) => [...document.querySelectorAll(`#${id} tbody tr`)]
        .map((row) => [...row.cells].map((cell) => cell.innerText.trim()));
    return {
        title: document.title,
        word: text("#word"),
        reason: text("#reason"),
        connection: document.querySelector("#connection").hidden ? "" : text("#connection"),
        flow: text("#flow svg"),
        in_flight: text("#in-flight"),
        batches: rows("batches"),
        no_batches: text("#batches .empty"),
        rows: Object.fromEntries(rows("rows").map(([kind, total]) => [kind, total.replaceAll(",", "")])),
        failures: [...document.querySelectorAll("#failures li")].map((failure) => ({
            what: text(".what", failure),
            title: failure.querySelector(".what").title,
            reason: text(".reason", failure),
        })),
        injected: document
            .querySelectorAll("img, iframe, object, embed, body script, [onerror]").length,
    };
})()"##;

/// Waits until the page satisfies `condition`, and returns its content.
async fn wait_for_page(
    browser: &mut Browser,
    what: &str,
    condition: impl Fn(&Value) -> bool,
) -> Value {
    wait_for(what, BOUND, async || {
        let page = browser.evaluate(READ).await?;
        ensure!(condition(&page), "{page:#}");
        Ok(Some(page))
    })
    .await
}

async fn wait_for_word(browser: &mut Browser, word: &str) -> Value {
    wait_for_page(browser, word, |page| page["word"] == word).await
}

fn assert_no_problems(browser: &Browser) {
    assert_eq!(browser.problems(), Vec::<String>::new());
}

/// Uploads objects for the page to show if screenshots are taken. Returns the expected rows.
async fn upload_for_screenshots(site: &Site, generator: &mut Generator) -> ExpectedRows {
    let mut expected_rows = ExpectedRows::default();
    let rounds = if updates_docs() { 16 } else { 0 };
    for round in 0..rounds {
        let bundles: Vec<_> = generator.by_ref().take(4 + round % 8 * 3).collect();
        expected_rows += &upload(site, &bundles).await;
        wait_until_drained(site).await;
    }
    expected_rows
}

/// Takes a screenshot for the documentation if that is to be updated.
async fn take_screenshot(browser: &mut Browser, name: &str) {
    if updates_docs() {
        let path = project::path(&format!("docs/images/live-{name}.png"));
        browser.screenshot(&path).await.unwrap();
    }
}

/// Returns a key with markup, quotes, a line break, and a character that reverses the direction of
/// the text after it.
fn hostile_key() -> String {
    let start = "<img src=x onerror=alert(1)>\"'&amp;\n\u{202e}";
    let end = "</script>.jsonl.gz";
    format!("{start}{}{end}", "x".repeat(1024 - start.len() - end.len()))
}

#[tokio::test]
async fn the_live_page_shows_the_activity_and_no_injected_markup() {
    if !Requirement::Chromium.is_met() {
        return;
    }
    let stack = Stack::shared();
    let site = stack.site_with_max_receives("uploads", 1).await.unwrap();
    let mut sluice = Sluice::new(stack, &site).set("batch.window", "1s");
    sluice.migrate();
    sluice.start();
    let mut browser = open(&sluice).await;
    let mut generator = Generator::new(31).faults(0.05, 0.05);
    let bundles: Vec<_> = generator.by_ref().take(20).collect();
    let mut expected_rows = upload(&site, &bundles).await;
    expected_rows += &upload_for_screenshots(&site, &mut generator).await;
    site.put("broken.jsonl.gz", "no gzip").await.unwrap();
    let key = hostile_key();
    site.put(&key, "no gzip").await.unwrap();
    let loaded = [
        ("rejected", expected_rows.rejected),
        ("unmatched", expected_rows.unmatched),
    ];
    let loaded = EventType::ALL
        .map(|kind| (kind.name(), expected_rows.rows(kind)))
        .into_iter()
        .chain(loaded);
    let rows: Value = loaded
        .map(|(kind, rows)| {
            assert_ne!(rows, 0, "{kind}: no rows to show");
            (kind.to_owned(), json!(rows.to_string()))
        })
        .collect::<serde_json::Map<_, _>>()
        .into();
    let page = wait_for_page(&mut browser, "rows and failures", |page| {
        page["rows"] == rows && page["failures"].as_array().map(Vec::len) == Some(2)
    })
    .await;
    // One in twenty lines is rejected.
    assert_eq!(page["word"], "Attention", "{page:#}");
    assert_eq!(page["title"], "Attention · Sluice", "{page:#}");
    assert!(!page["batches"].as_array().unwrap().is_empty(), "{page:#}");
    for kind in EventType::ALL.map(EventType::name) {
        assert!(page["flow"].as_str().unwrap().contains(kind), "{page:#}");
    }
    let failures = page["failures"].as_array().unwrap();
    let failed = |start: &str| {
        let full = format!("s3://{}/{start}", site.bucket);
        let is = |failure: &&Value| failure["title"].as_str().unwrap().starts_with(&full);
        failures.iter().find(is).expect("it is shown").clone()
    };
    let broken = failed("broken.jsonl.gz");
    assert!(broken["reason"].as_str().unwrap().starts_with("unloadable"));
    let hostile = failed("<img src=x onerror=alert(1)>\"'&amp;\\u{a}\\u{202e}xxx");
    assert!(
        hostile["title"]
            .as_str()
            .unwrap()
            .ends_with("x</script>.jsonl.gz")
    );
    let short = hostile["what"].as_str().unwrap();
    assert!(
        short.contains('…') && short.chars().count() <= 90,
        "{short}"
    );
    assert_eq!(page["injected"], 0, "{page:#}");
    wait_for_page(&mut browser, "dead letters", |page| {
        page["flow"].as_str().unwrap().contains("2 dead letters")
    })
    .await;

    if updates_docs() {
        upload(&site, &generator.take(30).collect::<Vec<_>>()).await;
        wait_for_page(&mut browser, "a batch in flight", |page| {
            page["in_flight"].as_str().unwrap().contains("Insert")
        })
        .await;
    }
    take_screenshot(&mut browser, "light").await;
    browser.set_color_scheme("dark").await.unwrap();
    take_screenshot(&mut browser, "dark").await;
    browser.set_color_scheme("light").await.unwrap();
    browser.resize(PHONE, 2).await.unwrap();
    let width = "[document.documentElement.scrollWidth, innerWidth, \
                  document.querySelector('#flow svg').viewBox.baseVal.width]";
    wait_for("a narrow page", BOUND, async || {
        let widths = browser.evaluate(width).await?;
        let flow = widths[2].as_f64().unwrap_or_default();
        ensure!(flow < f64::from(PHONE), "{widths}");
        assert_eq!((&widths[0], &widths[1]), (&json!(PHONE), &json!(PHONE)));
        Ok(Some(()))
    })
    .await;
    take_screenshot(&mut browser, "phone").await;

    assert_no_problems(&browser);
    let own = format!("http://{}/", sluice.admin_address().unwrap());
    let is_foreign = |url: &&String| !url.starts_with(&own) && !url.starts_with("data:");
    assert_eq!(browser.requests().iter().find(is_foreign), None);

    // Even if markup were injected, it would not run.
    let inject = "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"hit=1\">'); \
                  new Promise((done) => setTimeout(() => done(typeof hit), 200))";
    assert_eq!(browser.evaluate(inject).await.unwrap(), "undefined");
    assert!(
        browser
            .problems()
            .iter()
            .any(|it| it.contains("Content Security Policy"))
    );
    browser.close().await.unwrap();
}

#[tokio::test]
async fn the_live_page_shows_an_outage_and_its_end_without_a_reload() {
    if !Requirement::Chromium.is_met() {
        return;
    }
    let stack = Stack::shared();
    let site = stack.site("page-outage").await.unwrap();
    let proxy = Proxy::start(stack.clickhouse.url()).await.unwrap();
    let mut sluice = Sluice::new(stack, &site)
        .set("clickhouse.url", proxy.url())
        .set("batch.window", "1s");
    Sluice::new(stack, &site).migrate();
    sluice.start();
    sluice.wait_until_ready().await;
    let mut browser = open(&sluice).await;
    wait_for_word(&mut browser, "Well").await;
    browser.evaluate("window.same = true").await.unwrap();
    let before = upload_for_screenshots(&site, &mut Generator::new(32)).await;

    proxy.inject(Fault::CutBeforeRequest, usize::MAX, |_, _| true);
    site.put("a.jsonl", line("a")).await.unwrap();
    let page = wait_for_word(&mut browser, "Paused").await;
    let reason = page["reason"].as_str().unwrap();
    assert!(reason.contains("No response from ClickHouse"), "{page:#}");
    wait_for_page(&mut browser, "the waiting batch", |page| {
        page["in_flight"].as_str().unwrap().contains("\t1\t")
    })
    .await;
    let points = if updates_docs() { 8 } else { 1 };
    let shaded = format!(
        "latest.history.paused.slice(-{points}).every(Boolean) && \
         document.querySelectorAll('.plot .band').length"
    );
    wait_for("the pause in both plots", BOUND, async || {
        let bands = browser.evaluate(&shaded).await?;
        Ok((bands == 2).then_some(()))
    })
    .await;
    browser.set_color_scheme("dark").await.unwrap();
    take_screenshot(&mut browser, "outage").await;

    proxy.heal();
    let unmatched = (before.unmatched + 1).to_string();
    let page = wait_for_page(&mut browser, "the batch", |page| {
        page["word"] == "Well" && page["rows"]["unmatched"] == *unmatched
    })
    .await;
    assert_eq!(page["batches"][0][1], "1", "{page:#}");
    assert_eq!(browser.evaluate("window.same").await.unwrap(), true);
    assert_no_problems(&browser);
    browser.close().await.unwrap();
}

#[tokio::test]
async fn the_live_page_reports_a_lost_worker_and_reconnects() {
    if !Requirement::Chromium.is_met() {
        return;
    }
    let stack = Stack::shared();
    let site = stack.site("page-lost").await.unwrap();
    let listen = format!("127.0.0.1:{}", free_port().unwrap());
    let mut sluice = Sluice::new(stack, &site).set("admin.listen", listen);
    sluice.migrate();
    sluice.start();
    sluice.wait_until_ready().await;
    let mut browser = open(&sluice).await;
    wait_for_word(&mut browser, "Well").await;
    // An open page does not keep a worker from stopping.
    assert_eq!(sluice.stop().await.code(), Some(0));
    wait_for_page(&mut browser, "the lost connection", |page| {
        let connection = page["connection"].as_str().unwrap();
        connection.starts_with("No response from the worker since ")
    })
    .await;
    sluice.start();
    wait_for_page(&mut browser, "the restored connection", |page| {
        page["connection"] == "" && page["word"] == "Well"
    })
    .await;
    browser.close().await.unwrap();
}

#[tokio::test]
async fn the_live_page_of_a_new_worker_shows_no_activity() {
    if !Requirement::Chromium.is_met() {
        return;
    }
    let stack = Stack::shared();
    let site = stack.site("page-empty").await.unwrap();
    let proxy = Proxy::start(stack.clickhouse.url()).await.unwrap();
    let mut sluice = Sluice::new(stack, &site).set("clickhouse.url", proxy.url());
    Sluice::new(stack, &site).migrate();
    proxy.inject(Fault::Hold, usize::MAX, |_, _| true);
    sluice.start();
    let mut browser = open(&sluice).await;
    let page = wait_for_word(&mut browser, "Starting").await;
    assert_eq!(page["reason"], "ClickHouse has not been reached yet");
    proxy.heal();
    let page = wait_for_word(&mut browser, "Well").await;
    let kinds = EventType::ALL.map(EventType::name);
    let kinds = kinds.into_iter().chain(["rejected", "unmatched"]);
    let nothing: Value = kinds.map(|kind| (kind.to_owned(), json!("0"))).collect();
    assert_eq!(page["rows"], nothing, "{page:#}");
    assert_eq!(page["failures"], json!([]), "{page:#}");
    assert_eq!(page["no_batches"], "None since the start.", "{page:#}");
    let in_flight = page["in_flight"].as_str().unwrap();
    assert!(in_flight.contains("No batch is being loaded."), "{page:#}");
    assert_no_problems(&browser);
    take_screenshot(&mut browser, "empty").await;
    browser.close().await.unwrap();
}

#[tokio::test]
async fn the_admin_listener_is_read_only() {
    let stack = Stack::shared();
    let site = stack.site("page-methods").await.unwrap();
    let mut sluice = Sluice::new(stack, &site);
    sluice.migrate();
    sluice.start();
    sluice.wait_until_ready().await;
    let paths = [
        "/",
        "/page.css",
        "/page.js",
        "/events",
        "/healthz",
        "/readyz",
        "/metrics",
        "/status.json",
    ];
    for path in paths {
        for method in ["POST", "PUT", "PATCH", "DELETE"] {
            let (status, _) = sluice.request(method, path).await.unwrap();
            assert_eq!(status, 405, "{method} {path}");
        }
    }
    for path in ["/nothing", "/page.html", "/..", "/page.js/", "//"] {
        assert_eq!(sluice.get(path).await.unwrap().0, 404, "{path}");
    }
}
