//! Which fields of a JSON object make a document.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use crate::error::{Error, Result};

/// The name of a field that holds the text, or a template of several.
///
/// In a template a name in braces stands for the field's text, and two braces for one. What has no brace is a name.
///
/// ```
/// # use gptrs_core::corpus::{LinePosition, TextField, document};
/// let at = LinePosition { offset: 0, line: 1 };
/// let line = br#"{"title": "On hats", "stars": 3, "text": "Wear one."}"#;
/// let text = |field: &str| document(line, &TextField::new(field)?, at, "a.jsonl".as_ref()).map(String::from);
/// assert_eq!(text("text")?, "Wear one.");
/// assert_eq!(text("{title}\n{{{text}}}")?, "On hats\n{Wear one.}");
/// # Ok::<(), gptrs_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextField {
    /// The fields, each once.
    names: Vec<String>,
    /// Texts and, behind each, the number of a field, but for the last.
    parts: Vec<(String, Option<usize>)>,
    /// For each field whether its text is to be predicted.
    is_target: Vec<bool>,
}

/// A document and what of it is to be predicted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document<'t> {
    /// The text.
    pub text: Cow<'t, str>,
    /// The bytes of the fields that [`TextField::with_targets`] named, in order.
    pub targets: Vec<Range<usize>>,
}

impl TextField {
    /// Reads the name of a field, or a template.
    pub fn new(spelling: &str) -> Result<Self> {
        if !spelling.contains(['{', '}']) {
            let parts = vec![(String::new(), Some(0))];
            return Ok(Self { names: vec![spelling.to_owned()], parts, is_target: vec![false] });
        }
        let bad = |got: &str| {
            let expected = "expected field names in braces, and two braces for one";
            Error::Argument(format!("{expected}, in the template {spelling:?}, got {got}"))
        };
        let (mut names, mut parts, mut text, mut rest) = (Vec::new(), Vec::new(), String::new(), spelling);
        while let Some(at) = rest.find(['{', '}']) {
            text.push_str(&rest[..at]);
            let (brace, behind) = (&rest[at..=at], &rest[at + 1..]);
            if let Some(behind) = behind.strip_prefix(brace) {
                text.push_str(brace);
                rest = behind;
                continue;
            }
            let name = behind.split_once('}').map(|(name, _)| name);
            let Some(name) = name.filter(|name| brace == "{" && !name.is_empty() && !name.contains('{')) else {
                return Err(bad(&format!("{brace} at byte {}", spelling.len() - rest.len() + at)));
            };
            rest = &behind[name.len() + 1..];
            let number = names.iter().position(|known| known == name).unwrap_or(names.len());
            if number == names.len() {
                names.push(name.to_owned());
            }
            parts.push((std::mem::take(&mut text), Some(number)));
        }
        text.push_str(rest);
        parts.push((text, None));
        if names.is_empty() {
            return Err(bad("no field"));
        }
        let is_target = vec![false; names.len()];
        Ok(Self { names, parts, is_target })
    }

    /// The fields, each once.
    pub(super) fn names(&self) -> &[String] {
        &self.names
    }

    /// Appends the document of these texts, one for each of [`TextField::names`], to `out`.
    pub(super) fn join_bytes(&self, texts: &[impl AsRef<[u8]>], out: &mut Vec<u8>) {
        for (text, number) in &self.parts {
            out.extend_from_slice(text.as_bytes());
            out.extend_from_slice(number.map_or(&[][..], |number| texts[number].as_ref()));
        }
    }

    /// The same fields, of which `targets` are to be predicted.
    pub fn with_targets(mut self, targets: &[String]) -> Result<Self> {
        for target in targets {
            let Some(number) = self.names.iter().position(|name| name == target) else {
                let names = self.names.iter().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ");
                let hint = "hint: name it in text_field, a template like \"{prompt}\\n{answer}\"";
                let expected = format!("expected loss_fields among the fields of text_field ({names})");
                return Err(Error::Argument(format!("{expected}, got {target:?}; {hint}")));
            };
            self.is_target[number] = true;
        }
        Ok(self)
    }

    /// The names of the fields that are to be predicted, in the order in which the fields first stand.
    pub fn targets(&self) -> Vec<String> {
        self.names.iter().zip(&self.is_target).filter(|(_, is)| **is).map(|(name, _)| name.clone()).collect()
    }

    /// What is to be predicted of the document of texts of these lengths, one for each name.
    pub(super) fn target_ranges(&self, len: impl Fn(usize) -> usize) -> Vec<Range<usize>> {
        let (mut ranges, mut at) = (Vec::new(), 0);
        for (text, number) in &self.parts {
            at += text.len();
            let Some(number) = *number else { continue };
            if self.is_target[number] {
                ranges.push(at..at + len(number));
            }
            at += len(number);
        }
        ranges
    }

