//! The bounded sample that `sluice types infer` reads: files, standard input, and objects.

use std::io::Read;
use std::path::Path;

use anyhow::{Context, bail};
use sluice_core::infer::Source;

use super::infer::Infer;
use crate::cli::app::App;
use crate::object::{ObjectRef, ObjectUrl};
use crate::s3::{Beginning, Store, beginning};

/// A sample, and what its names say.
pub(super) struct Sample {
    pub(super) sources: Vec<Source>,
    /// Globs on the keys of such objects.
    pub(super) keys: Vec<String>,
    /// Whether they are those of a prefix.
    pub(super) are_keys_known: bool,
    /// A name for what is sampled.
    pub(super) name: String,
}

/// The number of pages of a listing that are read, each of 1,000 objects.
const MAX_PAGES: usize = 5;

pub(super) async fn sample(app: &App<'_>, arguments: &Infer) -> anyhow::Result<Sample> {
    let (mut sources, mut keys) = (Vec::new(), Vec::new());
    let mut are_keys_known = true;
    let max_files = usize::try_from(arguments.files).unwrap_or(usize::MAX);
    let max_bytes = arguments.bytes.bytes();
    for source in &arguments.sources {
        let key = if let Ok(prefix) = source.parse::<ObjectUrl>() {
            let store = Store::new(&app.aws().await);
            let left = max_files.saturating_sub(sources.len());
            sources.extend(of_prefix(&store, &prefix, left, max_bytes).await?);
            glob_of_prefix(&prefix.key)
        } else {
            are_keys_known = false;
            if sources.len() < max_files {
                sources.push(of_file(source, max_bytes).await?);
            }
            glob_of_file(source)
        };
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    Ok(Sample {
        sources,
        keys,
        are_keys_known,
        name: arguments
            .sources
            .first()
            .map(|it| name_of(it))
            .unwrap_or_default(),
    })
}

async fn of_file(name: &str, max_bytes: u64) -> anyhow::Result<Source> {
    let failed = || format!("failed to read {name}");
    let file: Box<dyn Read> = if name == "-" {
        Box::new(std::io::stdin().lock())
    } else {
        let file = std::fs::File::open(name);
        Box::new(file.with_context(|| format!("{}; an object is s3://bucket/key", failed()))?)
    };
    let mut stored = Vec::new();
    let mut limited = file.take(max_bytes.saturating_add(1));
    limited.read_to_end(&mut stored).with_context(failed)?;
    let is_cut = stored.len() as u64 > max_bytes;
    stored.truncate(usize::try_from(max_bytes).unwrap_or(usize::MAX));
    source(name, &stored, name, max_bytes, is_cut).await
}

/// Returns at most this number of the objects below a prefix, evenly spaced among the first of them.
async fn of_prefix(
    store: &Store,
    prefix: &ObjectUrl,
    max_files: usize,
    max_bytes: u64,
) -> anyhow::Result<Vec<Source>> {
    let mut objects: Vec<ObjectRef> = Vec::new();
    let mut after = None;
    for _ in 0..MAX_PAGES {
        let page = store.list(prefix, after.as_deref()).await;
        let page = page.with_context(|| format!("failed to list {prefix}"))?;
        let listed = page.objects.into_iter().map(|listed| listed.object);
        objects.extend(listed.filter(|object| object.size != Some(0)));
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    if objects.is_empty() {
        bail!("there are no objects below {prefix}");
    }
    let count = max_files.min(objects.len());
    let mut sources = Vec::new();
    for place in 0..count {
        let object = &objects[place * objects.len() / count];
        let stored = store.start(object, max_bytes).await;
        let stored = stored.with_context(|| format!("failed to read {object}"))?;
        let is_cut = object.size.is_none_or(|size| size > stored.len() as u64);
        sources.push(source(&object.to_string(), &stored, &object.key, max_bytes, is_cut).await?);
    }
    Ok(sources)
}

async fn source(
    name: &str,
    stored: &[u8],
    key: &str,
    max_bytes: u64,
    is_cut: bool,
) -> anyhow::Result<Source> {
    let decompressed = beginning(stored, key, max_bytes, is_cut).await;
    let Beginning { content, is_cut } =
        decompressed.with_context(|| format!("failed to read {name}"))?;
    Ok(Source {
        name: name.to_owned(),
        content,
        is_cut,
    })
}

/// Returns a glob on the keys that begin with a prefix.
fn glob_of_prefix(prefix: &str) -> String {
    let is_special = |letter: char| "*?[]{}\\!".contains(letter);
    let plain = prefix.split(is_special).next().unwrap_or_default();
    let plain = if plain.len() < prefix.len() {
        plain.rfind('/').map_or("", |end| &plain[..=end])
    } else {
        plain
    };
    // A key that begins with a slash matches no other glob.
    let plain = if plain.starts_with('/') { "" } else { plain };
    format!("{plain}**")
}

/// Returns a glob on the keys with the extension of this file.
fn glob_of_file(name: &str) -> String {
    let name = Path::new(name)
        .file_name()
        .unwrap_or_default()
        .to_string_lossy();
    let is_plain = |extension: &&str| {
        let mut letters = extension.chars();
        letters.all(|letter| letter.is_ascii_alphanumeric() || letter == '.')
    };
    match name
        .split_once('.')
        .map(|(_, extension)| extension)
        .filter(is_plain)
    {
        Some(extension) if !extension.is_empty() => format!("**/*.{extension}"),
        _ => "**".to_owned(),
    }
}

/// Returns a name for what is in a file or below a prefix, without dates and numbers at its end.
fn name_of(source: &str) -> String {
    let words = source.trim_start_matches("s3://").split('/').rev();
    // Not those of a partition, such as `dt=2026-11-20`.
    let words = words.filter(|word| !word.contains('='));
    let words = words.map(|word| {
        let word = word.split('.').next().unwrap_or_default();
        let is_number = |letter: char| !letter.is_ascii_alphabetic();
        word.trim_end_matches(is_number).to_owned()
    });
    let mut words = words.filter(|word| !word.is_empty());
    words.next().unwrap_or_else(|| "event".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_globs_follow_from_the_source() {
        for (source, name) in [
            ("clicks.jsonl.gz", "clicks"),
            ("/data/export-2026-11-20.csv", "export"),
            ("s3://bucket/exports/2026/11/", "exports"),
            ("s3://bucket/exports/dt=2026-11-20/", "exports"),
            ("s3://logs", "logs"),
            ("-", "event"),
        ] {
            assert_eq!(name_of(source), name, "{source}");
        }
        for (prefix, glob) in [
            ("", "**"),
            ("a/b/", "a/b/**"),
            ("a/part-", "a/part-**"),
            ("a/b[1]/c", "a/**"),
            ("/a", "**"),
        ] {
            assert_eq!(glob_of_prefix(prefix), glob, "{prefix}");
        }
        for (file, glob) in [
            ("a/export.csv.gz", "**/*.csv.gz"),
            ("orders-1", "**"),
            ("a.[b]", "**"),
        ] {
            assert_eq!(glob_of_file(file), glob, "{file}");
        }
    }
}
