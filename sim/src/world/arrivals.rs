//! The objects of a world: what is uploaded and announced when, drawn from the seed.

use std::time::Duration;

use fastrand::Rng;
use sluice::object::Compression;

use super::declarations::fixable_line;
use super::plan::{Fault, Plan, stream};
use super::schedule::{Event, Timed, up_to};
use super::settings::catalog;
use crate::s3::Reader;

/// The longest pause between two bursts of objects.
const PAUSE: Duration = Duration::from_secs(15);
const MAX_BURST: usize = 20;
/// The longest time between the uploads of a burst.
const STEP: Duration = Duration::from_millis(200);
/// The longest time between an upload and its announcement.
const NOTICE: Duration = Duration::from_secs(2);
/// How long after an upload its object changes, vanishes or becomes readable.
const SOON: Duration = Duration::from_secs(20);
/// How long after a message a duplicate is sent.
const LATER: Duration = Duration::from_secs(60);
/// The largest number of objects in a message.
pub(super) const MAX_RECORDS: usize = 3;

/// An upload of an object.
#[derive(Clone, Debug)]
pub(super) struct Upload {
    pub(super) key: String,
    pub(super) body: Vec<u8>,
    pub(super) is_cut: bool,
    pub(super) denied: Option<Denied>,
    /// Whether the message that announces the object names its etag.
    pub(super) has_etag: bool,
}

/// An object that S3 denies.
#[derive(Clone, Copy, Debug)]
pub(super) struct Denied {
    pub(super) to: DeniedTo,
    /// Whether nobody but an operator grants access.
    pub(super) for_good: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DeniedTo {
    Server,
    Workers,
    Both,
}

impl DeniedTo {
    pub(super) fn readers(self) -> &'static [Reader] {
        match self {
            Self::Server => &[Reader::Server],
            Self::Workers => &[Reader::Worker],
            Self::Both => &[Reader::Server, Reader::Worker],
        }
    }
}

/// All that arrives in a world.
#[derive(Debug, Default)]
pub(super) struct Arrivals {
    pub(super) uploads: Vec<Upload>,
    /// The objects that each message announces, as indices of `uploads`.
    pub(super) messages: Vec<Vec<usize>>,
    pub(super) events: Vec<Timed>,
    /// When each message is sent.
    send_at: Vec<Duration>,
    /// Messages that are sent again, each with the time after it was sent.
    duplicates: Vec<(usize, Duration)>,
}

impl Arrivals {
    /// Draws the arrivals of a world. With fewer objects, those that are left stay the same.
    pub(super) fn of(seed: u64, plan: &Plan) -> Self {
        let mut arrivals = Self::default();
        let mut rng = stream(seed, "bursts", 0);
        let (mut at, mut left) = (Duration::ZERO, 0);
        for number in 0..plan.objects as u64 {
            let begins_burst = left == 0;
            if begins_burst {
                at += up_to(&mut rng, PAUSE);
                left = rng.usize(1..=MAX_BURST);
            }
            left -= 1;
            at += up_to(&mut rng, STEP);
            let shares_message = rng.u32(0..8) == 0 && !begins_burst;
            let mut draw = Draw {
                seed,
                plan,
                number,
                rng: stream(seed, "object", number),
                fixable: stream(seed, "fixable lines", number),
                arrivals: &mut arrivals,
            };
            draw.object(at, shares_message);
        }
        arrivals.send_messages();
        arrivals
    }

    fn add(&mut self, at: Duration, event: Event) {
        self.events.push(Timed { at, event });
    }

    fn put(&mut self, at: Duration, upload: Upload) -> usize {
        let number = self.uploads.len();
        self.uploads.push(upload);
        self.add(at, Event::Put(number));
        number
    }

    /// Announces an upload by a message of its own, or by the last one.
    fn announce(&mut self, at: Duration, upload: usize, shares_message: bool) -> usize {
        if shares_message
            && let (Some(message), Some(send_at)) =
                (self.messages.last_mut(), self.send_at.last_mut())
            && message.len() < MAX_RECORDS
        {
            message.push(upload);
            *send_at = at.max(*send_at);
        } else {
            self.messages.push(vec![upload]);
            self.send_at.push(at);
        }
        self.messages.len() - 1
    }

    fn send_messages(&mut self) {
        let first = self.send_at.iter().copied().enumerate();
        let again = self.duplicates.iter();
        let again = again.map(|(message, after)| (*message, self.send_at[*message] + *after));
        let sent = first.chain(again).map(|(message, at)| Timed {
            at,
            event: Event::Send(message),
        });
        self.events.extend(sent);
    }
}

/// Draws the uploads under one key, and their messages.
struct Draw<'a> {
    seed: u64,
    plan: &'a Plan,
    number: u64,
    rng: Rng,
    /// Decides on the lines that are valid once the declarations are fixed.
    fixable: Rng,
    arrivals: &'a mut Arrivals,
}

