//! A comparison as text, Markdown and JSON.

use std::fmt::Write;

use super::{Comparison, LevelChange, Metric, MetricChange, Verdict};
use crate::markdown::inline;

const HEAD: [&str; 7] = ["metric", "A", "B", "change", "interval", "p", "verdict"];

impl Comparison {
    /// As aligned tables for a terminal.
    pub fn text(&self) -> String {
        let mut out = format!("A: {}\nB: {}\n", self.a, self.b);
        for level in &self.levels {
            let _ = write!(out, "\n{}", title(level));
            out += "\n";
            let mut rows = vec![HEAD.map(str::to_owned)];
            rows.extend(level.metrics.iter().map(row));
            if level.metrics.is_empty() {
                continue;
            }
            let width = |i: usize| rows.iter().map(|r| r[i].chars().count()).max();
            let widths: Vec<usize> = (0..HEAD.len()).filter_map(width).collect();
            for row in &rows {
                let cells = row.iter().zip(&widths).enumerate();
                let cells = cells.map(|(i, (cell, w))| match i {
                    0 | 6 => format!("{cell:<w$}"),
                    _ => format!("{cell:>w$}"),
                });
                let _ = writeln!(out, "  {}", cells.collect::<Vec<_>>().join("  ").trim_end());
            }
        }
        out += "\n";
        for line in self.remarks() {
            let _ = writeln!(out, "{line}");
        }
        let _ = writeln!(out, "{}", self.answer);
        out
    }

    /// As Markdown.
    pub fn markdown(&self) -> String {
        let mut out = format!(
            "# Comparison\n\n**{}**\n\n- A: {}\n- B: {}\n",
            inline(&self.answer),
            inline(&self.a),
            inline(&self.b)
        );
        for line in self.remarks() {
            let _ = writeln!(out, "- {}", inline(&line));
        }
        for level in &self.levels {
            let _ = writeln!(out, "\n## {}\n", inline(&title(level)));
            if level.metrics.is_empty() {
                continue;
            }
            let _ = writeln!(
                out,
                "| {} |\n|---|---:|---:|---:|---:|---:|---|",
                HEAD.join(" | ")
            );
            for m in &level.metrics {
                let _ = writeln!(out, "| {} |", row(m).map(|cell| inline(&cell)).join(" | "));
            }
        }
        out
    }

    /// As JSON: the fields of [`Comparison`].
    ///
    /// # Errors
    /// None of these values fails to serialise; the type asks for it.
    pub fn json(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string_pretty(self)
    }

    /// What is not in the tables.
    fn remarks(&self) -> Vec<String> {
        let mut out = vec![format!(
            "A change counts from {} on (where nothing can be tested from {}). Intervals hold with {} each; p is corrected for all comparisons together.",
            percent(self.settings.threshold),
            percent(self.settings.untested_threshold),
            percent(self.settings.confidence),
        )];
        for (run, levels) in [("A", &self.only_a), ("B", &self.only_b)] {
            if !levels.is_empty() {
                out.push(format!("Only {run} has: {}.", levels.join(", ")));
            }
        }
        out.extend(self.notes.iter().cloned());
        out
    }
}

fn title(level: &LevelChange) -> String {
    let runs = match level.runs {
        (1, 1) => String::new(),
        (a, b) => format!(", {a} and {b} runs"),
    };
    match &level.not_judged {
        Some(why) => format!("{}: not judged: {why}", level.level),
        None => format!("{} ({}{runs})", level.level, level.basis),
    }
}

fn row(m: &MetricChange) -> [String; 7] {
    let dash = || "-".to_owned();
    let failed = m.metric == Metric::Failed;
    let value = |v: f64| match failed {
        true => percent(v),
        false => number(v),
    };
    let signed = |v: f64| match failed {
        true => format!("{:+.1} pts", v * 100.0),
        false => format!("{:+.1} %", v * 100.0),
    };
    let verdict = match m.verdict {
        Verdict::Better => "better",
        Verdict::Worse => "WORSE",
        Verdict::Same => "same",
        Verdict::Undecided => "undecided",
    };
    [
        m.metric.name().into(),
        value(m.a),
        value(m.b),
        signed(m.change),
        m.interval.map_or_else(dash, |(low, high)| {
            format!("{} to {}", signed(low), signed(high))
        }),
        m.p.map_or_else(dash, |p| match p {
            p if p < 0.001 => "<0.001".into(),
            p => format!("{p:.3}"),
        }),
        match m.untested.as_str() {
            "" => verdict.into(),
            why => format!("{verdict} (not tested: {why})"),
        },
    ]
}

/// Four digits: differences of a percent must be seen.
fn number(v: f64) -> String {
    match v.abs() {
        a if a >= 1000.0 => format!("{v:.0}"),
        a if a >= 100.0 => format!("{v:.1}"),
        a if a >= 10.0 => format!("{v:.2}"),
        _ => format!("{v:.3}"),
    }
}

fn percent(share: f64) -> String {
    let text = format!("{:.1}", share * 100.0);
    format!("{} %", text.trim_end_matches(".0"))
}
