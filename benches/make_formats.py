#!/usr/bin/env python3
"""Make other weight formats of a small GGUF model, so that each can be measured on the same weights.

    pip install gguf
    python3 benches/make_formats.py SmolLM2-135M-Instruct.Q4_1.gguf OUT_DIR [--formats Q8_0,Q4_0,F16,BF16]

Every matrix is dequantised to float32 and quantised again; vectors (norms, biases) stay as they are, and
so do the hyperparameters and the tokenizer. In formats of fewer than eight bits a weight, the embedding stays
Q8_0, as llama.cpp's own quantiser keeps it for shapes like these.
"""

import argparse
import re
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import GGUFReader, GGUFValueType, GGUFWriter, LlamaFileType
from gguf.quants import dequantize, quantize

FILE_TYPES = {
    Type.F32: LlamaFileType.ALL_F32,
    Type.F16: LlamaFileType.MOSTLY_F16,
    Type.BF16: LlamaFileType.MOSTLY_BF16,
    Type.Q8_0: LlamaFileType.MOSTLY_Q8_0,
    Type.Q4_0: LlamaFileType.MOSTLY_Q4_0,
    Type.Q4_1: LlamaFileType.MOSTLY_Q4_1,
    Type.Q5_0: LlamaFileType.MOSTLY_Q5_0,
    Type.Q5_1: LlamaFileType.MOSTLY_Q5_1,
}
SMALL = {Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1}
EMBEDDINGS = {"token_embd.weight", "output.weight"}


def copy_metadata(reader: GGUFReader, writer: GGUFWriter, file_type: LlamaFileType) -> None:
    """All of the file's metadata but its own layout, with the new file type."""
    writer.add_file_type(file_type)
    for field in reader.fields.values():
        # The writer sets the architecture itself.
        if field.name.startswith("GGUF.") or field.name in {"general.architecture", "general.file_type"}:
            continue
        kind = field.types[0]
        element = field.types[-1] if kind == GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), kind, sub_type=element)


def convert(reader: GGUFReader, path: Path, target: Type) -> None:
    architecture = reader.get_field("general.architecture").contents()
    writer = GGUFWriter(path, architecture)
    copy_metadata(reader, writer, FILE_TYPES[target])
    for tensor in reader.tensors:
        source, kind = tensor.tensor_type, target
        if target in SMALL and tensor.name in EMBEDDINGS:
            kind = Type.Q8_0
        if len(tensor.shape) < 2 or source == kind:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=source)
            continue
        values = dequantize(tensor.data, source).astype(np.float32)
        writer.add_tensor(tensor.name, quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def types_named(parser: argparse.ArgumentParser, formats: str) -> list[Type]:
    """The types that `--formats` names; ends the program if it names another."""
    targets = []
    for name in formats.split(","):
        if name not in Type.__members__ or Type[name] not in FILE_TYPES:
            parser.error(f"--formats: {name!r} is none of {', '.join(t.name for t in FILE_TYPES)}")
        targets.append(Type[name])
    return targets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="a GGUF file")
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--formats", default="Q8_0,Q4_0,F16,BF16")
    args = parser.parse_args()

    targets = types_named(parser, args.formats)

    reader = GGUFReader(args.model)
    # SmolLM2-135M-Instruct.Q4_1 -> SmolLM2-135M-Instruct
    stem = re.sub(r"\.(I?Q\d\w*|B?F16|F32)$", "", args.model.stem)
    args.out_dir.mkdir(parents=True, exist_ok=True)
    for target in targets:
        path = args.out_dir / f"{stem}.{target.name}.gguf"
        # The source is mapped into memory: writing over it would lose it.
        if path.exists() and path.samefile(args.model):
            parser.error(f"{path} is the source itself")
        convert(reader, path, target)
        print(f"{path}  {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
