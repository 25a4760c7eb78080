//! Which column of a file holds what: by the user's word, or by the names that GuideLLM looks for.

use serde_json::{Map, Value};

use super::lengths::{MOST_LENGTH, MOST_SECONDS};
use super::table::name_of;

/// What a column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Column {
    /// The prompt: a text, a list of token ids, or a conversation.
    Prompt,
    /// A conversation: a list of messages with `role` and `content`, or with `from` and `value`.
    Messages,
    /// What stands before the prompt: a system message where the endpoint takes messages.
    Prefix,
    /// Tokens of the prompt, if the server does not say; else what it says counts.
    PromptTokens,
    /// Tokens of the answer that is asked for.
    OutputTokens,
    /// The user's think time after the answer, seconds.
    ThinkTime,
}

/// All columns, in the order in which errors list them.
const ALL: [Column; 6] = [
    Column::Prompt,
    Column::Messages,
    Column::Prefix,
    Column::PromptTokens,
    Column::OutputTokens,
    Column::ThinkTime,
];

impl Column {
    /// Its name in settings.
    pub fn name(self) -> &'static str {
        match self {
            Column::Prompt => "prompt",
            Column::Messages => "messages",
            Column::Prefix => "prefix",
            Column::PromptTokens => "prompt_tokens",
            Column::OutputTokens => "output_tokens",
            Column::ThinkTime => "think_time",
        }
    }

    /// By our name or by GuideLLM's (`text_column`).
    pub fn parse(name: &str) -> Option<Self> {
        let guidellms = match name {
            "text_column" => "prompt",
            "raw_messages_column" => "messages",
            "prefix_column" => "prefix",
            "prompt_tokens_count_column" => "prompt_tokens",
            "output_tokens_count_column" => "output_tokens",
            "requeue_delay_column" => "think_time",
            other => other,
        };
        ALL.into_iter().find(|column| column.name() == guidellms)
    }

    /// Names that it has by itself: GuideLLM's, and then ours.
    fn usual_names(self) -> &'static [&'static str] {
        match self {
            Column::Prompt => &[
                "prompt",
                "instruction",
                "question",
                "input",
                "context",
                "content",
                "turn",
                "text",
            ],
            // GuideLLM takes a `conversation` as a text.
            Column::Messages => &["messages", "chat_messages", "conversation"],
            Column::Prefix => &["system_prompt", "system", "prefix"],
            Column::PromptTokens => &["prompt_tokens_count", "input_tokens_count", "prompt_tokens"],
            Column::OutputTokens => &[
                "output_tokens_count",
                "completion_tokens_count",
                "output_tokens",
            ],
            Column::ThinkTime => &["requeue_delay", "think_time"],
        }
    }
}

/// The columns of a file, by what they hold.
#[derive(Debug, Default)]
pub(crate) struct Columns {
    /// Names with the number of their turn, if they have one, in its order.
    found: Vec<(Column, Option<u64>, String)>,
}

impl Columns {
    /// Those among `names`: where the user has chosen one, that one.
    ///
    /// # Errors
    /// A sentence that names the columns there are, if none holds prompts.
    pub fn find(names: &[&str], chosen: &[(Column, String)]) -> Result<Self, String> {
        let mut found = Vec::new();
        let holds_prompts = |column| matches!(column, Column::Prompt | Column::Messages);
        let prompts_chosen = chosen.iter().any(|(column, _)| holds_prompts(*column));
        for column in ALL {
            let own = chosen.iter().filter(|(c, _)| *c == column);
            let own: Vec<&str> = own.map(|(_, name)| name.as_str()).collect();
            let usual = match holds_prompts(column) && prompts_chosen {
                true => &[],
                false => column.usual_names(),
            };
            let wanted = if own.is_empty() { usual } else { &own };
            found.extend(matching(names, wanted).map(|(turn, name)| (column, turn, name)));
        }
        found.sort_by_key(|(column, turn, _)| (column.name(), *turn));
        if found.iter().any(|(column, ..)| holds_prompts(*column)) {
            return Ok(Columns { found });
        }
        let listed = listed(names);
        match chosen.iter().find(|(column, _)| holds_prompts(*column)) {
            Some((column, name)) => Err(format!(
                "there is no column `{name}` for the {}; {listed}",
                column.name()
            )),
            None => Err(format!(
                "there is no column for the prompt (prompt, question, text, messages, ...): name it with --data-column prompt=NAME; {listed}"
            )),
        }
    }

    /// Is this the column that the user has chosen, or one of its turns?
    pub fn has(&self, chosen: &(Column, String)) -> bool {
        self.named(chosen.0).next().is_some()
    }