impl Draw<'_> {
    fn object(&mut self, at: Duration, shares_message: bool) {
        let key = key(&mut self.rng, self.number);
        let body = self.body(0);
        let has_etag = self.rng.u32(0..16) > 0;
        let is_compressed = Compression::of(&key) != Compression::None;
        let is_cut = is_compressed && !body.is_empty() && self.has(Fault::Cut, 10);
        let denied = (!is_cut && self.has(Fault::Denied, 15)).then(|| self.denied());
        let lines = body.iter().filter(|byte| **byte == b'\n').count();
        let upload = Upload {
            key: key.clone(),
            body,
            is_cut,
            denied,
            has_etag,
        };
        let upload = self.arrivals.put(at, upload);
        self.announce(at, upload, shares_message);
        match denied {
            Some(Denied { for_good: true, .. }) => {}
            Some(_) => self.soon_after(at, Event::Grant(upload)),
            None if is_cut => {}
            None if self.has(Fault::Changed, 8) => self.changes(at, &key, lines),
            None if self.has(Fault::Deleted, 15) => self.soon_after(at, Event::Delete(upload)),
            None => {}
        }
    }

    /// Returns whether this object has this fault, as one in `one_in` has if the plan has it.
    fn has(&self, fault: Fault, one_in: u32) -> bool {
        let mut rng = stream(self.seed, fault.label(), 1 + self.number);
        self.plan.has(fault) && rng.u32(0..one_in) == 0
    }

    /// Returns content of at least `least` lines. In a world with replays of rejects, half of the
    /// objects have some that are valid only once the declarations are fixed.
    fn body(&mut self, least: usize) -> Vec<u8> {
        let body = body(&mut self.rng, least);
        let rng = &mut self.fixable;
        if !self.plan.has(Fault::Replay) || rng.bool() {
            return body;
        }
        let lines = body.split_inclusive(|byte| *byte == b'\n');
        let mut lines: Vec<Vec<u8>> = lines.map(<[u8]>::to_vec).collect();
        for _ in 0..rng.usize(1..=4) {
            let line = format!("{}\n", fixable_line(rng));
            lines.insert(rng.usize(..=lines.len()), line.into_bytes());
        }
        lines.concat()
    }

    fn denied(&mut self) -> Denied {
        let to = [DeniedTo::Server, DeniedTo::Workers, DeniedTo::Both];
        Denied {
            to: to[self.rng.usize(..to.len())],
            for_good: self.rng.bool(),
        }
    }

    fn soon_after(&mut self, at: Duration, event: Event) {
        let at = at + up_to(&mut self.rng, SOON);
        self.arrivals.add(at, event);
    }

    fn announce(&mut self, at: Duration, upload: usize, shares_message: bool) {
        let at = at + up_to(&mut self.rng, NOTICE);
        // Only a backfill finds it.
        if self.has(Fault::Backfill, 8) {
            return;
        }
        let message = self.arrivals.announce(at, upload, shares_message);
        if self.has(Fault::Duplicates, 4) {
            let after = up_to(&mut self.rng, LATER);
            self.arrivals.duplicates.push((message, after));
        }
    }

    /// Replaces the object by others. Each is longer, since content that returned would be the same
    /// object.
    fn changes(&mut self, at: Duration, key: &str, lines: usize) {
        let (mut at, mut lines) = (at, lines);
        for _ in 0..self.rng.usize(1..=2) {
            at += up_to(&mut self.rng, SOON);
            let body = self.body(lines + 1);
            lines = body.iter().filter(|byte| **byte == b'\n').count();
            let upload = Upload {
                key: key.to_owned(),
                body,
                is_cut: false,
                denied: None,
                has_etag: self.rng.u32(0..16) > 0,
            };
            let upload = self.arrivals.put(at, upload);
            self.announce(at, upload, false);
        }
    }
}

/// Returns a key, most of which ClickHouse can name in a list.
fn key(rng: &mut Rng, number: u64) -> String {
    let extension = ["jsonl", "jsonl", "jsonl.gz", "jsonl.zst"][rng.usize(..4)];
    match rng.u32(0..24) {
        0 => format!("alone,{number:03}.{extension}"),
        1 => format!("streamed?/{number:03}.{extension}"),
        _ => format!("{number:03}.{extension}"),
    }
}

/// Returns content of at least `least` lines, each of which is a word.
fn body(rng: &mut Rng, least: usize) -> Vec<u8> {
    let types = catalog().types();
    let lines = least
        + match rng.u32(0..12) {
            0 => 0,
            1 => rng.usize(20..=60),
            _ => rng.usize(1..=12),
        };
    let mut body = Vec::new();
    for _ in 0..lines {
        let word = match rng.usize(..types.len() + 3) {
            0 => "",
            1 => "rejected",
            2 => "unmatched",
            number => types[number - 3].name.as_str(),
        };
        body.extend_from_slice(word.as_bytes());
        body.push(b'\n');
    }
    body
}
