//! A line chart as SVG, the one form that the files, the report and, rasterised, the PNGs come from.

use std::fmt::Write;

use super::ticks;
use crate::html::escape;

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 540.0;
const LEFT: f64 = 84.0;
const RIGHT: f64 = 32.0;
const TOP: f64 = 104.0;
const BOTTOM: f64 = 64.0;
/// Width of a character at 1 px of font size, about.
const ADVANCE: f64 = 0.58;

/// A line with points.
#[derive(Debug, Clone)]
pub struct Series {
    /// In the legend.
    pub name: String,
    /// CSS colour.
    pub color: &'static str,
    /// (x, y).
    pub points: Vec<(f64, f64)>,
    /// A thinner line without points.
    pub dashed: bool,
    /// Points without a line.
    pub loose: bool,
    /// A label beside each point; may be empty.
    pub labels: Vec<String>,
}

impl Series {
    /// A full line.
    pub fn new(name: &str, color: &'static str, points: Vec<(f64, f64)>) -> Series {
        Series {
            name: name.into(),
            color,
            points,
            dashed: false,
            loose: false,
            labels: Vec::new(),
        }
    }
}

/// An area between two lines.
#[derive(Debug, Clone)]
pub struct Band {
    /// In the legend.
    pub name: String,
    /// CSS colour.
    pub color: &'static str,
    /// (x, low, high).
    pub points: Vec<(f64, f64, f64)>,
    /// Of the fill.
    pub opacity: f64,
}

/// A shaded range of x.
#[derive(Debug, Clone)]
pub struct Region {
    /// Left end.
    pub from: f64,
    /// Right end.
    pub to: f64,
    /// Written at its top.
    pub name: String,
    /// CSS colour.
    pub color: &'static str,
}

/// A vertical line.
#[derive(Debug, Clone)]
pub struct Rule {
    /// Where.
    pub x: f64,
    /// Written above it.
    pub name: String,
}

/// A ring around a point, with words.
#[derive(Debug, Clone)]
pub struct Mark {
    /// Where.
    pub x: f64,
    /// Where.
    pub y: f64,
    /// The words; may be empty.
    pub name: String,
}

/// What to draw.
#[derive(Debug, Clone, Default)]
pub struct Chart {
    /// Heading.
    pub title: String,
    /// Below the heading; may be empty.
    pub subtitle: String,
    /// The x axis with its unit.
    pub x_label: String,
    /// The y axis with its unit.
    pub y_label: String,
    /// Where the x axis has labels; round numbers if empty.
    pub x_ticks: Vec<f64>,
    /// Logarithmic y axis.
    pub log_y: bool,
    /// Lines.
    pub series: Vec<Series>,
    /// Areas.
    pub bands: Vec<Band>,
    /// Shaded ranges.
    pub regions: Vec<Region>,
    /// Vertical lines.
    pub rules: Vec<Rule>,
    /// Points to look at.
    pub marks: Vec<Mark>,
}

/// From data to pixels.
struct Scale {
    x_max: f64,
    y: (f64, f64),
    log: bool,
}

impl Scale {
    fn x(&self, v: f64) -> f64 {
        LEFT + v / self.x_max * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, v: f64) -> f64 {
        let f = |v: f64| {
            if self.log {
                v.max(self.y.0 * 1e-3).ln()
            } else {
                v
            }
        };
        let share = (f(v) - f(self.y.0)) / (f(self.y.1) - f(self.y.0));
        HEIGHT - BOTTOM - share.clamp(0.0, 1.0) * (HEIGHT - TOP - BOTTOM)
    }
}

impl Chart {
    /// An empty chart.
    pub fn new(title: &str, x_label: &str, y_label: &str) -> Chart {
        Chart {
            title: title.into(),
            x_label: x_label.into(),
            y_label: y_label.into(),
            ..Chart::default()
        }
    }

