//! A dataset: a folder of shards under one manifest, read as one long row of tokens.

use std::borrow::Cow;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};

use crate::control::Control;
use crate::error::{Error, Result};
use crate::manifest::{FILE, Manifest};
use crate::parallel;
use crate::sealed::hex;
use crate::shard::{Dtype, INDEX_ENDING, Shard, Spec, Token, check_width, file_len, verified_len, widen};

/// Shards held open at a time; a process may often have only 256 files.
const MAX_OPEN: usize = 128;

/// Shards that a reader goes on to hold.
const MAX_HELD: usize = 16;

/// An open dataset, shared by threads.
#[derive(Debug)]
pub struct Dataset {
    dir: PathBuf,
    manifest: Manifest,
    spec: Spec,
    /// First token of each shard, then the number of all.
    token_starts: Vec<u64>,
    /// First document that ends in each shard, then the number of all.
    document_starts: Vec<u64>,
    open: RwLock<Vec<(usize, Arc<Shard>)>>,
}

impl Dataset {
    /// Opens the dataset in `dir`: checks the manifest and against it the length of each shard, and header and trailer
    /// of the first ones. A shard that is not among these is checked when it is first touched: of a thousand shards, a
    /// process of many may need but a few.
    pub fn open(dir: &Path) -> Result<Self> {
        let Some(manifest) = Manifest::read(dir)? else {
            let missing = std::io::Error::new(std::io::ErrorKind::NotFound, "it is missing; hint: run gptrs prepare");
            return Err(Error::io("open", dir.join(FILE))(missing));
        };
        let spec = manifest.spec()?;
        let starts = |count: fn(&crate::manifest::Entry) -> u64| {
            let mut starts = vec![0];
            for entry in &manifest.shards {
                starts.push(starts[starts.len() - 1] + count(entry));
            }
            starts
        };
        let (token_starts, document_starts) = (starts(|s| s.n_tokens), starts(|s| s.n_documents));
        let open = RwLock::default();
        let dataset = Self { dir: dir.to_owned(), manifest, spec, token_starts, document_starts, open };
        for i in 0..dataset.manifest.shards.len() {
            if i < MAX_OPEN { dataset.open_shard(i).map(|_| ())? } else { dataset.check_len(i)? }
        }
        Ok(dataset)
    }

    /// Fails unless shard `i` has the length that its counts give.
    fn check_len(&self, i: usize) -> Result<()> {
        let entry = &self.manifest.shards[i];
        let path = self.dir.join(&entry.name);
        let got = std::fs::metadata(&path).map_err(Error::io("open", &path))?.len();
        let is_index = entry.name.ends_with(INDEX_ENDING);
        let expected = file_len(is_index, &self.spec, entry.n_tokens, entry.n_documents);
        if expected == Some(got) {
            return Ok(());
        }
        let expected = expected.map_or("a length of 64 bits".to_owned(), |len| format!("{len} bytes"));
        let reason = format!("expected {expected}, got {got}; it may be cut");
        Err(Error::Format { path, format: "shard", reason })
    }

