//! The compiled kernels. `scripts/cuda-build.sh` makes them; a test says when that was forgotten.

use std::borrow::Cow;
use std::path::Path;

use powerband_engine::EngineError;

/// Machine code for several generations of GPUs, and PTX for the next.
static FATBIN: &[u8] = include_bytes!("../kernels/powerband.fatbin");

/// The kernels: those that are built in, or others from a file.
///
/// # Errors
/// The file cannot be read.
pub(crate) fn kernels(other: Option<&Path>) -> Result<Cow<'static, [u8]>, EngineError> {
    let Some(path) = other else {
        return Ok(Cow::Borrowed(FATBIN));
    };
    let read = std::fs::read(path)
        .map_err(|error| EngineError::Config(format!("cannot read {}: {error}", path.display())))?;
    Ok(Cow::Owned(read))
}

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    #[test]
    fn kernels_are_compiled_from_these_sources() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
        let mut sources: Vec<_> = std::fs::read_dir(&folder)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|e| e == "cu" || e == "cuh"))
            .collect();
        // As the script's shell orders them: *.cu, then *.cuh.
        sources.sort_by_key(|path| (path.extension().map(ToOwned::to_owned), path.clone()));
        let mut hash = Sha256::new();
        for path in sources {
            hash.update(std::fs::read(path).unwrap());
        }
        let found: String = hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
        let expected = include_str!("../kernels/powerband.sha256").trim();
        assert_eq!(
            found, expected,
            "run scripts/cuda-build.sh and check its result in"
        );
        assert!(super::FATBIN.len() < 8 << 20, "the binary stays small");
    }
}
