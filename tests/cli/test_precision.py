"""The precision of a run, by what the device does fast or what the user states."""

import pytest
import torch

from flowmatch_rl import devices
from flowmatch_rl.cli import FlowMatchCLI
from flowmatch_rl.cli.precision import choose_precision
from tests.cli.support import CONF, PENDULUM, arguments, call

FAST = CONF / "actor_critic" / "presets" / "fast.yaml"
PROCESSORS = {
    "AVX2": ({"avx2": True}, False),
    "AVX-512 without BF16": ({"avx2": True, "avx512_f": True}, False),
    "AVX-512 with BF16": ({"avx2": True, "avx512_f": True, "avx512_bf16": True}, True),
    "AMX with BF16": ({"avx512_f": True, "amx_bf16": True}, True),
    "aarch64": ({"architecture": "aarch64", "bf16": True}, False),
}


@pytest.fixture(params=PROCESSORS)
def processor(request, monkeypatch) -> tuple[str, bool]:
    """A processor by its instructions, and whether it multiplies bfloat16 fast."""
    has, fast = PROCESSORS[request.param]
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return request.param, fast


@pytest.mark.parametrize("accelerator", ["cpu", "auto"])
def test_auto_is_bfloat16_only_where_the_processor_has_instructions_for_it(processor, accelerator) -> None:
    name, fast = processor
    chosen, remark = choose_precision("auto", accelerator)
    assert chosen == ("bf16-mixed" if fast else "32-true")
    assert remark.startswith(chosen)
    assert name in remark
    assert devices.processor_instructions() == name


def test_a_precision_that_is_stated_is_used_and_one_that_is_emulated_is_remarked_on(processor) -> None:
    name, fast = processor
    assert choose_precision("32-true", "cpu") == ("32-true", "")
    assert choose_precision(None, "cpu") == (None, "")
    chosen, remark = choose_precision("bf16-mixed", "cpu")
    assert chosen == "bf16-mixed"
    assert (remark == "") == fast
    assert fast or ("emulates" in remark and name in remark)


@pytest.mark.parametrize("supported", [True, False])
def test_a_gpu_decides_unless_the_processor_is_asked_for(monkeypatch, supported) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported or including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "H1")
    assert choose_precision("auto", "auto")[0] == ("bf16-mixed" if supported else "32-true")
    assert choose_precision("auto", "cpu")[0] == "32-true"


@pytest.mark.parametrize(
    ("stated", "wanted"), [(None, None), ("32-true", "32-true"), ("bf16-mixed", "bf16-mixed")], ids=str
)
def test_the_fast_preset_leaves_the_choice_to_the_device_and_says_so_in_one_line(
    stated, wanted, capsys, tmp_path
) -> None:
    changes = {} if stated is None else {"trainer__precision": stated}
    args = arguments("fit", PENDULUM, FAST, trainer__logger="false", trainer__default_root_dir=tmp_path, **changes)
    trainer = FlowMatchCLI(args[1:], run=False).trainer
    fast = devices.has_fast_bfloat16("cpu")
    assert trainer.precision == (wanted or ("bf16-mixed" if fast else "32-true"))
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("precision ")]
    assert len(said) == (wanted is None or (wanted == "bf16-mixed" and not fast))


@pytest.mark.parametrize("precision", ["64-true", "bf16-true", "64"])
def test_weights_of_another_precision_than_the_datas_are_refused_in_one_line(precision, tmp_path) -> None:
    outcome = call(arguments("fit", PENDULUM, trainer__default_root_dir=tmp_path, trainer__precision=precision))
    assert outcome.code == 2
    assert len(outcome.error_lines) == 1, outcome.err
    assert precision in outcome.err
    assert "32-true" in outcome.err
    assert not list(tmp_path.iterdir())
