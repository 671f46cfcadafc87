"""The scripts of launch/: what they refuse, print and call, with the clouds' programs replaced by ones that record."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet

from tests.support.paths import ROOT

pytestmark = pytest.mark.processes

SCRIPTS = sorted((ROOT / "launch").glob("*.sh"))
TPU = ("launch/tpu.sh", "up", "--project=P", "--zone=Z", "--bucket=B", "--name=hops", "--seconds=0")
GKE = ("launch/gke.sh", "--project=P", "--zone=Z", "--bucket=B", "--cluster=C", "--image=I", "--name=hops")
SLURM = ("launch/slurm.sh", "--name=hops", "--nodes=2", "--gpus=4")
SKY = ("launch/sky.sh", "--name=hops", "--bucket=s3://B", "--nodes=2")
TRAINING = ("--", "--config=configs/hops.py:q=0.5", "--config.train.steps=4")
ARGUMENTS = "--config=configs/hops.py:q=0.5 --config.train.steps=4"


class Cloud:
    """Programs on the PATH that write down how they were called; `answers` are shell lines that they then run."""

    def __init__(self, folder: Path):
        self.folder, self.calls_file = folder, folder / "calls"

    def program(self, name: str, answer: str = "") -> None:
        file = self.folder / name
        line = 'printf -v words " %q" "$@"; echo "${0##*/}$words"'  # written at once: calls may come together
        file.write_text(f'#!/usr/bin/env bash\n{line} >>"{self.calls_file}"\ncd "{self.folder}"\n{answer}\n')
        file.chmod(0o755)

    def run(self, *command: str) -> subprocess.CompletedProcess:
        self.calls_file.unlink(missing_ok=True)
        path = f"{self.folder}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        env = os.environ | {"PATH": path, "TMPDIR": str(self.folder)}
        return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)

    @property
    def calls(self) -> list[list[str]]:
        return [shlex.split(line) for line in self.calls_file.read_text().splitlines()]


@pytest.fixture
def cloud(tmp_path):
    cloud = Cloud(tmp_path)
    for name in ("gcloud", "kubectl", "xpk", "sky", "sbatch", "squeue"):
        cloud.program(name)
    return cloud


def test_shellcheck_finds_nothing(cloud):
    done = cloud.run("shellcheck", "-x", "-P", "launch", *map(str, SCRIPTS))
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", [s for s in SCRIPTS if s.name != "common.sh"], ids=lambda path: path.name)
def test_the_head_of_a_script_says_what_it_costs_and_needs(script):
    text = script.read_text()
    assert "# Costs " in text
    assert re.search(r"[Nn]eeds\s|Safe to repeat", text)
    assert f"launch/{script.name}" in text


@pytest.mark.parametrize(
    ("command", "missing"),
    [
        *[(TPU, name) for name in ("project", "zone", "bucket", "name")],
        *[(GKE, name) for name in ("project", "zone", "bucket", "cluster", "image", "name")],
        *[(SKY, name) for name in ("bucket", "name")],
        (SLURM, "name"),
    ],
)
def test_a_missing_option_is_one_sentence_and_nothing_is_called(cloud, command, missing):
    done = cloud.run(*[word for word in command if not word.startswith(f"--{missing}=")], *TRAINING)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: {command[0]} needs --{missing}=…; see --help\n"
    assert not cloud.calls_file.exists()


def test_an_unknown_option_is_refused():
    done = subprocess.run([*SLURM, "--gpu=3"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "--gpu is no option of launch/slurm.sh, which has --name --nodes --gpus --cpus --time " in done.stderr
    assert "arguments of the training go after --" in done.stderr


OPTIONS = {
    "gke": "name project zone cluster bucket image accelerator topology hosts chips restarts xpk create",
    "local_pod": "processes devices port logs",
    "sky": "name bucket gpus nodes spot sky",
    "slurm": "name nodes gpus cpus time partition account sbatch",
    "sweep": "parallel grid",
    "tpu": "name project zone bucket type image spot wait seconds create",
}


@pytest.mark.parametrize("launcher", OPTIONS)
def test_help_is_the_head_and_a_line_an_option_and_nothing_for_a_linter(launcher):
    done = subprocess.run([f"launch/{launcher}.sh", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "shellcheck" not in done.stdout
    head, _, options = done.stdout.partition("\noptions:\n")
    assert f"launch/{launcher}.sh" in head and "Costs " in head
    listed = re.findall(r"^  --([\w-]+)(?:=\S*)?,? +\S", options, re.MULTILINE)
    assert listed == [*OPTIONS[launcher].split(), "dry-run", "help"]


@pytest.mark.parametrize(
    ("command", "option"),
    [(SLURM, "sbatch"), (SKY, "sky"), (GKE, "create"), ((*GKE, "--xpk=v5litepod-16"), "create"), (TPU, "create")],
)
def test_further_options_are_passed_through_and_quotes_that_do_not_match_are_refused(cloud, command, option):
    done = cloud.run(*command, f"--{option}=--qos=high --comment='a b'", "--dry-run", *TRAINING)
    assert "--qos=high '--comment=a b'" in done.stdout, done.stderr
    done = cloud.run(*command, f"--{option}=--comment='a b", *TRAINING)
    assert (done.returncode, done.stderr) == (2, f"error: --{option}=--comment='a b: its quotes do not match\n")
    assert not cloud.calls_file.exists()


DRY = {
    TPU: f"""\
