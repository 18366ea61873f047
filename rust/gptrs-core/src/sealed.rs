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
    let got = serde_json::from_slice(&bytes).map_or(version, |Version { version }| version);
    if got != version {
        let hint = "hint: it was written by another version of gptrs, or changed";
        return Err(malformed(format!("expected version {version}, got {got}; {hint}")));
    }
    let sealed: Sealed<T> = serde_json::from_slice(&bytes).map_err(|error| malformed(error.to_string()))?;
    let spelt = to_bytes(&sealed.body);
    if spelt != bytes {
        let line =
            bytes.split(|&b| b == b'\n').zip(spelt.split(|&b| b == b'\n')).take_while(|(a, b)| a == b).count() + 1;
        return Err(malformed(format!("it was changed after it was written, see line {line}")));
    }
    Ok(Some(sealed.body))
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
