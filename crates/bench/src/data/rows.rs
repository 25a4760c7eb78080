//! Sessions of a file.

use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use serde_json::{Map, Value};

use super::columns::{self, Column, Columns, listed};
use super::conversation::{self, Conversation, Prompt, Turn};
use super::lengths::Drawn;
use super::session::{Session, Sizes};
use super::source::{FileData, History, RowOrder, format_of};
use super::store::{Store, StoreWriter};
use super::table::{self, name_of};
use super::{DataConfig, MOST_TURNS};
use crate::body::push_number;
use crate::config::TokenCounter;
use crate::error::BenchError;
use crate::form::{Form, Part, push_escaped};
use crate::random::Random;
use crate::target::TargetConfig;

/// The sessions of a file.
#[derive(Debug)]
pub(crate) struct Rows {
    store: Store,
    /// Places in the store, where they are not taken in their order.
    order: Option<Vec<u32>>,
    /// Sessions that have begun in the run so far.
    begun: AtomicU64,
    /// For turns that have no number of their own.
    output_tokens: Drawn,
    think_s: Option<Drawn>,
    history: History,
    seed: u64,
    /// The output tokens that all turns have, where they do.
    uniform: Option<u64>,
}

/// Takes rows in.
struct Loader<'a> {
    file: &'a FileData,
    target: &'a TargetConfig,
    tokenizer: Option<Arc<dyn TokenCounter>>,
    writer: StoreWriter<'a>,
    /// Names of the row before and its columns: most rows have the same.
    names: Vec<String>,
    columns: Columns,
    /// Columns that the user has named and no row has had so far.
    unseen: Vec<(Column, String)>,
    /// Conversations in which no user says anything.
    silent: u64,
    output_tokens: Drawn,
    fewest: u64,
    most: u64,
}

impl Rows {
    /// Read a file. `folder` takes a temporary file of what is too much for memory.
    ///
    /// # Errors
    /// What is wrong with the file or with one of its rows, and where.
    pub fn load(
        data: &DataConfig,
        file: &FileData,
        target: &TargetConfig,
        tokenizer: Option<Arc<dyn TokenCounter>>,
        folder: &Path,
        warnings: &mut Vec<String>,
    ) -> Result<Self, BenchError> {
        let failed = |problem: String| BenchError::Read {
            path: file.path.clone(),
            problem,
        };
        let output_tokens = Drawn::tokens(data.output_tokens, data.output_spread);
        let mut loader = Loader {
            file,
            target,
            tokenizer,
            writer: StoreWriter::new(folder),
            names: Vec::new(),
            columns: Columns::default(),
            unseen: file.columns.clone(),
            silent: 0,
            output_tokens,
            fewest: u64::MAX,
            most: 0,
        };
        let format = format_of(&file.path)?;
        table::read(&file.path, format, &mut |row| loader.take(&row.cells))?;
        if let Some((column, name)) = loader.unseen.first() {
            let names: Vec<&str> = loader.names.iter().map(String::as_str).collect();
            return Err(failed(format!(
                "no row has a column `{name}` for the {}; {}",
                column.name(),
                listed(&names)
            )));
        }
        let (silent, fewest, most) = (loader.silent, loader.fewest, loader.most);
        let store = loader.writer.finish().map_err(|e| failed(e.to_string()))?;
        let sessions = store.len() as u64;
        if sessions == 0 {
            return Err(failed(match silent {
                0 => "it holds no row".into(),
                _ => format!("in none of its {silent} conversations a user says anything"),
            }));
        }
        if silent > 0 {
            warnings.push(format!(
                "{silent} of {} conversations in {} are left out: no user says anything in them",
                sessions + silent,
                file.path.display()
            ));
        }
        let order = match file.order {
            RowOrder::AsIs => None,
            RowOrder::Shuffled { seed } => Some(shuffled(store.len(), seed)),
        };
        Ok(Rows {
            store,
            order,
            begun: AtomicU64::new(0),
            output_tokens,
            think_s: data.think_time.map(|t| t.drawn()),
            history: file.history,
            seed: data.seed.unwrap_or(0),
            uniform: (fewest == most).then_some(most),
        })
    }

    /// The number of the next level's first session: it goes on where the one before ended.
    pub fn first_session(&self) -> u64 {
        self.begun.load(Relaxed)
    }

    /// A session at its start.
    pub fn session(&self, number: u64) -> Session {
        self.begun.fetch_max(number.saturating_add(1), Relaxed);
        let place = (number % self.store.len().max(1) as u64) as usize;
        let place = match &self.order {
            Some(order) => order.get(place).map_or(0, |p| *p as usize),
            None => place,
        };
        let mut session = Session::new(number, 1);
        if self.store.get(place, &mut session.row).is_err() {
            // To be told when it is to be sent.
            session.row.clear();
        }
        if let Ok(conversation) = read(&session) {
            session.turns = conversation.turns.len() as u32;
        }
        session
    }

