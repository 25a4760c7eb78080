//! What the help says: a change of a flag is seen here.

use crate::support::Sandbox;

#[test]
fn help_of_every_command() {
    let sandbox = Sandbox::new();
    for command in [
        "",
        "run",
        "serve",
        "bench",
        "bench compare",
        "report",
        "pull",
        "doctor",
    ] {
        let args: Vec<&str> = command.split_whitespace().chain(["--help"]).collect();
        let name = format!(
            "help_{}",
            if command.is_empty() {
                "powerband".into()
            } else {
                command.replace(' ', "_")
            }
        );
        insta::assert_snapshot!(name, sandbox.run(&args).ok().stdout);
    }
}

#[test]
fn the_version_is_told() {
    let text = Sandbox::new().run(&["--version"]).ok().stdout;
    assert_eq!(
        text.trim(),
        format!("powerband {}", env!("CARGO_PKG_VERSION"))
    );
}
