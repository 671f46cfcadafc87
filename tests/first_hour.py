"""Walks README and docs/ as a newcomer: every command in order, in a fresh clone and a fresh virtual environment.

    python -m tests.first_hour

Run it with the tests' own environment. `RULES` lists every command; for one that does not run unchanged, it says what
runs instead, or why nothing does. Models and data sets, which would be gigabytes, are replaced by small ones of the
real format; --data=FOLDER names a folder with finqa/, hotpotqa/ and musique/ to use instead. With --work=FOLDER the
clone and the environment stay there, and the same command continues after what has succeeded.
A command that RULES lacks, or a rule for no command, is refused before anything runs.
"""

import argparse
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
GUIDE = ("runs", "sweeps", "report", "evaluation", "tasks", "models", "estimators", "paper")  # in a reader's order
PROGRAMS = ("pip install ", "python -", "launch/", "jupyter ")  # how a command between backticks begins


@dataclasses.dataclass(frozen=True)
class Rule:
    """How a command is run; by default unchanged.

    Attributes:
      why: the reason why it is not run unchanged, for the table.
      more: arguments added after the command's own.
      instead: another command to run, or None for this one.
      skip: whether nothing is run.
    """

    why: str = ""
    more: str = ""
    instead: str | None = None
    skip: bool = False


HOPS = (
    "--config.base.steps=100 --config.task.train_examples=64 --config.task.validation_examples=8 "
    "--config.task.test_examples=8 --config.rollouts.num_rollouts=12 --config.train.prompts=4 --config.train.steps=8 "
    "--config.evaluate.every=4 --config.evaluate.samples=4"
)
FILES = (
    "--config.task.train_examples=8 --config.task.validation_examples=4 --config.task.test_examples=4 "
    "--config.task.max_prompt=512 --config.task.prompt_overflow=trim "
    "--config.rollouts.max_rationale=8 --config.rollouts.num_rollouts=4 --config.train.steps=2 "
    "--config.train.prompts=2 --config.evaluate.every=2 --config.evaluate.prompts=4 --config.evaluate.samples=4"
)
TRIAL = (
    "--config.model.lora_rank=8 --config.optimizer.learning_rate=1e-4 --config.rollouts.max_rationale=16 "
    "--config.rollouts.num_rollouts=4 --config.train.prompts=2 --config.train.steps=3 --config.evaluate.samples=4 "
    "--workdir=runs/trial"
)
LONG = FILES.replace("max_prompt=512", "max_prompt=8192")  # the small model's tokeniser makes many tokens of records
AS_IT_STANDS = Rule()
SHORT, SMALL = Rule("a short run", HOPS), "a small model and few steps"
FEW = Rule("few rollouts", "--config.rollouts.num_rollouts=4 --config.evaluate.samples=4")
TORCH = Rule("a download of several GB, PyTorch", skip=True)
ONE_CASE = Rule("a small case", "--only=ours --prompt=16 --new=8 --rollouts=4 --vocab=512 --repeats=1")
MAIN, TASKS = "python -m tsallis_rl.main", "python -m tsallis_rl.tasks"
HUB = "start=warm,model=Qwen/Qwen3-0.6B"
QWEN = f"{MAIN} --config=configs/finq.py:q=0.75,{HUB} --config.model.dtype=bfloat16"
EVALUATE = "python -m tsallis_rl.evaluate"
STAND_IN = "start=warm,model=models/Qwen3-0.6B"  # a small model of the real format, in place of the hub's
MAKE_SUMS = (
    "python -c \"for name, numbers in (('train', range(200)), ('dev', range(200, 260))): print('id,left,right,total', "
    "*(f'{i},{i % 37},{i % 23},{i % 37 + i % 23}' for i in numbers), sep='\\n', file=open(f'sums/{name}.csv', 'w'))\""
)


def from_folder(command: str, more: str = "") -> Rule:
    """Makes the rule of a command with a model from the hub: replaces it by a small one of the real format."""
    return Rule("a small model of the real format, in a folder", more, instead=command.replace(HUB, STAND_IN))


