//! `--config FILE`: a TOML file whose keys are flags. What is typed wins over the file, and the file
//! over `POWERBAND_*` variables.

use std::ffi::OsString;

use crate::error::{CliError, CliResult};

/// Replaces `--config FILE` among `args` by the flags that the file holds, put before those that were
/// typed, so that a typed flag, which comes later, wins.
pub fn expand(mut args: Vec<OsString>) -> CliResult<Vec<OsString>> {
    let Some(at) = args.iter().position(|arg| {
        arg == "--config" || arg.to_str().is_some_and(|arg| arg.starts_with("--config="))
    }) else {
        return Ok(args);
    };
    let flag = args.remove(at);
    let path: OsString = match flag
        .to_str()
        .and_then(|flag| flag.strip_prefix("--config="))
    {
        Some(path) => path.into(),
        None if at < args.len() => args.remove(at),
        None => return Err(CliError::new("--config needs the path of a TOML file")),
    };
    let shown = path.to_string_lossy().into_owned();
    let text = std::fs::read_to_string(&path).map_err(|error| {
        CliError::new(format!("--config: cannot read {shown}: {error}"))
            .hint("its keys are flags, as in `max-num-seqs = 8`")
    })?;
    let table: toml::Table = text
        .parse()
        .map_err(|error| CliError::new(format!("--config: {shown} is no valid TOML: {error}")))?;
    // The flags go right behind the command's name.
    let command = 2.min(args.len());
    let typed = args.split_off(command);
    for (key, value) in table {
        let flag = format!("--{}", key.replace('_', "-"));
        match value {
            toml::Value::Boolean(true) => args.push(flag.into()),
            toml::Value::Boolean(false) => {}
            toml::Value::String(text) => args.extend([flag.into(), text.into()]),
            toml::Value::Integer(number) => args.extend([flag.into(), number.to_string().into()]),
            toml::Value::Float(number) => args.extend([flag.into(), number.to_string().into()]),
            toml::Value::Array(items) => {
                let items: Vec<String> = items
                    .iter()
                    .map(|item| {
                        item.as_str()
                            .map_or_else(|| item.to_string(), str::to_owned)
                    })
                    .collect();
                args.extend([flag.into(), items.join(",").into()]);
            }
            _ => {
                return Err(CliError::new(format!(
                    "--config: {shown}: {key} must be text, a number, true, false or a list of these"
                )));
            }
        }
    }
    args.extend(typed);
    Ok(args)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typed_flags_come_behind_those_of_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("p.toml");
        std::fs::write(
            &file,
            "max_num_seqs = 8\nquick = true\nconcurrency = [1, 5]\n",
        )
        .unwrap();
        let args = [
            "powerband",
            "run",
            "--config",
            file.to_str().unwrap(),
            "--max-num-seqs",
            "9",
        ];
        let expanded = expand(args.iter().map(OsString::from).collect()).unwrap();
        let expanded: Vec<_> = expanded.iter().map(|a| a.to_str().unwrap()).collect();
        assert_eq!(expanded[..2], ["powerband", "run"]);
        assert_eq!(expanded[expanded.len() - 2..], ["--max-num-seqs", "9"]);
        let file_flags = expanded[2..expanded.len() - 2].join(" ");
        for flag in ["--max-num-seqs 8", "--quick", "--concurrency 1,5"] {
            assert!(file_flags.contains(flag), "{flag} in {file_flags}");
        }
    }

    #[test]
    fn a_missing_or_broken_file_is_named() {
        for args in [
            vec!["powerband", "run", "--config=/nonexistent/x.toml"],
            vec!["powerband", "run", "--config"],
        ] {
            let error = expand(args.iter().map(OsString::from).collect()).unwrap_err();
            assert!(error.message.contains("--config"), "{}", error.message);
        }
    }
}
