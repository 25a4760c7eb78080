//! Making prompts of an exact length without knowing the tokenizer: find out which words cost one token,
//! and what is there besides them (a BOS, a chat template).

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::PromptFormat;
use super::lengths::Drawn;
use super::prompts::{Kind, Prompts, Words};
use super::synthetic::Synthetic;
use super::words::{OPENING, WORDS, sample};
use crate::chunk::Usage;
use crate::config::TokenCounter;
use crate::error::BenchError;
use crate::preflight::Probe;
use crate::random::Random;

/// Fewer words than this would make prompts alike.
const ENOUGH_WORDS: usize = 16;
/// Words counted at once.
const GROUP: usize = 64;
/// What a word can cost with any tokenizer: characters have some seven with the space, bytes no more in English.
const TOKENS_PER_WORD: RangeInclusive<f64> = 0.25..=20.0;
/// Most prompts that are fitted one by one, where words cost several tokens.
const MOST_FITTED: u64 = 2000;

/// Who counts the tokens of a text.
enum Counter {
    Local(Arc<dyn TokenCounter>),
    Tokenize,
    Usage,
}

impl Counter {
    /// How many texts may be counted: each is a request, and for `usage` one that computes.
    fn budget(&self) -> usize {
        match self {
            Counter::Local(_) => usize::MAX,
            Counter::Tokenize => 300,
            Counter::Usage => 24,
        }
    }

    /// Tokens of `text`; `None` if it cannot be told.
    async fn count(&self, probe: &mut Probe<'_>, text: &str) -> Option<u64> {
        match self {
            Counter::Local(tokenizer) => Some(tokenizer.count_prompt(text) as u64),
            Counter::Tokenize => probe.tokenize(text).await.ok().flatten(),
            Counter::Usage => {
                let sent = Prompts::Fixed(vec![(text.to_owned(), 0)]);
                let usage = probe.send(Synthetic::plain(sent, 1)).await.ok().flatten();
                usage?.prompt_tokens
            }
        }
    }
}

/// What the run's prompts are made of. `usage`: what the server counted for a prompt of [`OPENING`] alone;
/// `trace`: the length of a usual prompt of a trace, whose prompts are of any length and have parts in common.
pub(crate) async fn prompts(
    probe: &mut Probe<'_>,
    usage: Option<Usage>,
    trace: Option<u64>,
    warnings: &mut Vec<String>,
) -> Result<(Prompts, u64), BenchError> {
    let data = &probe.config.data;
    let seed = data.seed.unwrap_or_else(fresh_seed);
    let want = trace.unwrap_or_else(|| data.usual_prompt());
    if let PromptFormat::TokenIds { low, high } = data.format {
        let range = (low, high);
        return Ok((Prompts::TokenIds { range, seed }, seed));
    }
    let mut words = Words {
        list: WORDS.to_vec(),
        per_word: 1.0,
        overhead: 1,
        overhead_behind_prefix: 1,
        seed,
    };
    let by_usage = usage.and_then(|u| u.prompt_tokens);
    let (counter, opening) = match choose_counter(probe, by_usage, warnings).await {
        Ok(chosen) => chosen,
        Err(why) => {
            warnings.push(format!("prompt lengths are a guess: {why}"));
            return Ok((Prompts::Words(words), seed));
        }
    };
    let good = single_token_words(probe, &counter, opening).await;
    if good.len() < ENOUGH_WORDS {
        let alone = trace.is_none() && data.turns == 1 && data.prefix_buckets.is_empty();
        let prompts = fitted(probe, &counter, words, want, alone, warnings).await;
        return Ok((prompts, seed));
    }
    if want < opening {
        warnings.push(format!(
            "prompts have {opening} tokens, not {want}: what stands around the text (a BOS, a chat template) needs as many"
        ));
    }
    words.list = good;
    words.overhead = opening;
    if want >= opening {
        let by_usage = by_usage.is_some();
        words.overhead = verify(probe, &counter, by_usage, &words, (want, None), warnings).await;
    }
    // The prefix alone is the opening and words of a token each; with it comes what the server puts around
    // a system message, which the prompt makes up for.
    words.overhead_behind_prefix = words.overhead;
    let prefix = data.prefix_buckets.iter().map(|b| b.tokens).max();
    if let Some(prefix) = prefix.filter(|tokens| *tokens > 0) {
        words.overhead_behind_prefix = verify(
            probe,
            &counter,
            by_usage.is_some(),
            &words,
            (want, Some(prefix)),
            warnings,
        )
        .await;
    }
    Ok((Prompts::Words(words), seed))
}

