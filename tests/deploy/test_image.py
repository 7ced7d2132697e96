"""The image that the cog files describe: its schema, its build context, and how it starts."""

import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import cog_image
import plain_http
import pytest
import yaml
from cog_client import CogClient
from cog_server import cog_server

from musicgen.checkpoints import folders
from musicgen.commands import schema, server
from musicgen.commands.server import ROOT

both = pytest.mark.parametrize("predictor", cog_image.CONFIGS)

# The keys and types that Cog 0.23's own schema of cog.yaml allows, as far as the files use them.
BUILD = {
    "gpu": bool,
    "cuda": str,
    "python_version": str,
    "system_packages": list,
    "python_requirements": str,
    "sdk_version": str,
    "run": list,
}
TOP = {"image": str, "build": dict, "predict": str, "environment": list}
# CUDA versions for which Cog 0.22 and later know a build of torch 2.11.0.
CUDA_OF_TORCH = {"2.11.0": ("12.6", "12.8", "12.9", "13.0")}
# Environment names that Cog refuses to set in an image.
RESERVED = re.compile(
    r"PATH|LD_LIBRARY_PATH|PYTHONPATH|VIRTUAL_ENV|PYTHONUNBUFFERED|R8_.*|REPLICATE_.*|LIBRARY_PATH|CUDA_VISIBLE_DEVICES|NVIDIA_VISIBLE_DEVICES|NVIDIA_DRIVER_CAPABILITIES|PERL5LIB|PYTHONHOME|LD_PRELOAD|KUBERNETES_.*"
)


def pins():
    """Package -> version in requirements.txt."""
    text = (ROOT / "requirements.txt").read_text()
    return dict(re.findall(r"^([\w-]+)==(\S+)$", text, re.MULTILINE))


@both
def test_the_cog_file_has_only_keys_and_types_that_cog_allows(predictor):
    config = cog_image.config(predictor)
    for section, rules in ((config, TOP), (config["build"], BUILD)):
        assert {name: type(value) for name, value in section.items()} == {
            name: rules[name] for name in section
        }
    assert all(isinstance(line, str) for line in config["build"]["run"])
    assert re.fullmatch(r"\w+\.py:Predictor", config["predict"])


@both
def test_the_environment_sets_no_reserved_name(predictor):
    for line in cog_image.config(predictor)["environment"]:
        name, separator, value = line.partition("=")
        assert separator, line
        assert value, line
        assert not RESERVED.fullmatch(name), line


@both
def test_the_image_finds_kernels_where_the_command_writes_them(predictor):
    variables = cog_image.environment(predictor, ROOT)
    assert variables["MUSICGEN_PREBUILT_KERNELS"] == str(folders.KERNELS)


@both
def test_the_cuda_version_is_one_that_cog_knows_for_torch(predictor):
    assert cog_image.config(predictor)["build"]["cuda"] in CUDA_OF_TORCH[pins()["torch"]]
    assert cog_image.config(predictor)["build"]["cuda"] < "13"  # CUDA 13 needs driver 580


@both
def test_the_http_server_has_the_version_of_the_sdk(predictor):
    build = cog_image.config(predictor)["build"]
    version = build["sdk_version"]
    assert pins()["coglet"] == pins()["cog"] == version
    assert f"coglet=={version}" in build["run"][-1]
    assert all("--compile-bytecode" in line for line in build["run"])


