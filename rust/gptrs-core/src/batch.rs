//! Many texts, or one long one, on all threads.
//!
//! ```text
//! texts    ─ cut (tasks.rs) ─▶ tasks ─ encode (threads) ─▶ ids of a task ─ move in order ─▶ one array
//! one text ─ cut (guess.rs) ─▶ tasks ─ encode (threads) ─▶ each thread's ids ─ copy (threads) ─▶ one array
//! ```
//! The ids depend neither on the number of threads nor on who took which task.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use crate::cache::Cache;
use crate::control::Control;
use crate::dropout::Dropout;
use crate::encode::{Count, Sink};
use crate::error::{Error, Result};
use crate::guess::Guess;
use crate::ids::Ids;
use crate::kept::{self, Keep};
use crate::pages;
use crate::parallel;
use crate::special::{Chosen, Specials};
use crate::split::Splitter;
use crate::tasks::{Plan, TASK_BYTES, Task};
use crate::tokenizer::Tokenizer;

/// Below this many bytes a batch stays on the calling thread.
const PARALLEL_BYTES: usize = 64 << 10;

/// Texts up to this length are encoded together, up to so many bytes. This is a copy, but what it brings near is read at once.
pub(crate) const LONGEST_JOINED: usize = 32 << 10;
pub(crate) const JOINED_BYTES: usize = 128 << 10;

/// Room for the ids of a task; most need less.
const TASK_IDS: usize = TASK_BYTES / 2;

/// The ids of many texts in one array: text `i` has `ids[offsets[i]..offsets[i + 1]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// All ids in order of the texts.
    pub ids: Ids,
    /// One more than there are texts, from 0 to the number of ids.
    pub offsets: Vec<i64>,
}

/// What an encoding call may do and on how many threads.
#[derive(Debug, Clone, Copy)]
pub struct EncodeOptions<'a> {
    /// Special tokens that become their one id.
    pub allowed: Specials<'a>,
    /// Special tokens that are an error; `Specials::All` means all that are not allowed.
    pub disallowed: Specials<'a>,
    /// Skips merges at random, see [`Dropout`].
    pub dropout: Option<Dropout>,
    /// Threads to use; 0 means all cores. The ids do not depend on them.
    pub threads: usize,
}

impl Default for EncodeOptions<'_> {
    fn default() -> Self {
        Self { allowed: Specials::None, disallowed: Specials::None, dropout: None, threads: 0 }
    }
}

/// Where the ids of a thread go.
pub(crate) trait Store: Sink + Send {
    /// An empty one with room for `n` ids.
    fn with_room(n: usize) -> Self;

    fn n_ids(&self) -> usize;

    /// Moves the ids of another one behind its own.
    fn take_all(&mut self, other: &mut Self);
}

impl<I: Keep + Send> Store for Vec<I>
where
    Vec<I>: Sink,
{
    fn with_room(n: usize) -> Self {
        kept::with_room(n)
    }

    fn n_ids(&self) -> usize {
        self.len()
    }

    fn take_all(&mut self, other: &mut Self) {
        self.append(other);
    }
}

impl Store for Count {
    fn with_room(_: usize) -> Self {
        Self::default()
    }

    fn n_ids(&self) -> usize {
        self.0
    }

    fn take_all(&mut self, other: &mut Self) {
        self.0 += std::mem::take(&mut other.0);
    }
}

/// How every text of a batch is encoded.
pub(crate) struct How<'a> {
    pub(crate) finder: Chosen<'a>,
    pub(crate) dropout: Option<Dropout>,
    /// Whether texts may stand one behind the other.
    pub(crate) may_join: bool,
}

/// What a task made: a range of its thread's ids, and one of its thread's list of ids a text.
pub(crate) struct Part {
    pub(crate) task: usize,
    pub(crate) thread: usize,
    pub(crate) ids: Range<usize>,
    lengths: Range<usize>,
    pub(crate) guess: Option<Guess>,
}

/// The ids of tasks in their order. Each is moved here as soon as those before are, while its ids are still near: half of the
/// memory, most of it new to the process, that one array for each thread and a copy of all would take.
struct Joined<S> {
    store: S,
    /// The task whose ids come next.
    next: usize,
    /// Those of later ones.
    waiting: BTreeMap<usize, S>,
    /// Empty ones.
    spare: Vec<S>,
}

impl<S: Store> Joined<S> {
    fn with_room(n: usize) -> Self {
        Self { store: S::with_room(n), next: 0, waiting: BTreeMap::new(), spare: Vec::new() }
    }

