//! `report.md`.

use std::fmt::Write;

use crate::findings::Finding;
use crate::sweep::Sweep;
use crate::{answers, table};

/// The report as Markdown; its pictures are in `plots/` beside it.
pub fn render(sweep: &Sweep<'_>, findings: &[Finding], plots: &[&str]) -> String {
    let a = answers::of(sweep, findings);
    let mut out = format!("# {}\n\n", inline(&title(sweep)));
    for line in facts(sweep) {
        let _ = writeln!(out, "- {}", inline(&line));
    }
    out += "\n";
    for line in &a.headline {
        let _ = writeln!(out, "**{}**\n", inline(line));
    }
    section(
        &mut out,
        "How does this serving setup perform?",
        &a.performance,
    );
    for name in plots {
        let _ = writeln!(out, "![{name}](plots/{name}.png)\n");
    }
    rows(&mut out, &table::head(sweep), table::rows(sweep));
    section(&mut out, "Where is the bottleneck?", &a.bottleneck);
    for other in table::others(sweep) {
        let _ = writeln!(out, "### {}\n", other.heading);
        rows(&mut out, &other.head, other.rows);
    }
    section(
        &mut out,
        "What to change next, and what it will gain",
        &a.next,
    );
    section(
        &mut out,
        "What remains unsure, and what would decide it",
        &a.unsure,
    );
    out += "## Findings\n\nThe same list, one entry a level, is in `findings.json`.\n\n| id | levels | value | evidence |\n|---|---:|---:|---|\n";
    for row in table::findings(findings) {
        let _ = writeln!(
            out,
            "| `{}` | {} | {} {} | {} |",
            row.id,
            row.levels,
            inline(&row.value),
            inline(&row.unit),
            inline(&row.evidence),
        );
    }
    out
}

/// A table of numbers.
fn rows(out: &mut String, head: &[&str], rows: Vec<Vec<String>>) {
    let _ = writeln!(
        out,
        "| {} |\n|{}",
        head.join(" | "),
        "---:|".repeat(head.len())
    );
    for row in rows {
        let cells: Vec<String> = row.iter().map(|c| inline(c)).collect();
        let _ = writeln!(out, "| {} |", cells.join(" | "));
    }
    *out += "\n";
}

/// The heading of a report.
pub fn title(sweep: &Sweep<'_>) -> String {
    let c = sweep.context;
    c.title.clone().unwrap_or_else(|| match &c.model {
        Some(model) => format!("Serving report: {model}"),
        None => "Serving report".into(),
    })
}

/// What is known of the run, one line each.
pub fn facts(sweep: &Sweep<'_>) -> Vec<String> {
    let c = sweep.context;
    let mut out = Vec::new();
    let mut say =
        |what: &str, value: Option<String>| out.extend(value.map(|v| format!("{what}: {v}")));
    say("Model", c.model.clone());
    say("Backend", c.backend.clone());
    say("Machine", c.machine.clone());
    say("Target", c.target.clone());
    say("Command", c.command.clone());
    say("--max-num-seqs", c.max_num_seqs.map(|n| n.to_string()));
    say("KV cache", c.kv_cache_tokens.map(|n| format!("{n} tokens")));
    let tokens = |v: f64| {
        if v.fract().abs() < 0.05 {
            format!("{v:.0}")
        } else {
            format!("{v:.1}")
        }
    };
    say(
        "Workload",
        sweep.output_tokens.map(|n| {
            let how = if sweep.inferred {
                " (inferred from the numbers)"
            } else {
                ""
            };
            match sweep.prompt_tokens {
                Some(p) => format!(
                    "{} prompt and {} output tokens a request{how}",
                    tokens(p),
                    tokens(n)
                ),
                None => format!("{} output tokens a request{how}", tokens(n)),
            }
        }),
    );
    out
}

fn section(out: &mut String, heading: &str, lines: &[String]) {
    let _ = writeln!(out, "## {heading}\n");
    for line in lines {
        let _ = writeln!(out, "- {}", inline(line));
    }
    *out += "\n";
}

/// Text that cannot become markup: names of files and models, and what a server said, end up here.
pub(crate) fn inline(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\r' => out.push(' '),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '|' | '`' | '[' | ']' | '*' | '\\' => {
                out.push('\\');
                out.push(c);
            }
            _ => out.push(c),
        }
    }
    out
}
