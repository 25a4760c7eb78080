//! `--speculative-config`: JSON with vLLM's keys, as far as we have what they ask for.

use powerband_engine::NgramSpeculation;
use serde::Deserialize;

/// What drafts.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Method {
    /// What followed the last tokens where they stood before.
    Ngram,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SpeculativeConfig {
    #[serde(rename = "method")]
    _method: Method,
    num_speculative_tokens: usize,
    prompt_lookup_max: Option<usize>,
    prompt_lookup_min: Option<usize>,
    disable_by_batch_size: Option<usize>,
}

/// Tokens that are compared where neither end of the range is given (vLLM's default).
const LOOKUP: usize = 5;

/// The settings in `json`. As in vLLM, of the two ends of the lookup the one stands for the other that
/// is not given.
///
/// # Errors
/// What is wrong with which key, and which there are.
pub fn parse(json: &str) -> Result<NgramSpeculation, String> {
    let config: SpeculativeConfig = serde_json::from_str(json).map_err(|error| {
        format!(
            "{error}; speculation is by prompt lookup alone, as in \
             {{\"method\":\"ngram\",\"num_speculative_tokens\":4,\"prompt_lookup_max\":4,\
             \"prompt_lookup_min\":2}}, with \"disable_by_batch_size\" if you like"
        )
    })?;
    let (max, min) = (config.prompt_lookup_max, config.prompt_lookup_min);
    let speculation = NgramSpeculation {
        num_speculative_tokens: config.num_speculative_tokens,
        prompt_lookup_max: max.or(min).unwrap_or(LOOKUP),
        prompt_lookup_min: min.or(max).unwrap_or(LOOKUP),
        disable_by_batch_size: config.disable_by_batch_size,
    };
    speculation.check()?;
    Ok(speculation)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lookup(json: &str) -> (usize, usize) {
        let json = format!(r#"{{"method": "ngram", "num_speculative_tokens": 3{json}}}"#);
        let parsed = parse(&json).unwrap();
        assert_eq!(parsed.num_speculative_tokens, 3);
        (parsed.prompt_lookup_max, parsed.prompt_lookup_min)
    }

    #[test]
    fn defaults_are_vllms() {
        assert_eq!(lookup(""), (5, 5));
        assert_eq!(lookup(r#", "prompt_lookup_max": 4"#), (4, 4));
        assert_eq!(lookup(r#", "prompt_lookup_min": 2"#), (2, 2));
        assert_eq!(
            lookup(r#", "prompt_lookup_max": 4, "prompt_lookup_min": 2"#),
            (4, 2)
        );
    }

    #[test]
    fn what_is_wrong_and_what_there_is_are_told() {
        for (json, words) in [
            ("ngram", &["ngram"][..]),
            ("{}", &["method"]),
            (r#"{"method": "ngram"}"#, &["num_speculative_tokens"]),
            (
                r#"{"method": "eagle", "num_speculative_tokens": 3}"#,
                &["eagle", "ngram"],
            ),
            (
                r#"{"method": "ngram", "num_speculative_tokens": 3, "model": "m"}"#,
                &["model", "prompt_lookup_max"],
            ),
            (
                r#"{"method": "ngram", "num_speculative_tokens": -1}"#,
                &["-1"],
            ),
            (
                r#"{"method": "ngram", "num_speculative_tokens": 900}"#,
                &["num_speculative_tokens is 900", "64"],
            ),
            (
                r#"{"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_min": 4, "prompt_lookup_max": 2}"#,
                &["prompt_lookup_min is 4", "prompt_lookup_max"],
            ),
        ] {
            let error = parse(json).unwrap_err();
            for word in words {
                assert!(error.contains(word), "{json}: {error}");
            }
        }
    }
}
