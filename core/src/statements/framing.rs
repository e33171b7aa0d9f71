//! Frames the lines of several objects in one body: each line is prefixed with the numbers of its
//! object and of the line. Nothing is buffered, so that a line of any length passes in pieces.

use std::io::Write;

use memchr::memchr;

/// The digits of an object's number, which counts from 1.
pub const OBJECT_DIGITS: usize = 5;
/// The digits of a line's number, which counts from 0.
pub const ROW_DIGITS: usize = 12;

/// Frames the content of one object. Lines are those of the format `LineAsString`.
#[derive(Debug)]
pub struct Framer {
    object: usize,
    row: u64,
    in_line: bool,
}

impl Framer {
    /// Begins an object. `index` is its position in the batch, from 0.
    pub fn new(index: usize) -> Self {
        Self {
            object: index + 1,
            row: 0,
            in_line: false,
        }
    }

    /// Appends the next piece of the content to `out`, framed.
    pub fn frame(&mut self, mut piece: &[u8], out: &mut Vec<u8>) {
        while !piece.is_empty() {
            if !self.in_line {
                self.prefix(out);
            }
            let end = memchr(b'\n', piece);
            let (line, rest) = piece.split_at(end.map_or(piece.len(), |at| at + 1));
            out.extend_from_slice(line);
            self.in_line = end.is_none();
            piece = rest;
        }
    }

    /// Ends the last line, if it has no line break.
    pub fn end(&self, out: &mut Vec<u8>) {
        if self.in_line {
            out.push(b'\n');
        }
    }

    fn prefix(&mut self, out: &mut Vec<u8>) {
        let (object, row) = (self.object, self.row);
        write!(out, "{object:0OBJECT_DIGITS$}{row:0ROW_DIGITS$}")
            .expect("writing to a Vec cannot fail");
        self.row += 1;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn framed(objects: &[&[u8]], piece: usize) -> Vec<u8> {
        let mut out = Vec::new();
        for (index, content) in objects.iter().enumerate() {
            let mut framer = Framer::new(index);
            for piece in content.chunks(piece) {
                framer.frame(piece, &mut out);
            }
            framer.end(&mut out);
        }
        out
    }

    #[test]
    fn each_line_is_prefixed_with_its_origin() {
        let objects: [&[u8]; 5] = [b"a\r\n\nb", b"", b"\n", b"\n\n", b"c\n"];
        let expected = "00001000000000000a\r\n00001000000000001\n00001000000000002b\n\
                        00003000000000000\n00004000000000000\n00004000000000001\n\
                        00005000000000000c\n";
        assert_eq!(String::from_utf8(framed(&objects, 100)).unwrap(), expected);
    }

    proptest! {
        #[test]
        fn the_lines_are_the_same_however_the_content_is_split(
            objects in prop::collection::vec("[ab\r\n]{0,20}", 0..4),
            piece in 1..8usize,
        ) {
            let contents: Vec<&[u8]> = objects.iter().map(String::as_bytes).collect();
            let expected: String = objects
                .iter()
                .enumerate()
                .flat_map(|(object, content)| {
                    let lines = content.split_terminator('\n').enumerate();
                    lines.map(move |(row, line)| format!("{:05}{row:012}{line}\n", object + 1))
                })
                .collect();
            prop_assert_eq!(String::from_utf8(framed(&contents, piece)).unwrap(), expected);
        }
    }
}