def test_the_push_workflow_installs_the_cog_that_the_cog_files_need():
    text = (ROOT / ".github" / "workflows" / "push.yml").read_text()
    workflow = yaml.safe_load(text)
    steps = workflow["jobs"]["push"]["steps"]
    [setup] = [step for step in steps if "setup-cog" in step.get("uses", "")]
    version = cog_image.config("predict")["build"]["sdk_version"]
    assert setup["with"]["cog-version"] == f"v{version}"
    commands = [step.get("run", "") for step in steps]
    remove, push = commands.index("rm -rf .venv .uv"), len(commands) - 1
    assert commands[push].startswith("cog push --separate-weights")
    assert remove < push
    inputs = workflow[True]["workflow_dispatch"]["inputs"]  # YAML 1.1 reads `on` as true
    assert "default" not in inputs["runner"]
    # Streams are promised for Cog's own server only.
    offered = [cog_image.CONFIGS[predictor] for predictor in ("predict", "songstarter")]
    assert inputs["config"]["options"] == offered


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A fresh clone."""
    return cog_image.clone(tmp_path_factory.mktemp("clone"))


@pytest.fixture(scope="module")
def built(clone, tmp_path_factory):
    """/src in the image that is built from a fresh clone."""
    return cog_image.build(clone, tmp_path_factory.mktemp("src"))


@pytest.mark.parametrize(
    ("path", "ignored"),
    [
        ("weights/demo/lm.safetensors", False),
        ("weights/checkpoint/t5-base/model.safetensors", False),
        ("weights/checkpoint/.download/part", True),
        ("weights/kernels/KEY/_norm_kernel.cubin", False),
        ("weights/musicgen-stereo-melody-large/lm.safetensors", True),
        ("weights/fetched-0123/lm.safetensors", True),
        ("weights.tar", True),
        (".venv/lib/libtorch.so", True),
        ("musicgen/page/__pycache__/app.pyc", True),
        ("musicgen/decoder/engine.py", False),
        ("predict.py", False),
        ("requirements.txt", False),
        ("tests/contract/predict.openapi.json", True),
    ],
)
def test_the_build_context_has_the_code_the_demo_and_one_checkpoint(path, ignored):
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]
    assert cog_image.is_ignored(path, patterns) == ignored


def test_the_build_context_of_a_fresh_clone_is_small(built):
    files = [path for path in built.rglob("*") if path.is_file()]
    demo = sum(path.stat().st_size for path in files if "demo" in path.parts)
    size = sum(path.stat().st_size for path in files)
    assert size < demo + 1_000_000
    assert size < 25_000_000
    for needed in (
        "predict.py",
        "songstarter.py",
        "streaming.py",
        "requirements.txt",
        "requirements-cluster.txt",  # the image of docs/several-machines.md installs it
        "deploy/health.py",  # the compose file runs it
        "musicgen/pipeline.py",
        "musicgen/cluster/application.py",
    ):
        assert (built / needed).exists()


def take_compiled_code(source):
    """Give `source` the CPU's code that this checkout has compiled, if it has: that takes 10 s.

    Numba uses it if the file that it was compiled from has the same time. test_cpu.py compiles it.
    """
    folder = Path("musicgen", "decoder", "kernels")
    shutil.copystat(ROOT / folder / "team.py", source / folder / "team.py")
    for compiled in (ROOT / folder / "__pycache__").glob("team.*.nb[ic]"):
        (source / folder / "__pycache__").mkdir(exist_ok=True)
        shutil.copy(compiled, source / folder / "__pycache__")


@contextmanager
def container(source, predictor, tmp_path, **changes):
    """The server as the image starts it: in `source`, with the image's environment only."""
    port = server.free_port()
    home = tmp_path / "home"
    home.mkdir()
    variables = {
        "PATH": f"{os.path.dirname(sys.executable)}:/usr/bin:/bin",
        "HOME": str(home),
        "COG_MAX_CONCURRENCY": str(schema.concurrency((ROOT / f"{predictor}.py").read_text())),
        "COG_PREDICT_TYPE_STUB": cog_image.config(predictor)["predict"],
        "PORT": str(port),
        "TMPDIR": str(tmp_path),
        **cog_image.environment(predictor, source),
        **changes,
    }
    schema.write(source / f"{predictor}.py", source / ".cog" / "openapi_schema.json")
    take_compiled_code(source)
    log = tmp_path / "log"
    command = [sys.executable, "-m", "cog.server.http", "--host", "127.0.0.1"]
    with log.open("w") as stream:
        process = subprocess.Popen(command, cwd=source, env=variables, stdout=stream, stderr=stream)
        url = f"http://127.0.0.1:{port}"
        try:
            server.wait_until_ready(url, process)
            yield CogClient(url, tmp_path, log)
        finally:
            server.stop(process, url)


