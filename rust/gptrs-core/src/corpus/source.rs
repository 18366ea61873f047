//! The bytes of a file from front to back, decompressed where its name says that it is compressed.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use flate2::bufread::GzDecoder;

use super::replace::Replacing;
use super::{Codec, Input, bad_file};
use crate::error::{Error, Result};

/// Bytes read at a time.
const BUFFER: usize = 1 << 18;

/// The largest window of a Zstandard frame, as a power of two: 128 MiB, what its own tools take without being asked.
pub(super) const MAX_WINDOW: u32 = 27;

/// The bytes that an input holds, in order; memory does not follow their number.
pub struct Source {
    reader: BufReader<Layer>,
    path: PathBuf,
    codec: Codec,
    n_stored: Arc<AtomicU64>,
}

/// The bytes as they are, or as UTF-8.
enum Layer {
    Bytes(Decoder),
    Text(Replacing<BufReader<Decoder>>),
}

enum Decoder {
    Plain(Stored),
    Gzip(Box<Members>),
    Zstd(zstd::stream::read::Decoder<'static, BufReader<Stored>>),
}

/// The members of a gzip file. Zeros behind one fill up a block, as gzip itself takes them; `None` at the end.
struct Members(Option<GzDecoder<BufReader<Stored>>>);

/// A file that counts what was read of it, and has the bytes that it had at first: no fewer and no more.
struct Stored {
    file: File,
    left: u64,
    n: Arc<AtomicU64>,
}

impl Source {
    /// The bytes from `offset` on; those before are read as well where the file is compressed.
    pub fn open(input: &Input, offset: u64) -> Result<Self> {
        Self::new(input, offset, false)
    }

    /// As [`Source::open`], with U+FFFD for each sequence that is not UTF-8; `offset` counts what comes out.
    pub fn replacing(input: &Input, offset: u64) -> Result<Self> {
        Self::new(input, offset, true)
    }

    fn new(input: &Input, offset: u64, replaces: bool) -> Result<Self> {
        let (path, codec) = (&input.path, input.codec);
        let (mut file, n_bytes) = crate::io::open_regular(path)?;
        if n_bytes != input.n_bytes {
            return Err(input.changed());
        }
        let n_stored = Arc::new(AtomicU64::new(0));
        if codec == Codec::Plain && !replaces {
            file.seek(SeekFrom::Start(offset)).map_err(Error::io("read", path))?;
            n_stored.store(offset, Ordering::Relaxed);
        }
        let left = n_bytes.saturating_sub(n_stored.load(Ordering::Relaxed));
        let stored = Stored { file, left, n: Arc::clone(&n_stored) };
        let decoder = Decoder::new(stored, codec).map_err(Error::io("read", path))?;
        let layer = if replaces {
            Layer::Text(Replacing::new(BufReader::with_capacity(BUFFER, decoder)))
        } else {
            Layer::Bytes(decoder)
        };
        let reader = BufReader::with_capacity(BUFFER, layer);
        let mut source = Self { reader, path: path.clone(), codec, n_stored };
        if codec != Codec::Plain || replaces {
            source.skip(offset)?;
        }
        Ok(source)
    }

    /// Sequences that were replaced so far.
    pub fn n_replaced(&self) -> u64 {
        match self.reader.get_ref() {
            Layer::Bytes(_) => 0,
            Layer::Text(replacing) => replacing.n(),
        }
    }

    /// Bytes of the file that were read so far.
    pub fn n_stored(&self) -> u64 {
        self.n_stored.load(Ordering::Relaxed)
    }

    /// Appends bytes to `out` up to and with the next line feed, or the end, or `limit` of them; how many.
    pub fn line(&mut self, limit: u64, out: &mut Vec<u8>) -> Result<usize> {
        let end = (&mut self.reader).take(limit).read_until(b'\n', out);
        end.map_err(|error| self.error(error))
    }

    /// Appends `n` bytes to `out`, or fewer at the end; how many.
    pub fn read(&mut self, n: u64, out: &mut Vec<u8>) -> Result<usize> {
        let end = (&mut self.reader).take(n).read_to_end(out);
        end.map_err(|error| self.error(error))
    }

    /// Whether the bytes to come start with `front`; then they are skipped.
    pub fn skip_front(&mut self, front: &[u8]) -> Result<bool> {
        let has_it = match self.reader.fill_buf() {
            Ok(bytes) => bytes.starts_with(front),
            Err(error) => return Err(self.error(error)),
        };
        if has_it {
            self.reader.consume(front.len());
        }
        Ok(has_it)
    }

    fn skip(&mut self, n: u64) -> Result<()> {
        let skipped = io::copy(&mut (&mut self.reader).take(n), &mut io::sink());
        match skipped.map_err(|error| self.error(error))? {
            got if got == n => Ok(()),
            got => Err(bad_file(&self.path, self.codec, &format!("expected {n} bytes or more inside, got {got}"))),
        }
    }

    /// What the decoder says about the file's content, or the system about the file.
    fn error(&self, error: io::Error) -> Error {
        if self.codec == Codec::Plain || error.raw_os_error().is_some() {
            return Error::io("read", &self.path)(error);
        }
        let reason = match error.kind() {
            io::ErrorKind::UnexpectedEof => "it ends too early, or other bytes follow its end".to_owned(),
            _ => error.to_string(),
        };
        bad_file(&self.path, self.codec, &format!("{reason}; hint: make it anew"))
    }
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Source").field("path", &self.path).field("codec", &self.codec).finish_non_exhaustive()
    }
}

