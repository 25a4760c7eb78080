//! The cache of quantised weights: whatever lies in its folder, weights are those that are converted
//! without it.

#![allow(clippy::unwrap_used, clippy::panic)] // a test

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use powerband_model::weight_cache::{Outcome, WeightCache};
use powerband_model::{Checkpoint, DType, Tensor, Weights};
use safetensors::SafeTensors;

fn fixture(name: &str) -> PathBuf {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    fixtures.join(name)
}

/// A copy of a small checkpoint, and a cache that does not exist yet.
struct Place {
    folder: tempfile::TempDir,
    cache: WeightCache,
}

impl Place {
    fn new(name: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("model");
        std::fs::create_dir(&model).unwrap();
        for file in ["config.json", "model.safetensors"] {
            std::fs::copy(fixture(name).join(file), model.join(file)).unwrap();
        }
        let cache = WeightCache {
            folder: folder.path().join("a/b"),
            most: 1 << 30,
        };
        Self { folder, cache }
    }

    fn model(&self) -> PathBuf {
        self.folder.path().join("model")
    }

    /// All weights and what became of the cache; without a wish as the checkpoint has them.
    fn load(&self, wish: Option<DType>) -> (Vec<Tensor>, Option<Outcome>) {
        let checkpoint = Checkpoint::open(&self.model()).unwrap();
        let weights = stored(checkpoint.weights, wish);
        let (weights, kept) = self.cache.keep(weights, &checkpoint.spec, &self.model());
        let names = checkpoint.spec.tensors().into_iter();
        let tensors = names.map(|(name, _)| weights.get(&name).unwrap()).collect();
        (tensors, kept.map(|kept| kept.finish()))
    }

    /// As [`Place::load`], checked against the conversion that knows no cache.
    fn loads_right(&self, wish: Option<DType>) -> Option<Outcome> {
        let checkpoint = Checkpoint::open(&self.model()).unwrap();
        let plain = stored(checkpoint.weights, wish);
        let (tensors, outcome) = self.load(wish);
        for tensor in tensors {
            let wanted = plain.get(&tensor.name).unwrap();
            let what = |t: &Tensor| (t.dtype, t.shape.clone(), t.bytes().to_vec());
            assert_eq!(what(&tensor), what(&wanted), "{}", tensor.name);
        }
        outcome
    }

    /// The one file of the cache.
    fn file(&self) -> PathBuf {
        let files = self.files();
        assert_eq!(files.len(), 1, "{files:?}");
        files[0].clone()
    }

    fn files(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(&self.cache.folder).unwrap();
        let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files
    }
}

fn stored(weights: Weights, wish: Option<DType>) -> Weights {
    match wish {
        Some(dtype) => weights.stored_as(dtype),
        None => weights,
    }
}