/// A seed that differs from run to run.
fn fresh_seed() -> u64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    now.as_nanos() as u64 ^ (u64::from(std::process::id()) << 32)
}

/// The best counter there is, and its count of [`OPENING`]; else why there is none. What the server's `usage` says
/// is what is asked for, so where the others disagree with it they are not used.
async fn choose_counter(
    probe: &mut Probe<'_>,
    by_usage: Option<u64>,
    warnings: &mut Vec<String>,
) -> Result<(Counter, u64), String> {
    // A chat template is around the text: only `usage` counts it.
    let raw = probe.config.target.endpoint.takes_raw_prompts();
    if let (Some(opening), false) = (by_usage, raw) {
        return Ok((Counter::Usage, opening));
    }
    let without_template = |warnings: &mut Vec<String>| {
        if !raw {
            warnings.push(
                "the server sends no usage: prompts have their tokens without those that a chat template adds"
                    .into(),
            );
        }
    };
    if let Some(tokenizer) = probe.config.tokenizer.clone() {
        let opening = tokenizer.count_prompt(OPENING) as u64;
        if by_usage.is_none_or(|u| u == opening) {
            without_template(warnings);
            return Ok((Counter::Local(tokenizer), opening));
        }
        warnings.push(format!(
            "the local tokenizer counts {opening} tokens where the server's usage counts {}: the server's count is used",
            by_usage.unwrap_or(0)
        ));
    }
    let unknown = match (probe.tokenize(OPENING).await, by_usage) {
        (Ok(Some(opening)), _) if by_usage.is_none_or(|u| u == opening) => {
            without_template(warnings);
            return Ok((Counter::Tokenize, opening));
        }
        (Err(reason), Some(opening)) => {
            warnings.push(format!("{reason}; prompts are counted by usage"));
            return Ok((Counter::Usage, opening));
        }
        (Ok(_), Some(opening)) => return Ok((Counter::Usage, opening)),
        (Err(reason), None) => format!("its {reason}"),
        (Ok(_), None) => "has no /tokenize".to_owned(),
    };
    Err(format!(
        "the server sends no usage and {unknown}, and no tokenizer was given"
    ))
}

/// The words that cost exactly one token behind another word.
async fn single_token_words(
    probe: &mut Probe<'_>,
    counter: &Counter,
    opening: u64,
) -> Vec<&'static str> {
    let mut budget = counter.budget();
    let mut good = Vec::new();
    // A group that has a longer word in it is halved until the word stands alone.
    let mut groups: Vec<&[&'static str]> = WORDS.chunks(GROUP).collect();
    while let Some(group) = groups.pop() {
        if budget == 0 {
            break;
        }
        budget -= 1;
        match counter.count(probe, &sample(group)).await {
            Some(n) if n == opening + group.len() as u64 => good.extend_from_slice(group),
            Some(_) if group.len() > 1 => {
                let (a, b) = group.split_at(group.len() / 2);
                groups.extend([a, b]);
            }
            _ => {}
        }
        // Where nothing fits (a tokenizer of characters), halving everything would only cost time.
        if good.is_empty() && counter.budget().saturating_sub(budget) > 20 {
            break;
        }
    }
    good.sort_unstable();
    good
}

/// Count a real prompt of so many tokens, behind a prefix of so many if one is given; the overhead that puts a
/// constant difference right. Says so if a difference stays.
async fn verify(
    probe: &mut Probe<'_>,
    counter: &Counter,
    by_usage: bool,
    words: &Words,
    (want, prefix): (u64, Option<u64>),
    warnings: &mut Vec<String>,
) -> u64 {
    let whole = want + prefix.unwrap_or(0);
    let mut words = words.clone();
    for last in [false, true] {
        let counted = if by_usage {
            let mut made = Synthetic::plain(Prompts::Words(words.clone()), want);
            made.prefixes = prefix.map(super::PrefixBucket::of).into_iter().collect();
            probe
                .send(made)
                .await
                .ok()
                .flatten()
                .and_then(|u| u.prompt_tokens)
        } else {
            counter.count(probe, &text(&words, want, prefix)).await
        };
        let overhead = match prefix {
            None => &mut words.overhead,
            Some(_) => &mut words.overhead_behind_prefix,
        };
        match counted {
            Some(n) if n == whole => return *overhead,
            Some(n) if last => {
                warnings.push(format!(
                    "prompts of {whole} tokens could not be made exactly: a test prompt has {n}"
                ));
            }
            Some(n) => *overhead = (*overhead + n).saturating_sub(whole),
            None => {
                warnings.push(format!("the length of the prompts ({whole} tokens) could not be checked: a test prompt was refused"));
                break;
            }
        }
    }
    match prefix {
        None => words.overhead,
        Some(_) => words.overhead_behind_prefix,
    }
}

