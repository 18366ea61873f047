//! A trace tells what encoding does: the same ids, and the merges in the order of the textbook.

#![allow(clippy::unwrap_used)] // clippy.toml allows it in tests, but not in the functions that tests share

use std::collections::HashMap;

use gptrs_core::trace::{Merge, Origin};
use gptrs_core::{SpecialToken, Specials, Splitter, Tokenizer, Vocab, naive};
use proptest::prelude::*;

fn tokenizer(merges: &[(u32, u32)], specials: Vec<SpecialToken>) -> Tokenizer {
    Tokenizer::new(Vocab::from_merges(merges).unwrap(), Splitter::new("gpt2").unwrap(), specials).unwrap()
}

/// Looks at every pair again before each merge.
fn merge_by_hand(merges: &[(u32, u32)], piece: &[u8]) -> (Vec<Merge>, Vec<u32>) {
    let ranks: HashMap<_, _> = merges.iter().zip(0..).map(|(&pair, rank)| (pair, rank)).collect();
    let mut tokens: Vec<(usize, u32)> = piece.iter().map(|&byte| u32::from(byte)).enumerate().collect();
    let mut done = Vec::new();
    let rank_at = |tokens: &[(usize, u32)], i: usize| ranks.get(&(tokens[i].1, tokens[i + 1].1)).copied();
    while let Some((rank, i)) =
        (0..tokens.len() - 1).filter_map(|i| rank_at(&tokens, i).map(|rank: u32| (rank, i))).min()
    {
        let ((start, left), (middle, right)) = (tokens[i], tokens[i + 1]);
        let end = tokens.get(i + 2).map_or(piece.len(), |next| next.0);
        tokens[i].1 = 256 + rank;
        tokens.remove(i + 1);
        done.push(Merge { rank, span: (start, middle, end), left, right, product: 256 + rank });
    }
    (done, tokens.into_iter().map(|(_, id)| id).collect())
}

#[test]
fn the_lowest_rank_goes_first_and_the_leftmost_of_equals() {
    let merges = [(97, 97), (97, 98), (256, 257)]; // aa, ab, aaab
    let pieces = tokenizer(&merges, vec![]).trace(b"aaab a", Specials::None).unwrap();
    let merges: Vec<_> = pieces[0].merges.iter().map(|m| (m.rank, m.span, m.product)).collect();
    assert_eq!(merges, [(0, (0, 1, 2), 256), (1, (2, 3, 4), 257), (2, (0, 2, 4), 258)]);
    assert_eq!((pieces[0].span, &pieces[0].ids[..]), ((0, 4), &[258][..]));
    assert_eq!((pieces[1].span, &pieces[1].ids[..], pieces[1].merges.len()), ((4, 6), &[32, 97][..], 0));
}

#[test]
fn special_tokens_and_whole_tokens_have_no_merges() {
    let end = SpecialToken { text: "<end>".to_owned(), id: 257 };
    let with_special = tokenizer(&[(97, 98)], vec![end]);
    let pieces = with_special.trace(b"ab<end>", Specials::All).unwrap();
    assert_eq!(
        pieces.iter().map(|p| (p.span, p.origin)).collect::<Vec<_>>(),
        [((0, 2), Origin::Merges), ((2, 7), Origin::Special)]
    );
    assert_eq!(pieces[1].ids, [257]);
    let ordinary = with_special.trace(b"ab<end>", Specials::None).unwrap();
    assert_eq!(ordinary.iter().map(|p| p.origin).collect::<Vec<_>>(), [Origin::Merges; 4], "ab < end >");

    // abc can only be made from ab and c, but bc merges first.
    let mut tokens: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
    tokens.extend([&b"bc"[..], b"ab", b"abc"].map(<[u8]>::to_vec));
    let vocab = Vocab::from_tokens(&tokens, vec![(98, 99), (97, 98), (257, 99)], true).unwrap();
    let whole = Tokenizer::new(vocab, Splitter::new("gpt2").unwrap(), vec![]).unwrap();
    let pieces = whole.trace(b"abc abc", Specials::None).unwrap();
    assert_eq!((pieces[0].origin, &pieces[0].ids[..], pieces[0].merges.len()), (Origin::Whole, &[258][..], 0));
    assert_eq!((pieces[1].origin, pieces[1].merges.len()), (Origin::Merges, 1), "a space, a, bc");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn a_trace_has_the_ids_of_encoding_and_the_merges_of_the_textbook(
        words in prop::collection::vec(("[ab]{1,12}|[a-e]{1,9}", 1..5u64), 1..12),
        text in "[ab]{0,80}|[a-e \n]{0,60}",
    ) {
        let words: Vec<_> = words.into_iter().map(|(word, n)| (word.into_bytes(), n)).collect();
        let merges = naive::train(&words, 40, 1);
        let tokenizer = tokenizer(&merges, vec![]);
        let pieces = tokenizer.trace(text.as_bytes(), Specials::None).unwrap();
        let mut at = 0;
        for piece in &pieces {
            prop_assert_eq!(piece.span.0, at);
            at = piece.span.1;
            let (done, ids) = merge_by_hand(&merges, &text.as_bytes()[piece.span.0..at]);
            prop_assert_eq!(&piece.merges, &done);
            prop_assert_eq!(&piece.ids, &ids);
        }
        prop_assert_eq!(at, text.len());
        let ids: Vec<_> = pieces.into_iter().flat_map(|piece| piece.ids).collect();
        prop_assert_eq!(ids, tokenizer.encode_ordinary(text.as_bytes()).unwrap());
    }
}
