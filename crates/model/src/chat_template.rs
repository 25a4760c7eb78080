//! Chat templates: the Jinja text that turns messages into a prompt.

use minijinja::value::Kwargs;
use minijinja::{Environment, Error, ErrorKind, Value};

use crate::ModelError;

/// Instructions a template may take: plenty for thousands of messages, little for an endless loop.
const FUEL: u64 = 5_000_000;
/// Bytes a prompt may have: fuel counts instructions, and one can print a list without end.
const MAX_PROMPT: usize = 64 << 20;
const NAME: &str = "chat";

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos: String,
    eos: String,
}

impl ChatTemplate {
    /// Compiles a template; `bos` and `eos` are the texts it knows as `bos_token` and `eos_token`.
    ///
    /// # Errors
    /// The text is no Jinja template.
    pub fn new(source: &str, bos: &str, eos: &str) -> Result<Self, ModelError> {
        let mut environment = Environment::new();
        // As Hugging Face renders them.
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_fuel(Some(FUEL));
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment.add_filter("tojson", to_json);
        environment
            .add_template_owned(NAME, source.to_owned())
            .map_err(|e| ModelError::Unsupported(format!("the chat template: {e}")))?;
        Ok(Self {
            environment,
            bos: bos.to_owned(),
            eos: eos.to_owned(),
        })
    }

    /// The prompt for `messages` (an array of objects with `role` and `content`).
    ///
    /// # Errors
    /// The template refuses the messages, or works on them for too long.
    pub fn render(
        &self,
        messages: &serde_json::Value,
        tools: Option<&serde_json::Value>,
        add_generation_prompt: bool,
    ) -> Result<String, ModelError> {
        let failed = |e: Error| {
            let reason = match (e.kind(), e.detail()) {
                (ErrorKind::InvalidOperation, Some(detail)) => detail.to_owned(),
                (ErrorKind::OutOfFuel, _) => "it takes too long on these messages".to_owned(),
                (ErrorKind::WriteFailure, _) => {
                    format!("what it makes of these messages is over {MAX_PROMPT} bytes")
                }
                _ => e.to_string(),
            };
            ModelError::Unsupported(format!("the chat template: {reason}"))
        };
        let template = self.environment.get_template(NAME).map_err(failed)?;
        let context = minijinja::context! {
            messages => Value::from_serialize(messages),
            tools => tools.map(Value::from_serialize),
            add_generation_prompt,
            bos_token => self.bos,
            eos_token => self.eos,
        };
        let mut prompt = Bounded(Vec::new());
        template
            .render_captured_to(context, &mut prompt)
            .map_err(failed)?;
        // Templates print whole characters.
        Ok(String::from_utf8_lossy(&prompt.0).into_owned())
    }
}

/// Takes at most [`MAX_PROMPT`] bytes.
struct Bounded(Vec<u8>);

impl std::io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_PROMPT {
            return Err(std::io::ErrorKind::FileTooLarge.into());
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

/// Today's date in the few forms that templates ask for.
fn strftime_now(format: String) -> String {
    let seconds = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |d| d.as_secs());
    let (year, month, day) = civil_date(seconds / 86_400);
    let name = MONTHS[month as usize - 1];
    format
        .replace("%Y", &year.to_string())
        .replace("%m", &format!("{month:02}"))
        .replace("%d", &format!("{day:02}"))
        .replace("%B", name)
        .replace("%b", &name[..3])
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// Days since 1970 to a date of the Gregorian calendar, by counting 400-year cycles from March.
fn civil_date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (cycle, day_of_cycle) = (days / 146_097, days % 146_097);
    let year_of_cycle =
        (day_of_cycle - day_of_cycle / 1460 + day_of_cycle / 36_524 - day_of_cycle / 146_096) / 365;
    let day_of_year =
        day_of_cycle - (365 * year_of_cycle + year_of_cycle / 4 - year_of_cycle / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    (
        cycle * 400 + year_of_cycle + u64::from(month <= 2),
        month,
        day,
    )
}

/// JSON as Python writes it: a space after `,` and `:`, nothing escaped for HTML.
fn to_json(value: Value, options: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let failed = |e: serde_json::Error| Error::new(ErrorKind::BadSerialization, e.to_string());
    let text = match indent {
        None => {
            let mut out = Vec::new();
            let mut serializer = serde_json::Serializer::with_formatter(&mut out, PythonSpacing);
            serde::Serialize::serialize(&value, &mut serializer).map_err(failed)?;
            String::from_utf8_lossy(&out).into_owned()
        }
        Some(width) => {
            let spaces = " ".repeat(width.min(16));
            let mut out = Vec::new();
            let formatter = serde_json::ser::PrettyFormatter::with_indent(spaces.as_bytes());
            let mut serializer = serde_json::Serializer::with_formatter(&mut out, formatter);
            serde::Serialize::serialize(&value, &mut serializer).map_err(failed)?;
            String::from_utf8_lossy(&out).into_owned()
        }
    };
    Ok(Value::from_safe_string(text))
}

struct PythonSpacing;

impl serde_json::ser::Formatter for PythonSpacing {
    fn begin_array_value<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first {
            Ok(())
        } else {
            writer.write_all(b", ")
        }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first {
            Ok(())
        } else {
            writer.write_all(b", ")
        }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
    ) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_chat_renders_as_hugging_face_does() {
        let source = "{% for m in messages %}\n  {% if loop.first and m.role != 'system' %}{{ bos_token }}{% endif %}\n{{ m['role'] }}: {{ m['content'].strip() }}\n{% endfor %}\n{% if add_generation_prompt %}\nassistant:{% endif %}";
        let template = ChatTemplate::new(source, "<s>", "</s>").unwrap();
        let messages = json!([{"role": "user", "content": " hi <b> "}]);
        assert_eq!(
            template.render(&messages, None, true).unwrap(),
            "<s>user: hi <b>\nassistant:"
        );
    }

    #[test]
    fn tools_are_json_as_python_writes_it() {
        let template = ChatTemplate::new("{{ tools | tojson }}", "", "").unwrap();
        let tools = json!([{"name": "f", "args": {"x": [1, 2]}}]);
        assert_eq!(
            template.render(&json!([]), Some(&tools), false).unwrap(),
            r#"[{"name": "f", "args": {"x": [1, 2]}}]"#
        );
    }

    #[test]
    fn a_template_can_refuse_and_cannot_hang() {
        let refuses =
            ChatTemplate::new("{{ raise_exception('roles must alternate') }}", "", "").unwrap();
        let error = refuses
            .render(&json!([]), None, true)
            .unwrap_err()
            .to_string();
        assert!(error.contains("roles must alternate"), "{error}");
        let hangs = "{% for a in range(9999) %}{% for b in range(9999) %}x{% endfor %}{% endfor %}";
        let error = ChatTemplate::new(hangs, "", "")
            .unwrap()
            .render(&json!([]), None, true);
        assert!(error.unwrap_err().to_string().contains("too long"));
        assert!(ChatTemplate::new("{% if %}", "", "").is_err());
        let endless = ChatTemplate::new("{{ ['x' * 100000] * 1000 }}", "", "").unwrap();
        let error = endless.render(&json!([]), None, true).unwrap_err();
        assert!(error.to_string().contains("bytes"), "{error}");
    }

    #[test]
    fn dates() {
        assert_eq!(civil_date(0), (1970, 1, 1));
        assert_eq!(civil_date(19_782), (2024, 2, 29));
        assert_eq!(civil_date(20_781), (2026, 11, 24));
    }
}
