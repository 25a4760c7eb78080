//! Typed, bounded access to the fields of a body. `null` counts as absent everywhere.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use crate::error::ApiError;

/// The fields of one body.
pub(crate) struct Fields(pub Map<String, Value>);

impl Fields {
    /// The value of a field that is there and not `null`.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    pub fn take(&mut self, name: &str) -> Option<Value> {
        self.0.remove(name).filter(|value| !value.is_null())
    }

    pub fn boolean(&self, name: &'static str) -> Result<Option<bool>, ApiError> {
        self.get(name)
            .map(|value| {
                value.as_bool().ok_or_else(|| {
                    ApiError::invalid(name, format!("`{name}` must be true or false"))
                })
            })
            .transpose()
    }

    /// `false` where absent.
    pub fn flag(&self, name: &'static str) -> Result<bool, ApiError> {
        Ok(self.boolean(name)?.unwrap_or(false))
    }

    pub fn text(&self, name: &'static str) -> Result<Option<&str>, ApiError> {
        self.get(name)
            .map(|value| {
                value
                    .as_str()
                    .ok_or_else(|| ApiError::invalid(name, format!("`{name}` must be a string")))
            })
            .transpose()
    }

    pub fn integer(
        &self,
        name: &'static str,
        range: RangeInclusive<i64>,
    ) -> Result<Option<i64>, ApiError> {
        self.get(name)
            .map(|value| integer(name, value, range))
            .transpose()
    }

    /// A number within `range`; with `above`, the lower end itself is not allowed.
    pub fn number(
        &self,
        name: &'static str,
        range: RangeInclusive<f64>,
        above: bool,
    ) -> Result<Option<f32>, ApiError> {
        self.get(name)
            .map(|value| {
                let (low, high) = (*range.start(), *range.end());
                let number = value
                    .as_f64()
                    .ok_or_else(|| ApiError::invalid(name, format!("`{name}` must be a number")))?;
                let fits = range.contains(&number) && !(above && number <= low);
                if fits {
                    Ok(number as f32)
                } else if above {
                    Err(ApiError::invalid(
                        name,
                        format!("`{name}` must be above {low} and at most {high}, got {value}"),
                    ))
                } else {
                    Err(out_of_range(name, &low, &high, value))
                }
            })
            .transpose()
    }

    /// 400 where a field that is not built is set to anything but a value without effect.
    pub fn refuse(
        &self,
        name: &'static str,
        harmless: impl Fn(&Value) -> bool,
        detail: &str,
    ) -> Result<(), ApiError> {
        match self.get(name) {
            Some(value) if !harmless(value) => Err(ApiError::unsupported(name, detail)),
            _ => Ok(()),
        }
    }
}

/// An integer within `range`; `16.0` is one.
pub(crate) fn integer(
    name: &'static str,
    value: &Value,
    range: RangeInclusive<i64>,
) -> Result<i64, ApiError> {
    let number = value
        .as_number()
        .ok_or_else(|| ApiError::invalid(name, format!("`{name}` must be an integer")))?;
    let out = || out_of_range(name, range.start(), range.end(), value);
    if let Some(integer) = number.as_i64() {
        return if range.contains(&integer) {
            Ok(integer)
        } else {
            Err(out())
        };
    }
    match number.as_f64() {
        Some(float) if float.fract() != 0.0 => Err(ApiError::invalid(
            name,
            format!("`{name}` must be an integer, got {value}"),
        )),
        // Within 2^53 a float holds every integer exactly.
        Some(float) if float.abs() <= 9.0e15 && range.contains(&(float as i64)) => Ok(float as i64),
        _ => Err(out()),
    }
}

fn out_of_range(
    name: &'static str,
    low: &dyn std::fmt::Display,
    high: &dyn std::fmt::Display,
    value: &Value,
) -> ApiError {
    ApiError::invalid(
        name,
        format!("`{name}` must be between {low} and {high}, got {value}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn integers_are_read_exactly_or_refused() {
        for (value, expected) in [
            (json!(0), Some(0)),
            (json!(7), Some(7)),
            (json!(7.0), Some(7)),
            (json!(8), None),
            (json!(-1), None),
            (json!(7.5), None),
            (json!(2_147_483_648_u64), None),
            (json!(9_223_372_036_854_775_808_u64), None),
            (json!(1e300), None),
            (json!("7"), None),
            (json!(true), None),
            (json!([7]), None),
        ] {
            assert_eq!(integer("n", &value, 0..=7).ok(), expected, "{value}");
        }
        let all = i64::MIN..=i64::MAX;
        assert_eq!(
            integer("seed", &json!(i64::MIN), all.clone()).unwrap(),
            i64::MIN
        );
        assert!(integer("seed", &json!(9.3e18), all).is_err());
    }

    #[test]
    fn an_open_lower_end_is_not_in_the_range() {
        let Value::Object(map) = json!({"a": 0.0, "b": 1e-3, "c": 1.0, "d": 1.1, "e": null}) else {
            panic!("an object");
        };
        let fields = Fields(map);
        assert!(fields.number("a", 0.0..=1.0, true).is_err());
        assert_eq!(fields.number("a", 0.0..=1.0, false).unwrap(), Some(0.0));
        assert_eq!(fields.number("b", 0.0..=1.0, true).unwrap(), Some(1e-3));
        assert_eq!(fields.number("c", 0.0..=1.0, true).unwrap(), Some(1.0));
        assert!(fields.number("d", 0.0..=1.0, true).is_err());
        assert_eq!(fields.number("e", 0.0..=1.0, true).unwrap(), None);
        assert_eq!(fields.number("f", 0.0..=1.0, true).unwrap(), None);
    }
}