    /// Checks every byte of every shard; returns the bytes of tokens and document ends that there are.
    pub fn verify(&self, threads: usize, control: &Control) -> Result<u64> {
        let lens = self.manifest.shards.iter().map(|s| verified_len(&self.spec, s.n_tokens, s.n_documents));
        let n_bytes = lens.sum();
        control.begin("verify bytes", n_bytes);
        parallel::run(
            threads,
            self.manifest.shards.len(),
            control,
            || (),
            |(), i| self.open_shard(i)?.verify(control),
        )?;
        Ok(n_bytes)
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What `manifest.json` says.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// How a token is stored.
    pub fn dtype(&self) -> Dtype {
        self.spec.dtype
    }

    /// Ids are below this.
    pub fn vocab_size(&self) -> u64 {
        self.spec.vocab_size
    }

    /// The tokenizer's end-of-text id, if it has one.
    pub fn eot_id(&self) -> Option<u32> {
        self.spec.eot_id
    }

    /// Whether there is a bit for each token that says whether it is to be predicted.
    pub fn has_loss_bits(&self) -> bool {
        self.spec.has_loss_bits
    }

    /// Identity of the tokens, 64 hexadecimal digits.
    pub fn fingerprint(&self) -> &str {
        &self.manifest.fingerprint
    }

    /// Number of tokens.
    pub fn n_tokens(&self) -> u64 {
        self.manifest.n_tokens
    }

    /// Number of documents.
    pub fn n_documents(&self) -> u64 {
        self.manifest.n_documents
    }

    /// Number of rows of `seq_len` inputs, each with the one target behind it: row `r` starts at token `r * seq_len`.
    pub fn n_rows(&self, seq_len: usize) -> u64 {
        self.n_tokens().saturating_sub(1) / (seq_len as u64).max(1)
    }

    /// Fills `out` with the tokens from `start` on.
    pub fn read<T: Token>(&self, start: u64, out: &mut [T]) -> Result<()> {
        check_width::<T>(self.spec.dtype)?;
        let mut bytes = vec![0; out.len() * self.spec.dtype.size()];
        self.read_bytes(start, &mut bytes)?;
        widen(self.spec.dtype, &bytes, out);
        Ok(())
    }

    /// Fills `out` with the tokens from `start` on, as stored.
    pub fn read_bytes(&self, start: u64, out: &mut [u8]) -> Result<()> {
        let size = self.spec.dtype.size();
        let n = (out.len() / size) as u64;
        if start.checked_add(n).is_none_or(|end| end > self.n_tokens()) {
            let has = self.n_tokens();
            return Err(Error::Argument(format!("tokens {start} to {start}+{n} are not in the dataset of {has}")));
        }
        let (mut at, mut rest) = (start, out);
        while !rest.is_empty() {
            let i = self.token_starts.partition_point(|&s| s <= at) - 1;
            let left = self.token_starts[i + 1] - at;
            let n = rest.len().min(usize::try_from(left).unwrap_or(usize::MAX).saturating_mul(size));
            let (now, later) = rest.split_at_mut(n);
            self.shard(i)?.token_bytes(at - self.token_starts[i], now)?;
            at += (n / size) as u64;
            rest = later;
        }
        Ok(())
    }

    /// Fills `out` with whether each token from `start` on is to be predicted; without loss bits, all are.
    pub fn loss_bits(&self, start: u64, out: &mut [bool]) -> Result<()> {
        let n = out.len();
        if start.checked_add(n as u64).is_none_or(|end| end > self.n_tokens()) {
            let has = self.n_tokens();
            return Err(Error::Argument(format!("tokens {start} to {start}+{n} are not in the dataset of {has}")));
        }
        if !self.has_loss_bits() {
            out.fill(true);
            return Ok(());
        }
        let (mut at, mut rest) = (start, out);
        while !rest.is_empty() {
            let i = self.token_starts.partition_point(|&s| s <= at) - 1;
            let left = self.token_starts[i + 1] - at;
            let (now, later) = rest.split_at_mut(rest.len().min(usize::try_from(left).unwrap_or(usize::MAX)));
            self.shard(i)?.loss_bits(at - self.token_starts[i], now)?;
            at += now.len() as u64;
            rest = later;
        }
        Ok(())
    }

    /// Writes `ignored` over those of `targets`, the tokens from `start` on, that are not to be predicted.
    pub(crate) fn mask_targets<T: Copy>(&self, start: u64, targets: &mut [T], ignored: T) -> Result<()> {
        if !self.has_loss_bits() {
            return Ok(());
        }
        let mut bits = vec![false; targets.len()];
        self.loss_bits(start, &mut bits)?;
        for (target, bit) in targets.iter_mut().zip(bits) {
            *target = if bit { *target } else { ignored };
        }
        Ok(())
    }

    /// Fills `out` with the index of the document of each token from `start` on.
    pub fn doc_ids(&self, start: u64, out: &mut [u64]) -> Result<()> {
        let end = start.checked_add(out.len() as u64).filter(|&end| end <= self.n_tokens());
        let Some(end) = end else {
            let (n, has) = (out.len(), self.n_tokens());
            return Err(Error::Argument(format!("tokens {start} to {start}+{n} are not in the dataset of {has}")));
        };
        let mut at = start;
        while at < end {
            let i = self.token_starts.partition_point(|&s| s <= at) - 1;
            let stop = end.min(self.token_starts[i + 1]);
            let [from, to] = [at - start, stop - start].map(|x| x as usize);
            let shard = self.shard(i)?;
            shard_doc_ids(&shard, at - self.token_starts[i], self.document_starts[i], &mut out[from..to])?;
            at = stop;
        }
        Ok(())
    }

    /// The tokens of document `index`, its end-of-text id included.
    pub fn document(&self, index: u64) -> Result<Range<u64>> {
        if index >= self.n_documents() {
            let has = self.n_documents();
            return Err(Error::Argument(format!("expected a document below {has}, got {index}")));
        }
        let start = if index == 0 { 0 } else { self.document_end(index - 1)? };
        Ok(start..self.document_end(index)?)
    }

    /// Fills `out` with the ends of the documents from `first` on, each the position behind a last token.
    pub fn document_ends(&self, first: u64, out: &mut [u64]) -> Result<()> {
        let n = out.len() as u64;
        if first.checked_add(n).is_none_or(|end| end > self.n_documents()) {
            let has = self.n_documents();
            return Err(Error::Argument(format!("documents {first} to {first}+{n} are not in the dataset of {has}")));
        }
        let (mut at, mut rest) = (first, out);
        while !rest.is_empty() {
            let i = self.document_starts.partition_point(|&s| s <= at) - 1;
            let left = self.document_starts[i + 1] - at;
            let (now, later) = rest.split_at_mut(rest.len().min(usize::try_from(left).unwrap_or(usize::MAX)));
            let (shard, n_tokens) = (self.shard(i)?, self.token_starts[i + 1] - self.token_starts[i]);
            shard.document_ends(at - self.document_starts[i], now)?;
            if let Some(end) = now.iter().find(|&&end| end > n_tokens) {
                let reason = format!("a document ends at {end} of {n_tokens} tokens");
                return Err(Error::Format { path: shard.path().to_owned(), format: "shard", reason });
            }
            for end in now.iter_mut() {
                *end += self.token_starts[i];
            }
            at += now.len() as u64;
            rest = later;
        }
        Ok(())
    }

    fn document_end(&self, index: u64) -> Result<u64> {
        let mut end = [0];
        self.document_ends(index, &mut end)?;
        Ok(end[0])
    }

    /// The shard that token `at` is in, at once where shards are as long as the first.
    fn shard_at(&self, at: u64) -> usize {
        let len = self.token_starts.get(1).map_or(1, |&len| len.max(1));
        let guess = usize::try_from(at / len).unwrap_or(usize::MAX);
        let is_in =
            |i: usize| matches!(self.token_starts.get(i..), Some(&[start, end, ..]) if (start..end).contains(&at));
        if is_in(guess) { guess } else { self.token_starts.partition_point(|&s| s <= at).saturating_sub(1) }
    }

    /// Shard `i`, from the open ones when it is among them.
    ///
    /// Never waits for the lock, which a thread may hold that a fork has left behind: where one is just being added, the
    /// shard is opened for this call alone.
    fn shard(&self, i: usize) -> Result<Arc<Shard>> {
        let held = |open: &Vec<(usize, Arc<Shard>)>| open.iter().find(|(j, _)| *j == i).map(|(_, s)| Arc::clone(s));
        if let Some(shard) = self.open.try_read().ok().and_then(|open| held(&open)) {
            return Ok(shard);
        }
        let shard = Arc::new(self.open_shard(i)?);
        let Ok(mut open) = self.open.try_write() else { return Ok(shard) };
        if let Some(shard) = held(&open) {
            return Ok(shard); // another thread was faster, and its record of checked blocks is older
        }
        if open.len() == MAX_OPEN {
            open.swap_remove(i % MAX_OPEN);
        }
        open.push((i, Arc::clone(&shard)));
        Ok(shard)
    }

    /// Opens shard `i` and compares it with its entry.
    fn open_shard(&self, i: usize) -> Result<Shard> {
        let entry = &self.manifest.shards[i];
        let shard = Shard::open(&self.dir.join(&entry.name))?;
        let got = crate::manifest::Entry::new(entry.name.clone(), shard.header(), shard.blake3());
        if got.blake3 != entry.blake3 {
            let (path, expected) = (shard.path().to_owned(), entry.blake3.clone());
            return Err(Error::Digest { path, what: "trailer".to_owned(), expected, got: hex(shard.blake3()) });
        }
        if got != *entry || shard.header().spec != self.spec {
            let reason = "its header does not say what the manifest says of it".to_owned();
            return Err(Error::Format { path: shard.path().to_owned(), format: "shard", reason });
        }
        Ok(shard)
    }
}

/// The shards that a reader of many rows holds, so that a row changes no count of references: a processor does that only
/// when all that it has stored before is stored, which takes as long as the row.
#[derive(Debug)]
pub(crate) struct Held {
    shards: Vec<(usize, Arc<Shard>)>,
    /// Where the shard whose index ends in these bits was found last: a search would mispredict its end.
    slots: [u8; N_SLOTS],
}

/// A power of two, more than shards are held.
const N_SLOTS: usize = 64;

impl Default for Held {
    fn default() -> Self {
        Self { shards: Vec::new(), slots: [0; N_SLOTS] }
    }
}

/// Where tokens begin in a shard that is held.
#[derive(Clone, Copy)]
pub(crate) struct Spot {
    slot: usize,
    start: u64,
}

impl Held {
    /// Lets all go where they are too many to be looked through.
    pub(crate) fn make_room(&mut self) {
        if self.shards.len() > MAX_HELD {
            self.shards.clear();
        }
    }

