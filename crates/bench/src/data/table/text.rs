//! Lines of text, each a prompt.

use std::fs::File;
use std::io::BufReader;

use serde_json::{Map, Value};

use super::{Place, Row, Take, line};

/// Lines that are empty are no prompts.
pub(super) fn read(file: File, take: Take<'_>) -> Result<(), String> {
    let mut reader = BufReader::new(file);
    let mut buffer = Vec::new();
    let mut number = 1;
    while let Some(text) = line(&mut reader, &mut buffer, number)? {
        if !text.trim().is_empty() {
            let mut cells = Map::new();
            // GuideLLM's name for it.
            cells.insert("text".to_owned(), Value::String(text.to_owned()));
            let place = Place {
                what: "line",
                number,
            };
            take(Row { place, cells })?;
        }
        number += 1;
    }
    Ok(())
}
