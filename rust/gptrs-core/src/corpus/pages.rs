//! Pages of a Parquet file's columns, none of them larger than its reader allows.
//!
//! The parquet crate gives pages as they are stored, and decodes them once they are decompressed; reading the file and
//! decompressing happen here, so that no number in the file decides how much memory is taken.

use std::fs::File;
use std::io::{self, BufReader, ErrorKind, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use brotli_decompressor::Decompressor;
use bytes::Bytes;
use flate2::read::MultiGzDecoder;
use parquet::basic::{CompressionCodec, Encoding};
use parquet::column::page::{Page, PageMetadata, PageReader};
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::ColumnChunkMetaData;
use parquet::file::reader::{ChunkReader, Length};
use parquet::file::serialized_reader::SerializedPageReader;

use super::source::MAX_WINDOW;
use super::thrift;
use crate::io::on;

/// Bytes that the pages of all columns may have together, stored and decompressed.
pub(super) const MAX_PAGES: usize = 256 << 20;

/// The largest part of a file that is read at once: its footer, or a page.
const MAX_READ: usize = MAX_PAGES;

/// The largest header of a page, and the bytes in which most of them end.
const MAX_HEADER: u64 = 16 << 20;
const SHORT_HEADER: u64 = 4 << 10;

/// Values of a dictionary: each takes 32 bytes of memory, however few of the file.
const MAX_DICTIONARY: u32 = 4 << 20;

/// Values of a page whose lengths are all decoded at once.
const MAX_LENGTHS: u32 = 16 << 20;

/// Bytes of a page whose values may repeat the one before: each may be as long as the whole page.
const MAX_PREFIXED: usize = 4 << 20;

/// A file that is read in parts, each of them inside of it.
pub(super) struct Stored {
    pub(super) file: File,
    pub(super) len: u64,
    /// Bytes that were read so far.
    pub(super) n: AtomicU64,
}

/// The bytes of a shared file from a place on, which must be there: the parquet crate skips what a header announces, up to
/// 2^31 times and at the end of the file as well, where it would ask again and again.
///
/// The crate opens one at a page's values as well, when it has the header already, and reads nothing: what is read is a
/// header, looked at before its first byte is given out.
pub(super) struct From {
    handle: Handle,
    at: u64,
    end: u64,
    is_checked: bool,
}

/// The shared handle that the parquet crate reads through.
#[derive(Clone)]
pub(super) struct Handle(pub(super) Arc<Stored>);

impl Read for From {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if !std::mem::replace(&mut self.is_checked, true) {
            self.handle.check_header(self.at, self.end)?;
        }
        let left = usize::try_from(self.end.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let room = out.len().min(left);
        let n = on(&self.handle.0.file).read_at(&mut out[..room], self.at)?;
        self.at += n as u64;
        if n == 0 && !out.is_empty() { Err(ErrorKind::UnexpectedEof.into()) } else { Ok(n) }
    }
}

impl Handle {
    /// Looks at the header of a page at `start` in the bytes up to `end`, in as many of them as it takes.
    fn check_header(&self, start: u64, end: u64) -> io::Result<()> {
        let (mut bytes, most) = (Vec::new(), end.saturating_sub(start));
        let mut n = SHORT_HEADER.min(most);
        loop {
            bytes.resize(n as usize, 0);
            on(&self.0.file).read_exact_at(&mut bytes, start)?;
            match thrift::check(&bytes) {
                Err(thrift::Fault::Cut) if n < most => n = (8 * n).min(most),
                Err(thrift::Fault::Refused(expected)) => {
                    return Err(io::Error::other(refused("header of a page", expected)));
                }
                _ => return Ok(()), // the crate finds the end of the file itself
            }
        }
    }
}

/// Looks at the bytes of a footer.
pub(super) fn check_footer(bytes: &[u8]) -> Result<()> {
    match thrift::check(bytes) {
        Err(thrift::Fault::Refused(expected)) => Err(general(refused("footer", expected))),
        _ => Ok(()),
    }
}

fn refused(what: &str, expected: &str) -> String {
    format!("expected {expected} in the {what}, got others; hint: the file is damaged, write it anew")
}

impl Length for Handle {
    fn len(&self) -> u64 {
        self.0.len
    }
}

impl ChunkReader for Handle {
    type T = BufReader<From>;

    fn get_read(&self, start: u64) -> Result<Self::T> {
        let end = start.saturating_add(MAX_HEADER).min(self.0.len);
        Ok(BufReader::with_capacity(
            SHORT_HEADER as usize,
            From { handle: self.clone(), at: start, end, is_checked: false },
        ))
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes> {
        if length > MAX_READ {
            return Err(general(format!("expected a part of at most {MAX_READ} bytes, got one of {length}")));
        }
        if start.checked_add(length as u64).is_none_or(|end| end > self.0.len) {
            return Err(general(format!("expected {length} bytes from byte {start} on, the file has {}", self.0.len)));
        }
        let mut bytes = vec![0; length];
        on(&self.0.file).read_exact_at(&mut bytes, start)?;
        self.0.n.fetch_add(length as u64, Ordering::Relaxed);
        Ok(bytes.into())
    }
}

/// The pages of one column of a row group.
pub(super) struct Pages {
    stored: SerializedPageReader<Handle>,
    codec: CompressionCodec,
    limit: usize,
    is_nullable: bool,
    /// Rows of the page that was read last.
    n_rows: Arc<AtomicUsize>,
}

impl Pages {
    /// Pages of at most `limit` bytes; `n_rows` is set to the rows of each that is read.
    pub(super) fn open(
        file: Handle,
        column: &ColumnChunkMetaData,
        total_rows: usize,
        limit: usize,
        n_rows: Arc<AtomicUsize>,
    ) -> Result<Self> {
        // Said to be uncompressed, its pages come as they are stored.
        let plain = column.clone().into_builder().set_compression_codec(CompressionCodec::UNCOMPRESSED).build()?;
        let stored = SerializedPageReader::new(Arc::new(file), &plain, total_rows, None)?;
        let is_nullable = column.column_descr().max_def_level() > 0;
        Ok(Self { stored, codec: column.compression_codec(), limit, is_nullable, n_rows })
    }

    fn decompress(&self, stored: Bytes) -> Result<Bytes> {
        let limit = self.limit;
        let (bytes, mut out) = (stored.as_ref(), Vec::new());
        let mut read = |reader: &mut dyn Read| reader.take(limit as u64 + 1).read_to_end(&mut out);
        match self.codec {
            CompressionCodec::UNCOMPRESSED => return Ok(stored),
            // A page without a value may have no byte.
            _ if bytes.is_empty() => return Ok(stored),
            CompressionCodec::GZIP => read(&mut MultiGzDecoder::new(bytes))?,
            CompressionCodec::BROTLI => read(&mut Decompressor::new(bytes, 1 << 12))?,
            CompressionCodec::ZSTD => {
                if let Some(whole) = self.zstd_at_once(bytes) {
                    out = whole;
                } else {
                    let mut decoder = zstd::stream::read::Decoder::with_buffer(bytes)?;
                    decoder.window_log_max(MAX_WINDOW)?;
                    read(&mut decoder)?;
                }
                out.len()
            }
            CompressionCodec::SNAPPY => {
                let n = snap::raw::decompress_len(bytes).map_err(external)?;
                self.check(n)?;
                out = snap::raw::Decoder::new().decompress_vec(bytes).map_err(external)?;
                n
            }
            CompressionCodec::LZ4_RAW => {
                out = self.lz4(bytes)?;
                out.len()
            }
            other => {
                return Err(general(format!(
                    "expected pages that are plain or compressed by snappy, gzip, brotli, zstd or lz4_raw, got {other:?}; hint: write the file anew"
                )));
            }
        };
        self.check(out.len())?;
        Ok(out.into())
    }

    /// One frame that says how long it is inside, as most writers make them, in one pass; `None` for all else.
    fn zstd_at_once(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        let n = usize::try_from(zstd::zstd_safe::get_frame_content_size(bytes).ok()??).ok()?;
        let mut decompressor = zstd::bulk::Decompressor::new().ok()?;
        decompressor.window_log_max(MAX_WINDOW).ok()?;
        if n <= self.limit { decompressor.decompress(bytes, n).ok() } else { None }
    }

    /// A block that does not say how long it is inside.
    fn lz4(&self, bytes: &[u8]) -> Result<Vec<u8>> {
        let mut room = (4 * bytes.len()).clamp(1 << 12, self.limit);
        loop {
            match lz4_flex::block::decompress(bytes, room) {
                Err(lz4_flex::block::DecompressError::OutputTooSmall { .. }) if room < self.limit => {
                    room = (4 * room).min(self.limit);
                }
                Err(lz4_flex::block::DecompressError::OutputTooSmall { expected, .. }) => {
                    self.check(expected.max(self.limit + 1))?;
                }
                end => return end.map_err(external),
            }
        }
    }

    fn check(&self, n_bytes: usize) -> Result<()> {
        if n_bytes <= self.limit {
            return Ok(());
        }
        Err(general(format!(
            "expected pages of at most {} bytes, got a larger one; hint: write the file with smaller pages",
            self.limit
        )))
    }

    /// A page as it is stored, decompressed and looked at.
    fn plain(&self, mut page: Page) -> Result<Page> {
        self.check(page.buffer().len())?;
        match &mut page {
            Page::DataPage { buf, .. } | Page::DictionaryPage { buf, .. } => {
                *buf = self.decompress(std::mem::take(buf))?;
            }
            Page::DataPageV2 { buf, def_levels_byte_len, rep_levels_byte_len, is_compressed: true, .. } => {
                let n = *def_levels_byte_len as usize + *rep_levels_byte_len as usize;
                if n > buf.len() {
                    return Err(general(format!("a page of {} bytes has {n} bytes of levels", buf.len())));
                }
                let values = self.decompress(buf.slice(n..))?;
                *buf = if n == 0 { values } else { [&buf[..n], values.as_ref()].concat().into() };
            }
            Page::DataPageV2 { .. } => {}
        }
        check_counts(&page, self.is_nullable)?;
        Ok(page)
    }
}

/// Refuses numbers for which a decoder would take more memory than the page has bytes.
fn check_counts(page: &Page, is_nullable: bool) -> Result<()> {
    let (n_values, n_bytes) = (page.num_values(), page.buffer().len());
    let refuse = |limit: String| {
        let what = format!("a page of {n_values} values in {n_bytes} bytes, encoding {}", page.encoding());
        Err(general(format!("expected {limit}, got {what}; hint: write the file with smaller pages")))
    };
    if page.is_dictionary_page() {
        // Before each value stands its length.
        if n_values > MAX_DICTIONARY || n_values as usize > n_bytes / 4 {
            return refuse(format!("at most {MAX_DICTIONARY} values in a dictionary, of 4 bytes or more"));
        }
        return Ok(());
    }
    let is_prefixed = page.encoding() == Encoding::DELTA_BYTE_ARRAY;
    if is_prefixed && n_bytes > MAX_PREFIXED {
        return refuse(format!("at most {MAX_PREFIXED} bytes"));
    }
    if is_prefixed || page.encoding() == Encoding::DELTA_LENGTH_BYTE_ARRAY {
        let n_lengths = values_of(page, is_nullable).and_then(n_deltas);
        if n_values > MAX_LENGTHS || n_lengths.is_none_or(|n| n > u64::from(n_values)) {
            return refuse(format!("at most {MAX_LENGTHS} values, and no more lengths"));
        }
    }
    Ok(())
}

/// The bytes of a data page behind its levels, which say of each value of a nullable column whether it is there.
fn values_of(page: &Page, is_nullable: bool) -> Option<&[u8]> {
    match page {
        Page::DataPageV2 { buf, def_levels_byte_len, rep_levels_byte_len, .. } => {
            buf.get(*def_levels_byte_len as usize + *rep_levels_byte_len as usize..)
        }
        Page::DataPage { buf, def_level_encoding: Encoding::RLE, .. } if is_nullable => {
            let (n, rest) = buf.split_first_chunk()?;
            rest.get(u32::from_le_bytes(*n) as usize..)
        }
        Page::DataPage { .. } if is_nullable => None,
        page => Some(page.buffer()),
    }
}

/// The number of values that a block of deltas announces: the third of its numbers.
fn n_deltas(bytes: &[u8]) -> Option<u64> {
    let mut bytes = bytes.iter();
    let mut number = || {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = *bytes.next()?;
            value |= u64::from(byte & 0x7F) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    };
    number()?;
    number()?;
    number()
}

impl Iterator for Pages {
    type Item = Result<Page>;

    fn next(&mut self) -> Option<Self::Item> {
        self.get_next_page().transpose()
    }
}

impl PageReader for Pages {
    fn get_next_page(&mut self) -> Result<Option<Page>> {
        let Some(page) = self.stored.get_next_page()? else { return Ok(None) };
        let page = self.plain(page)?;
        if page.is_data_page() {
            self.n_rows.store(page.num_values() as usize, Ordering::Relaxed);
        }
        Ok(Some(page))
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>> {
        self.stored.peek_next_page()
    }

    fn skip_next_page(&mut self) -> Result<()> {
        self.stored.skip_next_page()
    }
}

/// An error of the format in the parquet crate's words.
pub(super) fn general(reason: String) -> ParquetError {
    ParquetError::General(reason)
}

fn external(error: impl std::error::Error + Send + Sync + 'static) -> ParquetError {
    ParquetError::External(Box::new(error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::fault;

    /// Opens the header of a page in a file of 64 MiB; how many bytes were asked for.
    fn header(parts: &[&[u8]]) -> (io::Result<()>, u64) {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&parts.concat(), 0).unwrap();
        file.set_len(64 << 20).unwrap();
        let handle = Handle(Arc::new(Stored { file, len: 64 << 20, n: AtomicU64::new(0) }));
        let (end, _, n_bytes) = fault::measured(|| handle.get_read(0).unwrap().read_exact(&mut [0]));
        (end, n_bytes)
    }

    #[test]
    fn a_header_costs_no_more_than_some_times_its_bytes() {
        for n in [100u32, 1 << 14, 1 << 20] {
            let len: [u8; 4] = std::array::from_fn(|i| (n >> (7 * i)) as u8 & 0x7F | if i < 3 { 0x80 } else { 0 });
            let string = vec![b'a'; n as usize];
            let (end, n_bytes) = header(&[&[0x18], &len, &string, &[0]]);
            end.unwrap();
            let limit = 2 * SHORT_HEADER + 10 * u64::from(n);
            assert!(n_bytes <= limit, "{n_bytes} bytes were read for {n}");
            let (end, _) = header(&[&[0x18], &len, &string, &[0x19, 0xF1, 0xFF, 0xFF, 0x07]]);
            assert!(end.unwrap_err().to_string().starts_with("expected no collection of booleans"));
        }
        let (end, n_bytes) = header(&[&[0x18, 0xFF, 0xFF, 0xFF, 0xFF, 0x0F]]);
        end.unwrap();
        assert!(n_bytes < 2 * MAX_HEADER, "{n_bytes} bytes were read for a header without an end");
    }
}