/// Written, and why the file before was not used.
#[track_caller]
fn written(outcome: Option<Outcome>) -> Option<String> {
    match outcome {
        Some(Outcome::Written { instead, .. }) => instead,
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn read(outcome: Option<Outcome>) {
    assert!(matches!(outcome, Some(Outcome::Read { .. })), "{outcome:?}");
}

const FLOAT: &str = "families/llama-3.2";
const Q8: Option<DType> = Some(DType::Q8_0);

#[test]
fn the_second_start_reads_what_the_first_wrote() {
    // Converted on a wish, because a checkpoint is quantised, and both.
    for (name, wish) in [
        (FLOAT, Q8),
        ("quantised/gptq-sym", None),
        ("quantised/awq", None),
        ("quantised/bnb-nf4", None),
        ("quantised/fp8-rows", Some(DType::Q4_0)),
    ] {
        let place = Place::new(name);
        assert_eq!(written(place.loads_right(wish)), None, "{name}");
        let bytes = std::fs::read(place.file()).unwrap();
        read(place.loads_right(wish));
        // Any tool can look into it, and it was not written again.
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        assert!(tensors.len() > 2);
        assert_eq!(std::fs::read(place.file()).unwrap(), bytes);
    }
}

#[test]
fn nothing_is_written_where_nothing_becomes_blocks_or_nothing_may_be() {
    for (name, wish) in [
        (FLOAT, None),
        (FLOAT, Some(DType::F32)),
        ("quantised/fp8-rows", None),
    ] {
        let place = Place::new(name);
        assert_eq!(place.loads_right(wish), None);
        assert!(!place.cache.folder.exists());
    }
    let mut place = Place::new(FLOAT);
    place.cache.most = 0;
    assert_eq!(place.loads_right(Q8), None);
    assert!(!place.cache.folder.exists());
}

#[test]
fn another_wish_has_a_file_of_its_own() {
    let place = Place::new(FLOAT);
    written(place.loads_right(Q8));
    written(place.loads_right(Some(DType::Q4_0)));
    assert_eq!(place.files().len(), 2);
    read(place.loads_right(Q8));
    read(place.loads_right(Some(DType::Q4_0)));
}

#[test]
fn a_changed_source_is_converted_anew() {
    let place = Place::new(FLOAT);
    let model = place.model().join("model.safetensors");
    written(place.loads_right(Q8));
    let time = std::fs::metadata(&model).unwrap().modified().unwrap();

    // Other weights of the same size.
    let mut bytes = std::fs::read(&model).unwrap();
    let last = bytes.len() - 2;
    bytes[last] ^= 0x40;
    std::fs::write(&model, &bytes).unwrap();
    let reason = written(place.loads_right(Q8)).unwrap();
    assert!(reason.contains("other model files"), "{reason}");
    read(place.loads_right(Q8));

    // Of the same time, too.
    bytes[last] ^= 0x20;
    std::fs::write(&model, &bytes).unwrap();
    written(place.loads_right(Q8));
    let file = File::options().write(true).open(&model).unwrap();
    file.set_modified(time).unwrap();
    written(place.loads_right(Q8));
    bytes[last] ^= 0x10;
    std::fs::write(&model, &bytes).unwrap();
    file.set_modified(time).unwrap();
    assert!(written(place.loads_right(Q8)).is_some());

    // Only its time.
    file.set_modified(time + Duration::from_nanos(1_000))
        .unwrap();
    assert!(written(place.loads_right(Q8)).is_some());
    // A configuration decides how weights are read.
    let config = place.model().join("config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text + "\n").unwrap();
    assert!(written(place.loads_right(Q8)).is_some());
    read(place.loads_right(Q8));
    assert_eq!(place.files().len(), 1);
}

#[test]
fn a_damaged_file_is_never_used_and_replaced() {
    let place = Place::new("quantised/gptq-sym");
    written(place.loads_right(None));
    let whole = std::fs::read(place.file()).unwrap();
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let flipped = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        bytes
    };
    let end = whole.len();
    let mut long = whole.clone();
    long.push(0);
    let mut zeros = whole.clone();
    zeros[end / 2..].fill(0);
    for damaged in [
        flipped(0),
        flipped(7),
        flipped(header / 2),
        flipped(header),
        flipped(header + 60),
        flipped((header + end) / 2),
        flipped(end - 1),
        whole[..end - 1].to_vec(),
        whole[..header].to_vec(),
        whole[..header - 1].to_vec(),
        whole[..3].to_vec(),
        vec![],
        long,
        zeros,
    ] {
        std::fs::write(place.file(), damaged).unwrap();
        assert!(written(place.loads_right(None)).is_some());
        assert_eq!(std::fs::read(place.file()).unwrap(), whole);
        read(place.loads_right(None));
    }
    // What cannot be replaced is left alone.
    let path = place.file();
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    let outcome = place.loads_right(None);
    assert!(
        matches!(outcome, Some(Outcome::NotWritten { .. })),
        "{outcome:?}"
    );
    assert_eq!(place.files(), [path]);
}

#[test]
fn a_folder_that_cannot_be_written_costs_nothing_but_time() {
    let mut place = Place::new(FLOAT);
    // Also for the superuser, whom permissions do not stop.
    let file = place.folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    place.cache.folder = file.join("weights");
    for _ in 0..2 {
        let outcome = place.loads_right(Q8);
        assert!(
            matches!(outcome, Some(Outcome::NotWritten { .. })),
            "{outcome:?}"
        );
    }
    assert_eq!(std::fs::read(&file).unwrap(), b"");
}

#[test]
fn two_at_once_write_the_same_file_and_neither_minds() {
    let place = Place::new(FLOAT);
    let checkpoint = Checkpoint::open(&place.model()).unwrap();
    let begin = || {
        let weights = Checkpoint::open(&place.model()).unwrap().weights;
        place.cache.keep(
            weights.stored_as(DType::Q8_0),
            &checkpoint.spec,
            &place.model(),
        )
    };
    let (first, second, third) = (begin(), begin(), begin());
    for (name, _) in checkpoint.spec.tensors() {
        for (weights, _) in [&first, &second] {
            weights.get(&name).unwrap();
        }
    }
    assert_eq!(place.files().len(), 3);
    // One that is given up leaves nothing.
    drop(third);
    written(first.1.map(|kept| kept.finish()));
    read(place.loads_right(Q8));
    written(second.1.map(|kept| kept.finish()));
    read(place.loads_right(Q8));
    place.file();
}

#[test]
fn weights_that_were_not_all_taken_are_not_kept() {
    let place = Place::new(FLOAT);
    let checkpoint = Checkpoint::open(&place.model()).unwrap();
    let weights = checkpoint.weights.stored_as(DType::Q8_0);
    let (weights, kept) = place.cache.keep(weights, &checkpoint.spec, &place.model());
    for (name, _) in checkpoint.spec.tensors().iter().skip(1) {
        weights.get(name).unwrap();
    }
    let outcome = kept.map(|kept| kept.finish());
    assert!(
        matches!(outcome, Some(Outcome::NotWritten { .. })),
        "{outcome:?}"
    );
    assert!(place.files().is_empty());
}

#[test]
fn what_was_not_used_for_longest_makes_room() {
    let mut place = Place::new(FLOAT);
    let day = Duration::from_secs(24 * 3600);
    let aged = |path: &Path, days: u32| {
        let file = File::options().write(true).open(path).unwrap();
        file.set_modified(SystemTime::now() - day * days).unwrap();
    };
    let size = |path: &Path| std::fs::metadata(path).unwrap().len();
    written(place.loads_right(Q8));
    let first = place.file();
    written(place.loads_right(Some(DType::Q4_1)));
    let second = place.files().into_iter().find(|f| *f != first).unwrap();
    let foreign = place.cache.folder.join("notes.txt");
    let abandoned = place.cache.folder.join("x.1-2.part");
    for path in [&foreign, &abandoned] {
        std::fs::write(path, "text").unwrap();
        aged(path, 9);
    }
    aged(&first, 3);
    aged(&second, 2);
    // Reading the older one makes it the younger one.
    read(place.loads_right(Q8));
    place.cache.most = size(&first) + size(&second) + 100;
    written(place.loads_right(Some(DType::Q4_0)));
    let left = place.files();
    assert!(left.contains(&first) && left.contains(&foreign), "{left:?}");
    assert!(
        !left.contains(&second) && !left.contains(&abandoned),
        "{left:?}"
    );
    read(place.loads_right(Q8));

    // What is larger than all that may be is not kept, and drives nothing out.
    place.cache.most = 1000;
    let outcome = place.loads_right(Some(DType::Q4_1));
    assert!(
        matches!(outcome, Some(Outcome::NotWritten { .. })),
        "{outcome:?}"
    );
    assert_eq!(place.files(), left);
}
