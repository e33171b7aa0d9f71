//! Generated xAPI bundles, each with its [`ExpectedRows`]. These are counted while the statements
//! are made, and never by parsing, so that they are independent of the loader under test.

mod clock;
mod declarations;
mod expected_rows;
mod faults;
mod statement;

use std::io::Write;
use std::ops::{Range, RangeInclusive};

use fastrand::Rng;
use flate2::write::GzEncoder;

pub use declarations::write_lean_declarations;
pub use expected_rows::{EventType, ExpectedRows};

/// 2026-07-14T12:00:00Z. The keys of the bundles contain the seconds that follow.
const FIRST_BUNDLE: u64 = 1_784_030_400;

/// One object to upload.
#[derive(Debug, Clone)]
pub struct Bundle {
    /// The key, in the format that Torus uses. It is unique within a seed.
    pub key: String,
    /// JSON lines, compressed if the key ends in `.gz` or `.zst`.
    pub bytes: Vec<u8>,
    /// The rows that a loader must produce from it.
    pub expected_rows: ExpectedRows,
}

/// Generates bundles without end, the same ones for the same seed. No two statements are equal,
/// within a seed or between seeds.
#[derive(Debug)]
pub struct Generator {
    rng: Rng,
    seed: u64,
    bundles: u64,
    statements: u64,
    sizes: RangeInclusive<usize>,
    malformed: f64,
    unmatched: f64,
    compressed: f64,
    compression: Compression,
    only: Option<EventType>,
    times: Range<u64>,
}

/// How bundles are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// The key ends in `.gz`.
    Gzip,
    /// The key ends in `.zst`.
    Zstd,
}

/// The kind of a bundle: the category in its key, and the event types in it.
struct Theme {
    category: &'static str,
    types: &'static [EventType],
    unmatched: f64,
}

impl Generator {
    /// Creates a generator of bundles of 3 to 40 statements, about 1 % malformed and 2 % unmatched.
    pub fn new(seed: u64) -> Self {
        Self {
            rng: Rng::with_seed(seed),
            seed,
            bundles: 0,
            statements: 0,
            sizes: 3..=40,
            malformed: 0.01,
            unmatched: 0.02,
            compressed: 0.3,
            compression: Compression::Gzip,
            only: None,
            times: statement::RECENT,
        }
    }

    /// Sets the range of the number of statements in a bundle.
    #[must_use]
    pub fn sizes(mut self, sizes: RangeInclusive<usize>) -> Self {
        self.sizes = sizes;
        self
    }

    /// Sets the share of malformed lines, and of well-formed lines that match no event type.
    #[must_use]
    pub fn faults(mut self, malformed: f64, unmatched: f64) -> Self {
        self.malformed = malformed;
        self.unmatched = unmatched;
        self
    }

    /// Sets the share of compressed bundles, and their compression.
    #[must_use]
    pub fn compressed(mut self, share: f64, compression: Compression) -> Self {
        self.compressed = share;
        self.compression = compression;
        self
    }

    /// Sets the range of the statements' timestamps, in seconds since 1970. A timestamp that is
    /// written with an offset can be two hours earlier.
    #[must_use]
    pub fn times(mut self, times: Range<u64>) -> Self {
        self.times = times;
        self
    }

    /// Restricts the event types to one. Statements that match none remain.
    #[must_use]
    pub fn only(mut self, kind: EventType) -> Self {
        self.only = Some(kind);
        self
    }

    /// Returns the next bundle.
    pub fn bundle(&mut self) -> Bundle {
        let theme = self.theme();
        let size = self.rng.usize(self.sizes.clone());
        let mut expected_rows = ExpectedRows::default();
        expected_rows.objects = 1;
        let mut text = String::new();
        for _ in 0..size {
            text.push_str(&self.line(&theme, &mut expected_rows));
            text.push('\n');
            if self.rng.f64() < 0.005 {
                text.push('\n');
                expected_rows.blank += 1;
            }
        }
        if self.rng.f64() < 0.1 && text.ends_with('\n') && !text.ends_with("\n\n") {
            text.pop();
        }
        let is_compressed = self.rng.f64() < self.compressed;
        let compression = is_compressed.then_some(self.compression);
        let bytes = match compression {
            None => text.into_bytes(),
            Some(Compression::Gzip) => gzip(text.as_bytes()),
            Some(Compression::Zstd) => zstd(text.as_bytes()),
        };
        Bundle {
            key: self.key(&theme, compression),
            bytes,
            expected_rows,
        }
    }

