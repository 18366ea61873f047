//! `Trainer` and the count files.

use std::panic::resume_unwind;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use gptrs_core::count::file::{self, Header};
use gptrs_core::count::superwords::{self, Stages, Superwords};
use gptrs_core::count::{self as counting, WordCounts, join};
use gptrs_core::count_files::{count_files, count_task, for_each_batch};
use gptrs_core::parallel::resolve_threads;
use gptrs_core::ranges::Task;
use gptrs_core::split::Splitter;
use gptrs_core::train::{self, Recipe, Tie, superbpe};
use gptrs_core::{Control, Error, Result, Specials, WarmWords};
use numpy::PyArray1;
use numpy::prelude::*;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::call::{detached, py_err, watched};
use crate::text;
use crate::tokenizer::Tokenizer;

/// Runs of a count file that are handed over together.
const BATCH_RUNS: usize = 1 << 18;

/// Counts words of files and texts, then learns the merges; arguments are checked before any work.
#[pyclass(module = "gptrs._core")]
pub struct Trainer {
    splitter: Splitter,
    recipe: Recipe,
    base: Option<Arc<gptrs_core::Tokenizer>>,
    corpus: Corpus,
    n_documents: u64,
    /// Wall time of each kind of call.
    seconds: Vec<(&'static str, f64)>,
}

/// What was counted so far.
enum Corpus {
    Words(WordCounts),
    /// Runs of words; merges may cross their spaces from this vocabulary size on.
    Runs(usize, Superwords),
    /// After training with merges across spaces.
    Stages(usize, Stages),
    /// After a call that failed: what it counted is gone.
    Lost,
}

#[pymethods]
impl Trainer {
    #[new]
    #[pyo3(signature = (pattern, vocab_size, special_tokens, min_count, *, max_token_bytes=None, tie="id", base=None,
                        superbpe_from=None))]
    #[expect(clippy::too_many_arguments, reason = "the options of training")]
    fn new(
        py: Python<'_>,
        pattern: &str,
        vocab_size: usize,
        special_tokens: Vec<String>,
        min_count: u64,
        max_token_bytes: Option<usize>,
        tie: &str,
        base: Option<Py<Tokenizer>>,
        superbpe_from: Option<usize>,
    ) -> PyResult<Self> {
        let base = base.map(|base| Arc::clone(&base.get().0));
        detached(py, || {
            let tie = match tie {
                "id" => Tie::Id,
                "hf" => Tie::HuggingFace,
                _ => return Err(Error::Argument(format!("tie must be \"id\" or \"hf\", got {tie:?}"))),
            };
            let recipe = Recipe { vocab_size, special_tokens, min_count, max_token_bytes, tie };
            // Whatever the pattern, the base's ids are those of normal text.
            let own = base.as_ref().map(|base| base.splitter());
            let splitter = match own.filter(|own| own.pattern() == pattern) {
                Some(own) => own.clone(),
                None => Splitter::asked_for(pattern)?.with_normalizer(own.and_then(Splitter::normalizer)),
            };
            recipe.check(base.as_deref())?;
            let corpus = match superbpe_from {
                None => Corpus::Words(WordCounts::new()),
                Some(_) if base.is_some() => {
                    let message = "superbpe_from does not go with a base; hint: leave one of them out";
                    return Err(Error::Argument(message.to_owned()));
                }
                Some(transition) => {
                    superbpe::check(&recipe, transition)?;
                    Corpus::Runs(transition, Superwords::new(&splitter, superwords::DEFAULT_BUDGET)?)
                }
            };
            Ok(Self { splitter, recipe, base, corpus, n_documents: 0, seconds: Vec::new() })
        })
    }

    #[pyo3(signature = (paths, text_field, threads=0, progress=None))]
    fn add_files(
        &mut self,
        py: Python<'_>,
        paths: Vec<PathBuf>,
        text_field: &str,
        threads: usize,
        progress: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let splitter = self.splitter.clone();
        self.add(py, "count", progress, |corpus, control| match corpus {
            Corpus::Words(counts) => {
                let (new, n_documents) = count_files(&paths, text_field, &splitter, threads, control)?;
                counts.merge(new)?;
                Ok(n_documents)
            }
            corpus => {
                for_each_batch(&paths, text_field, control, |texts| corpus.runs()?.add_texts(texts, threads, control))
            }
        })
    }

    #[pyo3(signature = (texts, threads=0, progress=None))]
    fn add_texts(
        &mut self,
        py: Python<'_>,
        texts: &Bound<'_, PyAny>,
        threads: usize,
        progress: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let texts = text::texts(texts)?;
        let splitter = self.splitter.clone();
        self.add(py, "count", progress, |corpus, control| {
            if let Corpus::Words(counts) = corpus {
                counts.merge(counting::count_texts(&texts, &splitter, threads, control)?)?;
            } else {
                control.begin("count bytes", texts.iter().map(|text| text.as_ref().len() as u64).sum());
                corpus.runs()?.add_texts(&texts, threads, control)?;
            }
            Ok(texts.len() as u64)
        })
    }

    #[pyo3(signature = (paths, threads=0, progress=None))]
    fn add_counts(
        &mut self,
        py: Python<'_>,
        paths: Vec<PathBuf>,
        threads: usize,
        progress: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let splitter = self.splitter.clone();
        self.add(py, "read counts", progress, |corpus, control| {
            if let Some(normalizer) = splitter.normalizer() {
                return Err(Error::Argument(format!(
                    "count files hold text as it is, the base brings it into the form {} first; hint: train on the files",
                    normalizer.name()
                )));
            }
            let theirs = join::splitter(&paths)?;
            let ours = if let Corpus::Runs(_, runs) = &*corpus { runs.runs() } else { &splitter };
            if theirs.regex() != ours.regex() {
                return Err(Error::Argument(format!(
                    "the count files hold words cut by {:?}, expected {:?}; hint: leave the pattern out, or count with it",
                    theirs.pattern(),
                    ours.pattern()
                )));
            }
            if let Corpus::Words(counts) = corpus {
                let joined = join::read(&paths, control)?;
                counts.merge(joined.counts)?;
                return Ok(joined.n_documents);
            }
            let mut batch = WordCounts::new();
            let (n_documents, _) = join::for_each_word(&paths, control, |run, n| {
                batch.add(run, n)?;
                if batch.len() < BATCH_RUNS {
                    return Ok(());
                }
                corpus.runs()?.add_runs(&std::mem::take(&mut batch), threads, control)
            })?;
            corpus.runs()?.add_runs(&batch, threads, control)?;
            Ok(n_documents)
        })
    }

    #[getter]
    fn n_words(&self) -> usize {
        match &self.corpus {
            Corpus::Words(counts) => counts.len(),
            Corpus::Runs(_, runs) => runs.n_words(),
            Corpus::Stages(_, stages) => stages.word_counts.len(),
            Corpus::Lost => 0,
        }
    }

    #[getter]
    fn n_bytes(&self) -> u64 {
        match &self.corpus {
            Corpus::Words(counts) => counts.n_bytes(),
            Corpus::Runs(_, runs) => runs.n_bytes(),
            Corpus::Stages(_, stages) => stages.word_counts.n_bytes(),
            Corpus::Lost => 0,
        }
    }

    #[getter]
    fn n_documents(&self) -> u64 {
        self.n_documents
    }

    #[getter]
    fn seconds<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let seconds = PyDict::new(py);
        self.seconds.iter().try_for_each(|(stage, time)| seconds.set_item(stage, time))?;
        Ok(seconds)
    }

    #[pyo3(signature = (threads=0, progress=None))]
    fn finish(&mut self, py: Python<'_>, threads: usize, progress: Option<&Bound<'_, PyAny>>) -> PyResult<Tokenizer> {
        let start = Instant::now();
        if let Corpus::Runs(..) = self.corpus
            && let Corpus::Runs(transition, runs) = std::mem::replace(&mut self.corpus, Corpus::Lost)
        {
            self.corpus = Corpus::Stages(transition, detached(py, || runs.finish())?);
        }
        let (recipe, splitter, base) = (&self.recipe, &self.splitter, self.base.as_deref());
        let corpus = &self.corpus;
        let tokenizer = watched(py, progress, |control| match corpus {
            Corpus::Words(counts) => warm(counts, threads, || recipe.train(counts, splitter, base, threads, control)),
            Corpus::Stages(transition, stages) => {
                let train = || superbpe::train(recipe, *transition, stages, threads, control);
                warm(&stages.run_counts, threads, train)
            }
            Corpus::Runs(..) | Corpus::Lost => Err(lost()),
        })?;
        self.note("merge", start);
        Ok(Tokenizer(Arc::new(tokenizer)))
    }

    /// How often each id stands in the counted text; of a sample of it, where only a sample of the runs was kept.
    #[pyo3(signature = (tokenizer, threads=0, progress=None))]
    fn usage<'py>(
        &mut self,
        py: Python<'py>,
        tokenizer: &Tokenizer,
        threads: usize,
        progress: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyArray1<u64>>> {
        let start = Instant::now();
        let vocab = tokenizer.0.vocab();
        let counts = match &self.corpus {
            Corpus::Words(counts) => counts,
            Corpus::Stages(_, stages) => &stages.run_counts,
            Corpus::Runs(..) | Corpus::Lost => return Err(py_err(lost())),
        };
        let mut usage = watched(py, progress, |control| train::usage(counts, vocab, threads, control))?;
        usage.resize(tokenizer.0.vocab_size(), 0);
        self.note("measure", start);
        Ok(usage.into_pyarray(py))
    }
}