    /// The chart as a document of its own.
    pub fn svg(&self) -> String {
        let ys = || {
            self.series
                .iter()
                .flat_map(|s| s.points.iter().map(|p| p.1))
                .chain(
                    self.bands
                        .iter()
                        .flat_map(|b| b.points.iter().flat_map(|p| [p.1, p.2])),
                )
                .filter(|v| v.is_finite() && *v > 0.0)
        };
        let (low, high) = (ys().fold(f64::MAX, f64::min), ys().fold(0.0, f64::max));
        let log = self.log_y && low < high;
        let y_ticks = if log {
            ticks::logarithmic(low, high)
        } else {
            ticks::linear(high * 1.02, 6)
        };
        let xs = self
            .series
            .iter()
            .flat_map(|s| s.points.iter().map(|p| p.0));
        let x_high = xs
            .chain(self.regions.iter().map(|r| r.to))
            .fold(0.0, f64::max);
        let x_ticks = if self.x_ticks.is_empty() {
            ticks::linear(x_high * 1.02, 8)
        } else {
            self.x_ticks.clone()
        };
        let scale = Scale {
            x_max: if self.x_ticks.is_empty() {
                x_ticks.last().copied().unwrap_or(1.0)
            } else {
                x_high * 1.04
            }
            .max(1e-9),
            y: (y_ticks[0], y_ticks[y_ticks.len() - 1]),
            log,
        };
        let mut out = format!(
            r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" font-family="'DejaVu Sans', Verdana, sans-serif" role="img" aria-label="{}"><rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>"##,
            escape(&self.title)
        );
        self.draw_frame(&mut out, &scale, &x_ticks, &y_ticks);
        self.draw_data(&mut out, &scale);
        self.draw_words(&mut out, &scale);
        out += "</svg>\n";
        out
    }

    fn draw_frame(&self, out: &mut String, scale: &Scale, x_ticks: &[f64], y_ticks: &[f64]) {
        let (right, foot) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        text(
            out,
            LEFT - 60.0,
            34.0,
            20.0,
            "#16202e",
            "start\" font-weight=\"bold",
            &self.title,
        );
        text(
            out,
            LEFT - 60.0,
            56.0,
            13.0,
            "#566273",
            "start",
            &self.subtitle,
        );
        for region in &self.regions {
            let (a, b) = (scale.x(region.from), scale.x(region.to).min(right));
            let _ = write!(
                out,
                r#"<rect x="{a:.1}" y="{TOP}" width="{:.1}" height="{:.1}" fill="{}" fill-opacity="0.07"/>"#,
                (b - a).max(0.0),
                foot - TOP,
                region.color
            );
            text(
                out,
                a + 8.0,
                TOP + 18.0,
                13.0,
                region.color,
                "start",
                &region.name,
            );
        }
        for t in y_ticks {
            let y = scale.y(*t);
            let _ = write!(
                out,
                r##"<line x1="{LEFT}" y1="{y:.1}" x2="{right}" y2="{y:.1}" stroke="#e3e7ec" stroke-width="1"/>"##
            );
            text(
                out,
                LEFT - 10.0,
                y + 4.5,
                13.0,
                "#3a4656",
                "end",
                &ticks::text(*t),
            );
        }
        let mut free = f64::MIN;
        for t in x_ticks {
            let (x, label) = (scale.x(*t), ticks::text(*t));
            let _ = write!(
                out,
                r##"<line x1="{x:.1}" y1="{foot}" x2="{x:.1}" y2="{:.1}" stroke="#8a94a3" stroke-width="1"/>"##,
                foot + 5.0
            );
            let half = label.len() as f64 * 13.0 * ADVANCE / 2.0;
            // Labels of levels that lie close together must not touch.
            if x - half > free + 3.0 {
                text(out, x, foot + 21.0, 13.0, "#3a4656", "middle", &label);
                free = x + half;
            }
        }
        let _ = write!(
            out,
            r##"<line x1="{LEFT}" y1="{foot}" x2="{right}" y2="{foot}" stroke="#3a4656" stroke-width="1.2"/>"##
        );
        text(
            out,
            (LEFT + right) / 2.0,
            HEIGHT - 16.0,
            14.0,
            "#16202e",
            "middle",
            &self.x_label,
        );
        let middle = (TOP + foot) / 2.0;
        let log = if scale.log { ", log scale" } else { "" };
        let _ = write!(
            out,
            r##"<text transform="translate(22 {middle:.1}) rotate(-90)" font-size="14" fill="#16202e" text-anchor="middle">{}{log}</text>"##,
            escape(&self.y_label)
        );
        for rule in &self.rules {
            let x = scale.x(rule.x);
            let _ = write!(
                out,
                r##"<line x1="{x:.1}" y1="{TOP}" x2="{x:.1}" y2="{foot}" stroke="#3a4656" stroke-width="1.4" stroke-dasharray="3 4"/>"##
            );
        }
    }