RULES = {
    f"pip install -e . && {MAIN}": SHORT,
    "pip install -e '.[test]' && python -m pytest": Rule(
        "two files of the tests", "-n 0 tests/evaluation/test_accuracy.py tests/objectives/test_schedules.py"
    ),
    "pip install -e '.[notebooks]' && jupyter notebook notebooks": Rule(
        "its version, as a server runs until it is stopped",
        instead="pip install -e '.[notebooks]' && jupyter notebook --version",
    ),
    "pip install -e .": AS_IT_STANDS,
    "pip install -e '.[gpu]'": Rule("a download of several GB, for a GPU", skip=True),
    "pip install -e . 'jax[cuda12]'": Rule("a download of several GB, for a GPU", skip=True),
    "pip install -e '.[tpu]'": Rule("for a TPU", skip=True),
    'python -c "import jax; print(jax.devices())"': AS_IT_STANDS,
    f"{MAIN} --show_config": AS_IT_STANDS,
    MAIN: SHORT,
    f"MALLOC_ARENA_MAX=1 MALLOC_TRIM_THRESHOLD_=131072 {MAIN}": SHORT,
    f"{MAIN} --config=configs/hops.py:q=0.25": SHORT,
    f"{MAIN} --config=configs/hops.py:q=0.75,estimator=paft": SHORT,
    f"{MAIN} --config=configs/hops.py:estimator=grpo,start=warm": SHORT,
    f"{MAIN} --config=configs/hops.py:tau=0.05": SHORT,
    f"{MAIN} --config=configs/hops.py:tau=0.05,commitment=mixture,estimator=paft": SHORT,
    f"{MAIN} --config=configs/hops.py:q=0.75,shown=0.3 --config.estimator.baseline=none "
    "--config.proposal.name=mixture": SHORT,
    f"{MAIN} --config=configs/hops.py:q=0.75 --config.optimizer.eps=1e-12 --workdir=runs/eps": SHORT,
    f"{MAIN} --config=configs/hops.py:q=0.75 --config.optimizer.eps=1e-12 --workdir=runs/eps "
    "--config.train.steps=310": Rule("a short run", f"{HOPS} --config.train.steps=10"),
    f"{MAIN} --config=configs/hops.py:q=0.75,estimator=paft --config.train.init=runs/eps --workdir=runs/paft": SHORT,
    f"{EVALUATE} --run=runs/eps --k=1,4,16": AS_IT_STANDS,
    f"{EVALUATE} --run=runs/eps --step=latest --split=validation --config.evaluate.greedy "
    "--config.evaluate.samples=1": AS_IT_STANDS,
    "python -m tsallis_rl.regenerate --run=runs/eps --step=7 --example=3 --rollout=11": AS_IT_STANDS,
    "python -m tsallis_rl.sweep --q=0,.25,.5,.75,1 --estimators=garl,paft,grpo --seeds=3 --out=runs/sweep": Rule(
        "two cells of short runs", f"--q=.75 --estimators=garl,grpo --seeds=1 {HOPS}"
    ),
    **{
        f"python -m tsallis_rl.sweep --grid=configs/grids/{grid}.py": Rule("its commands", "--dry-run")
        for grid in ("hops", "studies", "floor", "floor_rates", "one_gpu")
    },
    **{
        f"python -m tsallis_rl.sweep --grid=configs/grids/{grid}.py --dry-run": AS_IT_STANDS
        for grid in ("table1", "table2", "table3", "figure3", "figure4")
    },
    "python -m tsallis_rl.sweep --grid=table1": Rule("its commands", "--dry-run"),
    "python -m tsallis_rl.sweep --grid=configs/grids/one_gpu.py --out=runs/smollm2": Rule("its commands", "--dry-run"),
    **{
        f"python -m tsallis_rl.report runs/{sweep}": Rule("the report of the sweep above", skip=True)
        for sweep in ("sweep-hops", "sweep-studies", "sweep-floor", "smollm2")
    },
    "python -m tsallis_rl.report runs/sweep": AS_IT_STANDS,
    "python -m tsallis_rl.report runs/watched --watch": Rule(
        "eight seconds of it, as it serves until it is stopped",
        instead="timeout --signal=INT 8 python -m tsallis_rl.report runs/sweep --watch --port=0; test $? -le 130",
    ),
    "python -m tsallis_rl.replay --run=runs/sweep/garl-q0.75-seed0 --step=50 --estimators=garl@0.25,paft@0.75": Rule(
        "a step that a short run keeps", "--step=0"
    ),
    "launch/local_pod.sh --processes=2 --devices=2 -- --config=configs/hops.py:q=0.75 --workdir=runs/pod": SHORT,
    "launch/sweep.sh --q=.5,.75 --estimators=garl --seeds=1 launch/slurm.sh --name=hops --gpus=8 --dry-run": (
        AS_IT_STANDS
    ),
    "launch/sweep.sh --grid=configs/grids/table1.py launch/slurm.sh --name=table1 --gpus=8 --dry-run": AS_IT_STANDS,
    f"{TASKS} --config=configs/finq.py --download": Rule("a download of 100 MB", skip=True),
    f"{TASKS} --config=configs/hotpotqa.py --download": Rule("a download of 613 MB", skip=True),
    f"{TASKS} --config=configs/musique.py --download": Rule("a download of 272 MB", skip=True),
    f"{MAIN} --config=configs/finq.py:q=0.75,model=tiny --config.task.folder=FOLDER --workdir=runs/finqa": Rule(
        SMALL, FILES
    ),
    f"{TASKS} --config=configs/musique.py:start=warm --show=3 --split=validation": AS_IT_STANDS,
    f"{TASKS} --config=configs/jsonl.py --config.task.path=mine.jsonl --show=3": AS_IT_STANDS,
    f"{MAIN} --config=configs/jsonl.py --config.task.path=mine.jsonl --config.train.steps=3": FEW,
    f"{MAIN} --config=configs/jsonl.py:q=0.75,start=chat,model=models/SmolLM2-135M-Instruct "
    f"--config.task.path=mine.jsonl {TRIAL}": Rule(
        "another model",
        instead=f"{MAIN} --config=configs/jsonl.py:q=0.75,start=chat,model=models/Qwen3-0.6B "
        f"--config.task.path=mine.jsonl {TRIAL}",
    ),
    "mkdir sums": AS_IT_STANDS,
    MAKE_SUMS: AS_IT_STANDS,
    f"{TASKS} --config=examples/sums.py --config.task.folder=sums --show=2": AS_IT_STANDS,
    f"{MAIN} --config=examples/sums.py --config.task.folder=sums --config.train.steps=3": FEW,
    f"{TASKS} --config=configs/finq.py:{HUB} --show=1": from_folder(f"{TASKS} --config=configs/finq.py:{HUB} --show=1"),
    f"{QWEN} --plan": from_folder(f"{QWEN} --plan", LONG),
    f"{QWEN} --workdir=runs/qwen": from_folder(f"{QWEN} --workdir=runs/qwen", LONG),
    f"{EVALUATE} --config=configs/finq.py:{HUB} --split=validation --examples=50": from_folder(
        f"{EVALUATE} --config=configs/finq.py:{HUB} --split=validation --examples=50", LONG
    ),
    f"{EVALUATE} --run=runs/qwen": AS_IT_STANDS,
    "python -m tsallis_rl.export --checkpoint=runs/qwen --out=models/qwen-finqa": AS_IT_STANDS,
    "pip install -e '.[test,parity]' && python -m pytest "
    "tests/models tests/exports tests/commands/test_export.py tests/commands/test_own_model.py "
    "tests/tasks/test_chat_templates.py": TORCH,
    "python -m pytest -m real": Rule("a download of 330 MB, PyTorch", skip=True),
    "python -m tsallis_rl.laboratory --out=lab": Rule("one of its studies", "--studies=escort"),
    "python -m tsallis_rl.laboratory --out=lab --studies=escape,noise": AS_IT_STANDS,
    "python -m tsallis_rl": AS_IT_STANDS,
    "pip install -e '.[tensorboard]'": AS_IT_STANDS,
    f"{MAIN} --config.log.to=tensorboard --workdir=runs/logged": SHORT,
    "the program under Loggers": AS_IT_STANDS,
    "the program under An estimator of your own": AS_IT_STANDS,
    f"{MAIN} --config=hops:estimator=examples.estimator.tempered --config.estimator.temperature=4 "
    "--workdir=runs/tempered": SHORT,
    "python -m tsallis_rl.replay --run=runs/tempered --step=0 "
    "--estimators=examples.estimator.tempered,iwae,garl@0.75": AS_IT_STANDS,
    "the program under A grid from a file": AS_IT_STANDS,
    "python -m benchmarks.rollouts": ONE_CASE,
    "python -m benchmarks.update": ONE_CASE,
    "python -m benchmarks.startup": Rule("its help", "--help"),
    "python -m benchmarks.memory": Rule("its help", "--help"),
    "python -m benchmarks.attention": Rule("its help", "--help"),
    "python -m benchmarks.device": Rule("its help", "--help"),
    "python -m benchmarks.gpu": Rule("its help", "--help"),
    "python -m benchmarks.tpu": Rule("its help", "--help"),
    "python -m benchmarks.tpu --decoding": Rule("its help", "--help"),
    "python -m benchmarks.estimate --config=configs/finq.py": AS_IT_STANDS,
    "pip install -e '.[benchmarks]'": TORCH,
}


