"""`--help`, `--cfg` and `--info` of the commands whose arguments are config overrides."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from screens import too_wide

import openslip
from openslip.__main__ import run
from openslip.config.compose import compose_config
from openslip.config.folder import config_dirs, config_folder, names
from openslip.config.help import GROUPS, KEYS, MORE_OPTIONS, columns, commented_lines, explained_keys, help_text
from openslip.errors import UserError


@pytest.mark.parametrize("command", ["train", "eval", "plan", "sweep"])
def test_help_imports_nothing_slow(command: str):
    code = (
        "import sys; from openslip.__main__ import run; assert run([sys.argv[1], '--help']) == 0; "
        "assert not {'torch', 'timm', 'hydra', 'yaml', 'numpy'} & set(sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(openslip.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code, command], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"usage: openslip {command} [KEY=VALUE ...]" in done.stdout


def test_neither_help_nor_completion_waits_for_torch_or_numpy():
    code = (
        "import sys; from openslip.__main__ import commands, run; from openslip.commands.data import data_commands\n"
        "for command in [*([name] for name in commands()), *(['data', name] for name in data_commands())]:\n"
        "    assert run([*command, '--help']) == 0\n"
        "    assert not {'torch', 'numpy'} & set(sys.modules), command\n"
        "assert run(['completion', 'bash']) == 0\n"
        "assert not {'torch', 'numpy'} & set(sys.modules), 'completion'"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(openslip.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_help_of_sweep_has_its_own_options_and_none_that_prints_the_config(capsys: pytest.CaptureFixture[str]):
    assert run(["sweep", "--help"]) == 0
    printed = capsys.readouterr().out
    options = printed.partition("config groups")[0].split()
    assert {"KEY=A,B", "hydra/launcher=submitit_slurm", "--config-dir"} <= set(options)
    assert not {"--cfg", "--info", "-m,"} & set(options)
    assert "optim.lr=???" in printed
    assert "Hydra" not in printed


def test_only_the_user_can_set_a_key_of_eval_that_has_no_default():
    assert "(???: no default; you must set it)" in help_text("eval", "")
    assert "the model, the dataset or you must set it" in help_text("train", "")


@pytest.mark.parametrize("root", KEYS)
def test_every_listed_key_exists_with_its_default_and_a_meaning(root: str):
    files = {prefix: yaml.safe_load((config_folder() / file).read_text()) for file, prefix, _ in KEYS[root]}
    listed = list(explained_keys(root))
    assert len({key for key, _, _ in listed}) == len(listed) >= 7
    for key, value, meaning in listed:
        prefix = next(prefix for prefix in sorted(files, key=len, reverse=True) if key.startswith(prefix))
        default = files[prefix]
        for part in key.removeprefix(prefix).split("."):
            default = default[part]
        assert yaml.safe_load(value) == default
        assert meaning, f"{key} has no comment"


def test_comments_are_read_by_their_dotted_key(tmp_path: Path):
    (tmp_path / "a.yaml").write_text('# head\na: 1  # one\nb:  # two\n  c: "x#y"\n  d: [1, 2]   # three\ne: {f: 1}\n')
    assert list(commented_lines(tmp_path / "a.yaml")) == [
        *(("a", "1", "one"), ("b", "", "two"), ("b.d", "[1, 2]", "three"), ("e", "{f: 1}", ""))
    ]


def test_the_choices_are_those_that_hydra_finds(tmp_path: Path):
    with pytest.raises(UserError) as error:
        compose_config("train", ["experiment=none_of_these"])
    assert str(error.value).rpartition("one of: ")[2].split(", ") == names("experiment", [config_folder()])
    models = names("model", [config_folder()])  # of each method, and of each size
    for model in [name for name in models if name.endswith("_tiny") or name.startswith("clip_")]:
        compose_config("train", [f"model={model}", *["tokenizer.vectors=FILE"] * model.startswith("devise")])
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nseed: 3\n")
    assert " mine " in help_text("train", "", [tmp_path]).replace("\n", " ")


def test_the_options_of_a_group_are_none_of_a_group_inside_it():
    listed = {group: names(group, [config_folder()]) for groups in GROUPS.values() for group in groups}
    assert "lion" in listed["optim/optimizer"]
    assert not [name for options in listed.values() for name in options if "/" in name]


def test_the_help_of_resume_names_all_its_values():
    assert {"auto", "never", "replace"} <= {word.strip(":") for word in help_text("train", "").split()}


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_no_line_is_wider_than_the_terminal(width: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", str(width))
    for command in MORE_OPTIONS:
        purpose = f"Do it: openslip {command} model=slip_vitb16 data=yfcc15m trainer.max_steps=100 seed=1."
        assert not too_wide(help_text(command, purpose), width)


def test_cfg_job_prints_the_config_and_trains_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    assert run(["train", "--cfg", "job", "model=clip_tiny", "optim.lr=3"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["optim"]["lr"] == 3
    assert printed["optim"]["optimizer"]["lr"] == "${..lr}"
    assert run(["train", "--cfg", "job", "--resolve", "model=clip_tiny", "optim.lr=3"]) == 0
    resolved = yaml.safe_load(capsys.readouterr().out)
    assert resolved["optim"]["optimizer"]["lr"] == 3
    assert resolved == compose_config("train", ["model=clip_tiny", "optim.lr=3"])[0]
    assert list(tmp_path.iterdir()) == []


def test_info_defaults_lists_the_files_in_their_order(capsys: pytest.CaptureFixture[str]):
    assert run(["train", "--info", "defaults", "model=clip_tiny", "evaluation=imagenet"]) == 0
    files = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert files[0] == "train"
    assert {"method/clip", "evaluation/imagenet", "optim/adamw"} <= set(files)
    assert files.index("optim/adamw") < files.index("optim/tiny")
    assert run(["eval", "--info=defaults"]) == 0
    assert capsys.readouterr().out.startswith("eval ")


def test_the_printed_config_of_eval_is_the_one_it_uses(capsys: pytest.CaptureFixture[str]):
    assert run(["eval", "--cfg", "job", "checkpoint=x", "classnames=[a,b]"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["evaluation"]["builtin"]["classnames"] == ["a", "b"]


def test_a_folder_of_configs_may_have_a_space_in_its_name(tmp_path: Path):
    words = ["--config-dir", str(tmp_path / "my configs"), "seed=1", f"--config-dir={tmp_path}"]
    assert config_dirs(words) == ([tmp_path / "my configs", tmp_path], ["seed=1"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--cfg"], "--cfg (no value): expected --cfg job"),
        (["--cfg=hydra"], "--cfg hydra: expected --cfg job"),
        (["--cfg", "job", "hydra.run.dir=x"], "hydra.run.dir=x: Hydra's own settings"),
        (["--cfg", "job", "optim.lr=[1,2]"], "optim.lr"),
        (["-m", "--cfg", "job", "seed=0,1"], "-m trains several configs, and --cfg and --info print one: "),
        (["--info", "defaults", "--multirun"], "--multirun trains several configs"),
        (["--cfg", "hydra"], "--cfg hydra: expected --cfg job"),
        (["--info", "plugins"], "--info plugins: expected --info defaults"),
        (["--cfg", "job", "--bogus"], "unknown option --bogus"),
        (["--cfg", "job", "model=slip_vitb17"], "did you mean model=slip_vitb16?"),
        (["hydra.run.dir=x"], "hydra.run.dir=x: Hydra's own settings have no effect here"),
        (["hydra/launcher=submitit_slurm"], "openslip sweep takes hydra/launcher"),
        (["trainer.bogus=1"], "config key trainer.bogus is unknown; "),
        (["optim.qqqqqqqq=1"], "(+optim.qqqqqqqq=VALUE adds a key)"),
    ],
)
def test_a_mistake_is_one_line_with_what_to_write(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    assert run(["train", *words]) == 1
    lines = capsys.readouterr().err.splitlines()
    (error,) = [line for line in lines if not line.startswith("importing")]  # which is told on a slow machine
    assert error.startswith("error: ")
    assert message in error


@pytest.mark.parametrize("option", ["-V", "--version"])
def test_the_version_is_printed(option: str, capsys: pytest.CaptureFixture[str]):
    assert run([option]) == 0
    assert capsys.readouterr().out.startswith("0.")


def test_addresses_and_commands_stay_whole_in_columns(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "60")
    address, command = f"https://example.org/{'a' * 80}", f"`openslip data get {'b' * 20} --to DIR`"
    lines = columns({"page": f"see {address} and {command} for more"}, 13)
    assert any(address in line for line in lines)
    assert any(command in line for line in lines)
