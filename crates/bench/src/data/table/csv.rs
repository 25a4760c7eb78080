//! Values with a comma or a tab between, under a line of names.

use std::fs::File;

use csv::{ErrorKind, ReaderBuilder, StringRecord};
use serde_json::Value;

use super::{Bounded, Place, Row, Take};

pub(super) fn read(file: File, delimiter: u8, take: Take<'_>) -> Result<(), String> {
    let (reader, begin_row) = Bounded::new(file);
    let mut reader = ReaderBuilder::new()
        .delimiter(delimiter)
        .from_reader(reader);
    let names: Vec<String> = {
        let names = reader.headers().map_err(|e| explain(e, 0))?;
        names.iter().map(|name| name.trim().to_owned()).collect()
    };
    // Where a line ends with two bytes, the second is left to the row behind it and its line not counted yet.
    let header_lines = 1 + names
        .iter()
        .map(|n| n.matches('\n').count() as u64)
        .sum::<u64>();
    let uncounted = (header_lines + 1)
        .saturating_sub(reader.position().line())
        .min(1);
    let mut record = StringRecord::new();
    loop {
        begin_row();
        if !reader
            .read_record(&mut record)
            .map_err(|e| explain(e, uncounted))?
        {
            return Ok(());
        }
        let number = record.position().map_or(0, csv::Position::line) + uncounted;
        let values = record.iter().map(|value| Value::String(value.to_owned()));
        let place = Place {
            what: "line",
            number,
        };
        let cells = names.iter().cloned().zip(values).collect();
        take(Row { place, cells })?;
    }
}

fn explain(error: csv::Error, uncounted: u64) -> String {
    let at = |position: &Option<csv::Position>| {
        position.as_ref().map_or(1, csv::Position::line) + uncounted
    };
    match error.kind() {
        ErrorKind::Io(e) => e.to_string(),
        ErrorKind::Utf8 { pos, err } => {
            format!("line {}: value {} is not UTF-8", at(pos), err.field() + 1)
        }
        ErrorKind::UnequalLengths {
            pos,
            expected_len,
            len,
        } => format!(
            "line {}: {len} values where {expected_len} columns have a name (is a quote missing?)",
            at(pos)
        ),
        _ => error.to_string(),
    }
}
