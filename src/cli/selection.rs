//! Options that select objects of a bucket.

use std::time::SystemTime;

use anyhow::ensure;

use super::app::App;
use super::time_argument::parse_time_arg;
use crate::glob::Globs;
use crate::notification::filter::Filter;
use crate::object::ObjectUrl;
use crate::s3::Store;
use crate::s3::listing::{Lister, Selection};
use crate::util::key_time::KeyTime;

#[derive(clap::Args)]
pub(super) struct SelectionArguments {
    /// Bucket and key prefix, such as s3://bucket/2026/
    #[arg(value_name = "S3-URL")]
    prefix: ObjectUrl,

    /// Only objects of this section: keys with section/ID/ after the prefix
    #[arg(long, value_name = "ID", value_parser = section)]
    section: Option<String>,

    /// Only objects since TIME: a UTC date or time such as 2026-07-14T08:00:00Z, or 2h for 2h ago
    ///
    /// The time of an object is the date or hour in the last segment of its key, as in
    /// 2026-07-14T08 or 20260714, or else that of its folders, as in 2026/07/14/ or
    /// dt=2026-07-14/. If there is none, it is the time of its upload. s3.key_time changes this.
    #[arg(long, value_name = "TIME", value_parser = parse_time_arg)]
    since: Option<SystemTime>,

    /// Only objects before TIME
    #[arg(long, value_name = "TIME", value_parser = parse_time_arg)]
    until: Option<SystemTime>,

    /// Only keys that match GLOB, such as "**/video/*.jsonl" (can be repeated; any may match)
    #[arg(long, value_name = "GLOB", value_parser = glob)]
    include: Vec<String>,

    /// Exclude keys that match GLOB (can be repeated)
    #[arg(long, value_name = "GLOB", value_parser = glob)]
    exclude: Vec<String>,
}

impl SelectionArguments {
    /// Returns the selection among the objects that `notifications` selects: no others are ever
    /// loaded.
    pub(super) fn selection(&self, app: &App<'_>) -> anyhow::Result<Selection> {
        let mut prefix = self.prefix.clone();
        if let Some(section) = &self.section {
            ensure!(
                prefix.key.is_empty() || prefix.key.ends_with('/'),
                "with --section, {prefix} must end with a slash"
            );
            prefix.key += &format!("section/{section}/");
        }
        let filter = Filter::new(&[], &self.include, &self.exclude).map_err(anyhow::Error::msg)?;
        let key_time = KeyTime::parse(&app.config.s3.key_time).map_err(anyhow::Error::msg)?;
        Ok(Selection {
            prefix,
            filters: vec![app.notification_filter()?, filter],
            since: self.since,
            until: self.until,
            key_time,
        })
    }

    pub(super) fn lister(&self, app: &App<'_>, store: Store) -> anyhow::Result<Lister> {
        Ok(Lister::new(
            store,
            self.selection(app)?,
            app.load_backoff(),
            app.env.clone(),
        ))
    }
}

fn section(text: &str) -> Result<String, String> {
    if text.is_empty() || text.contains('/') {
        return Err("a section's id is one part of a key: not empty, and without slashes".into());
    }
    Ok(text.to_owned())
}

fn glob(text: &str) -> Result<String, String> {
    Globs::new(&[text]).map(|_| text.to_owned())
}
