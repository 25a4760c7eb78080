use std::path::PathBuf;

use serde_json::json;

use super::*;
use crate::{DataSource, Endpoint, Spread, ThinkTime};

struct Case {
    data: DataConfig,
    target: TargetConfig,
    tokenizer: Option<Arc<dyn TokenCounter>>,
}

/// The rows of a file of this name and content, and the warnings.
fn load_with(
    name: &str,
    content: &str,
    change: impl FnOnce(&mut Case, &mut FileData),
) -> Result<(Rows, Vec<String>), String> {
    let folder = tempfile::tempdir().unwrap();
    let path: PathBuf = folder.path().join(name);
    std::fs::write(&path, content).unwrap();
    let mut case = Case {
        data: DataConfig::default(),
        target: TargetConfig::default(),
        tokenizer: None,
    };
    let mut file = FileData::new(&path);
    change(&mut case, &mut file);
    case.data.source = DataSource::File(file.clone());
    case.data.check(&case.target).map_err(|e| e.to_string())?;
    let mut warnings = Vec::new();
    let Case {
        data,
        target,
        tokenizer,
    } = case;
    let rows = Rows::load(
        &data,
        &file,
        &target,
        tokenizer,
        folder.path(),
        &mut warnings,
    );
    rows.map(|rows| (rows, warnings)).map_err(|e| e.to_string())
}

fn load(name: &str, content: &str) -> Rows {
    load_with(name, content, |_, _| {}).unwrap().0
}

fn error(name: &str, content: &str) -> String {
    load_with(name, content, |_, _| {}).unwrap_err()
}

/// The prompt of a session's next turn, and its sizes.
fn next(rows: &Rows, form: Form, session: &Session) -> (Value, Sizes) {
    let mut out = Vec::new();
    let sizes = rows.write(form, session, &mut out).unwrap();
    (serde_json::from_slice(&out).unwrap(), sizes)
}

/// The first prompts of so many sessions.
fn firsts(rows: &Rows, n: u64) -> Vec<String> {
    let of = |i| {
        next(rows, Form::Text, &rows.session(i))
            .0
            .as_str()
            .unwrap()
            .to_owned()
    };
    (0..n).map(of).collect()
}

#[test]
fn every_format_gives_the_same_rows() {
    let files = [
        (
            "a.jsonl",
            "{\"prompt\": \"x\", \"output_tokens\": 3}\n{\"prompt\": \"y\"}\n",
        ),
        (
            "a.json",
            "[{\"prompt\": \"x\", \"output_tokens\": 3}, {\"prompt\": \"y\", \"output_tokens\": null}]",
        ),
        ("a.csv", "id,prompt,output_tokens_count\n1,x,3\n2,y,\n"),
        ("a.tsv", "question\tcompletion_tokens_count\nx\t3.0\ny\t\n"),
    ];
    for (name, content) in files {
        let rows = load(name, content);
        assert_eq!(firsts(&rows, 2), ["x", "y"], "{name}");
        let outputs: Vec<u64> = (0..2)
            .map(|i| next(&rows, Form::Text, &rows.session(i)).1.output_tokens)
            .collect();
        assert_eq!(outputs, [3, 64], "{name}");
        assert_eq!(rows.uniform(), None);
    }
    let rows = load("a.txt", "x\n\ny\n");
    assert_eq!(
        (firsts(&rows, 2), rows.uniform()),
        (vec!["x".to_owned(), "y".to_owned()], Some(64))
    );
}

#[test]
fn columns_can_be_named_and_must_be_there() {
    let content = "a,b,prompt\nx,9,no\n";
    let named = |columns: &[(Column, &str)]| {
        let columns = columns
            .iter()
            .map(|(c, name)| (*c, (*name).to_owned()))
            .collect();
        load_with("a.csv", content, |_, file| file.columns = columns)
    };
    let (rows, _) = named(&[
        (Column::Prompt, "a"),
        (Column::OutputTokens, "b"),
        (Column::Prefix, "prompt"),
    ])
    .unwrap();
    let (prompt, sizes) = next(&rows, Form::Messages, &rows.session(0));
    assert_eq!(
        prompt,
        json!([{"role": "system", "content": "no"}, {"role": "user", "content": "x"}])
    );
    assert_eq!(
        (sizes.output_tokens, sizes.prompt_tokens, sizes.exact),
        (9, None, false)
    );
    for columns in [[(Column::Prompt, "q")], [(Column::PromptTokens, "q")]] {
        let error = named(&columns).unwrap_err();
        assert!(
            error.contains("a.csv")
                && error.contains("column `q`")
                && error.contains("a, b, prompt"),
            "{error}"
        );
    }
}