    /// The columns that hold something, with the numbers of their turns.
    pub fn named(&self, column: Column) -> impl Iterator<Item = (Option<u64>, &str)> {
        self.found
            .iter()
            .filter(move |(c, ..)| *c == column)
            .map(|(_, turn, name)| (*turn, name.as_str()))
    }

    /// The column of a turn: that with its number, else one without a number.
    pub fn of_turn(&self, column: Column, turn: Option<u64>) -> Option<&str> {
        let of = |wanted: Option<u64>| {
            let mut columns = self.named(column);
            columns.find(|(t, _)| *t == wanted).map(|(_, name)| name)
        };
        of(turn).or_else(|| of(None))
    }
}

/// The names that there are, for an error.
pub(crate) fn listed(names: &[&str]) -> String {
    /// More would hide the sentence before them.
    const MOST: usize = 30;
    let list: Vec<&str> = names.iter().take(MOST).copied().collect();
    let more = if names.len() > MOST { ", ..." } else { "" };
    format!("its columns are {}{more}", list.join(", "))
}

/// As GuideLLM matches them: the first name that is one of `wanted`, with or without a plural's ending and the
/// number of a turn, and all others that differ from it in that number alone.
fn matching<'a>(
    names: &'a [&str],
    wanted: &[&str],
) -> impl Iterator<Item = (Option<u64>, String)> + use<'a> {
    let parts = |name: &str| {
        let name = name.to_ascii_lowercase();
        let (base, turn) = match name.rsplit_once(['-', '_']) {
            Some((base, digits)) if digits.bytes().all(|b| b.is_ascii_digit()) => {
                match digits.parse() {
                    Ok(turn) => (base.to_owned(), Some(turn)),
                    Err(_) => (name, None),
                }
            }
            _ => (name, None),
        };
        (base, turn)
    };
    let is_wanted = |base: &str| {
        let same = |w: &&str| {
            let rest = base.strip_prefix(&w.to_ascii_lowercase());
            matches!(rest, Some("" | "s" | "es"))
        };
        wanted.iter().any(same)
    };
    let bases = names.iter().map(|name| {
        // A name that was asked for may itself end in a number.
        let whole = name.to_ascii_lowercase();
        if is_wanted(&whole) {
            (whole, None)
        } else {
            parts(name)
        }
    });
    let bases: Vec<(String, Option<u64>)> = bases.collect();
    let first = bases.iter().find(|(base, _)| is_wanted(base));
    let first = first.map(|(base, _)| base.clone());
    names
        .iter()
        .zip(bases)
        .filter(move |(_, (base, _))| Some(base) == first.as_ref())
        .map(|(name, (_, turn))| (turn, (*name).to_owned()))
}

/// A number of tokens in a cell; none if it is empty.
pub(crate) fn tokens(cells: &Map<String, Value>, name: &str) -> Result<Option<u64>, String> {
    let number = number(cells, name)?;
    let fine = |n: &f64| (1.0..=MOST_LENGTH as f64).contains(n) && n.fract() == 0.0;
    match number {
        None => Ok(None),
        Some(n) if fine(&n) => Ok(Some(n as u64)),
        Some(n) => Err(format!(
            "column `{name}`: {n} is no number of tokens between 1 and 10,000,000"
        )),
    }
}

/// A number of seconds in a cell; none if it is empty.
pub(crate) fn seconds(cells: &Map<String, Value>, name: &str) -> Result<Option<f64>, String> {
    match number(cells, name)? {
        Some(s) if !(0.0..=MOST_SECONDS).contains(&s) => Err(format!(
            "column `{name}`: {s} is no time between 0 and 1,000,000 s"
        )),
        other => Ok(other),
    }
}

/// A number in a cell, also one written as a text, as CSV has it.
pub(crate) fn number(cells: &Map<String, Value>, name: &str) -> Result<Option<f64>, String> {
    let value = cells.get(name).unwrap_or(&Value::Null);
    let found = match value {
        Value::Null => return Ok(None),
        Value::String(text) if text.trim().is_empty() => return Ok(None),
        Value::String(text) => text.trim().parse().ok(),
        other => other.as_f64(),
    };
    match found.filter(|n: &f64| n.is_finite()) {
        Some(n) => Ok(Some(n)),
        None => Err(format!(
            "column `{name}`: {} where a number should be",
            shown(value)
        )),
    }
}

/// A text in a cell; none if it is empty.
pub(crate) fn text(cells: &Map<String, Value>, name: &str) -> Result<Option<String>, String> {
    match cells.get(name).unwrap_or(&Value::Null) {
        Value::Null => Ok(None),
        Value::String(text) if text.is_empty() => Ok(None),
        Value::String(text) => Ok(Some(text.clone())),
        other => Err(format!(
            "column `{name}`: {} where a text should be",
            name_of(other)
        )),
    }
}

