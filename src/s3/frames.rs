//! Finds out whether a zstd or lz4 stream is whole, without decompressing it.
//!
//! Both formats (RFC 8878; the LZ4 frame format) are sequences of frames, and a frame is a header,
//! blocks that begin with their sizes, and an end. Following the sizes shows whether a stream ends
//! where a frame ends. The content of the blocks is skipped.
//!
//! A stream that is cut exactly between two of its frames is also a valid stream, and passes.

/// The formats that can be followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Zstd,
    Lz4,
}

/// Why a stream is not whole.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The stream ends within a frame.
    #[error("cut short: the stream ends after {bytes} bytes, within a {format} frame")]
    Cut { bytes: u64, format: &'static str },
    /// The bytes are not a frame of this format.
    #[error("not a {format} frame: {problem} before byte {bytes}")]
    Malformed {
        bytes: u64,
        format: &'static str,
        problem: &'static str,
    },
}

/// The part of a frame that is collected next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// The beginning of a frame, or the end of the stream.
    Magic,
    /// The size of a skippable frame.
    SkippableSize,
    ZstdDescriptor,
    ZstdBlock {
        checksum: bool,
    },
    Lz4Descriptor,
    Lz4Block {
        block_checksum: bool,
        content_checksum: bool,
    },
}

impl Part {
    fn bytes(self) -> usize {
        match self {
            Self::ZstdDescriptor => 1,
            Self::Lz4Descriptor => 2,
            Self::ZstdBlock { .. } => 3,
            Self::Magic | Self::SkippableSize | Self::Lz4Block { .. } => 4,
        }
    }
}

/// Follows the frames of one stream, which arrives in pieces of any size.
#[derive(Debug)]
pub struct Frames {
    format: Format,
    part: Part,
    /// The bytes of `part` so far, in little-endian order.
    value: u32,
    collected: usize,
    /// The number of bytes to skip before `part`.
    skip: u64,
    /// The number of bytes seen, for messages.
    bytes: u64,
}

impl Frames {
    pub fn new(format: Format) -> Self {
        Self {
            format,
            part: Part::Magic,
            value: 0,
            collected: 0,
            skip: 0,
            bytes: 0,
        }
    }

    /// Processes the next piece of the stream.
    ///
    /// # Errors
    ///
    /// [`FrameError::Malformed`] if the stream is not of this format. Nothing may be pushed after
    /// that.
    pub fn push(&mut self, mut piece: &[u8]) -> Result<(), FrameError> {
        while !piece.is_empty() {
            if self.skip > 0 {
                let skipped = piece
                    .len()
                    .min(usize::try_from(self.skip).unwrap_or(usize::MAX));
                self.skip -= skipped as u64;
                self.bytes += skipped as u64;
                piece = &piece[skipped..];
                continue;
            }
            self.value |= u32::from(piece[0]) << (8 * self.collected);
            self.collected += 1;
            self.bytes += 1;
            piece = &piece[1..];
            if self.collected == self.part.bytes() {
                let value = std::mem::take(&mut self.value);
                self.collected = 0;
                self.advance(value)?;
            }
        }
        Ok(())
    }

    /// Ends the stream.
    ///
    /// # Errors
    ///
    /// [`FrameError::Cut`] if the stream ends within a frame.
    pub fn finish(self) -> Result<(), FrameError> {
        if self.part == Part::Magic && self.collected == 0 && self.skip == 0 {
            return Ok(());
        }
        Err(FrameError::Cut {
            bytes: self.bytes,
            format: self.name(),
        })
    }

    fn advance(&mut self, value: u32) -> Result<(), FrameError> {
        match self.part {
            Part::Magic => self.part = self.after_magic(value)?,
            Part::SkippableSize => self.then(u64::from(value), Part::Magic),
            Part::ZstdDescriptor => self.after_zstd_descriptor(value)?,
            Part::ZstdBlock { checksum } => self.after_zstd_block(value, checksum)?,
            Part::Lz4Descriptor => self.after_lz4_descriptor(value)?,
            Part::Lz4Block {
                block_checksum,
                content_checksum,
            } => self.after_lz4_block(value, block_checksum, content_checksum),
        }
        Ok(())
    }

    fn then(&mut self, skip: u64, part: Part) {
        self.skip = skip;
        self.part = part;
    }

    fn after_magic(&self, magic: u32) -> Result<Part, FrameError> {
        match (self.format, magic) {
            (Format::Zstd, 0xFD2F_B528) => Ok(Part::ZstdDescriptor),
            (Format::Lz4, 0x184D_2204) => Ok(Part::Lz4Descriptor),
            (_, 0x184D_2A50..=0x184D_2A5F) => Ok(Part::SkippableSize),
            _ => Err(self.malformed("unknown magic number")),
        }
    }

