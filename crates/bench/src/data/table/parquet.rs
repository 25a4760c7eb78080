//! Parquet, as the hubs of data sets have it.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};

use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, Row as ParquetRow};
use serde_json::{Map, Value, json};

use super::{Place, Row, Take};

/// The format's reader panics on some broken files: that must end the file, not the program.
pub(super) fn read(file: File, take: Take<'_>) -> Result<(), String> {
    // Whoever takes rows is not asked again after a panic.
    let read = AssertUnwindSafe(|| read_rows(file, take));
    catch_unwind(read)
        .unwrap_or_else(|_| Err("it is no Parquet file that can be read (it is broken)".into()))
}

fn read_rows(file: File, take: Take<'_>) -> Result<(), String> {
    let reader = SerializedFileReader::new(file).map_err(explain)?;
    let rows = reader.get_row_iter(None).map_err(explain)?;
    for (row, number) in rows.zip(1..) {
        let place = Place {
            what: "row",
            number,
        };
        let row = row.map_err(|e| format!("{place}: {}", explain(e)))?;
        let cells = cells(row);
        take(Row { place, cells })?;
    }
    Ok(())
}

fn explain(error: ParquetError) -> String {
    let text = error.to_string();
    let kind = text.split_once("Disabled feature at compile time: ");
    match kind {
        Some((_, codec)) => format!(
            "it is compressed with {codec}, which is not read; snappy, zstd and no compression are"
        ),
        None => format!("it is no Parquet file that can be read ({text})"),
    }
}

fn cells(row: ParquetRow) -> Map<String, Value> {
    let columns = row.into_columns().into_iter();
    columns.map(|(name, field)| (name, value(field))).collect()
}

fn value(field: Field) -> Value {
    match field {
        Field::Null => Value::Null,
        Field::Bool(b) => json!(b),
        Field::Byte(n) => json!(n),
        Field::Short(n) => json!(n),
        Field::Int(n) | Field::Date(n) | Field::TimeMillis(n) => json!(n),
        Field::Long(n)
        | Field::TimeMicros(n)
        | Field::TimestampMillis(n)
        | Field::TimestampMicros(n) => json!(n),
        Field::UByte(n) => json!(n),
        Field::UShort(n) => json!(n),
        Field::UInt(n) => json!(n),
        Field::ULong(n) => json!(n),
        Field::Float16(x) => json!(x.to_f32()),
        Field::Float(x) => json!(x),
        Field::Double(x) => json!(x),
        Field::Str(text) => Value::String(text),
        // Old writers do not mark what is text.
        Field::Bytes(bytes) => match std::str::from_utf8(bytes.data()) {
            Ok(text) => json!(text),
            Err(_) => Value::Null,
        },
        field @ Field::Decimal(_) => json!(field.to_string()),
        Field::Group(row) => Value::Object(cells(row)),
        Field::ListInternal(list) => list.elements().iter().map(|f| value(f.clone())).collect(),
        Field::MapInternal(map) => {
            let entries = map.entries().iter();
            let named = entries.map(|(key, field)| match value(key.clone()) {
                Value::String(key) => (key, value(field.clone())),
                other => (other.to_string(), value(field.clone())),
            });
            Value::Object(named.collect())
        }
    }
}
