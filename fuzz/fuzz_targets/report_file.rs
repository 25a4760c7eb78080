//! A level's file in GuideLLM's format, and the report on it.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    powerband_fuzz::in_file(
        "throughput-1.json",
        bytes,
        |path| match powerband_report::load(&[path.to_owned()]) {
            Ok(report) => {
                report.table_text();
                report.summary_text();
            }
            Err(error) => assert!(error.to_string().contains("throughput-1.json"), "{error}"),
        },
    );
});
