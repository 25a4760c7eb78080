//! A summary CSV, and the report on it.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    powerband_fuzz::in_file("summary.csv", bytes, |path| {
        match powerband_report::load(&[path.to_owned()]) {
            Ok(report) => {
                report.table_text();
                report.summary_text();
            }
            Err(error) => assert!(error.to_string().contains("summary.csv"), "{error}"),
        }
    });
});
