//! JSON files with one spelling and a checksum, so that a change of any byte is found.

use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::io;

/// Longer files are refused: four million shards fit.
const MAX_LEN: u64 = 1 << 30;

#[derive(Serialize, Deserialize)]
struct Sealed<T> {
    #[serde(flatten)]
    body: T,
    /// BLAKE3 of the file as it is written with "" here.
    checksum: String,
}

/// The file's bytes for `body`: pretty JSON, the checksum as its last field.
pub(crate) fn to_bytes<T: Serialize>(body: &T) -> Vec<u8> {
    let spell = |checksum: String| {
        let mut bytes = serde_json::to_vec_pretty(&Sealed { body, checksum }).expect("our structs have string keys");
        bytes.push(b'\n');
        bytes
    };
    spell(hex(blake3::hash(&spell(String::new())).as_bytes()))
}

/// What every version of a file says first.
#[derive(Deserialize)]
struct Version {
    version: u32,
}

/// Reads what [`to_bytes`] spelt of a `T` whose `version` is this one; `None` when there is no file.
pub(crate) fn read<T: Serialize + DeserializeOwned>(
    path: &Path,
    format: &'static str,
    version: u32,
) -> Result<Option<T>> {
    let malformed = |reason: String| Error::Format { path: path.to_owned(), format, reason };
    let Some(bytes) = io::read_at_most(path, MAX_LEN + 1)? else { return Ok(None) };
    if bytes.len() as u64 > MAX_LEN {
        return Err(malformed(format!("expected at most {MAX_LEN} bytes")));
    }
    // A file of this version says so in its first line: no second pass to find what it is.
    let is_named = bytes.starts_with(format!("{{\n  \"version\": {version},").as_bytes());
    let named = || serde_json::from_slice(&bytes).map_or(version, |Version { version }| version);
    let got = if is_named { version } else { named() };
    if got != version {
        let hint = "hint: it was written by another version of gptrs, or changed";
        return Err(malformed(format!("expected version {version}, got {got}; {hint}")));
    }
    let sealed: Sealed<T> = serde_json::from_slice(&bytes).map_err(|error| malformed(error.to_string()))?;
    if !is_sealed(&sealed, &bytes) {
        let spelt = to_bytes(&sealed.body);
        let line =
            bytes.split(|&b| b == b'\n').zip(spelt.split(|&b| b == b'\n')).take_while(|(a, b)| a == b).count() + 1;
        return Err(malformed(format!("it was changed after it was written, see line {line}")));
    }
    Ok(Some(sealed.body))
}

/// Whether `bytes` are what [`to_bytes`] spells of the same body.
///
/// Without spelling it twice: the digest is over the bytes as they were read, and the one spelling of the body is compared with them
/// while it is made.
fn is_sealed<T: Serialize>(sealed: &Sealed<T>, bytes: &[u8]) -> bool {
    let Some((before, end)) = bytes.len().checked_sub(END.len()).map(|at| bytes.split_at(at)) else { return false };
    let Some(digits) = before.len().checked_sub(64) else { return false };
    let digest = blake3::Hasher::new().update(&before[..digits]).update(end).finalize();
    let mut rest = Expected(bytes);
    hex(digest.as_bytes()) == sealed.checksum
        && serde_json::to_writer_pretty(&mut rest, sealed).is_ok()
        && rest.0 == b"\n"
}

/// What stands behind the digits of a file's checksum.
const END: &[u8] = b"\"\n}\n";

/// Bytes that are to be written: others are an error.
struct Expected<'b>(&'b [u8]);

impl std::io::Write for Expected<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 = self.0.strip_prefix(bytes).ok_or(std::io::ErrorKind::InvalidData)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Writes `body` as the file at `path`.
pub(crate) fn write<T: Serialize>(path: &Path, body: &T) -> Result<()> {
    io::write_atomic(path, &to_bytes(body))
}

/// Lower-case hexadecimal digits of `bytes`.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut digits, byte| {
        let _ = write!(digits, "{byte:02x}"); // writing to a String cannot fail
        digits
    })
}

/// The 32 bytes that 64 lower-case digits spell.
pub(crate) fn from_hex(digits: &str) -> Option<[u8; 32]> {
    let hash = blake3::Hash::from_hex(digits).ok()?;
    (hash.to_hex().as_str() == digits).then(|| *hash.as_bytes())
}