/// A value for an error: a short text as it is, else what it is.
fn shown(value: &Value) -> String {
    match value {
        Value::String(text) if text.chars().count() <= 40 => format!("`{}`", text.escape_debug()),
        other => name_of(other).to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn found(names: &[&str], chosen: &[(Column, String)]) -> Vec<(Column, Option<u64>, String)> {
        Columns::find(names, chosen).unwrap().found
    }

    #[test]
    fn names_are_matched_as_guidellm_matches_them() {
        // The first column that has one of the names, not the first of the names.
        let of = |names: &[&str]| {
            let columns = Columns::find(names, &[]).unwrap();
            columns
                .named(Column::Prompt)
                .map(|(_, n)| n.to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(of(&["id", "question", "prompt"]), ["question"]);
        assert_eq!(of(&["Prompts"]), ["Prompts"]);
        assert_eq!(
            of(&["prompt_1", "prompt_0", "text"]),
            ["prompt_0", "prompt_1"]
        );
        assert_eq!(of(&["prompt-2", "prompt"]), ["prompt", "prompt-2"]);
        assert_eq!(of(&["prompter", "text"]), ["text"]);
    }

    #[test]
    fn every_column_has_its_names() {
        let names = [
            "system_prompt",
            "input",
            "output_tokens_count",
            "prompt_tokens_count",
            "requeue_delay",
            "messages",
        ];
        let columns: Vec<(Column, String)> = found(&names, &[])
            .into_iter()
            .map(|(c, _, n)| (c, n))
            .collect();
        let has = |column, name: &str| columns.contains(&(column, name.to_owned()));
        assert!(has(Column::Prefix, "system_prompt") && has(Column::Prompt, "input"));
        assert!(has(Column::OutputTokens, "output_tokens_count"));
        assert!(has(Column::PromptTokens, "prompt_tokens_count"));
        assert!(has(Column::ThinkTime, "requeue_delay") && has(Column::Messages, "messages"));
        for column in ALL {
            assert_eq!(Column::parse(column.name()), Some(column));
        }
        assert_eq!(Column::parse("text_column"), Some(Column::Prompt));
        assert_eq!(Column::parse("image_column"), None);
    }

    #[test]
    fn the_users_word_wins_and_must_be_right() {
        let chosen = |name: &str| vec![(Column::Prompt, name.to_owned())];
        assert_eq!(found(&["prompt", "q"], &chosen("q"))[0].2, "q");
        assert_eq!(
            found(&["prompt", "v_2"], &chosen("v_2"))[0],
            (Column::Prompt, None, "v_2".to_owned())
        );
        let error = Columns::find(&["a", "b"], &chosen("q")).unwrap_err();
        assert!(
            error.contains("no column `q` for the prompt") && error.contains("a, b"),
            "{error}"
        );
        let error = Columns::find(&["a", "b"], &[]).unwrap_err();
        assert!(
            error.contains("--data-column prompt=NAME") && error.contains("a, b"),
            "{error}"
        );
    }

    #[test]
    fn a_turn_has_its_own_column_or_one_for_all() {
        let names = ["prompt_0", "prompt_1", "output_tokens", "think_time_1"];
        let columns = Columns::find(&names, &[]).unwrap();
        let of = |column, turn| columns.of_turn(column, Some(turn));
        assert_eq!(of(Column::Prompt, 1), Some("prompt_1"));
        assert_eq!(of(Column::OutputTokens, 1), Some("output_tokens"));
        assert_eq!(
            (of(Column::ThinkTime, 0), of(Column::ThinkTime, 1)),
            (None, Some("think_time_1"))
        );
        // A number that no turn can have is part of the name.
        assert!(Columns::find(&["prompt_99999999999999999999"], &[]).is_err());
    }

    #[test]
    fn numbers_come_as_numbers_or_as_texts() {
        let cells = json!({"a": 12, "b": "12", "c": 12.0, "d": "", "e": null, "f": "many", "g": -1, "h": 1e300,
                           "i": 0.5, "j": [1], "k": 0, "l": "NaN"});
        let cells = cells.as_object().unwrap();
        for name in ["a", "b", "c"] {
            assert_eq!(tokens(cells, name), Ok(Some(12)), "{name}");
        }
        for name in ["d", "e", "none"] {
            assert_eq!(tokens(cells, name), Ok(None), "{name}");
        }
        for name in ["f", "g", "h", "i", "j", "k", "l"] {
            let error = tokens(cells, name).unwrap_err();
            assert!(error.starts_with(&format!("column `{name}`")), "{error}");
        }
        assert_eq!(seconds(cells, "i"), Ok(Some(0.5)));
        assert!(seconds(cells, "g").is_err() && seconds(cells, "h").is_err());
        assert!(
            text(cells, "a")
                .unwrap_err()
                .contains("a number where a text should be")
        );
    }
}