    fn draw_data(&self, out: &mut String, scale: &Scale) {
        for band in &self.bands {
            let there = band.points.iter().map(|p| (p.0, p.2));
            let back = band.points.iter().rev().map(|p| (p.0, p.1));
            let _ = write!(
                out,
                r#"<polygon points="{}" fill="{}" fill-opacity="{}"/>"#,
                path(there.chain(back), scale),
                band.color,
                band.opacity
            );
        }
        for s in &self.series {
            let (width, dash) = if s.dashed {
                (1.6, r#" stroke-dasharray="6 4""#)
            } else {
                (2.6, "")
            };
            if !s.loose {
                let _ = write!(
                    out,
                    r#"<polyline points="{}" fill="none" stroke="{}" stroke-width="{width}" stroke-linejoin="round"{dash}/>"#,
                    path(s.points.iter().copied(), scale),
                    s.color
                );
            }
            for (i, p) in s.points.iter().enumerate().filter(|_| !s.dashed) {
                let (x, y) = (scale.x(p.0), scale.y(p.1));
                let _ = write!(
                    out,
                    r##"<circle cx="{x:.1}" cy="{y:.1}" r="4" fill="{}" stroke="#ffffff" stroke-width="1.2"/>"##,
                    s.color
                );
                if let Some(label) = s.labels.get(i) {
                    haloed(out, x + 8.0, y - 8.0, 12.0, "start", label);
                }
            }
        }
    }

    fn draw_words(&self, out: &mut String, scale: &Scale) {
        for rule in &self.rules {
            let half = rule.name.len() as f64 * 12.0 * ADVANCE / 2.0;
            let at = scale.x(rule.x).min(WIDTH - RIGHT - half);
            haloed(out, at, TOP - 4.0, 12.0, "middle", &rule.name);
        }
        for mark in &self.marks {
            let (x, y) = (scale.x(mark.x), scale.y(mark.y));
            let _ = write!(
                out,
                r##"<circle cx="{x:.1}" cy="{y:.1}" r="8" fill="none" stroke="#16202e" stroke-width="1.8"/>"##
            );
            if mark.name.is_empty() {
                continue;
            }
            let wide = mark.name.chars().count() as f64 * 13.0 * ADVANCE;
            // Above the ring and inside the frame; beside it where there is no room above.
            let (at, y, anchor) = if y >= TOP + 22.0 {
                let right = WIDTH - RIGHT - wide / 2.0;
                let at = x.min(right).max(LEFT + wide / 2.0 + 6.0);
                (at, y - 15.0, "middle")
            } else if x - wide - 14.0 > LEFT {
                (x - 14.0, y + 4.5, "end")
            } else {
                (x + 14.0, y + 4.5, "start")
            };
            haloed(
                out,
                at,
                y,
                13.0,
                &format!("{anchor}\" font-weight=\"bold"),
                &mark.name,
            );
        }
        let mut x = LEFT;
        let y = TOP - 24.0;
        let lines = self
            .series
            .iter()
            .map(|s| (&s.name, s.color, s.dashed, 1.0));
        let areas = self
            .bands
            .iter()
            .map(|b| (&b.name, b.color, false, b.opacity));
        for (name, color, dashed, opacity) in lines.chain(areas) {
            if opacity < 1.0 {
                let _ = write!(
                    out,
                    r#"<rect x="{x:.1}" y="{:.1}" width="26" height="11" fill="{color}" fill-opacity="{:.2}"/>"#,
                    y - 9.5,
                    opacity * 1.4
                );
            } else {
                let dash = if dashed {
                    r#" stroke-dasharray="6 4""#
                } else {
                    ""
                };
                let _ = write!(
                    out,
                    r#"<line x1="{x:.1}" y1="{0:.1}" x2="{1:.1}" y2="{0:.1}" stroke="{color}" stroke-width="2.6"{dash}/>"#,
                    y - 4.0,
                    x + 26.0
                );
            }
            text(out, x + 33.0, y, 13.0, "#16202e", "start", name);
            x += 33.0 + name.chars().count() as f64 * 13.0 * ADVANCE + 26.0;
        }
    }
}

/// Text with a white rim, readable on lines.
fn haloed(out: &mut String, x: f64, y: f64, size: f64, anchor: &str, words: &str) {
    let rim = format!("{anchor}\" stroke=\"#ffffff\" stroke-width=\"4\" stroke-linejoin=\"round");
    text(out, x, y, size, "#ffffff", &rim, words);
    text(out, x, y, size, "#16202e", anchor, words);
}

fn path(points: impl Iterator<Item = (f64, f64)>, scale: &Scale) -> String {
    let all: Vec<String> = points
        .map(|(x, y)| format!("{:.1},{:.1}", scale.x(x), scale.y(y)))
        .collect();
    all.join(" ")
}

fn text(out: &mut String, x: f64, y: f64, size: f64, color: &str, anchor: &str, words: &str) {
    let _ = write!(
        out,
        r#"<text x="{x:.1}" y="{y:.1}" font-size="{size}" fill="{color}" text-anchor="{anchor}">{}</text>"#,
        escape(words)
    );
}