    /// Where the `n` tokens from `start` on begin; `None` where no shard has them all.
    pub(crate) fn spot(&mut self, dataset: &Dataset, start: u64, n: usize) -> Result<Option<Spot>> {
        let i = dataset.shard_at(start);
        if dataset.token_starts.get(i + 1).is_none_or(|&end| start.saturating_add(n as u64) > end) {
            return Ok(None);
        }
        let is_there = |slot: usize| self.shards.get(slot).is_some_and(|(j, _)| *j == i);
        let last = usize::from(self.slots[i % N_SLOTS]);
        let slot = if is_there(last) { last } else { self.find(dataset, i)? };
        Ok(Some(Spot { slot, start: start - dataset.token_starts[i] }))
    }

    /// The slot of shard `i`, which is opened if it is not held yet.
    #[cold]
    fn find(&mut self, dataset: &Dataset, i: usize) -> Result<usize> {
        let slot = if let Some(slot) = self.shards.iter().position(|(j, _)| *j == i) {
            slot
        } else {
            self.shards.push((i, dataset.shard(i)?));
            self.shards.len() - 1
        };
        // Where more are held than a byte counts, the search goes on to find it.
        self.slots[i % N_SLOTS] = u8::try_from(slot).unwrap_or(0);
        Ok(slot)
    }