    /// Takes the ids of a task, and leaves an empty store.
    fn take(&mut self, task: usize, ids: &mut S) {
        if task != self.next {
            let empty = self.spare.pop().unwrap_or_else(|| S::with_room(TASK_IDS));
            self.waiting.insert(task, std::mem::replace(ids, empty));
            return;
        }
        self.store.take_all(ids);
        self.next += 1;
        while let Some(mut ids) = self.waiting.remove(&self.next) {
            self.store.take_all(&mut ids);
            self.next += 1;
            self.spare.push(ids);
        }
    }
}

/// Where the ids of several texts go, and how many each has.
struct Counted<'a, S> {
    store: &'a mut S,
    lengths: &'a mut Vec<usize>,
    /// How many ids there were before the text under way.
    before: usize,
}

impl<S: Store> Sink for Counted<'_, S> {
    type Id = S::Id;

    #[inline]
    fn push_narrow(&mut self, ids: &[S::Id]) {
        self.store.push_narrow(ids);
    }

    #[inline]
    fn push(&mut self, ids: &[u32]) {
        self.store.push(ids);
    }

    fn end_text(&mut self) {
        let before = std::mem::replace(&mut self.before, self.store.n_ids());
        self.lengths.push(self.before - before);
    }
}

struct Worker<S> {
    cache: Cache,
    /// Short texts one behind the other, and where each ends.
    stream: Vec<u8>,
    ends: Vec<usize>,
    /// A custom pattern's, with scratch space of its own.
    splitter: Option<Splitter>,
    store: S,
    lengths: Vec<usize>,
    parts: Vec<Part>,
}

impl<S> Worker<S> {
    /// Puts the first of `texts` one behind the other, as long as they are short and few; how many, none if not several.
    fn fill_stream<T: AsRef<[u8]>>(&mut self, texts: &[T]) -> usize {
        let Self { stream, ends, .. } = self;
        let mut n_bytes = 0;
        let is_one = |text: &&T| {
            n_bytes += text.as_ref().len();
            text.as_ref().len() <= LONGEST_JOINED && n_bytes <= JOINED_BYTES
        };
        let n = texts.iter().take_while(is_one).count();
        stream.clear();
        ends.clear();
        for text in if n > 1 { &texts[..n] } else { &[] } {
            stream.extend_from_slice(text.as_ref());
            ends.push(stream.len());
        }
        ends.len()
    }
}

/// What all threads made; the parts stand in order of the tasks.
pub(crate) struct Made<S> {
    pub(crate) stores: Vec<S>,
    pub(crate) parts: Vec<Part>,
    /// The number of ids of text `i` at `i + 1`, then the sums.
    pub(crate) offsets: Vec<i64>,
}

impl Tokenizer {
    /// Encodes many texts on `threads` threads (0: all cores); the result does not depend on their number.
    ///
    /// Special tokens are ordinary text unless `allowed`.
    pub fn encode_batch<T: AsRef<[u8]> + Sync>(
        &self,
        texts: &[T],
        allowed: Specials,
        threads: usize,
        control: &Control,
    ) -> Result<Encoded> {
        self.encode_batch_with(texts, &EncodeOptions { allowed, threads, ..EncodeOptions::default() }, control)
    }

    /// Encodes many texts as `options` say.
    ///
    /// ```
    /// # use gptrs_core::{Control, EncodeOptions, Splitter, Tokenizer, Vocab};
    /// let tokenizer = Tokenizer::new(Vocab::from_merges(&[(97, 98)])?, Splitter::new("gpt2")?, vec![])?;
    /// let encoded = tokenizer.encode_batch_with(&["ab", "", "a"], &EncodeOptions::default(), &Control::new())?;
    /// assert_eq!((encoded.ids.iter().collect(), encoded.offsets), (vec![256, 97], vec![0, 1, 1, 2]));
    /// # Ok::<(), gptrs_core::Error>(())
    /// ```
    pub fn encode_batch_with<T: AsRef<[u8]> + Sync>(
        &self,
        texts: &[T],
        options: &EncodeOptions,
        control: &Control,
    ) -> Result<Encoded> {
        for (index, text) in texts.iter().enumerate() {
            let in_text = |error| match error {
                Error::SpecialToken { .. } => Error::InText { index, source: Box::new(error) },
                other => other,
            };
            self.refuse(text.as_ref(), options.allowed, options.disallowed).map_err(in_text)?;
        }
        self.encode_all(texts, options, control)
    }

    fn encode_all<T: AsRef<[u8]> + Sync>(
        &self,
        texts: &[T],
        options: &EncodeOptions,
        control: &Control,
    ) -> Result<Encoded> {
        let how = self.how(options)?;
        Ok(if self.vocab_size() <= 1 << 16 {
            let made = self.make::<Vec<u16>, T>(texts, &how, options.threads, control)?;
            let ids = gather(made.stores, &made.parts, options.threads, control)?;
            Encoded { ids: Ids::U16(ids), offsets: made.offsets }
        } else {
            let made = self.make::<Vec<u32>, T>(texts, &how, options.threads, control)?;
            let ids = gather(made.stores, &made.parts, options.threads, control)?;
            Encoded { ids: Ids::U32(ids), offsets: made.offsets }
        })
    }

