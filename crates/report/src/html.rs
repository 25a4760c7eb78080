//! `report.html`: one file, nothing loaded from anywhere, everything from data escaped.

use std::fmt::Write;

use crate::findings::Finding;
use crate::plots::{chart::Chart, short};
use crate::sweep::Sweep;
use crate::{answers, markdown, table};

const STYLE: &str = "
:root{color-scheme:light}
body{margin:0;background:#f4f6f9;color:#16202e;font:16px/1.55 system-ui,'Segoe UI',Roboto,'DejaVu Sans',sans-serif}
main{max-width:1040px;margin:0 auto;padding:32px 20px 64px}
h1{font-size:30px;margin:0 0 6px;line-height:1.2}h2{font-size:21px;margin:40px 0 10px}
.facts{color:#566273;font-size:14px;margin:0 0 22px}.facts span{margin-right:18px}
.head{background:#16202e;color:#fff;border-radius:10px;padding:18px 22px}.head p{margin:5px 0;font-size:17px}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(180px,1fr));gap:12px;margin:16px 0}
.card{background:#fff;border:1px solid #dfe4ea;border-radius:10px;padding:12px 16px}
.card b{display:block;font-size:25px;line-height:1.25}.card span{color:#566273;font-size:13px}
figure{margin:16px 0;background:#fff;border:1px solid #dfe4ea;border-radius:10px;padding:8px;overflow:hidden}
figure svg{display:block;width:100%;height:auto}
li{margin:7px 0}.scroll{overflow-x:auto;background:#fff;border:1px solid #dfe4ea;border-radius:10px}
table{border-collapse:collapse;width:100%;font-size:14px;font-variant-numeric:tabular-nums}
th,td{padding:7px 11px;text-align:right;border-bottom:1px solid #edf0f4;white-space:nowrap}
th{color:#566273;font-weight:600}td.words{white-space:normal;text-align:left;min-width:280px}
tr.peak td{background:#e9f1fd;font-weight:600}tr:last-child td{border-bottom:0}
code{font:13px ui-monospace,'DejaVu Sans Mono',monospace;background:#eef1f5;border-radius:4px;padding:1px 5px}
.small{font-size:14px}@media print{body{background:#fff}figure,.scroll{break-inside:avoid}}
";

/// The report as a page.
pub fn render(sweep: &Sweep<'_>, findings: &[Finding], charts: &[(&'static str, Chart)]) -> String {
    let a = answers::of(sweep, findings);
    let title = escape(&markdown::title(sweep));
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\
         <title>{title}</title><style>{STYLE}</style></head><body><main>\n<h1>{title}</h1>\n<p class=\"facts\">"
    );
    for fact in markdown::facts(sweep) {
        let _ = write!(out, "<span>{}</span> ", escape(&fact));
    }
    out += "</p>\n<div class=\"head\">";
    for line in &a.headline {
        let _ = write!(out, "<p>{}</p>", escape(line));
    }
    out += "</div>\n";
    cards(&mut out, sweep);
    section(
        &mut out,
        "How does this serving setup perform?",
        &a.performance,
    );
    for (_, chart) in charts.iter().take(2) {
        let _ = writeln!(out, "<figure>{}</figure>", chart.svg());
    }
    levels(&mut out, sweep);
    section(&mut out, "Where is the bottleneck?", &a.bottleneck);
    for (_, chart) in charts.iter().skip(2) {
        let _ = writeln!(out, "<figure>{}</figure>", chart.svg());
    }
    for other in table::others(sweep) {
        let _ = writeln!(out, "<h3>{}</h3>", escape(other.heading));
        table(
            &mut out,
            &other.head,
            other.rows.iter().map(|row| ("<tr>", row)),
        );
    }
    section(
        &mut out,
        "What to change next, and what it will gain",
        &a.next,
    );
    predictions(&mut out, findings);
    section(
        &mut out,
        "What remains unsure, and what would decide it",
        &a.unsure,
    );
    evidence(&mut out, findings);
    out += "</main></body></html>\n";
    out
}

fn cards(out: &mut String, sweep: &Sweep<'_>) {
    let (Some(peak), Some(low)) = (sweep.peak(), sweep.points.first()) else {
        return;
    };
    let all = [
        (
            format!("{} tok/s", short(peak.output)),
            format!("most output, at {}", sweep.at(peak.load())),
        ),
        (
            format!("{} req/s", short(peak.rate)),
            "requests at the peak".into(),
        ),
        (
            crate::plots::duration(peak.ttft * 1e3),
            "TTFT at the peak".to_owned(),
        ),
        (
            crate::plots::duration(low.ttft * 1e3),
            format!("TTFT at {}", sweep.at(low.load())),
        ),
        (
            format!("{} tok/s", short(1.0 / low.itl)),
            format!("pace of one stream at {}", sweep.at(low.load())),
        ),
    ];
    *out += "<div class=\"cards\">";
    for (value, what) in all {
        let _ = write!(
            out,
            "<div class=\"card\"><b>{}</b><span>{}</span></div>",
            escape(&value),
            escape(&what)
        );
    }
    *out += "</div>\n";
}

fn section(out: &mut String, heading: &str, lines: &[String]) {
    let _ = write!(out, "<h2>{}</h2>\n<ul>", escape(heading));
    for line in lines {
        let _ = write!(out, "<li>{}</li>", escape(line));
    }
    *out += "</ul>\n";
}

fn levels(out: &mut String, sweep: &Sweep<'_>) {
    let peak = sweep.peak().map(|p| p.index);
    let rows = table::rows(sweep);
    let marked = rows
        .iter()
        .enumerate()
        .map(|(i, row)| match Some(i) == peak {
            true => ("<tr class=\"peak\">", row),
            false => ("<tr>", row),
        });
    table(out, &table::head(sweep), marked);
}

/// A table of numbers, each row with the tag that begins it.
fn table<'a>(
    out: &mut String,
    head: &[&str],
    rows: impl Iterator<Item = (&'static str, &'a Vec<String>)>,
) {
    *out += "<div class=\"scroll\"><table><tr>";
    for name in head {
        let _ = write!(out, "<th>{}</th>", escape(name));
    }
    *out += "</tr>";
    for (begin, row) in rows {
        *out += begin;
        for cell in row {
            let _ = write!(out, "<td>{}</td>", escape(cell));
        }
        *out += "</tr>";
    }
    *out += "</table></div>\n";
}

fn predictions(out: &mut String, findings: &[Finding]) {
    let mut all = findings.iter().flat_map(|f| &f.predicted).peekable();
    if all.peek().is_none() {
        return;
    }
    *out += "<div class=\"scroll\"><table><tr><th>under which load</th><th>what</th><th>now</th><th>expected</th></tr>";
    for p in all {
        let _ = write!(
            out,
            "<tr><td class=\"words\">{}</td><td>{}</td><td>{} {unit}</td><td>{} {unit}</td></tr>",
            escape(&p.scenario),
            escape(&p.metric),
            short(p.before),
            short(p.after),
            unit = escape(&p.unit),
        );
    }
    *out += "</table></div>\n";
}

fn evidence(out: &mut String, findings: &[Finding]) {
    *out += "<h2>Findings</h2>\n<p class=\"small\">The same list for scripts is in findings.json.</p><div class=\"scroll\"><table><tr><th>id</th><th>level</th><th>value</th><th>evidence</th></tr>";
    for row in table::findings(findings) {
        let _ = write!(
            out,
            "<tr><td><code>{}</code></td><td>{}</td><td>{}<br><span class=\"small\">{}</span></td><td class=\"words\">{}</td></tr>",
            escape(&row.id),
            escape(&row.levels),
            escape(&row.value),
            escape(&row.unit),
            escape(&row.evidence),
        );
    }
    *out += "</table></div>\n";
}

/// Text that cannot become markup, in an element or in a quoted attribute.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // XML has no place for these, and an SVG is XML.
            c if c.is_control() && c != '\n' && c != '\t' => out.push('\u{fffd}'),
            _ => out.push(c),
        }
    }
    out
}
