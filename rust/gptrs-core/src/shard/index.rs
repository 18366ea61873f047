//! `.gti` indexes: what a shard has beside its tokens, for tokens that stand in a file of another program.
//!
//! ```text
//! header 4096 │ document ends u64 │ xxh3-64 of each 64 KiB of the tokens, then of the document ends │ trailer 64
//! ```

use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::xxh3_64;

use super::blocks::BlockWriter;
use super::layout::{HEADER, Header, Kind, Layout, malformed, u64_at};
use crate::error::{Error, Result};

/// The ending of an index' name, put behind the payload's whole name.
pub const INDEX_ENDING: &str = ".gti";

/// Longest name of a payload, in bytes.
const MAX_NAME: usize = 196;

/// Whose file the tokens are in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// nanoGPT's `.bin`: nothing but ids of two bytes.
    NanoGpt,
    /// llm.c's `.bin`: a header of 1024 bytes before the ids.
    LlmC,
    /// Megatron-LM's `.bin` beside its `.idx`.
    Megatron,
    /// datatrove's `.ds`, with or without its `.ds.index`.
    Datatrove,
    /// The `.npy` of dolma and OLMo, which has no header, with or without its `.csv.gz`.
    Olmo,
}

impl Format {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::NanoGpt, Self::LlmC, Self::Megatron, Self::Datatrove, Self::Olmo];

    /// Its name in files and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NanoGpt => "nanogpt",
            Self::LlmC => "llmc",
            Self::Megatron => "megatron",
            Self::Datatrove => "datatrove",
            Self::Olmo => "olmo",
        }
    }

    /// What its files are called in messages.
    pub(crate) const fn file(self) -> &'static str {
        match self {
            Self::NanoGpt => "nanoGPT .bin file",
            Self::LlmC => "llm.c .bin file",
            Self::Megatron => "Megatron-LM .bin file",
            Self::Datatrove => "datatrove .ds file",
            Self::Olmo => "OLMo .npy file",
        }
    }

    /// The format of this name.
    pub fn from_name(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|format| format.name() == name).ok_or_else(|| {
            let known = Self::ALL.map(Self::name).join(", ");
            Error::Argument(format!("expected one of the formats {known}, got {name:?}"))
        })
    }
}

/// The file that an index is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Payload {
    /// Whose format it has.
    pub format: Format,
    /// Its name in the index' folder.
    pub name: String,
    /// Its length.
    pub len: u64,
    /// Offset of the first token.
    pub offset: u64,
    /// Digest of the whole file (as `b3sum` prints it).
    pub blake3: [u8; 32],
}

const FIELDS: usize = 112;
const NAME: usize = 184;

impl Payload {
    /// Writes its fields into the header of an index.
    fn put(&self, bytes: &mut [u8; HEADER]) {
        bytes[FIELDS..FIELDS + 8].copy_from_slice(&self.offset.to_le_bytes());
        bytes[FIELDS + 8..FIELDS + 16].copy_from_slice(&self.len.to_le_bytes());
        bytes[FIELDS + 16..FIELDS + 48].copy_from_slice(&self.blake3);
        bytes[FIELDS + 48..FIELDS + 48 + self.format.name().len()].copy_from_slice(self.format.name().as_bytes());
        bytes[FIELDS + 64..FIELDS + 72].copy_from_slice(&(self.name.len() as u64).to_le_bytes());
        bytes[NAME..NAME + self.name.len()].copy_from_slice(self.name.as_bytes());
    }

    /// Reads what [`Payload::put`] wrote.
    fn get(bytes: &[u8; HEADER], path: &Path) -> Result<Self> {
        let bad = |reason: String| malformed(path, reason);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let format = text(bytes[FIELDS + 48..FIELDS + 64].split(|&b| b == 0).next().unwrap_or_default());
        let format = Format::from_name(&format).map_err(|error| bad(error.to_string()))?;
        let name_len = u64_at(bytes, FIELDS + 64);
        if name_len > MAX_NAME as u64 {
            return Err(bad(format!("expected a payload's name of at most {MAX_NAME} bytes, got {name_len}")));
        }
        let name = text(&bytes[NAME..NAME + name_len as usize]);
        check_payload_name(&name).map_err(bad)?;
        let mut blake3 = [0; 32];
        blake3.copy_from_slice(&bytes[FIELDS + 16..FIELDS + 48]);
        Ok(Self { format, name, len: u64_at(bytes, FIELDS + 8), offset: u64_at(bytes, FIELDS), blake3 })
    }

    /// Where it is when its index is at `path`. A name that a link leads out of the folder is refused.
    pub(super) fn locate(&self, path: &Path) -> Result<PathBuf> {
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        inside(dir, &self.name)
    }
}

/// The file `name` of the folder `dir`, unless it is a link to another folder.
pub(crate) fn inside(dir: &Path, name: &str) -> Result<PathBuf> {
    let path = dir.join(name);
    let real = |path: &Path| std::fs::canonicalize(path).map_err(Error::io("open", path));
    if real(&path)?.parent() != Some(real(dir)?.as_path()) {
        let (path, dir) = (path.display(), dir.display());
        let hint = "hint: import the files where they are";
        return Err(Error::Argument(format!("{path} leads out of the folder {dir}; {hint}")));
    }
    Ok(path)
}