gcloud compute tpus queued-resources create hops --project=P --zone=Z --node-id=hops --accelerator-type=v5litepod-16 \
--runtime-version=v2-alpha-tpuv5-lite
git archive --format=tar.gz --output=TMP/hops.tar.gz HEAD
gcloud storage cp TMP/hops.tar.gz gs://B/source/hops.tar.gz
gcloud compute tpus tpu-vm ssh hops --project=P --zone=Z --worker=all '--command=set -e; mkdir -p ~/work; cd ~/work; \
gcloud storage cat gs://B/source/hops.tar.gz | tar xz; exec bash launch/tpu_worker.sh B hops {ARGUMENTS}'
""",
    (*GKE, "--xpk=v5litepod-16"): f"""\
xpk storage attach hops-bucket --project=P --zone=Z --cluster=C --type=gcsfuse --bucket=B --mount-point=/bucket \
--readonly=false --auto-mount=true --size=1
xpk workload create --project=P --zone=Z --cluster=C --workload=hops --tpu-type=v5litepod-16 --docker-image=I \
--max-restarts=100 '--command=python -m tsallis_rl.main --distributed --workdir=/bucket/runs/hops {ARGUMENTS}'
""",
    ("launch/tpu.sh", "watch", "--project=P", "--zone=Z", "--name=hops"): """\
gcloud compute tpus tpu-vm ssh hops --project=P --zone=Z --worker=0 '--command=tail -n 100 -F ~/train.log'
""",
    ("launch/tpu.sh", "delete", "--project=P", "--zone=Z", "--name=hops"): """\
gcloud compute tpus queued-resources delete hops --project=P --zone=Z --force --quiet
""",
    ("launch/local_pod.sh", "--processes=2", "--devices=3", "--port=1234"): "".join(
        f"env JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=3 JAX_CPU_COLLECTIVES_IMPLEMENTATION=gloo "
        f"JAX_COORDINATOR_ADDRESS=127.0.0.1:1234 JAX_NUM_PROCESSES=2 JAX_PROCESS_ID={i} python -m tsallis_rl.main "
        f"--distributed {ARGUMENTS}\n"
        for i in range(2)
    ),
    SLURM: f"""\
sbatch --job-name=hops --nodes=2 --ntasks-per-node=4 --gpus-per-node=4 --cpus-per-task=8 --time=24:00:00 --requeue \
--open-mode=append --signal=B:TERM@120 --output=runs/hops.log launch/slurm_job.sh python --workdir=runs/hops {ARGUMENTS}
""",
    SKY: f"""\
