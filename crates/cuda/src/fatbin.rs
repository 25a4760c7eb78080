//! The compiled kernels. `scripts/cuda-build.sh` makes them; a test says when that was forgotten.

/// Machine code for several generations of GPUs, and PTX for the next.
pub(crate) static FATBIN: &[u8] = include_bytes!("../kernels/powerband.fatbin");

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