/// A payload's name is that of a file in the index' folder, and with the index' ending it is still a shard's name.
pub(crate) fn check_payload_name(name: &str) -> std::result::Result<(), String> {
    if name.len() <= MAX_NAME {
        return crate::manifest::check_name(name).map_err(|error| format!("{error}; hint: rename the file"));
    }
    Err(format!("expected a file name of at most {MAX_NAME} characters, got {name:?}; hint: rename the file"))
}

/// An index' header as stored.
pub(super) fn to_bytes(header: &Header, payload: &Payload, layout: &Layout) -> [u8; HEADER] {
    let mut bytes = header.fields(Kind::Index, layout);
    payload.put(&mut bytes);
    seal(&mut bytes);
    bytes
}

fn seal(bytes: &mut [u8; HEADER]) {
    let digest = xxh3_64(&bytes[..HEADER - 8]);
    bytes[HEADER - 8..].copy_from_slice(&digest.to_le_bytes());
}

/// Reads an index' header; `len` is the length of its file, which the counts must explain to the byte.
pub(super) fn parse(bytes: &[u8; HEADER], len: u64, path: &Path) -> Result<(Header, Layout, Payload)> {
    let (header, layout) = Header::parse_fields(Kind::Index, bytes, len, path)?;
    let payload = Payload::get(bytes, path)?;
    let tokens_len = header.n_tokens.saturating_mul(header.spec.dtype.size() as u64);
    if payload.offset.checked_add(tokens_len).is_none_or(|end| end > payload.len) {
        let (n, offset, len) = (header.n_tokens, payload.offset, payload.len);
        return Err(malformed(path, format!("{n} tokens from byte {offset} on do not fit a payload of {len} bytes")));
    }
    if !header.spec.dtype.holds(header.spec.vocab_size) || to_bytes(&header, &payload, &layout) != *bytes {
        return Err(malformed(path, "its header contradicts itself".to_owned()));
    }
    Ok((header, layout, payload))
}

/// Writes the index at `path`: `ends` are the documents' ends, `digests` those of the tokens' blocks. Returns its
/// BLAKE3 digest.
pub(crate) fn write_index(
    path: &Path,
    header: &Header,
    payload: &Payload,
    ends: &[u64],
    digests: Vec<u64>,
) -> Result<[u8; 32]> {
    let layout = Layout::new(Kind::Index, &header.spec, header.n_tokens, header.n_documents)
        .filter(|layout| layout.n_token_blocks == digests.len() as u64 && header.n_documents == ends.len() as u64)
        .ok_or_else(|| malformed(path, "its counts are not those of its parts".to_owned()))?;
    let mut blocks = BlockWriter::create_behind(path, digests)?;
    ends.iter().try_for_each(|end| blocks.append(&end.to_le_bytes()))?;
    blocks.pad(layout.digests - layout.ends - 8 * header.n_documents)?;
    let table_len = layout.trailer - layout.digests;
    let (file, digest) = blocks.seal(&to_bytes(header, payload, &layout), table_len, layout.total)?;
    file.commit()?;
    Ok(digest)
}

#[cfg(test)]
mod tests {
    use super::super::{Dtype, Shard, Spec};
    use super::*;
    use crate::control::Control;

    #[test]
    fn the_worked_example_of_the_format_has_these_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let tokens: Vec<u8> = [31_373u16, 50_256, 5303, 50_256].into_iter().flat_map(u16::to_le_bytes).collect();
        std::fs::write(dir.path().join("train.bin"), &tokens).unwrap();
        let spec = Spec {
            dtype: Dtype::U16,
            vocab_size: 50_257,
            eot_id: Some(50_256),
            tokenizer: [0xAB; 32],
            has_loss_bits: false,
        };
        let header = Header { spec, n_tokens: 4, n_documents: 2, n_bytes: 7 };
        let (format, name) = (Format::NanoGpt, "train.bin".to_owned());
        let payload = Payload { format, name, len: 8, offset: 0, blake3: *blake3::hash(&tokens).as_bytes() };
        let path = dir.path().join("train.bin.gti");
        let digest = write_index(&path, &header, &payload, &[2, 4], vec![xxh3_64(&tokens)]).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let lines = bytes.chunks(16).enumerate().filter(|(_, line)| line.iter().any(|&b| b != 0));
        let hex = |line: &[u8]| line.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(" ");
        let shown = lines.map(|(i, line)| format!("{:04x}  {}\n", 16 * i, hex(line))).collect::<Vec<_>>().concat();
        let page = include_str!("../../../../docs/formats.md");
        let section = page.split("## Index: `NAME.gti`").nth(1).unwrap();
        let stated = section.split("```hex\n").nth(1).unwrap().split("```").next().unwrap();
        assert_eq!(stated, shown);
        assert_eq!(bytes.len(), 4288);
        let shard = Shard::open(&path).unwrap();
        shard.verify(&Control::new()).unwrap();
        assert_eq!((shard.blake3(), shard.payload()), (&digest, Some(&payload)));
    }
}