    /// The ids of one text as `options` say; a long one is encoded by all threads.
    pub fn encode_with(&self, text: &[u8], options: &EncodeOptions, control: &Control) -> Result<Ids> {
        self.refuse(text, options.allowed, options.disallowed)?;
        Ok(self.encode_all(&[text], options, control)?.ids)
    }

    /// The number of ids of each text as ordinary text, without making them.
    pub fn count_batch<T: AsRef<[u8]> + Sync>(
        &self,
        texts: &[T],
        threads: usize,
        control: &Control,
    ) -> Result<Vec<i64>> {
        let how = self.how(&EncodeOptions::default())?;
        let made = self.make::<Count, T>(texts, &how, threads, control)?;
        Ok(made.offsets.windows(2).map(|pair| pair[1] - pair[0]).collect())
    }

    fn how(&self, options: &EncodeOptions) -> Result<How<'_>> {
        let dropout = options.dropout.filter(|dropout| !dropout.is_none());
        let is_plain = matches!(options.allowed, Specials::None) && dropout.is_none();
        let may_join = is_plain && self.splitter().normalizer().is_none() && self.splitter().is_scanned();
        Ok(How { finder: self.special_set().finder(options.allowed)?, dropout, may_join })
    }

    fn make<S: Store, T: AsRef<[u8]> + Sync>(
        &self,
        texts: &[T],
        how: &How,
        threads: usize,
        control: &Control,
    ) -> Result<Made<S>> {
        let n_bytes: usize = texts.iter().map(|text| text.as_ref().len()).sum();
        let threads = if n_bytes < PARALLEL_BYTES { 1 } else { parallel::resolve_threads(threads) };
        self.warm_up(n_bytes, threads, control)?;
        control.begin("encode bytes", n_bytes as u64);
        let plan = self.plan(texts, how, threads);
        let mut made = self.work(texts, how, &plan, threads, n_bytes, control)?;
        if !plan.valid.is_empty() && !self.settle(&plan.valid, &plan.tasks, &mut made, control)? {
            let plan = Plan { tasks: vec![Task::whole(0, texts.len())], valid: Vec::new() };
            made = self.work(texts, how, &plan, 1, n_bytes, control)?;
        }
        let mut end = 0;
        for offset in &mut made.offsets {
            end += *offset;
            *offset = end;
        }
        Ok(made)
    }

    fn work<S: Store, T: AsRef<[u8]> + Sync>(
        &self,
        texts: &[T],
        how: &How,
        Plan { tasks, valid }: &Plan,
        threads: usize,
        n_bytes: usize,
        control: &Control,
    ) -> Result<Made<S>> {
        // Most text has more than three bytes a token, and room that is not used costs nothing; growing an array on a
        // thread copies it.
        let n_each = n_bytes / threads.min(tasks.len()).max(1);
        let room = n_each + 16;
        // What is right of a guess is known in the end only.
        let is_joined = threads > 1 && tasks.len() > 1 && valid.is_empty();
        let joined = Mutex::new(Joined::with_room(if is_joined { n_bytes + 16 } else { 0 }));
        let room = if is_joined { TASK_IDS } else { room };
        let make = || Worker {
            cache: self.cache_for(n_each),
            stream: Vec::new(),
            ends: Vec::new(),
            splitter: self.splitter().is_custom().then(|| self.splitter().clone()),
            store: S::with_room(room),
            lengths: Vec::with_capacity(texts.len()),
            parts: Vec::with_capacity(tasks.len()),
        };
        let workers = parallel::run(threads, tasks.len(), control, make, |worker, index| {
            let Task { first, last, start, end, guess } = tasks[index];
            let (ids_start, lengths_start) = (worker.store.n_ids(), worker.lengths.len());
            let guess = if let (Some(text), Some(splitter)) = (guess, &worker.splitter) {
                Some(self.guess(splitter, valid[text], start..end, control, &mut worker.store)?)
            } else {
                let mut i = first;
                while i < last {
                    let n = if how.may_join { worker.fill_stream(&texts[i..last]) } else { 0 };
                    i += n;
                    if n > 0 {
                        self.encode_stream(worker, control)?;
                        continue;
                    }
                    let before = worker.store.n_ids();
                    let text = texts[i].as_ref();
                    let range = start..end.min(text.len());
                    self.encode_range(&mut worker.cache, text, i, range, how, control, &mut worker.store)?;
                    worker.lengths.push(worker.store.n_ids() - before);
                    i += 1;
                }
                None
            };
            let (ids, lengths) = (ids_start..worker.store.n_ids(), lengths_start..worker.lengths.len());
            worker.parts.push(Part { task: index, thread: 0, ids, lengths, guess });
            if is_joined {
                joined.lock().unwrap_or_else(PoisonError::into_inner).take(index, &mut worker.store);
            }
            Ok(())
        })?;
        let all = self.collect(workers, tasks, texts.len());
        let joined = joined.into_inner().unwrap_or_else(PoisonError::into_inner);
        Ok(if is_joined { Made { stores: vec![joined.store], ..all } } else { all })
    }

    /// Encodes the texts in the worker's stream.
    fn encode_stream<S: Store>(&self, worker: &mut Worker<S>, control: &Control) -> Result<()> {
        let Worker { cache, stream, ends, store, lengths, .. } = worker;
        let before = store.n_ids();
        self.encode_stretches(cache, stream, ends, control, &mut Counted { store, lengths, before })
    }

    /// Encodes the range of `text`, the text `index` of its batch; an id for each special token that is found.
    #[expect(clippy::too_many_arguments, reason = "what to encode, how, with what, where to")]
    pub(crate) fn encode_range<S: Sink>(
        &self,
        cache: &mut Cache,
        text: &[u8],
        index: usize,
        range: Range<usize>,
        how: &How,
        control: &Control,
        sink: &mut S,
    ) -> Result<()> {
        how.finder.for_each(
            &text[range.clone()],
            &mut (sink, range.start),
            |(sink, at), part| {
                match how.dropout {
                    Some(dropout) => self.encode_dropout(part, *at, index, dropout, control, *sink)?,
                    None => self.encode_stretch(cache, part, control, *sink)?,
                }
                *at += part.len();
                Ok(())
            },
            |(sink, at), found, bytes| {
                sink.push(&[found.id]);
                control.advance(bytes.len() as u64);
                *at += bytes.len();
            },
        )
    }

    /// Gives the caches back and joins what the threads noted.
    fn collect<S>(&self, workers: Vec<Worker<S>>, tasks: &[Task], n_texts: usize) -> Made<S> {
        let mut offsets = vec![0; n_texts + 1];
        let (mut stores, mut parts) = (Vec::with_capacity(workers.len()), Vec::with_capacity(tasks.len()));
        for (thread, worker) in workers.into_iter().enumerate() {
            self.give_back(worker.cache);
            stores.push(worker.store);
            for part in worker.parts {
                // What is right of a guess is not known yet, and it has no lengths.
                let texts = &mut offsets[tasks[part.task].first + 1..];
                for (n, &more) in texts.iter_mut().zip(&worker.lengths[part.lengths.clone()]) {
                    *n += more as i64;
                }
                parts.push(Part { thread, ..part });
            }
        }
        parts.sort_unstable_by_key(|part: &Part| part.task);
        Made { stores, parts, offsets }
    }
}