def text_of(root: Path = ROOT) -> str:
    """Reads README.md and docs/*.md, one after the other, in a newcomer's order."""
    docs = root / "docs"
    pages = [root / "README.md", *(docs / f"{name}.md" for name in GUIDE)]
    return "\n".join(page.read_text() for page in [*pages, *sorted(set(docs.glob("*.md")) - set(pages))])


def commands(text: str) -> dict[str, str]:
    """Lists what pages tell their reader to type, in page order: name in RULES → text for a shell.

    Commands are the lines of bash blocks, named by their text; blocks of Python, named after the heading above; and
    text between backticks that begins with a program.
    """
    found, heading = {}, ""
    parts = r"^```(\w*)\n(.*?)^```|^#+ ([^\n]+)$|`([^`]+)`"
    for language, lines, title, inline in re.findall(parts, text, re.MULTILINE | re.DOTALL):
        inline = " ".join(inline.split())
        heading = title or heading
        if language == "python":
            found[f"the program under {heading}"] = f"python - <<'END'\n{lines}END"
        elif language == "bash":
            typed = [re.sub(r"\s\s+# .*", "", line).strip() for line in lines.replace("\\\n", " ").splitlines()]
            found |= {line: line for line in typed if line}
        elif inline.startswith(PROGRAMS) and inline != "launch/" and "…" not in inline:
            found[inline] = inline
    return found


