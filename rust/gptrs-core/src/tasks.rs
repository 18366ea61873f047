//! Texts to tasks for threads.
//!
//! Short texts are gathered into a task; a long one is cut where cutting changes nothing: at [`Splitter::safe_cut`] and
//! at the end of a special token. A custom pattern has no such places, see [`crate::guess`].
//!
//! [`Splitter::safe_cut`]: crate::split::Splitter::safe_cut

use crate::batch::How;
use crate::tokenizer::Tokenizer;

/// Bytes of text that one task takes, so that a task outweighs its hand-out.
pub(crate) const TASK_BYTES: usize = 256 << 10;

/// The texts `first..last` whole, or the range `start..end` of the text `first`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Task {
    pub(crate) first: usize,
    pub(crate) last: usize,
    pub(crate) start: usize,
    pub(crate) end: usize,
    /// The range is a [`Guess`](crate::guess::Guess); its text is this one of those that are known to be UTF-8.
    pub(crate) guess: Option<usize>,
}

impl Task {
    pub(crate) fn whole(first: usize, last: usize) -> Self {
        Self { first, last, start: 0, end: usize::MAX, guess: None }
    }
}

/// What to do, and the texts that guesses are about.
#[derive(Default)]
pub(crate) struct Plan<'t> {
    pub(crate) tasks: Vec<Task>,
    pub(crate) valid: Vec<&'t str>,
}

impl Tokenizer {
    /// Gathers short texts into tasks of about [`TASK_BYTES`] and, for several threads, cuts long ones.
    pub(crate) fn plan<'t, T: AsRef<[u8]>>(&self, texts: &'t [T], how: &How, threads: usize) -> Plan<'t> {
        let is_cut = threads > 1 && self.may_cut(how);
        let (mut plan, mut first, mut n_bytes) = (Plan::default(), 0, 0);
        for (i, text) in texts.iter().enumerate() {
            let text = text.as_ref();
            if is_cut && text.len() >= 2 * TASK_BYTES {
                if i > first {
                    plan.tasks.push(Task::whole(first, i));
                }
                self.cut(text, i, how, threads, &mut plan);
                (first, n_bytes) = (i + 1, 0);
                continue;
            }
            n_bytes += text.len();
            if n_bytes >= TASK_BYTES || i + 1 == texts.len() {
                plan.tasks.push(Task::whole(first, i + 1));
                (first, n_bytes) = (i + 1, 0);
            }
        }
        plan
    }

    /// Cuts the text `i` into ranges of about [`TASK_BYTES`], never inside a special token that is looked for.
    fn cut<'t>(&self, text: &'t [u8], i: usize, how: &How, threads: usize, plan: &mut Plan<'t>) {
        let mut special = how.finder.find(text, 0);
        let is_plain = how.dropout.is_none() && self.splitter().normalizer().is_none();
        if self.splitter().is_custom()
            && special.is_none()
            && is_plain
            && let Ok(valid) = std::str::from_utf8(text)
        {
            return cut_anywhere(valid, i, threads, plan);
        }
        let mut start = 0;
        while start < text.len() {
            let mut end = text.len();
            if end - start >= 2 * TASK_BYTES {
                end = self.splitter().safe_cut(text, start + TASK_BYTES);
                // A special token ends the text before it: behind it is a cut, inside it is none.
                while let Some(found) = special
                    && found.start < end
                {
                    if found.end >= start + TASK_BYTES {
                        end = found.end;
                        break;
                    }
                    special = how.finder.find(text, found.end);
                }
            }
            plan.tasks.push(Task { first: i, last: i + 1, start, end, guess: None });
            start = end;
        }
    }

    /// Whether a text may be cut at [`Splitter::safe_cut`](crate::split::Splitter::safe_cut) outside special tokens: not
    /// where one is known by what stands around it, nor where the draws of dropout follow the normalized text.
    fn may_cut(&self, how: &How) -> bool {
        how.finder.is_plain() && (how.dropout.is_none() || self.splitter().normalizer().is_none())
    }
}

/// Cuts the text `i` between any two characters, for guesses: some for each thread, as the engine may look far ahead.
fn cut_anywhere<'t>(text: &'t str, i: usize, threads: usize, plan: &mut Plan<'t>) {
    let guess = Some(plan.valid.len());
    plan.valid.push(text);
    let size = TASK_BYTES.max(text.len() / (8 * threads));
    let mut start = 0;
    while start < text.len() {
        let end = (start + size..text.len()).find(|&end| text.is_char_boundary(end)).unwrap_or(text.len());
        plan.tasks.push(Task { first: i, last: i + 1, start, end, guess });
        start = end;
    }
}
