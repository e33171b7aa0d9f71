//! The rows that a loader must produce from generated data.

use std::ops::AddAssign;

/// The event types of the default configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventType {
    /// A video is played, paused, seeked or completed.
    Video,
    /// An activity attempt is evaluated.
    ActivityAttempt,
    /// A page attempt is evaluated.
    PageAttempt,
    /// A page is viewed.
    PageViewed,
    /// A part attempt is evaluated.
    PartAttempt,
}

impl EventType {
    /// All event types, in the order of their declaration.
    pub const ALL: [Self; 5] = [
        Self::Video,
        Self::ActivityAttempt,
        Self::PageAttempt,
        Self::PageViewed,
        Self::PartAttempt,
    ];

    /// Returns the name in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Video => "video",
            Self::ActivityAttempt => "activity_attempt",
            Self::PageAttempt => "page_attempt",
            Self::PageViewed => "page_viewed",
            Self::PartAttempt => "part_attempt",
        }
    }

    /// Returns the name of the table that holds its rows.
    pub fn table(self) -> &'static str {
        match self {
            Self::Video => "video_events",
            Self::ActivityAttempt => "activity_attempt_events",
            Self::PageAttempt => "page_attempt_events",
            Self::PageViewed => "page_viewed_events",
            Self::PartAttempt => "part_attempt_events",
        }
    }
}

/// The number of generated bundles and lines, by what must become of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExpectedRows {
    /// The number of bundles.
    pub objects: u64,
    rows: [u64; EventType::ALL.len()],
    /// Lines that are not statements, or that have an event type but no usable time.
    pub rejected: u64,
    /// Statements that match no event type.
    pub unmatched: u64,
    /// Empty lines, which never become rows.
    pub blank: u64,
}

impl ExpectedRows {
    /// Returns the number of rows that the event type's table must have.
    pub fn rows(&self, kind: EventType) -> u64 {
        self.rows[kind as usize]
    }

    /// Returns the number of rows in all event tables.
    pub fn loaded(&self) -> u64 {
        self.rows.iter().sum()
    }

    /// Returns the number of rows in all tables, which is the number of lines that are not blank.
    pub fn statements(&self) -> u64 {
        self.loaded() + self.rejected + self.unmatched
    }

    /// Adds `count` rows to those that the event type's table must have.
    pub fn add(&mut self, kind: EventType, count: u64) {
        self.rows[kind as usize] += count;
    }
}

impl AddAssign<&Self> for ExpectedRows {
    fn add_assign(&mut self, other: &Self) {
        for kind in EventType::ALL {
            self.add(kind, other.rows(kind));
        }
        self.objects += other.objects;
        self.rejected += other.rejected;
        self.unmatched += other.unmatched;
        self.blank += other.blank;
    }
}
