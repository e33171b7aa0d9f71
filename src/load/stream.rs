//! Builds the body of an insert whose objects this worker reads.

use futures_util::stream::{self, Stream, StreamExt, TryStreamExt};
use tokio::io::AsyncReadExt;

use super::ports::ObjectStore;
use crate::object::ObjectRef;
use crate::s3::{Content, StoreError, broken};
use crate::statements::framing::Framer;
use crate::util::failpoint;

/// The bytes that are read at a time. Bounds the worker's memory, since a load keeps a few pieces.
const PIECE: u64 = 128 * 1024;
/// The number of objects that are requested ahead. Otherwise small objects would take a round trip
/// each.
const REQUESTED_AHEAD: usize = 16;

/// Returns the framed lines of the objects, in order.
pub(super) fn body<'a, S: ObjectStore>(
    store: &'a S,
    objects: &'a [&ObjectRef],
) -> impl Stream<Item = Result<Vec<u8>, StoreError>> + Send + 'a {
    stream::iter(objects.iter().copied().enumerate())
        .map(async |(index, object)| {
            let content = store.open(object).await?;
            Ok(pieces(object, index, content))
        })
        .buffered(REQUESTED_AHEAD)
        .try_flatten()
}

fn pieces(
    object: &ObjectRef,
    index: usize,
    content: Content,
) -> impl Stream<Item = Result<Vec<u8>, StoreError>> {
    let begun = Some((content, Framer::new(index)));
    stream::try_unfold(begun, async |state| {
        let Some((mut content, mut framer)) = state else {
            return Ok(None);
        };
        let mut piece = Vec::new();
        let read = (&mut content).take(PIECE).read_to_end(&mut piece).await;
        read.map_err(|error| broken(object, &error))?;
        let mut framed = Vec::with_capacity(2 * piece.len());
        framer.frame(&piece, &mut framed);
        if piece.is_empty() {
            framer.end(&mut framed);
            return Ok(Some((framed, None)));
        }
        failpoint::reach("stream.piece");
        Ok(Some((framed, Some((content, framer)))))
    })
}
