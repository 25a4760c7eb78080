//! Prometheus' text format, one line at a time: nothing is kept, so a hostile text costs no memory.

/// One sample of a metric.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Sample<'a> {
    /// Name, with `_sum`, `_count` or `_bucket` where the metric is a histogram.
    pub name: &'a str,
    /// What stands between the braces, as sent.
    pub labels: &'a str,
    /// Value; may be infinite or no number at all.
    pub value: f64,
}

/// The samples of a text; lines that are none (comments, a cut-off end) are left out.
pub(crate) fn samples(text: &str) -> impl Iterator<Item = Sample<'_>> {
    text.lines().filter_map(sample)
}

fn sample(line: &str) -> Option<Sample<'_>> {
    let line = line.trim();
    let end = line
        .bytes()
        .position(|b| !(b.is_ascii_alphanumeric() || b == b'_' || b == b':'))?;
    let (name, rest) = line.split_at(end);
    if name.is_empty() || name.as_bytes()[0].is_ascii_digit() {
        return None;
    }
    let rest = rest.trim_start();
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(inside) => {
            let end = closing_brace(inside)?;
            (&inside[..end], &inside[end + 1..])
        }
        None => ("", rest),
    };
    let mut words = rest.split_ascii_whitespace();
    let value = words.next()?.parse().ok()?;
    // A time of its own may follow, and nothing else.
    let time = words.next();
    if time.is_some_and(|t| t.parse::<f64>().is_err()) || words.next().is_some() {
        return None;
    }
    Some(Sample {
        name,
        labels,
        value,
    })
}

/// Where the brace outside of quotes is.
fn closing_brace(inside: &str) -> Option<usize> {
    let (mut quoted, mut escaped) = (false, false);
    inside.bytes().position(|b| {
        let end = b == b'}' && !quoted;
        if escaped {
            escaped = false;
        } else if quoted && b == b'\\' {
            escaped = true;
        } else if b == b'"' {
            quoted = !quoted;
        }
        end
    })
}

/// A label's value as sent, escapes included.
pub(crate) fn label<'a>(labels: &'a str, name: &str) -> Option<&'a str> {
    let mut rest = labels;
    loop {
        let (key, after) = rest.split_once('=')?;
        let value = after.trim_start().strip_prefix('"')?;
        let mut escaped = false;
        let end = value.bytes().position(|b| {
            let end = b == b'"' && !escaped;
            escaped = b == b'\\' && !escaped;
            end
        })?;
        if key.trim_matches([',', ' ', '\t']) == name {
            return Some(&value[..end]);
        }
        rest = &value[end + 1..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_as_the_format_has_them() {
        let text = "# HELP a_total Say \"hi\"\n# TYPE a_total counter\na_total 3\n\
            b{x=\"1\",y=\"a}\\\"b\\\\\"} 2.5e1 1700000000000\r\n  c:d { z = \"q\" } +Inf\nbad{x=\"1\n9a 1\nd NaN\n\
            e 1 2 3\nf one\ng";
        let all: Vec<_> = samples(text).collect();
        let names: Vec<_> = all.iter().map(|s| s.name).collect();
        assert_eq!(names, ["a_total", "b", "c:d", "d"]);
        assert_eq!(all[0].value, 3.0);
        assert_eq!(all[1].value, 25.0);
        assert_eq!(label(all[1].labels, "x"), Some("1"));
        assert_eq!(label(all[1].labels, "y"), Some("a}\\\"b\\\\"));
        assert_eq!(label(all[1].labels, "z"), None);
        assert_eq!(label(all[2].labels, "z"), Some("q"));
        assert!(all[2].value.is_infinite() && all[3].value.is_nan());
    }

    #[test]
    fn a_text_that_is_something_else_has_no_samples() {
        for text in [
            "",
            "<!doctype html>\n<p>hi</p>",
            "{\"detail\":\"x\"}",
            "\u{fffd}{}",
        ] {
            assert_eq!(samples(text).count(), 0, "{text}");
        }
    }
}