    /// What is to be told of a level of so many sessions, the first with this number.
    pub fn warning(&self, first: u64, sessions: u64) -> Option<String> {
        let rows = self.store.len() as u64;
        (first + sessions > rows).then(|| {
            format!(
                "the data has {rows} sessions and the run needed {}: they were taken again from the start, and a prefix cache may know them",
                first + sessions
            )
        })
    }

    /// The output tokens that all requests have, where they do.
    pub fn uniform(&self) -> Option<u64> {
        self.uniform
    }

    /// Append the session's next prompt.
    ///
    /// # Errors
    /// If the row cannot be read back from the temporary file.
    pub fn write(&self, form: Form, session: &Session, out: &mut Vec<u8>) -> Result<Sizes, String> {
        let conversation = read(session)?;
        let turn = conversation
            .turns
            .get(session.turn as usize)
            .ok_or_else(lost)?;
        let prefix = conversation.prefix.as_deref().filter(|_| session.turn == 0);
        match &turn.prompt {
            Prompt::Text(text) => {
                let system = |out: &mut Vec<u8>| push_escaped(out, prefix.unwrap_or_default());
                let system: Option<Part<'_>> = prefix.map(|_| &system as Part<'_>);
                form.write(out, &session.history, system, |out| push_escaped(out, text));
            }
            Prompt::TokenIds(ids) => {
                out.push(b'[');
                for (id, i) in ids.iter().zip(0..) {
                    if i > 0 {
                        out.push(b',');
                    }
                    push_number(out, u64::from(*id));
                }
                out.push(b']');
            }
        }
        let drawn = || {
            let seed = self.seed ^ (u64::from(session.turn) << 32);
            self.output_tokens
                .count(&mut Random::apart(seed, session.number))
        };
        Ok(Sizes {
            prompt_tokens: turn.prompt_tokens.map(|n| session.context_tokens + n),
            exact: false,
            output_tokens: turn.output_tokens.unwrap_or_else(drawn),
        })
    }

    /// How long the user thinks before the session's next turn, seconds.
    pub fn think_s(&self, session: &Session) -> f64 {
        let before = session.turn.saturating_sub(1);
        let own = read(session)
            .ok()
            .and_then(|c| c.turns.get(before as usize)?.think_s);
        own.unwrap_or_else(|| {
            let seed = self.seed ^ (u64::from(before) << 32) ^ 1;
            let drawn = |t: Drawn| t.value(&mut Random::apart(seed, session.number));
            self.think_s.map_or(0.0, drawn)
        })
    }

    /// The answer to the session's turn that takes the place of the server's, where there is one.
    pub fn answer(&self, session: &Session) -> Option<String> {
        if self.history == History::Server {
            return None;
        }
        let conversation = read(session).ok()?;
        let answer = conversation
            .turns
            .get(session.turn as usize)?
            .answer
            .clone();
        answer.map(Cow::into_owned)
    }
}

fn read(session: &Session) -> Result<Conversation<'_>, String> {
    postcard::from_bytes(&session.row).map_err(|_| lost())
}

fn lost() -> String {
    "its row cannot be read back from the temporary file".into()
}

/// The numbers below `n` in a random order.
fn shuffled(n: usize, seed: u64) -> Vec<u32> {
    let mut order: Vec<u32> = (0..n as u32).collect();
    let mut random = Random::new(seed, 0);
    for i in (1..order.len()).rev() {
        order.swap(i, random.below(i as u64 + 1) as usize);
    }
    order
}