    fn after_zstd_descriptor(&mut self, descriptor: u32) -> Result<(), FrameError> {
        if descriptor & 0b1000 != 0 {
            return Err(self.malformed("reserved bit is set"));
        }
        let single_segment = descriptor & 0b10_0000 != 0;
        let window = u64::from(!single_segment);
        let dictionary = [0, 1, 2, 4][(descriptor & 0b11) as usize];
        let content_size = match descriptor >> 6 {
            0 => u64::from(single_segment),
            1 => 2,
            2 => 4,
            _ => 8,
        };
        let checksum = descriptor & 0b100 != 0;
        self.then(
            window + dictionary + content_size,
            Part::ZstdBlock { checksum },
        );
        Ok(())
    }

    fn after_zstd_block(&mut self, header: u32, checksum: bool) -> Result<(), FrameError> {
        let is_last = header & 1 != 0;
        let size = u64::from(header >> 3);
        let stored = match header >> 1 & 0b11 {
            0 | 2 => size,
            // One byte, repeated.
            1 => 1,
            _ => return Err(self.malformed("reserved block type")),
        };
        if is_last {
            self.then(stored + checksum_bytes(checksum), Part::Magic);
        } else {
            self.then(stored, Part::ZstdBlock { checksum });
        }
        Ok(())
    }

    fn after_lz4_descriptor(&mut self, descriptor: u32) -> Result<(), FrameError> {
        if descriptor >> 6 & 0b11 != 0b01 {
            return Err(self.malformed("unknown version"));
        }
        let content_size = if descriptor & 0b1000 != 0 { 8 } else { 0 };
        let dictionary = if descriptor & 1 != 0 { 4 } else { 0 };
        const HEADER_CHECKSUM: u64 = 1;
        self.then(
            content_size + dictionary + HEADER_CHECKSUM,
            Part::Lz4Block {
                block_checksum: descriptor & 0b1_0000 != 0,
                content_checksum: descriptor & 0b100 != 0,
            },
        );
        Ok(())
    }

    fn after_lz4_block(&mut self, size: u32, block_checksum: bool, content_checksum: bool) {
        if size == 0 {
            self.then(checksum_bytes(content_checksum), Part::Magic);
            return;
        }
        // The highest bit marks a block that is not compressed.
        let stored = u64::from(size & 0x7FFF_FFFF);
        self.then(stored + checksum_bytes(block_checksum), self.part);
    }

    fn malformed(&self, problem: &'static str) -> FrameError {
        FrameError::Malformed {
            bytes: self.bytes,
            format: self.name(),
            problem,
        }
    }

    fn name(&self) -> &'static str {
        match self.format {
            Format::Zstd => "zstd",
            Format::Lz4 => "lz4",
        }
    }
}

fn checksum_bytes(present: bool) -> u64 {
    if present { 4 } else { 0 }
}

#[cfg(test)]
mod tests {
    use async_compression::Level;
    use async_compression::tokio::write::ZstdEncoder;
    use async_compression::zstd::CParameter;
    use proptest::prelude::*;
    use tokio::io::AsyncWriteExt;

    use super::*;

    /// Made by the `lz4` tool (1.9.4) from 599 bytes of text, with block checksums, the content's
    /// size and its checksum, and blocks of 64 KiB at most.
    const LZ4_WITH_ALL: &[u8] = include_bytes!("frames/all.lz4");
    /// The same text, without any of these options.
    const LZ4_WITH_NONE: &[u8] = include_bytes!("frames/none.lz4");

    fn walk(format: Format, stream: &[u8], piece: usize) -> Result<(), FrameError> {
        let mut frames = Frames::new(format);
        for piece in stream.chunks(piece) {
            frames.push(piece)?;
        }
        frames.finish()
    }

    /// Asserts that the stream is whole if and only if it ends where one of these frames does.
    fn assert_whole_only_at_ends(format: Format, frames: &[Vec<u8>], piece: usize) {
        let stream = frames.concat();
        let mut ends = vec![0];
        for frame in frames {
            ends.push(ends[ends.len() - 1] + frame.len());
        }
        for end in 0..=stream.len() {
            let found = walk(format, &stream[..end], piece);
            if ends.contains(&end) {
                assert_eq!(found, Ok(()), "{end} of {ends:?}");
            } else {
                let cut =
                    matches!(found, Err(FrameError::Cut { bytes, .. }) if bytes == end as u64);
                assert!(cut, "{end} of {ends:?}: {found:?}");
            }
        }
    }

