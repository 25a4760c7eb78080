//! Calls of models among the spans of OpenTelemetry. Which spans they are, and under which names their tokens
//! stand, is as GuideLLM has it.

use chrono::DateTime;
use serde_json::{Map, Value};

use super::trace::Call;

/// What a call is named in `gen_ai.operation.name`, and what is none.
const CALLS: [&str; 3] = ["chat", "generate", "text_completion"];
const NO_CALLS: [&str; 3] = ["invoke_agent", "execute_tool", "embeddings"];

/// Where the numbers of tokens stand, by today's name and by the former one.
const INPUT: [&str; 2] = ["gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens"];
const OUTPUT: [&str; 2] = [
    "gen_ai.usage.output_tokens",
    "gen_ai.usage.completion_tokens",
];

/// Takes a call and when it came, seconds since 1970; `None` for one whose tokens are not known.
pub(crate) type Take<'a> = &'a mut dyn FnMut(Option<(f64, Call)>) -> Result<(), String>;

/// The calls in a row: OTLP's `resourceSpans`, a list of `spans`, or one span.
///
/// # Errors
/// A phrase about a span that cannot be read, or what `take` says.
pub(crate) fn each_call(cells: &Map<String, Value>, take: Take<'_>) -> Result<(), String> {
    if let Some(resources) = cells.get("resourceSpans").or(cells.get("resource_spans")) {
        let Value::Array(resources) = resources else {
            return Err("`resourceSpans` is no list".into());
        };
        let scopes = resources
            .iter()
            .flat_map(|resource| ["scopeSpans", "scope_spans"].map(|name| list(resource, name)));
        for scope in scopes.flatten() {
            spans(list(scope, "spans"), take)?;
        }
        return Ok(());
    }
    match cells.get("spans") {
        Some(Value::Array(list)) => spans(list, take),
        Some(Value::String(json)) => {
            let list: Vec<Value> = serde_json::from_str(json)
                .map_err(|_| "column `spans`: no list of spans".to_owned())?;
            spans(&list, take)
        }
        Some(_) => Err("column `spans`: no list of spans".into()),
        None => span(cells, take),
    }
}

fn list<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    let list = value.get(name).and_then(Value::as_array);
    list.map_or(&[], Vec::as_slice)
}

fn spans(list: &[Value], take: Take<'_>) -> Result<(), String> {
    for (value, number) in list.iter().zip(1..) {
        let Value::Object(fields) = value else {
            return Err(format!("span {number} is no object"));
        };
        span(fields, take).map_err(|e| format!("span {number}: {e}"))?;
    }
    Ok(())
}

fn span(fields: &Map<String, Value>, take: Take<'_>) -> Result<(), String> {
    let attributes = Attributes::of(fields);
    if failed(fields) {
        return Ok(());
    }
    let operation = attributes.get("gen_ai.operation.name");
    let operation = operation.and_then(Value::as_str).unwrap_or_default();
    let tokens = |names: [&str; 2]| {
        let found = names.into_iter().find_map(|name| attributes.get(name));
        found.and_then(whole_number)
    };
    let call = match (tokens(INPUT), tokens(OUTPUT)) {
        _ if NO_CALLS.contains(&operation) => return Ok(()),
        (Some(input), Some(output)) => Call {
            input,
            output,
            blocks: Vec::new(),
        },
        _ if CALLS.contains(&operation) => return take(None),
        _ => return Ok(()),
    };
    take(Some((start_s(fields)?, call)))
}

/// The attributes of a span: an object, or OTLP's list of keys and values.
enum Attributes<'a> {
    Object(&'a Map<String, Value>),
    List(&'a [Value]),
    None,
}

impl<'a> Attributes<'a> {
    fn of(span: &'a Map<String, Value>) -> Self {
        match span.get("attributes") {
            Some(Value::Object(object)) => Attributes::Object(object),
            Some(Value::Array(list)) => Attributes::List(list),
            _ => Attributes::None,
        }
    }

    fn get(&self, name: &str) -> Option<&'a Value> {
        let found = match self {
            Attributes::Object(object) => object.get(name)?,
            Attributes::List(list) => {
                let value = list.iter().find(|item| item["key"] == name)?.get("value")?;
                // {"intValue": "5"}
                value.as_object()?.values().next()?
            }
            Attributes::None => return None,
        };
        (!found.is_null()).then_some(found)
    }
}

/// A number, or the text of one: OTLP writes those of 64 bits so.
fn whole_number(value: &Value) -> Option<u64> {
    match value {
        Value::String(text) => text.trim().parse().ok(),
        Value::Number(number) => {
            let float = || number.as_f64().filter(|n| n.fract() == 0.0 && *n >= 0.0);
            number.as_u64().or_else(|| float().map(|n| n as u64))
        }
        _ => None,
    }
}

/// Did the call fail? Such ones are no load that a server would have borne.
fn failed(span: &Map<String, Value>) -> bool {
    let status = span.get("status");
    let code = status.and_then(|s| s.get("code").or(s.get("status_code")));
    match code {
        Some(Value::Number(code)) => code.as_u64() == Some(2),
        Some(Value::String(code)) => code == "ERROR" || code == "STATUS_CODE_ERROR",
        _ => false,
    }
}

