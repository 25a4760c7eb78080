//! What a server's `/metrics` answers. A line that ends the text must not change what is before it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use powerband_bench::fuzzing::metrics;

fuzz_target!(|bytes: &[u8]| {
    let text = String::from_utf8_lossy(bytes);
    let (samples, says) = metrics(&text);
    assert_eq!(metrics(&format!("{text}\n# end")), (samples, says));
});