impl Trainer {
    /// Runs `work` on what was counted so far; what it counted is dropped with everything else when it fails.
    fn add(
        &mut self,
        py: Python<'_>,
        stage: &'static str,
        progress: Option<&Bound<'_, PyAny>>,
        work: impl FnOnce(&mut Corpus, &Control) -> Result<u64> + Send,
    ) -> PyResult<()> {
        let start = Instant::now();
        let mut corpus = std::mem::replace(&mut self.corpus, Corpus::Lost);
        let n_documents = watched(py, progress, |control| work(&mut corpus, control))?;
        self.corpus = corpus;
        self.n_documents = self.n_documents.saturating_add(n_documents);
        self.note(stage, start);
        Ok(())
    }

    fn note(&mut self, stage: &'static str, start: Instant) {
        let seconds = start.elapsed().as_secs_f64();
        match self.seconds.iter_mut().find(|(known, _)| *known == stage) {
            Some((_, sum)) => *sum += seconds,
            None => self.seconds.push((stage, seconds)),
        }
    }
}

impl Corpus {
    fn runs(&mut self) -> Result<&mut Superwords> {
        if let Self::Runs(_, runs) = self { Ok(runs) } else { Err(lost()) }
    }
}

/// The tokenizer that `train` makes, with the most frequent of the words that it will be asked for. Merges are one
/// thread's work; with several, another one looks for the words meanwhile.
fn warm(
    counts: &WordCounts,
    threads: usize,
    train: impl FnOnce() -> Result<gptrs_core::Tokenizer>,
) -> Result<gptrs_core::Tokenizer> {
    let words = || WarmWords::most_frequent(counts, WarmWords::DEFAULT_LEN);
    if resolve_threads(threads) == 1 {
        return Ok(train()?.with_warm_words(words()));
    }
    thread::scope(|scope| {
        let words = scope.spawn(words);
        let tokenizer = train()?;
        Ok(tokenizer.with_warm_words(words.join().unwrap_or_else(|panic| resume_unwind(panic))))
    })
}

