//! What must hold for every vocabulary and every text: the fast paths equal the textbook, and nothing is lost.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "fixtures/random.rs"]
mod random;

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gptrs_core::naive::{self, Pair};
use gptrs_core::{Control, Ids, Specials, Splitter, Tokenizer, Vocab};
use random::Random;

const PATTERNS: [&str; 2] = ["gpt2", "cl100k_base"];

const ALPHABETS: [&[u8]; 4] = [b"ab", b"abc ", b"ei'st \n0", "aé\u{4e2d}\u{1f600}".as_bytes()];

const CHARS: [char; 20] = [
    'a',
    'b',
    'Z',
    'ſ',
    'é',
    '\u{301}',
    '中',
    '\u{1f600}',
    '١',
    '7',
    ' ',
    ' ',
    '\n',
    '\r',
    '\u{a0}',
    '\u{3000}',
    '\'',
    's',
    '!',
    '_',
];

impl Random {
    fn of<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    fn bytes(&mut self, n: usize, alphabet: &[u8]) -> Vec<u8> {
        (0..n).map(|_| self.of(alphabet)).collect()
    }

    /// One of: letters of an alphabet, any bytes, Unicode, a long repeat, Unicode cut and damaged.
    fn text(&mut self) -> Vec<u8> {
        let n = self.below(200);
        match self.below(5) {
            0 => {
                let alphabet = self.of(&ALPHABETS);
                self.bytes(n, alphabet)
            }
            1 => (0..n).map(|_| self.next() as u8).collect(),
            2 => self.unicode(n),
            3 => {
                let len = 1 + self.below(4);
                let alphabet = self.of(&ALPHABETS);
                self.bytes(len, alphabet).repeat(1 + n / len)
            }
            _ => {
                let mut text = self.unicode(n + 1);
                for _ in 0..=n / 20 {
                    let at = self.below(text.len());
                    text[at] = self.next() as u8;
                }
                text.truncate(self.below(text.len()) + 1);
                text
            }
        }
    }

    fn unicode(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| self.of(&CHARS)).collect::<String>().into_bytes()
    }

    /// Merges of a few words over a small alphabet.
    fn merges(&mut self) -> Vec<Pair> {
        let alphabet = self.of(&ALPHABETS);
        let words: Vec<_> = (0..=self.below(12))
            .map(|_| {
                let n = 1 + self.below(24);
                (self.bytes(n, alphabet), 1 + self.below(5) as u64)
            })
            .collect();
        naive::train(&words, self.below(60), 1)
    }
}

fn tokenizer(merges: &[Pair], pattern: &str) -> Tokenizer {
    Tokenizer::new(Vocab::from_merges(merges).unwrap(), Splitter::new(pattern).unwrap(), Vec::new()).unwrap()
}

/// The textbook's ids, every distinct piece encoded once.
struct Oracle {
    ranked: Vec<(Pair, u32)>,
    byte_ids: [u32; 256],
    seen: HashMap<Vec<u8>, Vec<u32>>,
}

impl Oracle {
    fn new(merges: &[Pair]) -> Self {
        let ranked = merges.iter().zip(256..).map(|(&pair, id)| (pair, id)).collect();
        Self { ranked, byte_ids: std::array::from_fn(|b| b as u32), seen: HashMap::new() }
    }

    fn encode(&mut self, text: &[u8], splitter: &Splitter) -> Vec<u32> {
        let Self { ranked, byte_ids, seen } = self;
        let mut ids = Vec::new();
        let split = splitter.for_each_piece(text, |piece| {
            let encoded = seen.entry(piece.to_vec()).or_insert_with(|| naive::encode_piece(piece, byte_ids, ranked));
            ids.extend_from_slice(encoded);
            Ok(())
        });
        split.unwrap();
        ids
    }
}

fn widen(ids: Ids) -> Vec<u32> {
    match ids {
        Ids::U16(ids) => ids.into_iter().map(u32::from).collect(),
        Ids::U32(ids) => ids,
    }
}