    /// The `n` tokens from `start` on, at `spot`, as stored: in place where they are mapped.
    pub(crate) fn bytes(&self, dataset: &Dataset, spot: Option<Spot>, start: u64, n: usize) -> Result<Cow<'_, [u8]>> {
        if let Some(Spot { slot, start }) = spot
            && let Some(bytes) = self.shards[slot].1.mapped_tokens(start, n)?
        {
            return Ok(Cow::Borrowed(bytes));
        }
        let mut bytes = vec![0; n * dataset.spec.dtype.size()];
        dataset.read_bytes(start, &mut bytes)?;
        Ok(Cow::Owned(bytes))
    }
}

/// The documents of a shard's tokens from `start` on; `base` is the index of the first that ends in it.
fn shard_doc_ids(shard: &Shard, start: u64, base: u64, out: &mut [u64]) -> Result<()> {
    const AT_ONCE: u64 = 512;
    let n_documents = shard.header().n_documents;
    let mut document = shard.documents_before(start)?;
    let mut ends: Vec<u64> = Vec::new();
    let mut first = document; // the document of ends[0]
    for (token, id) in (start..).zip(out) {
        loop {
            if document == first + ends.len() as u64 && document < n_documents {
                first = document;
                ends.resize((n_documents - first).min(AT_ONCE) as usize, 0);
                shard.document_ends(first, &mut ends)?;
            }
            match ends.get((document - first) as usize) {
                Some(&end) if end <= token => document += 1,
                _ => break,
            }
        }
        *id = base + document;
    }
    Ok(())
}
