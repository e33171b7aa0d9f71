//! Builds the body of an insert whose objects this worker reads.

use futures_util::stream::{self, Stream, StreamExt, TryStreamExt};
use tokio::io::AsyncReadExt;

use super::ports::ObjectStore;
use crate::object::ObjectRef;
use crate::s3::{Content, Plain, StoreError, broken};
use crate::statements::framing::Framer;
use crate::util::failpoint;

/// The bytes that are read at a time. Bounds the worker's memory, since a load keeps a few pieces.
const PIECE: u64 = 128 * 1024;
/// The number of objects that are requested ahead. Otherwise small objects would take a round trip
/// each.
const REQUESTED_AHEAD: usize = 16;

/// How the content of objects is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// As lines, each with the numbers of its object and of the line.
    Lines,
    /// As it is: the body is one object of another format.
    Verbatim,
}

impl Framing {
    /// Returns what the content of objects can be if it is not compressed.
    pub(super) fn plain(self) -> Plain {
        match self {
            Self::Lines => Plain::JsonLines,
            Self::Verbatim => Plain::Anything,
        }
    }

    /// Returns the framer of the object at this position, if it is framed.
    fn framer(self, index: usize) -> Option<Framer> {
        match self {
            Self::Lines => Some(Framer::new(index)),
            Self::Verbatim => None,
        }
    }
}

/// Returns the content of the objects, in order.
pub(super) fn body<'a, S: ObjectStore>(
    store: &'a S,
    objects: &'a [&ObjectRef],
    framing: Framing,
) -> impl Stream<Item = Result<Vec<u8>, StoreError>> + Send + 'a {
    let numbered = objects.iter().copied().enumerate();
    let framed = numbered.map(move |(index, object)| (object, framing.framer(index)));
    stream::iter(framed)
        .map(move |(object, framer)| async move {
            let content = store.open(object, framing.plain()).await?;
            Ok::<_, StoreError>(pieces(object, framer, content))
        })
        .buffered(REQUESTED_AHEAD)
        .try_flatten()
}

fn pieces(
    object: &ObjectRef,
    framer: Option<Framer>,
    content: Content,
) -> impl Stream<Item = Result<Vec<u8>, StoreError>> {
    let begun = Some((content, framer));
    stream::try_unfold(begun, async |state| {
        let Some((mut content, mut framer)) = state else {
            return Ok(None);
        };
        let mut piece = Vec::new();
        let read = (&mut content).take(PIECE).read_to_end(&mut piece).await;
        read.map_err(|error| broken(object, &error))?;
        let is_end = piece.is_empty();
        let sent = match &mut framer {
            Some(framer) => framed_lines(framer, &piece),
            None => piece,
        };
        if is_end {
            return Ok(Some((sent, None)));
        }
        failpoint::reach("stream.piece");
        Ok(Some((sent, Some((content, framer)))))
    })
}

/// Returns the framed lines of a piece. An empty piece is the end of the object.
fn framed_lines(framer: &mut Framer, piece: &[u8]) -> Vec<u8> {
    let mut framed = Vec::with_capacity(2 * piece.len());
    framer.frame(piece, &mut framed);
    if piece.is_empty() {
        framer.end(&mut framed);
    }
    framed
}