/// Many distinct words, short and long ones, each some times.
fn wordy(rng: &mut Random, n: usize) -> Vec<u8> {
    let mut text = String::new();
    for i in 0..n {
        let word = if rng.below(4) == 0 { rng.below(200) } else { i };
        write!(text, " {}", "abcdefgh".repeat(1 + word % 5)).unwrap();
        for shift in [0, 3, 6, 9, 12] {
            text.push(char::from(b'a' + (word >> shift & 7) as u8));
        }
    }
    text.into_bytes()
}

#[test]
fn encoding_equals_the_textbook_and_decodes_to_the_text() {
    let mut rng = Random(1);
    for round in 0..60 {
        let merges = rng.merges();
        let mut oracle = Oracle::new(&merges);
        for pattern in PATTERNS {
            let tokenizer = Arc::new(tokenizer(&merges, pattern));
            for _ in 0..20 {
                let text = rng.text();
                let ids = tokenizer.encode_ordinary(&text).unwrap();
                let shown = text.escape_ascii();
                assert_eq!(ids, oracle.encode(&text, tokenizer.splitter()), "round {round}, {pattern}: {shown}");
                assert_eq!(tokenizer.decode_bytes(&ids).unwrap(), text, "round {round}, {pattern}");
                check_spans(&tokenizer, &text, &ids);
                check_stream(&tokenizer, &text, &ids);
            }
        }
    }
}

fn check_spans(tokenizer: &Tokenizer, text: &[u8], ids: &[u32]) {
    let (same, spans) = tokenizer.encode_with_offsets(text).unwrap();
    assert_eq!(same, ids);
    assert_eq!(spans.len(), ids.len());
    let mut at = 0;
    for (&(start, end), &id) in spans.iter().zip(ids) {
        assert_eq!(start, at);
        assert_eq!(Some(&text[start..end]), tokenizer.token_bytes(id));
        at = end;
    }
    assert_eq!(at, text.len());
    assert_eq!(tokenizer.count(text).unwrap(), ids.len());
}

fn check_stream(tokenizer: &Arc<Tokenizer>, text: &[u8], ids: &[u32]) {
    let mut decoder = tokenizer.decoder();
    let mut streamed: String = ids.iter().map(|&id| decoder.push(id).unwrap()).collect();
    streamed.push_str(&decoder.finish());
    assert_eq!(streamed, String::from_utf8_lossy(text), "{}", text.escape_ascii());
}

#[test]
fn ids_drawn_at_random_stream_to_the_lossy_text_of_their_bytes() {
    let mut rng = Random(2);
    for _ in 0..40 {
        let merges = rng.merges();
        let tokenizer = Arc::new(tokenizer(&merges, "gpt2"));
        for _ in 0..40 {
            let n = rng.below(40);
            let ids: Vec<_> = (0..n).map(|_| rng.below(tokenizer.vocab_size()) as u32).collect();
            check_stream(&tokenizer, &tokenizer.decode_bytes(&ids).unwrap(), &ids);
        }
    }
}

#[test]
fn a_batch_equals_its_texts_one_by_one_on_any_number_of_threads() {
    let mut rng = Random(3);
    let merges = rng.merges();
    // Far above what one task and one thread get; empty texts among them.
    let mut texts: Vec<_> = (0..300).map(|_| rng.text()).collect();
    texts.extend((0..120).map(|i| wordy(&mut rng, if i % 7 == 0 { 0 } else { 500 })));
    texts.push(wordy(&mut rng, 20_000));
    texts.push(Vec::new());
    for pattern in PATTERNS {
        let tokenizer = tokenizer(&merges, pattern);
        let single: Vec<_> = texts.iter().map(|text| tokenizer.encode_ordinary(text).unwrap()).collect();
        for threads in [1, 2, 3, 8] {
            let encoded = tokenizer.encode_batch(&texts, Specials::None, threads, &Control::new()).unwrap();
            let ids = widen(encoded.ids);
            assert_eq!(encoded.offsets.len(), texts.len() + 1);
            assert_eq!(encoded.offsets.last(), Some(&(ids.len() as i64)));
            for (i, (range, single)) in encoded.offsets.windows(2).zip(&single).enumerate() {
                assert_eq!(&ids[range[0] as usize..range[1] as usize], single, "text {i}, {threads} threads");
            }
        }
    }
}