/// A prompt as the endpoints that take a text have it.
fn text(words: &Words, want: u64, prefix: Option<u64>) -> String {
    let mut text = OPENING.as_bytes().to_vec();
    let mut overhead = words.overhead;
    if let Some(tokens) = prefix {
        words.push(Kind::Prefix, u64::MAX, words.count(tokens, 1), &mut text);
        text.push(b' ');
        text.extend_from_slice(OPENING.as_bytes());
        overhead = words.overhead_behind_prefix;
    }
    words.push(Kind::User, u64::MAX, words.count(want, overhead), &mut text);
    String::from_utf8_lossy(&text).into_owned()
}

/// For tokenizers that need several tokens a word: prompts made one by one until each fits, where each stands
/// `alone` and is no part of another.
async fn fitted(
    probe: &mut Probe<'_>,
    counter: &Counter,
    mut words: Words,
    usual: u64,
    alone: bool,
    warnings: &mut Vec<String>,
) -> Prompts {
    let data = &probe.config.data;
    let lengths = Drawn::tokens(data.prompt_tokens, data.prompt_spread);
    let levels = probe.config.levels() as u64;
    let needed = match counter {
        // Each count would be a computed request: a guess and the truth in the records must do.
        Counter::Usage => 0,
        // The same text again and again behind others that differ.
        _ if !alone => 0,
        _ => probe
            .config
            .limits
            .max_requests
            .unwrap_or(MOST_FITTED)
            .saturating_mul(levels)
            .min(MOST_FITTED),
    };
    let all = sample(&WORDS);
    let counted = counter.count(probe, &all).await;
    let per_word = counted.map_or(1.0, |n| n as f64 / WORDS.len() as f64);
    if let Some(n) = counted.filter(|_| !TOKENS_PER_WORD.contains(&per_word)) {
        warnings.push(format!(
            "prompt lengths are a guess: a prompt of {} words is said to have {n} tokens, which cannot be",
            WORDS.len()
        ));
        return Prompts::Words(words);
    }
    let mut prompts = Vec::new();
    for number in 0..needed {
        let want = lengths.count(&mut Random::apart(words.seed, number));
        let mut random = Random::new(words.seed, number);
        match fit(probe, counter, want, per_word, &mut random).await {
            Some(prompt) => prompts.push((prompt, want)),
            None => break,
        }
    }
    if prompts.len() as u64 == needed && needed > 0 {
        return Prompts::Fixed(prompts);
    }
    warnings.push(format!("prompts have about {usual} tokens, not exactly: the model's tokenizer does not take common words as one token each; --prompt-format token-ids is exact"));
    words.per_word = per_word;
    words.overhead = 0;
    words.overhead_behind_prefix = 0;
    Prompts::Words(words)
}

/// One prompt of exactly `want` tokens, or `None` if no try hits it.
async fn fit(
    probe: &mut Probe<'_>,
    counter: &Counter,
    want: u64,
    per_word: f64,
    random: &mut Random,
) -> Option<String> {
    let mut word = || WORDS[random.below(WORDS.len() as u64) as usize];
    let mut text = word().to_owned();
    let mut filled = 0;
    for _ in 0..24 {
        let n = counter.count(probe, &text).await?;
        if n == want {
            return Some(text);
        }
        if n < want {
            let missing = want - n;
            let words = (missing as f64 / per_word) as usize;
            for _ in 0..words {
                text.push(' ');
                text.push_str(word());
            }
            if words == 0 {
                // Less than a word is missing: single letters.
                (0..missing).for_each(|_| text.push('x'));
                filled += missing;
            }
        } else {
            // Too long: take off what was too much, in characters of the last words.
            let excess = ((n - want) as f64 / per_word * 6.0)
                .ceil()
                .max((n - want) as f64 * 0.5) as usize;
            let excess = if filled > 0 {
                (n - want) as usize
            } else {
                excess
            };
            filled = 0;
            text.truncate(text.len().saturating_sub(excess.max(1)));
            if text.is_empty() {
                text.push('a');
            }
        }
    }
    None
}
