//! The texts of a JSON line's fields in one pass, without a JSON reader where nothing is unusual.
//!
//! Nearly all of a line is one string: what stands between two escapes is found and copied by vector instructions, once.
//! Whatever is not as expected gives `None`: the JSON reader then takes the line and says what is wrong. Where this
//! gives something, it is what the JSON reader would have given.

use std::borrow::Cow;

use serde::de::IgnoredAny;

/// Memory that is taken for a text with escapes before it is read.
const ROOM: usize = 64 << 10;

/// The text of each field of `names` in the object that `line` holds; `None` when the JSON reader has to look.
pub(super) fn texts<'l>(line: &'l str, names: &[String]) -> Option<Vec<Cow<'l, str>>> {
    let line = line.trim_end_matches([' ', '\t', '\r', '\n']);
    // Not allowed inside of strings; without any, the only white space between them is a space.
    if line.bytes().fold(b' ', u8::min) < b' ' {
        return None;
    }
    let mut reader = Reader { line, at: 0 };
    let mut texts = vec![None; names.len()];
    reader.expect(b'{')?;
    loop {
        reader.expect(b'"')?;
        // An escape may spell a name that is looked for.
        let Cow::Borrowed(key) = reader.string()? else { return None };
        reader.expect(b':')?;
        if let Some(number) = names.iter().position(|name| name == key) {
            reader.expect(b'"')?;
            if texts[number].replace(reader.string()?).is_some() {
                return None;
            }
        } else {
            reader.skip()?;
        }
        match reader.next()? {
            b',' => {}
            b'}' if reader.at == line.len() => return texts.into_iter().collect(),
            _ => return None,
        }
    }
}

/// A line without control characters, read up to byte `at`.
struct Reader<'l> {
    line: &'l str,
    at: usize,
}

impl<'l> Reader<'l> {
    fn byte(&mut self) -> Option<u8> {
        self.at += 1;
        self.line.as_bytes().get(self.at - 1).copied()
    }

    /// The next byte that is no space.
    fn next(&mut self) -> Option<u8> {
        loop {
            match self.byte()? {
                b' ' => {}
                byte => return Some(byte),
            }
        }
    }

    fn expect(&mut self, byte: u8) -> Option<()> {
        (self.next()? == byte).then_some(())
    }

    /// What stands before the next quote or backslash, which is passed; whether it is a backslash.
    fn run(&mut self) -> Option<(&'l str, bool)> {
        let rest = self.line.get(self.at..)?;
        let n = memchr::memchr2(b'"', b'\\', rest.as_bytes())?;
        self.at += n + 1;
        Some((&rest[..n], rest.as_bytes()[n] == b'\\'))
    }

