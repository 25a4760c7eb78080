//! What a server under load sends: HTTP/1.1 head, chunks, server-sent events, their JSON. After a byte
//! that says how many bytes come with one read, which must not matter.
#![no_main]

use libfuzzer_sys::fuzz_target;
use powerband_bench::fuzzing::response;

fuzz_target!(|bytes: &[u8]| {
    let Some((piece, bytes)) = bytes.split_first() else {
        return;
    };
    let whole = response(bytes, bytes.len());
    assert_eq!(response(bytes, usize::from(*piece)), whole);
});