#[test]
fn the_size_of_the_cache_is_never_seen() {
    let mut rng = Random(4);
    let mut text = wordy(&mut rng, 20_000);
    for _ in 0..200 {
        text.extend(rng.text());
    }
    for _ in 0..4 {
        let merges = rng.merges();
        for pattern in PATTERNS {
            let splitter = Splitter::new(pattern).unwrap();
            let expected = Oracle::new(&merges).encode(&text, &splitter);
            for cache_bytes in [0, 1, 1 << 10, 1 << 14, 64 << 20] {
                let tokenizer = tokenizer(&merges, pattern).with_cache_bytes(cache_bytes);
                for _ in 0..2 {
                    assert!(tokenizer.encode_ordinary(&text).unwrap() == expected, "{pattern}, {cache_bytes} bytes");
                }
            }
        }
    }
}

/// Merges that make long runs of letters, so that one piece has much to merge.
fn run_merges() -> Vec<Pair> {
    let words = [b"a".repeat(64), b"ab".repeat(40), b"abc".repeat(11), b"aab".repeat(9)];
    naive::train(&words.map(|word| (word, 1)), 40, 1)
}

#[test]
fn pieces_around_every_threshold_equal_the_textbook() {
    let merges = run_merges();
    let mut oracle = Oracle::new(&merges);
    for pattern in PATTERNS {
        let tokenizer = tokenizer(&merges, pattern);
        for unit in [&b"a"[..], b"ab", b"ba", b"abc", b"aab"] {
            for n in 0..=300 {
                let text: Vec<u8> = unit.iter().copied().cycle().take(n).collect();
                let expected = oracle.encode(&text, tokenizer.splitter());
                // The second time the piece comes out of the cache where it is short enough for one.
                for _ in 0..2 {
                    assert_eq!(tokenizer.encode_ordinary(&text).unwrap(), expected, "{pattern}: {n} bytes of {unit:?}");
                }
            }
        }
    }
}

/// Windows that join, windows that do not, and the way from one to the other and back.
#[test]
fn long_pieces_of_random_letters_and_runs_equal_the_textbook() {
    let mut rng = Random(13);
    for turn in 0..60 {
        let merges = if turn % 3 == 0 { run_merges() } else { rng.merges() };
        let mut oracle = Oracle::new(&merges);
        let tokenizer = tokenizer(&merges, "gpt2");
        for _ in 0..6 {
            let mut text = Vec::new();
            for _ in 0..=rng.below(6) {
                let (n, alphabet) = (rng.below(600), rng.of(&ALPHABETS));
                let n_unit = 1 + rng.below(3);
                let unit = rng.bytes(n_unit, alphabet);
                text.extend(rng.bytes(n, alphabet));
                text.extend(unit.repeat(rng.below(300) / unit.len()));
            }
            let expected = oracle.encode(&text, tokenizer.splitter());
            assert_eq!(tokenizer.encode_ordinary(&text).unwrap(), expected, "turn {turn}");
        }
    }
}

#[test]
fn a_long_piece_takes_little_more_than_linear_time() {
    let merges = run_merges();
    for pattern in PATTERNS {
        let tokenizer = tokenizer(&merges, pattern);
        for unit in [&b"a"[..], b"ab"] {
            for n in [100_000, 1_000_000] {
                let text: Vec<u8> = unit.iter().copied().cycle().take(n).collect();
                // The best of three: the machine may be busy. Quadratic time would be hours.
                let mut best = Duration::MAX;
                for _ in 0..3 {
                    let start = Instant::now();
                    let ids = tokenizer.encode_ordinary(&text).unwrap();
                    best = best.min(start.elapsed());
                    assert!(tokenizer.decode_bytes(&ids).unwrap() == text);
                    assert!(ids.len() < n / 8, "{} ids", ids.len());
                }
                assert!(best < Duration::from_secs(2), "{pattern}: {n} bytes of {unit:?} took {best:?}");
            }
        }
    }
}
