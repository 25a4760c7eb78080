//! From results to findings: summary, diagnosis, plots, CSV, Markdown, HTML.