impl Decoder {
    fn new(stored: Stored, codec: Codec) -> io::Result<Self> {
        Ok(match codec {
            Codec::Plain => Self::Plain(stored),
            Codec::Gzip => {
                Self::Gzip(Box::new(Members(Some(GzDecoder::new(BufReader::with_capacity(BUFFER, stored))))))
            }
            Codec::Zstd => Self::zstd(stored)?,
        })
    }

    fn zstd(stored: Stored) -> io::Result<Self> {
        let mut decoder = zstd::stream::read::Decoder::with_buffer(BufReader::with_capacity(BUFFER, stored))?;
        decoder.window_log_max(MAX_WINDOW)?;
        Ok(Self::Zstd(decoder))
    }
}

impl Read for Layer {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Bytes(decoder) => decoder.read(out),
            Self::Text(replacing) => replacing.read(out),
        }
    }
}

impl Read for Decoder {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(file) => file.read(out),
            Self::Gzip(decoder) => decoder.read(out),
            Self::Zstd(decoder) => decoder.read(out),
        }
    }
}

impl Read for Members {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while let Some(member) = &mut self.0 {
            let n = member.read(out)?;
            if n > 0 || out.is_empty() {
                return Ok(n);
            }
            self.0 = match self.0.take() {
                Some(member) => next_member(member.into_inner())?,
                None => None,
            };
        }
        Ok(0)
    }
}

fn next_member(mut stored: BufReader<Stored>) -> io::Result<Option<GzDecoder<BufReader<Stored>>>> {
    loop {
        let bytes = stored.fill_buf()?;
        let n_zeros = bytes.iter().take_while(|&&byte| byte == 0).count();
        match (bytes.len(), n_zeros) {
            (0, _) => return Ok(None),
            (n, zeros) if zeros < n => {
                stored.consume(zeros);
                return Ok(Some(GzDecoder::new(stored)));
            }
            (n, _) => stored.consume(n),
        }
    }
}

impl Read for Stored {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let room = out.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let n = loop {
            match crate::io::on(&self.file).read(&mut out[..room]) {
                // Some that read from here look at the bytes in a buffer and would not try again.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                end => break end?,
            }
        };
        if n == 0 && room > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= n as u64;
        self.n.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}

/// The ending of a compressed file's name, and how it is compressed.
pub(super) fn codec(extension: &str) -> Option<Codec> {
    match extension {
        "gz" | "gzip" => Some(Codec::Gzip),
        "zst" | "zstd" => Some(Codec::Zstd),
        _ => None,
    }
}

/// The name without the ending that says how the file is compressed.
pub(super) fn inner(path: &Path) -> PathBuf {
    path.with_extension("")
}

#[cfg(test)]
mod tests {
    use std::fs::{self, OpenOptions};
    use std::io::Write;

    use super::*;
    use crate::corpus;
    use crate::io::sweep;

    /// Writes `text` as the file's name says that it is compressed, gzip without making it shorter.
    fn write(path: &Path, text: &[u8]) -> Input {
        let stored = match codec(path.extension().unwrap().to_str().unwrap()) {
            Some(Codec::Gzip) => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::none());
                encoder.write_all(text).unwrap();
                encoder.finish().unwrap()
            }
            Some(_) => zstd::encode_all(text, 1).unwrap(),
            None => text.to_vec(),
        };
        fs::write(path, stored).unwrap();
        corpus::inputs(&[path.to_owned()]).unwrap().remove(0)
    }

    #[test]
    fn a_file_that_is_cut_or_grows_while_it_is_read_gives_the_bytes_of_before_or_an_error() {
        let dir = sweep::temporary_dir();
        let text = b"line\n".repeat(BUFFER);
        for name in ["a.jsonl", "a.txt.gz"] {
            for is_cut in [false, true] {
                let path = dir.path().join(name);
                let input = write(&path, &text);
                let (mut source, mut got) = (Source::open(&input, 5).unwrap(), Vec::new());
                source.line(100, &mut got).unwrap();
                let mut file = OpenOptions::new().append(true).open(&path).unwrap();
                if is_cut {
                    file.set_len(input.n_bytes / 2).unwrap();
                } else {
                    file.write_all(b"more").unwrap();
                }
                match source.read(u64::MAX, &mut got) {
                    Ok(_) => assert!(!is_cut && got == text[5..], "{name}"),
                    Err(error) => assert!(is_cut && error.to_string().contains(name), "{error}"),
                }
            }
        }
    }

    #[test]
    fn lines_are_right_or_an_error_of_the_disk() {
        let dir = sweep::temporary_dir();
        let text = b"one\ntwo\nthree";
        for name in ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst"] {
            let path = dir.path().join(name);
            let input = write(&path, text);
            for replaces in [false, true] {
                let work = || {
                    let (mut source, mut got) = (Source::new(&input, 4, replaces)?, Vec::new());
                    assert!(!source.skip_front(b"\xEF\xBB\xBF")?);
                    while source.line(100, &mut got)? > 0 {}
                    assert!(got == text[4..]);
                    Ok(())
                };
                let n = sweep::each_read(path.to_str().unwrap(), work);
                assert!(n >= 2, "{name}: opened, and read at least once, in {n} reads");
            }
        }
    }
}