    fn zstd(content: &[u8], level: i32, checksum: bool) -> Vec<u8> {
        let parameters = [CParameter::checksum_flag(checksum)];
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        runtime.unwrap().block_on(async {
            let level = Level::Precise(level);
            let mut encoder = ZstdEncoder::with_quality_and_params(Vec::new(), level, &parameters);
            encoder.write_all(content).await.unwrap();
            encoder.shutdown().await.unwrap();
            encoder.into_inner()
        })
    }

    /// Returns a frame of uncompressed blocks, with every part that its flags require.
    fn lz4(blocks: &[Vec<u8>], flags: u8) -> Vec<u8> {
        let flags = 0b0100_0000 | flags & 0b1_1101;
        let mut frame = vec![0x04, 0x22, 0x4d, 0x18, flags, 0x40];
        let header = [(0b1000, 8), (0b1, 4)];
        for (_, bytes) in header.iter().filter(|(flag, _)| flags & flag != 0) {
            frame.resize(frame.len() + bytes, 0);
        }
        frame.push(0x77);
        for block in blocks.iter().filter(|block| !block.is_empty()) {
            let size = u32::try_from(block.len()).unwrap() | 0x8000_0000;
            frame.extend(size.to_le_bytes());
            frame.extend(block);
            frame.extend(&[1; 4][..if flags & 0b1_0000 != 0 { 4 } else { 0 }]);
        }
        frame.extend([0; 4]);
        frame.extend(&[1; 4][..if flags & 0b100 != 0 { 4 } else { 0 }]);
        frame
    }

    fn skippable(bytes: usize, which: u8) -> Vec<u8> {
        let size = u32::try_from(bytes).unwrap().to_le_bytes();
        let magic = [0x50 | which & 0xf, 0x2a, 0x4d, 0x18];
        [magic.as_slice(), &size, &vec![0xff; bytes]].concat()
    }

    fn content() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            // Compressible, incompressible, and one repeated byte.
            "([a-d]{1,9}\n){0,60}".prop_map(String::into_bytes),
            prop::collection::vec(any::<u8>(), 0..400),
            (any::<u8>(), 0..400_000_usize).prop_map(|(byte, count)| vec![byte; count]),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn zstd_is_whole_if_and_only_if_it_is_not_cut(
            contents in prop::collection::vec((content(), 1..19_i32, any::<bool>()), 1..4),
            skipped in 0..20_usize,
            which in any::<u8>(),
            piece in 1..50_usize,
        ) {
            let frames = contents.iter().map(|(it, level, sum)| zstd(it, *level, *sum));
            let mut frames: Vec<_> = frames.collect();
            frames.insert(1, skippable(skipped, which));
            assert_whole_only_at_ends(Format::Zstd, &frames, piece);
        }

        #[test]
        fn lz4_is_whole_if_and_only_if_it_is_not_cut(
            contents in prop::collection::vec(
                (prop::collection::vec(prop::collection::vec(any::<u8>(), 0..90), 0..5), any::<u8>()),
                1..4,
            ),
            skipped in 0..20_usize,
            which in any::<u8>(),
            piece in 1..50_usize,
        ) {
            let mut frames: Vec<_> = contents.iter().map(|(it, flags)| lz4(it, *flags)).collect();
            frames.insert(1, skippable(skipped, which));
            assert_whole_only_at_ends(Format::Lz4, &frames, piece);
        }

        #[test]
        fn garbage_does_not_panic(
            stream in prop::collection::vec(any::<u8>(), 0..200),
            piece in 1..50_usize,
        ) {
            for (format, magic) in [
                (Format::Zstd, [0x28, 0xb5, 0x2f, 0xfd]),
                (Format::Lz4, [0x04, 0x22, 0x4d, 0x18]),
            ] {
                drop(walk(format, &stream, piece));
                drop(walk(format, &[magic.as_slice(), &stream].concat(), piece));
            }
        }
    }

    #[test]
    fn lz4_frames_of_the_reference_tool_are_followed() {
        let frames = [LZ4_WITH_ALL.to_vec(), LZ4_WITH_NONE.to_vec()];
        for piece in [1, 7, 10_000] {
            assert_whole_only_at_ends(Format::Lz4, &frames, piece);
        }
    }

    #[test]
    fn a_stream_that_is_not_of_frames_is_malformed() {
        for format in [Format::Zstd, Format::Lz4] {
            for stream in [b"{\"a\":1}\n".as_slice(), &[0x1f, 0x8b, 8, 0, 0]] {
                let found = walk(format, stream, 3);
                assert!(
                    matches!(found, Err(FrameError::Malformed { bytes: 4, .. })),
                    "{found:?}"
                );
            }
        }
    }
}