    fn theme(&mut self) -> Theme {
        use EventType::{ActivityAttempt, PageAttempt, PageViewed, PartAttempt, Video};
        if let Some(only) = self.only {
            let types = EventType::ALL.as_slice();
            return Theme {
                category: only.name(),
                types: types
                    .split(|kind| *kind != only)
                    .find(|it| !it.is_empty())
                    .unwrap_or(types),
                unmatched: self.unmatched,
            };
        }
        let attempts: &[EventType] = &[
            PartAttempt,
            PartAttempt,
            PartAttempt,
            ActivityAttempt,
            PageAttempt,
        ];
        let (category, types, unmatched) = match self.rng.u32(0..100) {
            0..40 => ("attempt_evaluated", attempts, self.unmatched),
            40..45 => ("attempt_evaluated", &attempts[..1], self.unmatched),
            45..70 => ("video", [Video].as_slice(), self.unmatched),
            70..92 => ("page_viewed", [PageViewed].as_slice(), self.unmatched),
            92..98 => ("experiment_17", EventType::ALL.as_slice(), self.unmatched),
            // Tutor messages match no event type. If unmatched statements are switched off, a video
            // takes their place.
            _ if self.unmatched > 0.0 => ("tutor_message", [PageViewed].as_slice(), 0.9),
            _ => ("video", [Video].as_slice(), 0.0),
        };
        Theme {
            category,
            types,
            unmatched,
        }
    }

    fn line(&mut self, theme: &Theme, expected_rows: &mut ExpectedRows) -> String {
        self.statements += 1;
        // The number is unique within a seed, and the seed distinguishes generators.
        let serial = format!("{:x}-{:x}", self.seed, self.statements);
        let kind = theme.types[self.rng.usize(..theme.types.len())];
        let dice = self.rng.f64();
        if dice < self.malformed {
            expected_rows.rejected += 1;
            faults::malformed(&mut self.rng, kind, &serial, &self.times)
        } else if dice < self.malformed + theme.unmatched {
            expected_rows.unmatched += 1;
            faults::unmatched(&mut self.rng, &serial)
        } else {
            expected_rows.add(kind, 1);
            statement::statement(&mut self.rng, kind, &serial, &self.times).to_string()
        }
    }

    fn key(&mut self, theme: &Theme, compression: Option<Compression>) -> String {
        self.bundles += 1;
        let owner = if self.rng.f64() < 0.9 {
            "section"
        } else {
            "project"
        };
        let id = self.rng.u32(4000..4800);
        let time = clock::iso(FIRST_BUNDLE + self.bundles, self.rng.u32(..1_000_000));
        let time = time.replace(':', "-");
        let bundle = format!("{:016x}{:x}", self.rng.u64(..), self.bundles);
        let suffix = match compression {
            None => "",
            Some(Compression::Gzip) => ".gz",
            Some(Compression::Zstd) => ".zst",
        };
        format!(
            "{owner}/{id}/{}/{time}_{bundle}.jsonl{suffix}",
            theme.category
        )
    }
}

impl Iterator for Generator {
    type Item = Bundle;

    fn next(&mut self) -> Option<Bundle> {
        Some(self.bundle())
    }
}

/// Returns the bytes as a gzip stream.
///
/// # Panics
///
/// Never: writing to memory cannot fail.
pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let written = encoder.write_all(bytes).and_then(|()| encoder.finish());
    written.expect("writing to memory cannot fail")
}

