//! Regular expressions of Oniguruma, Hugging Face's engine ⇄ those of fancy-regex.
//!
//! Both read most patterns alike. `\w` and `\b` differ in eight characters of Unicode 16: U+200C and U+200D belong to words
//! here, and ² ³ ¹ ¼ ½ ¾ in Oniguruma, though not to a `\w` inside brackets. So each engine gets the class of the other one
//! spelled out, and what was spelled out so is put back on the way back. The rest is named by [`reads_differently`].

/// `\w` of Oniguruma for fancy-regex, by itself and inside brackets, and `\w` of fancy-regex for Oniguruma, each without
/// its brackets.
const THEIR_WORD: &str = r"\w\x{B2}\x{B3}\x{B9}\x{BC}\x{BD}\x{BE}&&[^\x{200C}\x{200D}]";
const THEIR_WORD_INSIDE: &str = r"\w&&[^\x{200C}\x{200D}]";
const OUR_WORD: &str = r"\w\x{200C}\x{200D}";

/// The expression for fancy-regex that matches what `regex` matches in Oniguruma.
pub(crate) fn from_onig(regex: &str) -> String {
    translated(regex, &Words::new(OUR_WORD, OUR_WORD), &Words::new(THEIR_WORD, THEIR_WORD_INSIDE))
}

/// The expression for Oniguruma that matches what `regex` matches in fancy-regex. [`from_onig`] gives `regex` back.
pub(crate) fn to_onig(regex: &str) -> String {
    translated(regex, &Words::new(THEIR_WORD, THEIR_WORD_INSIDE), &Words::new(OUR_WORD, OUR_WORD))
}

/// The expression with each word class that is `spelled` out made short, and each short one as `other` has it.
fn translated(regex: &str, spelled: &Words, other: &Words) -> String {
    let mut out = String::with_capacity(regex.len());
    let (mut depth, mut rest) = (0_usize, regex);
    'next: while let Some(c) = rest.chars().next() {
        // In brackets \b is a backspace.
        let (short, spelled, other): (&[&str], _, _) = match depth {
            0 => (&[r"\b", r"\B", r"\w", r"\W"], spelled.outside.as_slice(), other.outside.as_slice()),
            _ => (&[r"\w", r"\W"], spelled.inside.as_slice(), other.inside.as_slice()),
        };
        for (i, &short) in short.iter().enumerate() {
            for (from, to) in [(spelled[i].as_str(), short), (short, other[i].as_str())] {
                if let Some(after) = rest.strip_prefix(from) {
                    out.push_str(to);
                    rest = after;
                    continue 'next;
                }
            }
        }
        let n = match c {
            '\\' => 1 + rest[1..].chars().next().map_or(0, char::len_utf8),
            _ => c.len_utf8(),
        };
        match c {
            '[' => depth += 1,
            ']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        out.push_str(&rest[..n]);
        rest = &rest[n..];
    }
    out
}

/// How an engine's word classes are spelled out.
struct Words {
    /// A border of a word and none, a character of a word and another one.
    outside: [String; 4],
    /// The last two in brackets.
    inside: [String; 2],
}

impl Words {
    fn new(outside: &str, inside: &str) -> Self {
        let word = format!("[{outside}]");
        let border = format!("(?:(?<={word})(?!{word})|(?<!{word})(?={word}))");
        let none = format!("(?:(?<={word})(?={word})|(?<!{word})(?!{word}))");
        Self {
            outside: [border, none, word, format!("[^{outside}]")],
            inside: [format!("[{inside}]"), format!("[^{inside}]")],
        }
    }
}