/// When a span began, seconds since 1970.
fn start_s(span: &Map<String, Value>) -> Result<f64, String> {
    let nanoseconds = ["startTimeUnixNano", "start_time_unix_nano"];
    if let Some(value) = nanoseconds.into_iter().find_map(|name| span.get(name)) {
        let ns = whole_number(value);
        return ns
            .map(|ns| ns as f64 / 1e9)
            .ok_or_else(|| "its startTimeUnixNano is no number".into());
    }
    let Some(Value::String(text)) = span.get("start_time").or(span.get("startTime")) else {
        return Err("it has neither startTimeUnixNano nor a text as start_time".into());
    };
    // Without an offset it is of UTC.
    let parsed = DateTime::parse_from_rfc3339(text)
        .or_else(|_| DateTime::parse_from_rfc3339(&format!("{text}Z")));
    let time = parsed.map_err(|_| {
        let text: String = text.chars().take(40).collect();
        format!(
            "its start_time `{}` is no time of ISO 8601",
            text.escape_debug()
        )
    })?;
    Ok(time.timestamp() as f64 + f64::from(time.timestamp_subsec_nanos()) / 1e9)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// (start, input, output) of a call; `None` where the tokens are not known.
    type Found = Option<(f64, u64, u64)>;

    fn calls(row: Value) -> Result<Vec<Found>, String> {
        let mut found = Vec::new();
        let mut take = |call: Option<(f64, Call)>| {
            found.push(call.map(|(time, call)| (time, call.input, call.output)));
            Ok(())
        };
        each_call(row.as_object().unwrap(), &mut take)?;
        Ok(found)
    }

    #[test]
    fn otlp_in_json() {
        let attribute = |key: &str, value: Value| json!({"key": key, "value": value});
        let span = |start: &str, attributes: Vec<Value>| {
            json!({"traceId": "5B8EFFF798038103D269B633813FC60C", "spanId": "EEE19B7EC3C1B174",
                   "startTimeUnixNano": start, "attributes": attributes, "status": {}})
        };
        let chat = span(
            "1544712660500000000",
            vec![
                attribute("gen_ai.operation.name", json!({"stringValue": "chat"})),
                attribute("gen_ai.usage.input_tokens", json!({"intValue": "12"})),
                attribute("gen_ai.usage.output_tokens", json!({"intValue": 5})),
            ],
        );
        let other = span(
            "1544712660000000000",
            vec![attribute("http.method", json!({"stringValue": "GET"}))],
        );
        let row =
            json!({"resourceSpans": [{"resource": {}, "scopeSpans": [{"spans": [other, chat]}]}]});
        assert_eq!(calls(row).unwrap(), [Some((1_544_712_660.5, 12, 5))]);
    }

    #[test]
    fn a_span_a_row_or_a_list_of_them() {
        let span = |attributes: Value| json!({"start_time": "2024-05-01T12:00:00.250Z", "attributes": attributes});
        // 2024-05-01 12:00:00 UTC.
        let at = 1_714_564_800.25;
        let new = span(json!({"gen_ai.usage.input_tokens": 7, "gen_ai.usage.output_tokens": 3.0}));
        let old =
            span(json!({"gen_ai.usage.prompt_tokens": "7", "gen_ai.usage.completion_tokens": 3}));
        for row in [&new, &old] {
            assert_eq!(calls(row.clone()).unwrap(), [Some((at, 7, 3))]);
        }
        let list = json!([new, old]);
        for row in [json!({"spans": list}), json!({"spans": list.to_string()})] {
            assert_eq!(calls(row).unwrap().len(), 2);
        }
    }

    #[test]
    fn what_is_no_call_is_left_out() {
        let span = |operation: &str, status: Value| {
            json!({"start_time": "2024-05-01 12:00:00", "status": status, "attributes": {
                "gen_ai.operation.name": operation, "gen_ai.usage.input_tokens": 7, "gen_ai.usage.output_tokens": 3}})
        };
        assert_eq!(calls(span("chat", json!({"code": 1}))).unwrap().len(), 1);
        assert_eq!(calls(span("", json!(null))).unwrap().len(), 1);
        for (operation, status) in [
            ("invoke_agent", json!({})),
            ("embeddings", json!({})),
            ("chat", json!({"code": 2})),
            ("chat", json!({"status_code": "ERROR"})),
        ] {
            assert_eq!(calls(span(operation, status)).unwrap(), []);
        }
        let unknown = json!({"start_time": "2024-05-01T12:00:00Z", "attributes": {"gen_ai.operation.name": "chat"}});
        assert_eq!(calls(unknown).unwrap(), [None]);
        assert_eq!(calls(json!({"name": "GET /"})).unwrap(), []);
    }

    #[test]
    fn times_that_cannot_be_read_are_named() {
        let attributes = json!({"gen_ai.usage.input_tokens": 7, "gen_ai.usage.output_tokens": 3});
        for (span, words) in [
            (
                json!({"attributes": attributes}),
                "neither startTimeUnixNano",
            ),
            (
                json!({"attributes": attributes, "start_time": 5}),
                "neither startTimeUnixNano",
            ),
            (
                json!({"attributes": attributes, "start_time": "yesterday"}),
                "`yesterday` is no time",
            ),
            (
                json!({"attributes": attributes, "startTimeUnixNano": "x"}),
                "startTimeUnixNano is no number",
            ),
            (
                json!({"spans": [{"attributes": attributes}]}),
                "span 1: it has neither",
            ),
            (json!({"spans": [5]}), "span 1 is no object"),
            (json!({"spans": 5}), "no list of spans"),
            (json!({"resourceSpans": 5}), "`resourceSpans` is no list"),
        ] {
            let error = calls(span).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
        let offset = json!({"attributes": attributes, "start_time": "2024-05-01T14:00:00+02:00"});
        assert_eq!(calls(offset).unwrap(), [Some((1_714_564_800.0, 7, 3))]);
    }
}