/// Returns the bytes as a zstd stream.
///
/// # Panics
///
/// Never: writing to memory cannot fail.
pub fn zstd(bytes: &[u8]) -> Vec<u8> {
    let level = zstd::DEFAULT_COMPRESSION_LEVEL;
    zstd::encode_all(bytes, level).expect("writing to memory cannot fail")
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn text(bundle: &Bundle) -> String {
        use std::io::Read;
        let (mut text, mut bytes) = (String::new(), bundle.bytes.as_slice());
        match bundle.key.rsplit_once('.') {
            Some((_, "gz")) => flate2::read::GzDecoder::new(bytes).read_to_string(&mut text),
            Some((_, "zst")) => {
                zstd::Decoder::new(bytes).and_then(|mut decoder| decoder.read_to_string(&mut text))
            }
            _ => bytes.read_to_string(&mut text),
        }
        .expect("the bundle is readable");
        text
    }

    #[test]
    fn the_same_seed_gives_the_same_bundles() {
        let some = |seed| {
            Generator::new(seed)
                .take(20)
                .map(|b| (b.key, b.bytes))
                .collect::<Vec<_>>()
        };
        assert_eq!(some(7), some(7));
        assert_ne!(some(7), some(8));
    }

    #[test]
    fn keys_and_lines_are_unique() {
        let (mut keys, mut lines) = (HashSet::new(), HashSet::new());
        for bundle in Generator::new(1).faults(0.0, 0.02).take(300) {
            for line in text(&bundle).lines().filter(|line| !line.is_empty()) {
                assert!(lines.insert(line.to_owned()), "duplicate: {line}");
            }
            assert!(keys.insert(bundle.key));
        }
    }

    #[test]
    fn the_expected_rows_cover_every_line() {
        let mut total = ExpectedRows::default();
        for bundle in Generator::new(2).take(500) {
            let lines = text(&bundle).lines().count() as u64;
            let expected_rows = &bundle.expected_rows;
            assert_eq!(
                lines,
                expected_rows.statements() + expected_rows.blank,
                "{}",
                bundle.key
            );
            total += expected_rows;
        }
        for kind in EventType::ALL {
            assert!(total.rows(kind) > 100, "{total:?}");
        }
        assert!(
            total.rejected > 20 && total.unmatched > 50 && total.blank > 5,
            "{total:?}"
        );
    }

    #[test]
    fn compression_changes_only_keys_and_bytes() {
        let some = |share, compression| {
            let generator = Generator::new(4).compressed(share, compression);
            generator.take(50).collect::<Vec<_>>()
        };
        let plain = some(0.0, Compression::Gzip);
        for (compression, suffix) in [(Compression::Gzip, ".gz"), (Compression::Zstd, ".zst")] {
            for (plain, compressed) in plain.iter().zip(some(1.0, compression)) {
                assert_eq!(compressed.key, format!("{}{suffix}", plain.key));
                assert_eq!(text(&compressed), text(plain));
                assert_ne!(compressed.bytes, plain.bytes);
            }
        }
    }

    #[test]
    fn timestamps_are_within_the_given_times() {
        // January to April 2000.
        let generator = Generator::new(5).faults(0.0, 0.0);
        let mut months = HashSet::new();
        for bundle in generator.times(946_684_800..957_139_200).take(50) {
            for line in text(&bundle).lines().filter(|line| !line.is_empty()) {
                let statement: serde_json::Value = serde_json::from_str(line).expect("a statement");
                let time = statement["timestamp"].as_str().expect("a timestamp");
                months.insert(time[..7].to_owned());
            }
        }
        let expected = ["2000-01", "2000-02", "2000-03", "2000-04"];
        assert_eq!(months, expected.map(str::to_owned).into());
    }

    #[test]
    fn without_faults_every_line_becomes_an_event() {
        let mut total = ExpectedRows::default();
        for bundle in Generator::new(3).sizes(100..=100).faults(0.0, 0.0).take(50) {
            total += &bundle.expected_rows;
        }
        assert_eq!(
            (total.loaded(), total.rejected, total.unmatched),
            (5_000, 0, 0)
        );
    }
}