/// Why Oniguruma would cut differently; `None` when nothing speaks for it.
pub(crate) fn reads_differently(regex: &str) -> Option<&'static str> {
    let (mut depth, mut chars) = (0, regex.chars().peekable());
    let mut ignores_case = vec![false]; // in each group around this place
    while let Some(c) = chars.next() {
        let next = chars.peek().copied();
        match c {
            '\\' => {
                chars.next();
                let mut name = String::new();
                if chars.peek() == Some(&'{') {
                    name.extend(chars.by_ref().skip(1).take_while(|&c| c != '}'));
                }
                let is_of_one_case = ["Lu", "Ll", "Lt"].contains(&name.trim_start_matches('^'));
                if is_of_one_case && matches!(next, Some('p' | 'P')) && ignores_case.last() == Some(&true) {
                    return Some(
                        "\\p{Lu}, \\p{Ll} and \\p{Lt} keep their case in Oniguruma under (?i); hint: leave it out",
                    );
                }
            }
            '[' if depth > 0 && next == Some(':') => {
                return Some("[:name:] has ASCII alone here, all of Unicode in Oniguruma; hint: use \\p{...}");
            }
            '[' => depth += 1,
            ']' if depth > 0 => depth -= 1,
            _ if depth > 0 => {}
            '^' => return Some("^ is the start of every line in Oniguruma; hint: use \\A"),
            '$' => return Some("$ is the end of every line in Oniguruma; hint: use \\z"),
            '}' if next == Some('+') => return Some("{m,n}+ repeats in Oniguruma; hint: use (?>...{m,n})"),
            '(' => {
                let mut is_ignoring = ignores_case.last() == Some(&true);
                if next == Some('?') {
                    let flags: String =
                        chars.clone().skip(1).take_while(|c| c.is_ascii_alphabetic() || *c == '-').collect();
                    if flags.chars().any(|c| !matches!(c, 'i' | '-' | 'P')) {
                        return Some(
                            "flags other than (?i) have other meanings in Oniguruma; hint: write the pattern without",
                        );
                    }
                    if flags.contains('i') {
                        is_ignoring = !flags.split_once('-').is_some_and(|(_, off)| off.contains('i'));
                        let is_for_the_rest = chars.clone().nth(1 + flags.len()) == Some(')');
                        if let (true, Some(here)) = (is_for_the_rest, ignores_case.last_mut()) {
                            *here = is_ignoring;
                        }
                    }
                }
                ignores_case.push(is_ignoring);
            }
            ')' if ignores_case.len() > 1 => {
                ignores_case.pop();
            }
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use fancy_regex::Regex;

    use super::*;

    #[test]
    fn what_oniguruma_reads_differently_is_found_outside_classes_and_escapes() {
        let under_i = [r"(?i)a|\p{Lu}", r"(?i:'s|(a[\P{Ll}]))", r"(a(?i)\p{^Lt})b"];
        for regex in
            [r"\s+$", "^a", r"\p{N}{1,3}+", "(?s).", "(?m:.)", "[a]$", "[[:punct:]]+"].into_iter().chain(under_i)
        {
            assert!(reads_differently(regex).is_some(), "{regex}");
        }
        let cased = [r"(?i:'s)\p{Lu}", r"(a(?i)b)\p{Ll}", r"(?i:a(?-i:\p{Lu}))", r"(?i)\p{L}", r"(?i:\\p{Lu})"];
        for regex in [r"\$|\^|[$^]", r"[^\s]+\p{L}++", r"(?i:'s)|\p{L}{1,3}|a(?!\S)|(?>a{1,2})", "(?<!a)b"]
            .into_iter()
            .chain(cased)
        {
            assert!(reads_differently(regex).is_none(), "{regex}");
        }
    }

    #[test]
    fn word_classes_are_spelled_out_for_the_other_engine_and_put_back() {
        assert_eq!(from_onig(r"\\w\W"), format!(r"\\w[^{THEIR_WORD}]"));
        let border = &Words::new(THEIR_WORD, "").outside[0];
        assert_eq!(from_onig(r"[\w\b]\b"), format!(r"[[{THEIR_WORD_INSIDE}]\b]{border}"));
        assert_eq!(to_onig(r"\w[\W]"), format!(r"[{OUR_WORD}][[^{OUR_WORD}]]"));
        for regex in [r"\w+|[^\w\s]+|\W", r"\b\w\B[\W\b]|\\b|é\", "]\\w[", ""] {
            assert_eq!(from_onig(&to_onig(regex)), regex);
            assert_eq!(to_onig(&from_onig(regex)), regex);
        }
    }

    #[test]
    fn the_spelled_classes_differ_in_eight_characters() {
        let matches = |regex: &str| {
            let regex = Regex::new(regex).unwrap();
            ('\0'..=char::MAX).filter(|c| regex.is_match(&c.to_string()).unwrap()).collect::<BTreeSet<_>>()
        };
        let (ours, theirs) = (matches(r"\w"), matches(&from_onig(r"\w")));
        assert_eq!((&ours ^ &theirs).into_iter().collect::<String>(), "²³¹¼½¾\u{200C}\u{200D}");
        assert_eq!(matches(&from_onig(r"\W")).len() + theirs.len(), matches("(?s).").len());
        let inside = matches(&from_onig(r"[\w]"));
        assert_eq!((&ours ^ &inside).into_iter().collect::<String>(), "\u{200C}\u{200D}");
        assert_eq!(matches(&from_onig(r"[^\w]")).len() + inside.len(), matches("(?s).").len());
    }

    #[test]
    fn a_border_is_between_a_word_and_the_rest() {
        let borders = |regex: &str, text: &str| {
            let regex = Regex::new(&from_onig(regex)).unwrap();
            regex.find_iter(text).map(|found| found.unwrap().start()).collect::<Vec<_>>()
        };
        assert_eq!(borders(r"\b", "a²-b"), [0, 3, 4, 5]);
        assert_eq!(borders(r"\B", "a²-b"), [1]);
        assert_eq!(borders(r"\b", "a\u{200C}b"), [0, 1, 4, 5]);
    }
}