#[test]
fn a_row_that_cannot_be_used_is_named() {
    for (name, content, words) in [
        (
            "a.jsonl",
            "{\"x\": 1, \"y\": 2}\n",
            "line 1: there is no column for the prompt",
        ),
        ("a.jsonl", "{\"x\": 1, \"y\": 2}\n", "its columns are x, y"),
        (
            "a.jsonl",
            "{\"prompt\": \"a\"}\n{\"question_\": \"b\"}\n",
            "line 2: there is no column for the prompt",
        ),
        (
            "a.jsonl",
            "{\"prompt\": \"a\"}\n{\"prompt\": 7}\n",
            "line 2: column `prompt`: a number where a text",
        ),
        (
            "a.jsonl",
            "{\"prompt\": \"\"}\n",
            "line 1: column `prompt`: the prompt is empty",
        ),
        (
            "a.jsonl",
            "{\"prompt\": null}\n",
            "line 1: column `prompt`: the prompt is empty",
        ),
        (
            "a.jsonl",
            "{\"prompt\": [1, -2]}\n",
            "line 1: column `prompt`: a number in a list of token ids",
        ),
        (
            "a.jsonl",
            "{\"prompt\": [1, \"x\"]}\n",
            "a text in a list of token ids",
        ),
        (
            "a.csv",
            "prompt,output_tokens\na,1\nb,many\n",
            "line 3: column `output_tokens`: `many` where a number",
        ),
        (
            "a.csv",
            "prompt,output_tokens\na,1e30\n",
            "line 2: column `output_tokens`",
        ),
        (
            "a.csv",
            "prompt,requeue_delay\na,-1\n",
            "line 2: column `requeue_delay`: -1 is no time",
        ),
        ("a.csv", "prompt,system\na,\n", ""),
        (
            "a.json",
            "[{\"messages\": [{\"role\": \"robot\", \"content\": \"a\"}]}]",
            "item 1: column `messages`: message 1: the role `robot`",
        ),
        (
            "a.json",
            "[{\"messages\": \"hello\"}]",
            "item 1: column `messages`: a text where a list of messages",
        ),
        ("a.json", "[]", "it holds no row"),
        ("a.csv", "prompt\n", "it holds no row"),
        (
            "a.json",
            "[{\"messages\": []}]",
            "in none of its 1 conversations",
        ),
    ] {
        if words.is_empty() {
            load(name, content);
            continue;
        }
        let error = error(name, content);
        assert!(error.contains(name) && error.contains(words), "{error}");
    }
}

#[test]
fn rows_are_taken_in_order_and_again_from_the_start_with_a_warning() {
    let rows = load("a.txt", "a\nb\nc\n");
    assert_eq!(rows.first_session(), 0);
    assert_eq!(firsts(&rows, 2), ["a", "b"]);
    assert_eq!(rows.warning(0, 3), None);
    // The next level goes on.
    assert_eq!(rows.first_session(), 2);
    assert_eq!(firsts(&rows, 5), ["a", "b", "c", "a", "b"]);
    let warning = rows.warning(2, 3).unwrap();
    assert!(
        warning.contains("3 sessions and the run needed 5"),
        "{warning}"
    );
}

#[test]
fn a_seed_shuffles_them() {
    let text: String = (0..50).map(|i| format!("{i}\n")).collect();
    let with = |seed| {
        let order = RowOrder::Shuffled { seed };
        let (rows, _) = load_with("a.txt", &text, |_, file| file.order = order).unwrap();
        firsts(&rows, 50)
    };
    let (one, other) = (with(1), with(2));
    assert_eq!(one, with(1));
    assert_ne!(one, other);
    let sorted = |mut texts: Vec<String>| {
        texts.sort();
        texts
    };
    assert_eq!(sorted(one), sorted(other));
}

