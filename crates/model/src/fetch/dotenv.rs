//! `.env`: only the lines that set what we look for are read, nothing is put into the environment.

/// The value that `text` sets `key` to; the last line that does so counts, as in a shell.
///
/// Read are `KEY=value`, `export KEY="value"`, single quotes, and `#` comments.
pub(super) fn value(text: &str, key: &str) -> Option<String> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    text.lines()
        .filter_map(|line| {
            let line = line.trim();
            let line = match line.strip_prefix("export") {
                Some(rest) if rest.starts_with([' ', '\t']) => rest.trim_start(),
                _ => line,
            };
            let (name, value) = line.split_once('=')?;
            (name.trim_end() == key).then(|| unquote(value.trim()))
        })
        .next_back()
}

/// A value without its quotes, or up to its comment.
fn unquote(value: &str) -> String {
    for quote in ['"', '\''] {
        if let Some(rest) = value.strip_prefix(quote)
            && let Some(end) = rest.find(quote)
        {
            return rest[..end].to_owned();
        }
    }
    // As in a shell, a `#` starts a comment only at the beginning of a word.
    let end = if value.starts_with('#') {
        0
    } else {
        value
            .find(" #")
            .or_else(|| value.find("\t#"))
            .unwrap_or(value.len())
    };
    value[..end].trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_as_people_write_them() {
        let cases = [
            ("HF_TOKEN=abc", Some("abc")),
            ("export HF_TOKEN=\"abc\"", Some("abc")),
            ("export\tHF_TOKEN='a b'  # mine", Some("a b")),
            ("  HF_TOKEN = abc  # comment", Some("abc")),
            ("HF_TOKEN=abc#def", Some("abc#def")),
            ("HF_TOKEN=abc=def==", Some("abc=def==")),
            ("HF_TOKEN=\"abc", Some("\"abc")),
            ("HF_TOKEN=", Some("")),
            ("HF_TOKEN=  # later", Some("")),
            ("HF_TOKEN=one\r\nHF_TOKEN=two\r\n", Some("two")),
            ("\u{feff}HF_TOKEN=abc", Some("abc")),
            ("# HF_TOKEN=abc", None),
            ("MY_HF_TOKEN=abc", None),
            ("exportHF_TOKEN=abc", None),
            ("HF_TOKEN", None),
            ("", None),
        ];
        for (text, expected) in cases {
            assert_eq!(value(text, "HF_TOKEN").as_deref(), expected, "{text:?}");
        }
    }
}
