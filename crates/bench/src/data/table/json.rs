//! JSON objects, one on each line; or a list of objects.

use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader, Seek};

use serde::de::{DeserializeSeed, Deserializer, Error, SeqAccess, Visitor};
use serde_json::Value;

use super::{Bounded, Place, Row, Take, line};

pub(super) fn read(mut file: File, take: Take<'_>) -> Result<(), String> {
    let first = first_byte(&file)?;
    file.rewind().map_err(|e| e.to_string())?;
    match first {
        Some(b'[') => list(file, take),
        _ => lines(file, take),
    }
}

/// The first byte that means something.
fn first_byte(file: &File) -> Result<Option<u8>, String> {
    let mut reader = BufReader::new(file);
    let start = reader.fill_buf().map_err(|e| e.to_string())?;
    let start = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(start);
    Ok(start.trim_ascii_start().first().copied())
}

fn lines(file: File, take: Take<'_>) -> Result<(), String> {
    let mut reader = BufReader::new(file);
    let mut buffer = Vec::new();
    let mut number = 1;
    while let Some(text) = line(&mut reader, &mut buffer, number)? {
        if !text.trim().is_empty() {
            let value = serde_json::from_str(text).map_err(|e| {
                let what = what_of(&e);
                format!(
                    "line {number}, column {}: it is not JSON ({what})",
                    e.column()
                )
            })?;
            let place = Place {
                what: "line",
                number,
            };
            take(row(place, value)?)?;
        }
        number += 1;
    }
    Ok(())
}

/// What a parser says without the place, which is told apart.
fn what_of(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.rsplit_once(" at line ")
        .map_or(text.clone(), |(what, _)| what.to_owned())
}

fn row(place: Place, value: Value) -> Result<Row, String> {
    match value {
        Value::Object(cells) => Ok(Row { place, cells }),
        other => Err(format!(
            "{place}: {} where an object should be",
            name_of(&other)
        )),
    }
}

/// What a value is, for errors.
pub(crate) fn name_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn list(file: File, take: Take<'_>) -> Result<(), String> {
    let (mut reader, begin_row) = Bounded::new(file);
    if reader
        .inner
        .fill_buf()
        .is_ok_and(|b| b.starts_with(b"\xef\xbb\xbf"))
    {
        reader.inner.consume(3);
    }
    let mut deserializer = serde_json::Deserializer::from_reader(reader);
    let mut problem = None;
    let seed = List {
        take,
        begin_row: &begin_row,
        problem: &mut problem,
    };
    let read = seed
        .deserialize(&mut deserializer)
        .and_then(|()| deserializer.end());
    match (problem, read) {
        (Some(problem), _) => Err(problem),
        (None, Ok(())) => Ok(()),
        (None, Err(e)) if e.is_io() => Err(e.to_string()),
        (None, Err(e)) => Err(format!(
            "line {}, column {}: it is not JSON ({})",
            e.line(),
            e.column(),
            what_of(&e)
        )),
    }
}

/// A list whose items are taken one at a time: it may be longer than memory.
struct List<'a, 'b, F> {
    take: Take<'a>,
    begin_row: &'b F,
    /// What `take` said.
    problem: &'b mut Option<String>,
}

impl<'de, F: Fn()> DeserializeSeed<'de> for List<'_, '_, F> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, F: Fn()> Visitor<'de> for List<'_, '_, F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let mut number = 1;
        (self.begin_row)();
        while let Some(value) = list.next_element::<Value>()? {
            (self.begin_row)();
            let place = Place {
                what: "item",
                number,
            };
            if let Err(problem) = row(place, value).and_then(&mut *self.take) {
                *self.problem = Some(problem);
                return Err(A::Error::custom("a row that cannot be used"));
            }
            number += 1;
        }
        Ok(())
    }
}