    /// The document of these texts, one for each of [`TextField::names`].
    pub(super) fn join<'t>(&self, texts: Vec<Cow<'t, str>>) -> Document<'t> {
        let targets = self.target_ranges(|number| texts[number].len());
        Document { text: self.join_texts(texts), targets }
    }

    fn join_texts<'t>(&self, mut texts: Vec<Cow<'t, str>>) -> Cow<'t, str> {
        if let [(before, Some(0))] = self.parts.as_slice()
            && before.is_empty()
        {
            return texts.swap_remove(0);
        }
        let mut whole = String::new();
        for (text, number) in &self.parts {
            whole.push_str(text);
            whole.push_str(number.map_or("", |number| &texts[number]));
        }
        Cow::Owned(whole)
    }
}

/// Reads a JSON object for the fields; what else is in it is checked to be JSON and skipped.
impl<'de> DeserializeSeed<'de> for &TextField {
    type Value = Document<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for &TextField {
    type Value = Document<'de>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "an object with a field {:?}", self.names[0])
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Self::Value, A::Error> {
        let mut texts = vec![None; self.names.len()];
        while let Some(Text(key)) = map.next_key()? {
            let Some(number) = self.names.iter().position(|name| key == *name) else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            if texts[number].replace(map.next_value::<Text>()?.0).is_some() {
                return Err(A::Error::custom(format_args!("the field {key:?} occurs twice")));
            }
        }
        let hint = "hint: name the field that holds the text with text_field";
        let found = self.names.iter().zip(texts).map(|(name, text)| {
            text.ok_or_else(|| A::Error::custom(format_args!("expected a field {name:?}, found none; {hint}")))
        });
        Ok(self.join(found.collect::<std::result::Result<_, _>>()?))
    }
}

/// A string, borrowed from the line when it has no escapes.
struct Text<'de>(Cow<'de, str>);

impl<'de> serde::Deserialize<'de> for Text<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Strings;
        impl<'de> Visitor<'de> for Strings {
            type Value = Text<'de>;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> std::result::Result<Self::Value, E> {
                Ok(Text(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> std::result::Result<Self::Value, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(Strings)
    }
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "one range is a list of ranges")]
mod tests {
    use super::*;

    fn read(field: &str, line: &str) -> std::result::Result<String, String> {
        let field = TextField::new(field).map_err(|error| error.to_string())?;
        let mut parser = serde_json::Deserializer::from_str(line);
        field.deserialize(&mut parser).map(|document| document.text.into_owned()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_template_joins_its_fields() {
        let line = r#"{"a": "x", "b": "y\n", "": "z", "n": 5}"#;
        for (field, text) in [
            ("a", "x"),
            ("", "z"),
            ("{a}", "x"),
            ("{b}{a}{b}", "y\nxy\n"),
            ("{{}} {a}}}{{", "{} x}{"),
            ("é{a}日", "éx日"),
        ] {
            assert_eq!(read(field, line).unwrap(), text, "{field}");
        }
        for (field, part) in [
            ("c", "expected a field \"c\""),
            ("{a}{c}", "expected a field \"c\""),
            ("{a}{n}", "invalid type: integer `5`"),
            ("{a", "got { at byte 0"),
            ("é{a}}", "got } at byte 5"),
            ("{a{b}", "got { at byte 0"),
            ("{}", "got { at byte 0"),
            ("{{}}", "got no field"),
        ] {
            let error = read(field, line).unwrap_err();
            assert!(error.contains(part), "{field}: {error}");
        }
        let marked = |field: &str, targets: &[&str]| {
            let targets: Vec<_> = targets.iter().map(|&name| name.to_owned()).collect();
            let field = TextField::new(field).unwrap().with_targets(&targets).map_err(|error| error.to_string())?;
            let document = field.deserialize(&mut serde_json::Deserializer::from_str(line)).unwrap();
            Ok::<_, String>((document.targets, field.targets()))
        };
        assert_eq!(marked("a", &["a"]), Ok((vec![0..1], vec!["a".to_owned()])));
        assert_eq!(marked("{b}:{a}{{{b}", &["b", "b"]), Ok((vec![0..2, 5..7], vec!["b".to_owned()])));
        assert_eq!(marked("{b}{a}", &["a", "b"]).unwrap().1, ["b", "a"]);
        assert!(marked("{a}{b}", &["a", "c"]).unwrap_err().contains("(\"a\", \"b\"), got \"c\"; hint"));
        assert!(read("{a}{b}", r#"{"a": "", "b": "", "b": ""}"#).unwrap_err().contains("\"b\" occurs twice"));
    }
}