/// The ids of all parts in one array. One thread's are that array; those of several are copied by as many.
fn gather<I: Copy + Default + Send + Sync>(
    mut stores: Vec<Vec<I>>,
    parts: &[Part],
    threads: usize,
    control: &Control,
) -> Result<Vec<I>> {
    if stores.len() == 1 {
        let mut ids = stores.swap_remove(0);
        pages::fit(&mut ids);
        return Ok(ids);
    }
    let mut ids = pages::zeros(parts.iter().map(|part| part.ids.len()).sum());
    let (mut rest, mut places) = (ids.as_mut_slice(), Vec::with_capacity(parts.len()));
    for part in parts {
        let (place, later) = rest.split_at_mut(part.ids.len());
        places.push(Mutex::new(place));
        rest = later;
    }
    parallel::run(
        threads,
        parts.len(),
        control,
        || (),
        |(), i| {
            let Part { thread, ids, .. } = &parts[i];
            places[i].lock().unwrap_or_else(PoisonError::into_inner).copy_from_slice(&stores[*thread][ids.clone()]);
            Ok(())
        },
    )?;
    drop(places);
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_joined_in_the_order_of_tasks() {
        let mut joined = Joined::with_room(0);
        for task in [2_u32, 0, 4, 3, 1, 5] {
            // Tasks of no ids, too.
            let mut ids = vec![task; task as usize % 3];
            joined.take(task as usize, &mut ids);
            assert!(ids.is_empty(), "{task}");
        }
        assert_eq!((joined.store, joined.next), (vec![1, 2, 2, 4, 5, 5], 6));
        assert!(joined.waiting.is_empty());
    }
}