def unknown(text: str) -> list[str]:
    """Returns sentences about commands of the pages without a rule, and rules without a command."""
    there = commands(text)
    new = [f"a page has a command that RULES of tests/first_hour.py lacks: {name}" for name in there.keys() - RULES]
    return new + [
        f"RULES of tests/first_hour.py has a command that no page has: {name}" for name in RULES.keys() - there
    ]


def make_stand_ins(clone: Path, cache: Path, data: Path | None) -> None:
    """Writes mine.jsonl and models/Qwen3-0.6B into the clone, and the data sets where --download puts them."""
    from tests.support import model_folders, task_files, tokenizer_files

    rows = [{"prompt": f"What is {i} + {i + 1}?", "answer": str(2 * i + 1), "aliases": []} for i in range(80)]
    (clone / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = clone / "models" / "Qwen3-0.6B"
    model.mkdir(parents=True)
    model_folders.write_folder(model, max_position_embeddings=8192)
    tokenizer_files.write_model(model)
    for name in ("finqa", "hotpotqa", "musique"):
        folder = cache / "downloads" / name
        folder.mkdir(parents=True)
        if data:
            shutil.copytree(data / name, folder, dirs_exist_ok=True)
        elif name == "finqa":
            many = task_files.many_finqa
            task_files.write_finqa(folder, many(40), many(20, "d"), many(20, "t"))
        else:
            record = task_files.RECORD[name]
            train, dev = ([record(f"{part}{i}") for i in range(40)] for part in ("t", "d"))
            task_files.write_paragraphs(name, folder, train, dev)


def environment(venv: Path, home: Path) -> dict[str, str]:
    """Returns a newcomer's variables: the new environment's programs, an empty home, and flags for quick compiling."""
    ours = ("PYTHON", "TSALLIS_RL", "JAX_", "XLA_", "VIRTUAL_ENV", "PYTEST")
    env = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    cache = subprocess.run([sys.executable, "-m", "pip", "cache", "dir"], capture_output=True, text=True).stdout.strip()
    quick = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    path = f"{venv / 'bin'}:{env['PATH']}"
    return env | {"PATH": path, "HOME": str(home), "PIP_CACHE_DIR": cache, "XLA_FLAGS": quick}


def run(command: str, folder: Path, env: dict[str, str]) -> tuple[bool, str]:
    """Runs a command; returns whether it succeeded, and the last lines that it printed."""
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    return done.returncode == 0, "\n".join(done.stdout.strip().splitlines()[-15:])


def prepare(work: Path, data: Path | None) -> None:
    """Makes clone, environment, home, and the small models and data sets in `work`."""
    clone = work / "clone"
    (work / "home").mkdir(parents=True)
    for command in (f"git clone --quiet '{ROOT}' '{clone}'", f"'{sys.executable}' -m venv '{work / 'venv'}'"):
        ok, said = run(command, work, dict(os.environ))
        if not ok:
            sys.exit(f"{command}: {said}")
    make_stand_ins(clone, work / "home" / ".cache" / "tsallis_rl", data)


def walk(text: str, work: Path) -> int:
    """Runs the commands in `work`, prints a row for each, and notes those that succeed in work/done.

    Returns:
      The number of commands that failed.
    """
    env, noted, failed = environment(work / "venv", work / "home"), work / "done", 0
    done = noted.read_text().splitlines() if noted.exists() else []
    folder = work / "home" / ".cache" / "tsallis_rl" / "downloads" / "finqa"
    for name, command in commands(text).items():
        rule = RULES[name]
        if name in done:
            continue
        started, ok = time.monotonic(), True
        if not rule.skip:
            typed = f"{rule.instead or command} {rule.more}".strip().replace("FOLDER", f"'{folder}'")
            ok, said = run(typed, work / "clone", env)
            if not ok:
                print(f"\n{typed}\n{said}\n", file=sys.stderr)
        if ok:
            done.append(name)
            noted.write_text("".join(f"{line}\n" for line in done))
        failed += not ok
        result = "not run" if rule.skip else "ok" if ok else "FAILED"
        said = f"{result}: {rule.why}" if rule.why else result
        print(f"{name[:96]:<98}{time.monotonic() - started:>7.0f} s  {said}", flush=True)
    return failed


def main() -> None:
    """Walks the pages; exits with 1 if something failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.first_hour", description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, help="folder with finqa/, hotpotqa/ and musique/ in place of stand-ins")
    parser.add_argument("--work", type=Path, help="folder of the clone and the environment; a temporary one by default")
    given = parser.parse_args()
    text = text_of()
    if sentences := unknown(text):
        sys.exit("\n".join(sentences))
    with tempfile.TemporaryDirectory() as temporary:
        work = (given.work or Path(temporary) / "work").absolute()
        if not (work / "clone").exists():
            prepare(work, given.data.absolute() if given.data else None)
        failed = walk(text, work)
    print(f"{failed} of {len(RULES)} commands failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
