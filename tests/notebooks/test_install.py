"""What a notebook installs, depending on what it finds: the text of nvidia-smi and versions of packages."""

import re

import pytest

from notebooks.install import OLDEST, TESTED, Gpu, choose_build, outdated, read_gpus
from tests.support.paths import ROOT

T4 = "Tesla T4, 580.82.07, 7.5\n"
COLAB = {"jax": "0.7.2", "jaxlib": "0.7.2", "jax-cuda12-plugin": "0.7.2", "jax-cuda12-pjrt": "0.7.2", "numpy": "2.0.2"}
OF_12 = ["jax-cuda12-pjrt", "jax-cuda12-plugin"]
RECENT_12 = {"jax": "0.10.1", "jaxlib": "0.10.1", "jax-cuda12-plugin": "0.10.1", "jax-cuda12-pjrt": "0.10.1"}


@pytest.mark.parametrize(
    ("table", "tpu", "versions", "requirement", "removed"),
    [
        (T4, False, COLAB, f"jax[cuda13]{TESTED}", OF_12),  # Colab's own JAX is too old
        ("Tesla T4, 550.54.15, 7.5\n", False, COLAB, f"jax[cuda12]{TESTED}", []),  # its driver of 2025
        (T4, False, RECENT_12, "jax[cuda12]==0.10.1", []),  # what works stays, and CUDA 12 with it
        (T4, False, RECENT_12 | {"jax-cuda12-plugin": "0.7.2"}, f"jax[cuda13]{TESTED}", OF_12),  # of another version
        (T4, False, {"jax": "0.11.2", "jax-cuda13-plugin": "0.11.2"}, "jax[cuda13]==0.11.2", []),
        (T4, False, {"jax": "0.10.2", "jaxlib": "0.10.2"}, f"jax[cuda13]{TESTED}", []),  # one for the CPU
        (T4, False, {}, f"jax[cuda13]{TESTED}", []),
        ("Tesla P100-PCIE-16GB, 580.82.07, 6.0\n", False, {}, f"jax[cuda12]{TESTED}", []),  # CUDA 13 lacks its kernels
        (T4 + "Tesla V100-SXM2-16GB, 580.82.07, 7.0\n", False, {}, f"jax[cuda12]{TESTED}", []),
        ("Tesla K80, 470.256.02, 3.7\n", False, COLAB, f"jax{TESTED}", []),  # none
        ("No devices were found\n", False, {"jax": "0.10.2"}, "jax==0.10.2", []),
        ("", False, {}, f"jax{TESTED}", []),
        ("", True, {"jax": "0.7.2", "libtpu": "0.0.21"}, f"jax[tpu]{TESTED}", []),
        ("", True, {"jax": "0.10.2", "libtpu": "0.0.42"}, "jax[tpu]==0.10.2", []),
        ("", True, {"jax": "0.10.2"}, f"jax[tpu]{TESTED}", []),
    ],
)
def test_the_build_of_jax_follows_from_processor_driver_and_what_is_there(table, tpu, versions, requirement, removed):
    build = choose_build(read_gpus(table), tpu, versions)
    assert (build.requirement, build.removed) == (requirement, removed)


def test_what_is_chosen_is_said_and_where_there_is_no_gpu_what_to_do():
    colab = "in Colab choose Runtime > Change runtime type > T4 GPU, then run from the top"
    for gpus, versions, told in (
        ([], {}, f"no GPU or TPU: jax{TESTED} is installed; for a GPU {colab}"),
        ([], {"jax": "0.10.2"}, f"no GPU or TPU: JAX 0.10.2 stays; for a GPU {colab}"),
        (read_gpus(T4), COLAB, f"Tesla T4: jax[cuda13]{TESTED} is installed in place of JAX 0.7.2"),
        (read_gpus(T4), RECENT_12, "Tesla T4: JAX 0.10.1 stays"),
        (
            [Gpu("Tesla K80", 470, 3.7)],
            {},
            "Tesla K80, driver 470, compute capability 3.7: JAX needs driver 525 and compute capability 5.2 or higher, "
            f"so the CPU is used; {colab}",
        ),
    ):
        assert choose_build(gpus, False, versions).told == told


@pytest.mark.parametrize(
    "line",
    [
        "",
        "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.",
        "Tesla T4, [N/A], 7.5",
        'Field "compute_cap" is not a valid field to query.',
        "a, b, c",
    ],
)
def test_other_lines_of_nvidia_smi_are_no_gpus(line):
    assert read_gpus(f"{line}\nNVIDIA A100-SXM4-40GB, 580.82.07, 8.0") == [Gpu("NVIDIA A100-SXM4-40GB", 580, 8.0)]


def test_a_kernel_that_has_loaded_other_versions_is_told_to_restart():
    assert outdated({"numpy": "2.0.2"}, {"numpy": "2.0.2", "jax": "0.10.2"}) == ""
    assert outdated({"numpy": "2.0.2", "jax": "0.7.2"}, {"numpy": "2.0.2", "jax": "0.10.2"}) == (
        "this session has loaded jax 0.7.2: restart it (Runtime > Restart session) and run from the top"
    )


def test_the_oldest_jax_is_that_of_the_package():
    assert re.search(r'"jax>=([\d.]+)"', (ROOT / "setup.py").read_text())[1] == ".".join(map(str, OLDEST))