fn lost() -> Error {
    let message = "this trainer has no counts: an earlier call failed or training is over; hint: start a new one";
    Error::Argument(message.to_owned())
}

/// Counts the words of files, or their runs of words, into a count file.
#[pyfunction]
#[pyo3(signature = (paths, out, *, pattern, text_field, superwords=false, task=None, threads=0, progress=None))]
#[expect(clippy::too_many_arguments, reason = "the options of counting")]
pub fn count<'py>(
    py: Python<'py>,
    paths: Vec<PathBuf>,
    out: PathBuf,
    pattern: &str,
    text_field: &str,
    superwords: bool,
    task: Option<(u64, u64)>,
    threads: usize,
    progress: Option<&Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyDict>> {
    let header = watched(py, progress, |control| {
        let words = Splitter::asked_for(pattern)?;
        let splitter = if superwords { Splitter::new(&superwords::run_pattern(&words)?)? } else { words };
        let (counts, n_documents) = match task {
            Some((index, of)) => count_task(&paths, text_field, &splitter, Task::new(index, of)?, threads, control)?,
            None => count_files(&paths, text_field, &splitter, threads, control)?,
        };
        file::write(&out, &counts, n_documents, &splitter, control)
    })?;
    facts(py, &header)
}

/// Adds count files up into one.
#[pyfunction]
#[pyo3(signature = (paths, out, progress=None))]
pub fn merge_counts<'py>(
    py: Python<'py>,
    paths: Vec<PathBuf>,
    out: PathBuf,
    progress: Option<&Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyDict>> {
    let header = watched(py, progress, |control| join::join(&paths, &out, control))?;
    facts(py, &header)
}

/// The pattern that all these count files share.
#[pyfunction]
pub fn count_pattern(py: Python<'_>, paths: Vec<PathBuf>) -> PyResult<String> {
    detached(py, || join::splitter(&paths).map(|splitter| splitter.pattern().to_owned()))
}

fn facts<'py>(py: Python<'py>, header: &Header) -> PyResult<Bound<'py, PyDict>> {
    let facts = PyDict::new(py);
    facts.set_item("pattern", header.pattern())?;
    let numbers = [header.n_words, header.n_pieces, header.n_bytes, header.n_documents];
    for (name, number) in ["n_words", "n_pieces", "n_bytes", "n_documents"].iter().zip(numbers) {
        facts.set_item(name, number)?;
    }
    Ok(facts)
}

/// Bytes, ids and documents of files.
#[pyfunction]
#[pyo3(signature = (tokenizer, paths, text_field, threads=0, progress=None))]
pub fn measure(
    py: Python<'_>,
    tokenizer: &Tokenizer,
    paths: Vec<PathBuf>,
    text_field: &str,
    threads: usize,
    progress: Option<&Bound<'_, PyAny>>,
) -> PyResult<(u64, u64, u64)> {
    watched(py, progress, |control| {
        let (mut n_bytes, mut n_ids) = (0, 0);
        let n_documents = for_each_batch(&paths, text_field, control, |texts| {
            n_bytes += texts.iter().map(|text| text.as_ref().len() as u64).sum::<u64>();
            n_ids += tokenizer.0.encode_batch(texts, Specials::None, threads, control)?.ids.len() as u64;
            Ok(())
        })?;
        Ok((n_bytes, n_ids, n_documents))
    })
}