sky jobs launch --yes --detach-run --name=hops --num-nodes=2 --gpus=H100:8 --use-spot --env BUCKET=s3://B \
--env 'ARGUMENTS=--workdir=/bucket/runs/hops {ARGUMENTS}' launch/sky.yaml
""",
}


@pytest.mark.parametrize("command", DRY, ids=lambda command: f"{Path(command[0]).stem}-{command[1]}")
def test_a_dry_run_prints_the_exact_commands_and_calls_nothing(cloud, command):
    done = cloud.run(*command, "--dry-run", *TRAINING)
    assert done.returncode == 0, done.stderr
    assert done.stdout.replace(str(cloud.folder), "TMP") == DRY[command]
    assert not cloud.calls_file.exists()


def test_a_pod_slice_is_asked_for_awaited_and_started(cloud):
    cloud.program(
        "gcloud", 'case $* in *"create "*) touch asked;; *"tpu-vm describe"*) [[ -e asked ]] && echo READY;; esac'
    )
    done = cloud.run(*TPU, *TRAINING)
    assert done.returncode == 0, done.stderr
    verbs = [" ".join(call[3:5] if call[1] == "compute" else call[1:3]) for call in cloud.calls]
    first = ["tpu-vm describe", "queued-resources describe", "queued-resources create", "tpu-vm describe"]
    assert verbs == [*first, "queued-resources describe", "storage cp", "tpu-vm ssh"]
    assert cloud.calls[-1][-1].endswith(f"launch/tpu_worker.sh B hops {ARGUMENTS}")
    assert cloud.run(*TPU, *TRAINING).returncode == 0  # again: there is nothing to ask for
    assert "create" not in cloud.calls_file.read_text()


def test_a_preempted_slice_is_replaced_and_continues_until_the_training_ends(cloud):
    """Ready, then preempted during the training, then ready again; the training ends with status 3."""
    cloud.program(
        "gcloud",
        """case $* in
  *"tpu-vm describe"*) n=$(cat n 2>/dev/null || echo 0); echo $((n + 1)) >n
    if [[ -e asked ]]; then echo READY; elif ((n < 2)); then echo READY; else echo PREEMPTED; fi ;;
  *"create "*) touch asked ;;
  *"cat ~/status"*) if [[ -e asked ]]; then echo 3; fi ;;