    /// A string, from behind its first quote on.
    fn string(&mut self) -> Option<Cow<'l, str>> {
        let (run, mut has_escape) = self.run()?;
        if !has_escape {
            return Some(Cow::Borrowed(run));
        }
        let mut text = String::with_capacity((self.line.len() - self.at + run.len()).min(ROOM));
        text.push_str(run);
        while has_escape {
            text.push(self.escape()?);
            let run;
            (run, has_escape) = self.run()?;
            text.push_str(run);
        }
        Some(Cow::Owned(text))
    }

    /// The character that an escape spells, from behind its backslash on.
    fn escape(&mut self) -> Option<char> {
        Some(match self.byte()? {
            byte @ (b'"' | b'\\' | b'/') => char::from(byte),
            b'b' => '\x08',
            b'f' => '\x0C',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => {
                let unit = self.unit()?;
                let units = if (0xD800..0xDC00).contains(&unit) {
                    (self.byte()? == b'\\' && self.byte()? == b'u').then_some(())?;
                    &[unit, self.unit()?][..]
                } else {
                    &[unit][..]
                };
                char::decode_utf16(units.iter().copied()).next()?.ok()?
            }
            _ => return None,
        })
    }

    /// A unit of UTF-16 in four hexadecimal digits.
    fn unit(&mut self) -> Option<u16> {
        let mut unit = 0;
        for _ in 0..4 {
            unit = unit << 4 | char::from(self.byte()?).to_digit(16)? as u16;
        }
        Some(unit)
    }

    /// Passes a value that is not wanted.
    fn skip(&mut self) -> Option<()> {
        if self.next()? == b'"' {
            while self.run()?.1 {
                self.escape()?;
            }
            return Some(());
        }
        let rest = self.line.get(self.at - 1..)?;
        let mut values = serde_json::Deserializer::from_str(rest).into_iter::<IgnoredAny>();
        values.next()?.ok()?;
        self.at += values.byte_offset() - 1;
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{TextField, lines};
    use super::*;

    /// Whether the line was read here; what was read is what the JSON reader gives.
    fn is_read(line: &str, field: &TextField) -> bool {
        let by_reader = lines::read(line, field);
        let texts = texts(line, field.names());
        let is_read = texts.is_some();
        if let Some(texts) = texts {
            assert_eq!(field.join(texts), by_reader.unwrap_or_else(|error| panic!("{error}: {line}")), "{line}");
        }
        is_read
    }

    #[test]
    fn a_usual_line_is_read_here_and_an_unusual_one_is_not() {
        let field = TextField::new("{text}|{b}").unwrap();
        for line in [
            r#"{"text":"","b":""}"#,
            r#" { "b" : "é\n\"" , "n" : [1, {"c": null}, -2.5e3] , "text" : "日\u65e5\ud83d\uDE00\\\/\b\f\r\t" } "#,
            "{\"text\": \"a\", \"b\": \"b\", \"url\": \"x\\u0000y\", \"is\": true}\r",
            r#"{"c":{"text":5,"text":[]},"text":"{\"text\":\"x\"}","b":"}"}"#,
        ] {
            assert!(is_read(line, &field), "{line}");
        }
        let deep = format!(r#"{{"text":"","b":"","c":{}{}}}"#, "[".repeat(9999), "]".repeat(9999));
        assert!(is_read(&deep, &field));
        for line in [
            "",
            "{}",
            r#"{"text":"a"}"#,
            r#"{"text":"a","b":"b","b":"b"}"#,
            r#"{"text":"a","b":5}"#,
            r#"{"text":"a","\u0062":"b"}"#,
            r#"{"text":"a","b":"b"} x"#,
            r#"{"text":"a","b":"b",}"#,
            r#"{"text":"a","b":"\ud800"}"#,
            r#"{"text":"a","b":"\udc00\ud800"}"#,
            r#"{"text":"a","b":"\u+123"}"#,
            r#"{"text":"a","b":"b","c":01}"#,
            r#"{"text":"a","b":"b","c":"\x"}"#,
            r#"{"text":"a","b":"b","c":"\ud800"}"#,
            "{\"text\":\"a\",\"b\":\"\t\"}",
            "{\"text\":\"a\",\t\"b\":\"b\"}",
            "{\"text\":\"a\",\"b\":\"b\"}\x0c",
        ] {
            assert!(!is_read(line, &field), "{line}");
        }
    }

    /// JSON in the small: what stands in strings, values, and white space.
    fn value() -> impl Strategy<Value = String> {
        let part = prop_oneof![
            "[ -~]".prop_map(|c| c.replace(['"', '\\'], "")),
            Just("é日😀".to_owned()),
            prop_oneof![Just("\\n"), Just("\\\""), Just("\\\\"), Just("\\/"), Just("\\b")].prop_map(str::to_owned),
            any::<char>().prop_map(|c| {
                c.encode_utf16(&mut [0; 2]).iter().fold(String::new(), |text, unit| text + &format!("\\u{unit:04X}"))
            }),
            any::<u16>().prop_map(|unit| format!("\\u{unit:04x}")),
        ];
        let string = proptest::collection::vec(part, 0..6).prop_map(|parts| format!("\"{}\"", parts.concat()));
        let number = prop_oneof!["-?[0-9]{1,3}", "-?[0-9](\\.[0-9]{1,2})?([eE][+-]?[0-9])?"];
        let word = prop_oneof![Just("true"), Just("false"), Just("null")].prop_map(str::to_owned);
        let leaf = prop_oneof![6 => string, 1 => number, 1 => word];
        leaf.prop_recursive(3, 12, 3, |inner| {
            let key = prop_oneof![Just("\"text\""), Just("\"k\"")];
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..3).prop_map(|values| format!("[{}]", values.join(", "))),
                proptest::collection::vec((key, inner), 0..3).prop_map(|members| {
                    let members: Vec<_> = members.iter().map(|(key, value)| format!("{key}:{value}")).collect();
                    format!("{{{}}}", members.join(","))
                }),
            ]
        })
    }

    fn line() -> impl Strategy<Value = String> {
        let key =
            prop_oneof![4 => Just("text"), 3 => Just("b"), 1 => Just("c"), 1 => Just(""), 1 => Just("te\\u0078t")];
        let space = prop_oneof![8 => Just(""), 4 => Just(" "), 1 => Just("\t"), 1 => Just("\r")];
        proptest::collection::vec((key, space, value()), 0..5).prop_map(|members| {
            let member = |(key, space, value): &(_, _, String)| format!("{space}\"{key}\":{space}{value}{space}");
            format!("{{{}}}", members.iter().map(member).collect::<Vec<_>>().join(","))
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        #[test]
        fn what_is_read_is_what_the_json_reader_gives(
            line in line(),
            changes in proptest::collection::vec(
                (any::<prop::sample::Index>(), 0..3usize, prop_oneof![Just('"'), Just('\\'), Just(','), Just('u'), Just('}'),
                Just('{'), Just(']'), Just('0'), Just(' '), Just('\x1F'), any::<char>()]), 0..3),
        ) {
            let mut line: Vec<char> = line.chars().collect();
            for (at, n_removed, added) in changes {
                let at = at.index(line.len() + 1);
                line.splice(at..line.len().min(at + n_removed), [added]);
            }
            let line: String = line.into_iter().collect();
            for field in ["text", "b", "{text}{b}", "c"] {
                is_read(&line, &TextField::new(field).unwrap());
            }
        }

        #[test]
        fn a_line_of_one_string_is_read_here(text in any::<String>()) {
            let line = format!("{{\"text\": {}}}", serde_json::to_string(&text).unwrap());
            prop_assert!(is_read(&line, &TextField::new("text").unwrap()));
        }
    }
}
