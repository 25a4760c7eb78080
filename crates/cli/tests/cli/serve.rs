//! The server as a process.

use crate::support::{Sandbox, http};

const SIM: [&str; 8] = [
    "serve",
    "smollm2-135m",
    "--device",
    "sim",
    "--sim-step-ms",
    "1",
    "--port",
    "0",
];

#[test]
fn it_serves_until_a_signal_and_ends_in_order() {
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let sandbox = Sandbox::new();
        let server = sandbox.start(&SIM, " ready: ");
        assert!(server.line.contains("http://127.0.0.1:"), "{}", server.line);
        let address = server.address();
        assert_eq!(http(&address, "GET", "/health", "").0, 200);
        let (status, models) = http(&address, "GET", "/v1/models", "");
        assert!(
            status == 200 && models.contains("\"smollm2-135m\""),
            "{models}"
        );
        let body = r#"{"model": "smollm2-135m", "prompt": [1, 2, 3], "max_tokens": 5, "ignore_eos": true}"#;
        let (status, answer) = http(&address, "POST", "/v1/completions", body);
        assert!(
            status == 200 && answer.contains("\"completion_tokens\":5"),
            "{answer}"
        );
        server.signal(signal);
        let ended = server.end();
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    }
}

#[test]
fn running_requests_finish_and_a_second_signal_stops_at_once() {
    let sandbox = Sandbox::new();
    let body = r#"{"prompt": [1], "max_tokens": 300, "ignore_eos": true}"#;
    let server = sandbox.start(&SIM, " ready: ");
    let address = server.address();
    let request = std::thread::spawn({
        let address = address.clone();
        move || http(&address, "POST", "/v1/completions", body)
    });
    std::thread::sleep(std::time::Duration::from_millis(100));
    server.signal(libc::SIGTERM);
    let (status, answer) = request.join().unwrap();
    assert!(
        status == 200 && answer.contains("\"completion_tokens\":300"),
        "{answer}"
    );
    assert_eq!(server.end().code, Some(0));

    let server = sandbox.start(&SIM, " ready: ");
    let address = server.address();
    let body = r#"{"prompt": [1], "max_tokens": 8000, "ignore_eos": true, "stream": true}"#;
    std::thread::spawn(move || {
        let outcome = std::panic::catch_unwind(|| http(&address, "POST", "/v1/completions", body));
        drop(outcome);
    });
    std::thread::sleep(std::time::Duration::from_millis(200));
    server.signal(libc::SIGINT);
    std::thread::sleep(std::time::Duration::from_millis(200));
    server.signal(libc::SIGINT);
    assert_eq!(server.end().code, Some(130));
}

#[test]
fn names_and_limits_are_taken_from_the_flags() {
    let sandbox = Sandbox::new();
    let mut args = SIM.to_vec();
    args.extend(["--served-model-name", "mine", "--max-model-len", "20"]);
    let server = sandbox.start(&args, " ready: ");
    let address = server.address();
    let (_, models) = http(&address, "GET", "/v1/models", "");
    assert!(
        models.contains("\"mine\"") && models.contains("\"max_model_len\":20"),
        "{models}"
    );
    let long = format!("{{\"prompt\": {:?}, \"max_tokens\": 1}}", [1; 30]);
    let (status, answer) = http(&address, "POST", "/v1/completions", &long);
    assert!(status == 400 && answer.contains("20"), "{answer}");
}
