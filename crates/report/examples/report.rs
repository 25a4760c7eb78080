//! A report on results: `cargo run -p powerband-report --example report -- OUT_DIR RESULTS...`

use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut paths = std::env::args_os().skip(1).map(PathBuf::from);
    let out = paths.next().ok_or("usage: report OUT_DIR RESULTS...")?;
    let report = powerband_report::load(&paths.collect::<Vec<_>>())?;
    let written = report.write(&out)?;
    print!("{}", report.summary_text());
    println!("{}", written.html.display());
    Ok(())
}