@both
def test_an_image_of_a_fresh_clone_starts_with_the_demo_and_says_so(built, tmp_path, predictor):
    with container(built, predictor, tmp_path, MUSICGEN_DEVICE="cpu") as client:
        answer = client.predict(prompt="trap, 140 bpm", duration=1)
        setup = plain_http.get(f"{client.url}/health-check").json()["setup"]["logs"]
    assert "this image contains no checkpoint" in setup
    output = answer["output"]
    if predictor == "songstarter":
        assert len(output) == 4
    else:
        assert (output if predictor == "predict" else output[0])["model"] == "demo"


def test_an_image_without_a_gpu_does_not_start_and_says_what_to_set(built, tmp_path):
    with (
        pytest.raises(Exception, match="no usable CUDA device"),
        container(built, "predict", tmp_path, CUDA_VISIBLE_DEVICES=""),
    ):
        pass


# Starts a command as a user whom no file of this system names, as `docker run --user 12345` does.
AS_A_STRANGER = ["unshare", "--user", "--map-user=12345", "--map-group=12345"]
CAN_BE_A_STRANGER = (
    subprocess.run([*AS_A_STRANGER, "true"], capture_output=True).returncode == 0
    if shutil.which("unshare")
    else False
)


@pytest.mark.skipif(not CAN_BE_A_STRANGER, reason="user namespaces are not allowed here")
def test_a_user_without_a_name_and_a_home_serves(checkpoints, tmp_path):
    wrapper = [*AS_A_STRANGER, "env", "-u", "HOME", "-u", "USER", "-u", "LOGNAME"]
    code = "import os, pwd; assert os.path.expanduser('~') == '~'; pwd.getpwuid(os.getuid())"
    done = subprocess.run([*wrapper, sys.executable, "-c", code], capture_output=True, text=True)
    assert "KeyError: 'getpwuid(): uid not found: 12345'" in done.stderr
    with cog_server(tmp_path, checkpoints["stereo-melody"], "predict", wrapper) as client:
        assert client.predict(prompt="trap", duration=1)["output"]["duration"] == 1


def test_a_path_of_the_operator_that_does_not_exist_is_an_error(built, tmp_path):
    missing = str(tmp_path / "nothing")
    with (
        pytest.raises(Exception, match="does not exist"),
        container(built, "predict", tmp_path, MUSICGEN_DEVICE="cpu", MUSICGEN_WEIGHTS=missing),
    ):
        pass


@both
def test_the_schema_that_an_image_serves_is_the_contract(built, predictor):
    document = schema.openapi((built / f"{predictor}.py").read_text())
    contract = json.loads((ROOT / "tests" / "contract" / f"{predictor}.openapi.json").read_text())
    for field in document["components"]["schemas"]["Input"]["properties"].values():
        field.pop("description")
    assert document["components"] == contract["components"]


def test_the_image_without_root_changes_only_files_that_others_cannot_read(tmp_path):
    """Its Dockerfile's command: chmod of any other file would copy it into the new layer."""
    page = (ROOT / "docs" / "deployment.md").read_text()
    [command] = re.findall(r"(find /src .*?\{\} \+)\n", page, re.DOTALL)
    (tmp_path / "folder").mkdir(mode=0o700)
    readable, private, script = (
        tmp_path / name for name in ("readable", "folder/private", "script")
    )
    for path, mode in ((readable, 0o644), (private, 0o600), (script, 0o755)):
        path.touch()
        path.chmod(mode)
    before = {path: path.stat().st_ctime_ns for path in (readable, script)}
    subprocess.run(["sh", "-c", command.replace("/src", str(tmp_path))], check=True)
    assert {path: path.stat().st_ctime_ns for path in (readable, script)} == before
    assert private.stat().st_mode & 0o777 == 0o644
    assert private.parent.stat().st_mode & 0o777 == 0o755