#[test]
fn conversations_are_played_with_the_servers_answers_or_with_the_files() {
    let sharegpt = json!([{"id": 1, "conversations": [
        {"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}, {"from": "human", "value": "c"}]}]);
    for (history, answer) in [(History::Server, "z"), (History::File, "b")] {
        let (rows, _) = load_with("s.json", &sharegpt.to_string(), |_, file| {
            file.history = history
        })
        .unwrap();
        let mut session = rows.session(0);
        assert_eq!(session.turns, 2);
        let mut out = Vec::new();
        rows.write(Form::Messages, &session, &mut out).unwrap();
        let kept = rows.answer(&session);
        session.advance(Form::Messages, &out, kept.as_deref().unwrap_or("z"), 7, 1);
        let said = |role: &str, content: &str| json!({"role": role, "content": content});
        let (second, _) = next(&rows, Form::Messages, &session);
        assert_eq!(
            second,
            json!([
                said("user", "a"),
                said("assistant", answer),
                said("user", "c")
            ])
        );
    }
}

#[test]
fn turns_in_columns_have_their_numbers() {
    let rows = load(
        "a.csv",
        "prompt_0,prompt_1,output_tokens_count_0,output_tokens_count_1,requeue_delay,prompt_tokens_count_1,system\n\
         a,b,5,6,0.5,11,s\nc,,7,,,,\n",
    );
    let mut session = rows.session(0);
    let (prompt, sizes) = next(&rows, Form::Text, &session);
    assert_eq!((prompt, sizes.output_tokens), (json!("s a"), 5));
    session.advance(Form::Text, b"\"s a\"", "x", 20, 1);
    assert_eq!(rows.think_s(&session), 0.5);
    let (prompt, sizes) = next(&rows, Form::Text, &session);
    assert_eq!((prompt, sizes.output_tokens), (json!("s a x b"), 6));
    assert_eq!(sizes.prompt_tokens, Some(31));
    // A shorter conversation ends before its empty cell.
    assert_eq!(rows.session(1).turns, 1);
}

#[test]
fn conversations_without_a_user_are_left_out_and_counted() {
    let lines = "{\"messages\": [{\"role\": \"assistant\", \"content\": \"a\"}]}\n{\"messages\": [{\"role\": \"user\", \"content\": \"b\"}]}\n";
    let (rows, warnings) = load_with("a.jsonl", lines, |_, _| {}).unwrap();
    assert_eq!(firsts(&rows, 1), ["b"]);
    assert!(
        warnings[0].starts_with("1 of 2 conversations"),
        "{warnings:?}"
    );
}

#[test]
fn what_the_endpoint_cannot_be_asked_is_an_error() {
    let ids = "{\"prompt\": [1, 2, 3]}\n";
    let rows = load("a.jsonl", ids);
    assert_eq!(
        next(&rows, Form::Text, &rows.session(0)).0,
        json!([1, 2, 3])
    );
    let on = |endpoint, content: &str| {
        load_with("a.jsonl", content, |case, _| {
            case.target.endpoint = endpoint
        })
        .unwrap_err()
    };
    assert!(
        on(Endpoint::ChatCompletions, ids)
            .contains("line 1: token ids, which /v1/chat/completions")
    );
    let turns = "{\"prompt_0\": \"a\", \"prompt_1\": \"b\"}\n";
    assert!(on(Endpoint::Embeddings, turns).contains("line 1: 2 turns, but /v1/embeddings"));
    assert!(
        error("a.jsonl", "{\"prompt\": [1], \"prefix\": \"a\"}\n").contains("neither a prefix")
    );
}

#[test]
fn lengths_come_from_the_column_the_files_answer_or_the_setting() {
    struct Words;
    impl TokenCounter for Words {
        fn count_prompt(&self, text: &str) -> usize {
            text.split(' ').count()
        }
        fn count_output(&self, text: &str) -> usize {
            text.split(' ').count()
        }
    }
    let lines = "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\", \"content\": \"b c d\"}]}\n";
    let of = |tokenizer: Option<Arc<dyn TokenCounter>>| {
        let (rows, _) = load_with("a.jsonl", lines, |case, _| {
            case.tokenizer = tokenizer;
            case.data.output_tokens = 8;
            case.data.output_spread = Spread {
                min: Some(8),
                ..Spread::default()
            };
            case.data.think_time = Some(ThinkTime::fixed(2.0));
        })
        .unwrap();
        assert_eq!(rows.think_s(&rows.session(0)), 2.0);
        next(&rows, Form::Messages, &rows.session(0))
            .1
            .output_tokens
    };
    assert_eq!((of(None), of(Some(Arc::new(Words)))), (8, 3));
}

#[test]
fn settings_of_what_is_made_up_are_refused() {
    let refused = |change: fn(&mut DataConfig)| {
        load_with("a.txt", "a\n", |case, _| change(&mut case.data)).unwrap_err()
    };
    assert!(refused(|d| d.turns = 2).starts_with("--turns"));
    assert!(refused(|d| d.prompt_spread.stdev = Some(1)).starts_with("--prompt-tokens-stdev"));
    assert!(
        refused(|d| d.format = crate::PromptFormat::TokenIds { low: 1, high: 5 })
            .starts_with("--prompt-format")
    );
    assert!(
        load_with("a.xyz", "a\n", |_, _| {})
            .unwrap_err()
            .starts_with("--data")
    );
}