impl Loader<'_> {
    fn take(&mut self, cells: &Map<String, Value>) -> Result<(), String> {
        if !cells.keys().eq(&self.names) {
            self.names = cells.keys().cloned().collect();
            let names: Vec<&str> = self.names.iter().map(String::as_str).collect();
            self.columns = Columns::find(&names, &self.file.columns)?;
            self.unseen.retain(|chosen| !self.columns.has(chosen));
        }
        let Some(mut conversation) = self.conversation(cells)? else {
            self.silent += 1;
            return Ok(());
        };
        if let Some(name) = self.columns.of_turn(Column::Prefix, Some(0))
            && let Some(prefix) = columns::text(cells, name)?
        {
            conversation.prefix = Some(Cow::Owned(prefix));
        }
        self.check(&conversation)?;
        for turn in &mut conversation.turns {
            if turn.output_tokens.is_none()
                && let (Some(tokenizer), Some(answer)) = (&self.tokenizer, &turn.answer)
            {
                turn.output_tokens = Some(tokenizer.count_output(answer) as u64).filter(|n| *n > 0);
            }
            let (low, high) = match turn.output_tokens {
                Some(n) => (n, n),
                None => (
                    self.output_tokens.low as u64,
                    self.output_tokens.high as u64,
                ),
            };
            (self.fewest, self.most) = (self.fewest.min(low), self.most.max(high));
        }
        let piece = postcard::to_allocvec(&conversation).map_err(|e| e.to_string())?;
        self.writer
            .push(&piece)
            .map_err(|e| format!("the disk does not take it ({e})"))
    }

    /// What a row says; `None` if no user says anything.
    fn conversation(
        &self,
        cells: &Map<String, Value>,
    ) -> Result<Option<Conversation<'static>>, String> {
        if let Some(name) = self.columns.of_turn(Column::Messages, Some(0))
            && cells.get(name).is_some_and(|cell| !cell.is_null())
        {
            return self.messages(cells, name, &cells[name]);
        }
        let mut conversation = Conversation::default();
        for (number, name) in self.columns.named(Column::Prompt) {
            let prompt = match cells.get(name).unwrap_or(&Value::Null) {
                Value::String(text) if !text.is_empty() => Prompt::Text(Cow::Owned(text.clone())),
                Value::Array(items) if items.first().is_some_and(Value::is_object) => {
                    return self.messages(cells, name, &cells[name]);
                }
                Value::Array(items) if !items.is_empty() => {
                    Prompt::TokenIds(token_ids(items).map_err(|e| format!("column `{name}`: {e}"))?)
                }
                // A conversation that is shorter than others.
                Value::Null | Value::String(_) if !conversation.turns.is_empty() => break,
                Value::Null | Value::String(_) | Value::Array(_) => {
                    return Err(format!("column `{name}`: the prompt is empty"));
                }
                other => {
                    return Err(format!(
                        "column `{name}`: {} where a text should be",
                        name_of(other)
                    ));
                }
            };
            let turn = self.with_numbers(Turn::of(prompt), cells, number)?;
            conversation.turns.push(turn);
        }
        if conversation.turns.is_empty() {
            let names: Vec<&str> = cells.keys().map(String::as_str).collect();
            return Err(format!("there is no prompt; {}", listed(&names)));
        }
        Ok(Some(conversation))
    }

    /// A conversation from a list of messages, or from the JSON of one.
    fn messages(
        &self,
        cells: &Map<String, Value>,
        name: &str,
        cell: &Value,
    ) -> Result<Option<Conversation<'static>>, String> {
        let parsed = match cell {
            Value::String(json) => serde_json::from_str(json).ok(),
            _ => None,
        };
        let Value::Array(messages) = parsed.as_ref().unwrap_or(cell) else {
            return Err(format!(
                "column `{name}`: {} where a list of messages should be",
                name_of(cell)
            ));
        };
        let read = conversation::read(messages).map_err(|e| format!("column `{name}`: {e}"))?;
        let Some(mut conversation) = read else {
            return Ok(None);
        };
        let turns = std::mem::take(&mut conversation.turns);
        for (turn, number) in turns.into_iter().zip(0..) {
            let turn = self.with_numbers(turn, cells, Some(number))?;
            conversation.turns.push(turn);
        }
        Ok(Some(conversation))
    }

    /// A turn with the numbers that stand in other columns.
    fn with_numbers(
        &self,
        turn: Turn<'static>,
        cells: &Map<String, Value>,
        number: Option<u64>,
    ) -> Result<Turn<'static>, String> {
        let column = |column| self.columns.of_turn(column, number);
        let tokens = |name: Option<&str>| name.map_or(Ok(None), |n| columns::tokens(cells, n));
        let think = column(Column::ThinkTime);
        Ok(Turn {
            prompt_tokens: tokens(column(Column::PromptTokens))?,
            output_tokens: tokens(column(Column::OutputTokens))?,
            think_s: think.map_or(Ok(None), |n| columns::seconds(cells, n))?,
            ..turn
        })
    }

    /// Can the endpoint be asked this?
    fn check(&self, conversation: &Conversation<'_>) -> Result<(), String> {
        let endpoint = self.target.endpoint;
        let turns = conversation.turns.len();
        let ids = |turn: &Turn<'_>| matches!(turn.prompt, Prompt::TokenIds(_));
        if turns > MOST_TURNS as usize {
            return Err(format!(
                "{turns} turns, and more than {MOST_TURNS} are not played"
            ));
        }
        if turns > 1 && !endpoint.generates() {
            return Err(format!(
                "{turns} turns, but {} answers with no text that a next turn could follow",
                endpoint.path()
            ));
        }
        if conversation.turns.iter().any(ids) {
            if !endpoint.takes_raw_prompts() {
                return Err(format!(
                    "token ids, which {} does not take",
                    endpoint.path()
                ));
            }
            if turns > 1 || conversation.prefix.is_some() {
                return Err("token ids, which neither a prefix nor another turn can follow".into());
            }
        }
        Ok(())
    }
}

fn token_ids(items: &[Value]) -> Result<Vec<u32>, String> {
    let id = |item: &Value| {
        let id = item.as_u64().and_then(|id| u32::try_from(id).ok());
        id.ok_or_else(|| format!("{} in a list of token ids", name_of(item)))
    };
    items.iter().map(id).collect()
}

#[cfg(test)]
mod tests;
