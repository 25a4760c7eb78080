//! A body's JSON, read once: depth and number of values are bounded while reading, and prompts go
//! straight into token ids, so that a body never takes much more memory than its own bytes.

use std::cell::Cell;
use std::fmt;

use http::StatusCode;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::config::Limits;
use crate::error::ApiError;
use crate::prompt::PromptInput;

/// The fields of a body: one prompt field apart, all others as plain values.
pub(crate) struct Document {
    /// `prompt` or `tokens`.
    pub prompt: Option<PromptInput>,
    pub fields: Map<String, Value>,
}

/// Parses a body that must be one JSON object.
pub(crate) fn parse(body: &[u8], limits: &Limits) -> Result<Document, ApiError> {
    let budget = Budget {
        values: Cell::new(limits.json_values),
    };
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let root = Root {
        budget: &budget,
        depth: limits.json_depth,
    };
    root.deserialize(&mut deserializer)
        .and_then(|document| deserializer.end().map(|()| document))
        .map_err(|error| {
            ApiError::new(
                StatusCode::BAD_REQUEST,
                format!("the body is not usable JSON: {error}"),
            )
        })
}

/// Values left to read.
struct Budget {
    values: Cell<usize>,
}

impl Budget {
    fn spend<E: Error>(&self) -> Result<(), E> {
        match self.values.get().checked_sub(1) {
            Some(left) => {
                self.values.set(left);
                Ok(())
            }
            None => Err(E::custom("too many values")),
        }
    }
}

struct Root<'a> {
    budget: &'a Budget,
    depth: usize,
}

impl<'de> DeserializeSeed<'de> for Root<'_> {
    type Value = Document;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Document, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Root<'_> {
    type Value = Document;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Document, A::Error> {
        let mut document = Document {
            prompt: None,
            fields: Map::new(),
        };
        while let Some(key) = map.next_key::<String>()? {
            self.budget.spend()?;
            if key == "prompt" || key == "tokens" {
                document.prompt = map.next_value::<Option<PromptInput>>()?;
            } else {
                let value = map.next_value_seed(Bounded {
                    budget: self.budget,
                    depth: self.depth.saturating_sub(1),
                })?;
                document.fields.insert(key, value);
            }
        }
        Ok(document)
    }
}

/// Reads any value; `depth` more levels of nesting are allowed.
struct Bounded<'a> {
    budget: &'a Budget,
    depth: usize,
}

impl Bounded<'_> {
    fn deeper<E: Error>(&self) -> Result<Self, E>
    where
        Self: Sized,
    {
        let depth = self
            .depth
            .checked_sub(1)
            .ok_or_else(|| E::custom("nested too deeply"))?;
        Ok(Bounded {
            budget: self.budget,
            depth,
        })
    }

    fn again(&self) -> Self {
        Bounded {
            budget: self.budget,
            depth: self.depth,
        }
    }
}

impl<'de> DeserializeSeed<'de> for Bounded<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.budget.spend()?;
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Bounded<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value)
            .map(Value::Number)
            .ok_or_else(|| E::custom("number out of range"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let inner = self.deeper()?;
        let mut items = Vec::new();
        while let Some(item) = seq.next_element_seed(inner.again())? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let inner = self.deeper()?;
        let mut fields = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            let value = map.next_value_seed(inner.again())?;
            fields.insert(key, value);
        }
        Ok(Value::Object(fields))
    }
}

/// Reads the rest of an array without keeping it.
pub(crate) fn skip_rest<'de, A: SeqAccess<'de>>(mut seq: A) -> Result<(), A::Error> {
    while seq.next_element::<IgnoredAny>()?.is_some() {}
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(body: &str, limits: &Limits) -> String {
        match parse(body.as_bytes(), limits) {
            Ok(_) => panic!("accepted {body}"),
            Err(error) => error.message,
        }
    }

    #[test]
    fn depth_and_number_of_values_are_bounded() {
        let limits = Limits {
            json_depth: 3,
            json_values: 20,
            ..Limits::default()
        };
        assert!(parse(br#"{"a":[[1]]}"#, &limits).is_ok());
        assert!(error(r#"{"a":[[[1]]]}"#, &limits).contains("nested too deeply"));
        assert!(error(r#"{"a":[{"b":[1]}]}"#, &limits).contains("nested too deeply"));
        let many = format!(r#"{{"a":[{}0]}}"#, "0,".repeat(30));
        assert!(error(&many, &limits).contains("too many values"));
        // Token ids do not count: they are bounded by the context.
        let prompt = format!(r#"{{"prompt":[{}0]}}"#, "0,".repeat(30));
        assert!(parse(prompt.as_bytes(), &limits).is_ok());
    }

    #[test]
    fn what_is_not_json_is_refused() {
        let limits = Limits::default();
        for body in [
            "",
            "[]",
            "1",
            "null",
            "{",
            r#"{"a":NaN}"#,
            r#"{"a":1e309}"#,
            "{} {}",
            "{\"a\":\u{1}}",
        ] {
            assert!(error(body, &limits).contains("not usable JSON"), "{body}");
        }
        let deep = format!("{}{}", r#"{"a":"#, "[".repeat(100_000));
        assert!(error(&deep, &limits).contains("nested too deeply"));
        // The parser's own recursion limit, or the end of the input: no stack is used up.
        let deep = format!("{}{}", r#"{"prompt":"#, "[".repeat(100_000));
        assert!(parse(deep.as_bytes(), &limits).is_err());
    }
}