esac""",
    )
    done = cloud.run(*TPU, "--wait=yes", *TRAINING)
    assert done.returncode == 3, done.stderr
    told = [" ".join(call[3:5]) for call in cloud.calls if call[1] == "compute" and "describe" not in call[4]]
    everywhere = [call for call in cloud.calls if "--worker=all" in call]
    assert told.count("queued-resources delete") == told.count("queued-resources create") == 1
    assert len(everywhere) == 2 and everywhere[0] == everywhere[1]


def test_a_failed_request_and_a_failed_installation_end_with_their_status(cloud):
    cloud.program("gcloud", 'case $* in *"queued-resources describe"*) echo FAILED;; esac')
    done = cloud.run(*TPU, *TRAINING)
    assert done.returncode == 2 and "error: the request hops failed: see gcloud" in done.stderr
    cloud.program("gcloud", 'case $* in *"tpu-vm describe"*) echo READY;; *"tpu-vm ssh"*) exit 1;; esac')
    assert cloud.run(*TPU, *TRAINING).returncode == 1


def test_a_dry_run_of_a_job_set_prints_what_is_applied(cloud):
    dry = cloud.run(*GKE, "--dry-run", *TRAINING)
    assert not cloud.calls_file.exists()
    cloud.program("kubectl", 'cp "${2#--filename=}" applied.yaml')
    assert cloud.run(*GKE, *TRAINING).returncode == 0
    first = "gcloud container clusters get-credentials C --project=P --location=Z"
    applied = (cloud.folder / "applied.yaml").read_text()
    assert dry.stdout == f"{first}\nkubectl apply --filename=- <<END\n{applied}END\n"


def test_a_job_set_is_applied(cloud):
    cloud.program("kubectl", 'cp "${2#--filename=}" applied.yaml')
    done = cloud.run(*GKE, *TRAINING[:1], "--config=it's.py")
    assert done.returncode == 0, done.stderr
    assert [call[0] for call in cloud.calls] == ["gcloud", "kubectl"]
    applied = yaml.safe_load((cloud.folder / "applied.yaml").read_text())
    assert (applied["apiVersion"], applied["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert applied["spec"]["failurePolicy"] == {"maxRestarts": 100}  # a preemption is one
    job = applied["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert (job["parallelism"], job["completions"]) == (4, 4)
    command = job["template"]["spec"]["containers"][0]["command"]
    assert command[:2] == ["bash", "-c"]
    words = ["exec", "python", "-m", "tsallis_rl.main", "--distributed", "--workdir=/bucket/runs/hops"]
    assert shlex.split(command[2]) == [*words, "--config=it's.py"]
    assert not unknown_fields(applied, JobsetV1alpha2JobSet.from_dict(applied).to_dict())


def unknown_fields(given, known, where: str = "") -> list[str]:
    """Fields that a published model, which leaves out what it does not know, did not keep as they were given."""
    if isinstance(given, dict) and isinstance(known, dict):
        pairs = [(f"{where}.{name}", value, known.get(name)) for name, value in given.items()]
    elif isinstance(given, list) and isinstance(known, list) and len(given) == len(known):
        pairs = [(f"{where}[{i}]", *pair) for i, pair in enumerate(zip(given, known, strict=True))]
    else:
        return [] if given == known else [where]
    return [field for name, left, right in pairs for field in unknown_fields(left, right, name)]


def test_the_published_model_of_a_job_set_knows_a_mistyped_field_and_a_wrong_type():
    template = yaml.safe_load((ROOT / "launch" / "jobset.yaml").read_text().replace("${", "$").replace("}", ""))
    template["spec"]["failurePolicy"]["maxRestarts"] = 3
    job = template["spec"]["replicatedJobs"][0]["template"]["spec"]
    job |= {"parallelism": 1, "completions": 1, "backoff_limit": 0}
    found = unknown_fields(template, JobsetV1alpha2JobSet.from_dict(template).to_dict())
    assert found == [".spec.replicatedJobs[0].template.spec.backoff_limit"]
    with pytest.raises(ValueError, match="maxRestarts"):
        JobsetV1alpha2JobSet.from_dict(template | {"spec": {"failurePolicy": {"maxRestarts": "often"}}})


def test_the_task_of_skypilot_has_documented_fields_only():
    """By its YAML reference, docs.skypilot.co; its own schema comes with all of SkyPilot, too much for a test."""
    task = yaml.safe_load((ROOT / "launch" / "sky.yaml").read_text())
    kinds = {"workdir": str, "file_mounts": dict, "envs": dict, "setup": str, "run": str}
    assert {name: type(value) for name, value in task.items()} == kinds
    assert task["file_mounts"] == {"/bucket": {"source": "${BUCKET}", "mode": "MOUNT"}}
    assert set(task["envs"]) == {"BUCKET", "ARGUMENTS"}
    words = 'printf "%s|" "${!JAX_@}" "$JAX_COORDINATOR_ADDRESS" "$JAX_PROCESS_ID" "$@"'
    script = subprocess.run(
        ["bash", "-c", f"python() {{ {words}; }}\n{task['run']}"],
        env={
            "PATH": os.environ["PATH"], "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NUM_NODES": "2",
            "SKYPILOT_NODE_RANK": "1", "ARGUMENTS": "--config=x.py '--config.task.path=a b'",
        },
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert script.stdout.split("|")[:-1] == [
        *("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "10.0.0.1:8476", "1"),
        *("-m", "tsallis_rl.main", "--distributed", "--config=x.py", "--config.task.path=a b"),
    ]


@pytest.mark.parametrize(
    ("command", "program", "answer"),
    [
        (GKE, "gcloud", "exit 3"),
        (GKE, "kubectl", "exit 3"),
        ((*GKE, "--xpk=v5litepod-16"), "xpk", "[[ $2 == list ]] || exit 3"),
        ((*GKE, "--xpk=v5litepod-16"), "xpk", "exit 3"),  # what is there cannot be told: nothing is made twice
        (SKY, "sky", "[[ $2 == queue ]] || exit 3"),
        (SKY, "sky", "exit 3"),
        (SLURM, "squeue", "exit 3"),
        (SLURM, "sbatch", "exit 3"),
        (TPU, "gcloud", 'case $* in *"create "*) exit 3;; esac'),
    ],
    ids=lambda value: Path(value[0]).stem if isinstance(value, tuple) else "",
)
def test_a_launcher_ends_with_the_failure_of_its_program(cloud, command, program, answer):
    cloud.program(program, answer)
    assert cloud.run(*command, *TRAINING).returncode == 3
    assert cloud.calls[-1][0] == program  # and nothing is called after it


def test_a_slurm_job_is_submitted_once(cloud):
    assert cloud.run(*SLURM, *TRAINING).returncode == 0
    assert [call[0] for call in cloud.calls] == ["squeue", "sbatch"]
    cloud.program("squeue", "echo 17 gpu hops")
    done = cloud.run(*SLURM, *TRAINING)
    assert (done.returncode, [call[0] for call in cloud.calls]) == (0, ["squeue"])
    cloud.program("squeue")
    cloud.program("sbatch", "exit 1")
    assert cloud.run(*SLURM, *TRAINING).returncode == 1


@pytest.mark.parametrize(("told", "status"), [("kill -TERM $PPID; sleep 0.2; exit 143", 143), ("exit 5", 5), ("", 0)])
def test_a_slurm_job_goes_back_into_the_queue_when_it_was_told_to_stop_and_saved(cloud, monkeypatch, told, status):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "6")  # srun does not read it
    cloud.program("srun", told)
    cloud.program("scontrol")
    done = cloud.run("launch/slurm_job.sh", "python", "--workdir=runs/hops")
    assert done.returncode == status
    expected = [
        "srun",
        "--kill-on-bad-exit=1",
        "--cpus-per-task=6",
        "python",
        "-m",
        "tsallis_rl.main",
        "--distributed",
        "--workdir=runs/hops",
    ]
    requeue = [["scontrol", "requeue", "17"]] if status == 143 else []
    assert cloud.calls == [expected, *requeue]


def test_a_sky_job_is_launched_once(cloud):
    assert cloud.run(*SKY, *TRAINING).returncode == 0
    assert [call[2] for call in cloud.calls] == ["queue", "launch"]
    cloud.program("sky", "echo '1 - hops RUNNING'")
    assert cloud.run(*SKY, *TRAINING).returncode == 0
    assert [call[2] for call in cloud.calls] == ["queue"]
    cloud.program("sky", "echo '1 - hops-garl-q1-seed0 RUNNING'")  # another job
    assert cloud.run(*SKY, *TRAINING).returncode == 0
    assert [call[2] for call in cloud.calls] == ["queue", "launch"]


def test_a_workload_of_xpk_is_created_once(cloud):
    cloud.program(
        "xpk", "case $* in *'workload create'*) touch there;; *list*) [[ ! -e there ]] || echo 'hops 1 Running';; esac"
    )
    assert cloud.run(*GKE, "--xpk=v5litepod-16", *TRAINING).returncode == 0
    assert [" ".join(call[1:3]) for call in cloud.calls] == ["workload list", "storage attach", "workload create"]
    assert cloud.run(*GKE, "--xpk=v5litepod-16", *TRAINING).returncode == 0
    assert [" ".join(call[1:3]) for call in cloud.calls] == ["workload list"]


SWEEP = ("launch/sweep.sh", "--q=.25,1", "--estimators=garl,grpo", "--seeds=1", "--config.train.steps=4")


def test_a_sweep_is_one_launch_a_cell_of_the_grid(cloud):
    assert cloud.run(*SWEEP, *SLURM).returncode == 0
    jobs = [call for call in cloud.calls if call[0] == "sbatch"]
    fields = [(job[1], *job[-3:-1]) for job in jobs]
    assert fields == [
        ("--job-name=hops-garl-q0-25-seed0", "--config.estimator.name=garl", "--config.estimator.q=0.25"),
        ("--job-name=hops-garl-q1-seed0", "--config.estimator.name=garl", "--config.estimator.q=1.0"),
        ("--job-name=hops-grpo-seed0", "--config.estimator.name=grpo", "--config.estimator.q=0.75"),
    ]
    assert jobs[0][-5:-3] == ["--workdir=runs/hops-garl-q0-25-seed0", "--config.train.steps=4"]
    assert jobs[0][-1] == "--config.seed=0"


def test_a_sweep_of_a_grid_file_is_one_launch_a_cell_with_its_config(cloud):
    """Nothing is launched for what cells share: each job prepares for itself."""
    done = cloud.run("launch/sweep.sh", "--grid=configs/grids/figure4.py", "--config.train.steps=4", *SLURM)
    assert done.returncode == 0, done.stderr
    jobs = [call for call in cloud.calls if call[0] == "sbatch"]
    assert len(jobs) == 18
    assert jobs[0][1] == "--job-name=hops-hotpotqa-warm-garl-q0-2-seed0"
    assert "--config=hotpotqa:start=warm,model=Qwen/Qwen3-0.6B" in jobs[0]
    assert jobs[0][-4:] == [
        "--config.model.dtype=bfloat16", "--config.estimator.name=garl", "--config.estimator.q=0.2", "--config.seed=0",
    ]  # fmt: skip
    assert all("--config.train.steps=4" in job for job in jobs)


def test_a_dry_run_of_a_sweep_prints_each_launch(cloud):
    done = cloud.run("launch/sweep.sh", "--q=.25", "--estimators=garl,grpo", "--seeds=1", *SLURM, "--dry-run")
    assert not cloud.calls_file.exists()
    options = "--nodes=2 --ntasks-per-node=4 --gpus-per-node=4 --cpus-per-task=8 --time=24:00:00 --requeue"
    assert done.stdout == "".join(
        f"sbatch --job-name={name} {options} --open-mode=append --signal=B:TERM@120 --output=runs/{name}.log "
        "launch/slurm_job.sh python "
        f"--workdir=runs/{name} --config.estimator.name={estimator} --config.estimator.q={q} --config.seed=0\n"
        for name, estimator, q in (("hops-garl-q0-25-seed0", "garl", 0.25), ("hops-grpo-seed0", "grpo", 0.75))
    )


def test_a_sweep_over_slices_waits_for_them_together(cloud):
    """Each slice is there only after both were asked for, which launches one after the other would never do."""
    ready = "(($(ls | grep -c ^asked-) == 2)) && echo READY"
    cloud.program("gcloud", f'case $* in *"create "*) touch "asked-$5";; *"tpu-vm describe"*) {ready};; esac')
    options = [word for word in TPU if word != "--seconds=0"]
    done = cloud.run(*SWEEP[:2], "--estimators=garl", "--seeds=1", "--parallel=2", *options, "--seconds=0.1")
    assert done.returncode == 0, done.stderr
    started = [call[5] for call in cloud.calls if "--worker=all" in call]
    assert sorted(started) == ["hops-garl-q0-25-seed0", "hops-garl-q1-seed0"]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (SWEEP, "needs a launcher with its options after the flags of the sweep"),
        ((*SWEEP, "launch/slurm.sh"), "the launcher needs --name=…"),
        ((*SWEEP, *SLURM, *TRAINING), "flags of the training go before the launcher of a sweep"),
        (("launch/sweep.sh", "--q=2", *SLURM), "error: --q=2: choose numbers from 0 to 1"),
    ],
)
def test_a_mistake_in_a_sweep_launches_nothing(cloud, command, message):
    done = cloud.run(*command)
    assert done.returncode == 2
    assert message in done.stderr
    assert not cloud.calls_file.exists()


def test_a_sweep_stops_at_a_launch_that_fails(cloud):
    cloud.program("sbatch", "exit 1")
    done = cloud.run(*SWEEP, *SLURM)
    assert done.returncode == 2 and "a launch failed; the same command continues" in done.stderr
    assert [call[0] for call in cloud.calls] == ["squeue", "sbatch"]
