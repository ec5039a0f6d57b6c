"""What of the vllm engine can be shown without vLLM: its text side, finding an interpreter, a child that fails."""

import ast
import json
import os
import sys
from pathlib import Path

import pytest
from tiny_llama import write_character_llama

from strop.core.chars import VOCABULARY
from strop.core.engine import Request, Sampling
from strop.plugins.engines import _vllm_process
from strop.plugins.engines._texts import Texts
from strop.plugins.engines._vllm_process import VllmProcess, answers, find_python
from strop.plugins.engines.hf import Hf, hf
from strop.plugins.engines.vllm import Vllm, _devices, locate
from strop.storage.errors import StageError


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return write_character_llama(tmp_path_factory.mktemp("policy"), 40, num_hidden_layers=1)


@pytest.fixture
def texts(policy):
    return Texts.read(policy, policy, chat_template="auto", context=None)


def test_sampled_tokens_become_what_hf_makes_of_them_stop_strings_included(policy, texts):
    engine = hf(Hf(device="cpu"), directory=policy, threads=1)
    request = Request(prompt="1+2=", seeds=tuple(range(60)))
    (free,) = engine.sample([request], Sampling(max_tokens=30))
    longer = [c.text for c in free if len(c.text) >= 12]
    stop = (longer[0][3:5], longer[1][7:9], "never")
    sampling = Sampling(max_tokens=30, stop=stop)
    (expected,) = engine.sample([request], sampling)
    made = texts.completions([(c.token_ids, c.logps) for c in free], sampling)
    fields = ("text", "token_ids", "logps", "finish_reason")
    assert [[getattr(c, f) for f in fields] for c in made] == [[getattr(c, f) for f in fields] for c in expected]
    assert sum(len(c.token_ids) for c in made) < sum(len(c.token_ids) for c in free)
    assert texts.context == engine.texts.context
    assert texts.eos == engine.eos.tolist()


def test_another_process_can_look_for_stop_strings_with_the_policys_tokenizer(texts):
    from strop.plugins.engines._vllm_child import _Ends

    assert texts.stop_watch(()) is None
    ends = _Ends(texts.stop_watch(("=7",)))
    ids = [VOCABULARY.index(c) for c in "1+2+4=70"]
    assert ends.met(ids)
    assert not ends.met(ids[:7])  # only every fourth token is looked at
    assert not ends.met(ids[:4])


def test_a_shorter_context_can_be_asked_for(policy):
    short = Texts.read(policy, policy, chat_template="auto", context=8)
    assert short.refused(7, Sampling()) is None
    assert "context is 8" in str(short.refused(8, Sampling()).error)
    assert "nothing to sample" in str(short.refused(3, Sampling(max_tokens=0)).error)


def test_the_interpreter_is_the_given_one_then_the_variables_then_the_environment_beside(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.delenv("STROP_VLLM_PYTHON", raising=False)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "none" / ".venv"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StageError, match=r"make vllm.*STROP_VLLM_PYTHON"):
        find_python("")
    beside = tmp_path / ".venv-vllm" / "bin" / "python"
    beside.parent.mkdir(parents=True)
    beside.symlink_to(sys.executable)
    assert find_python("") == str(beside)
    monkeypatch.setenv("STROP_VLLM_PYTHON", sys.executable)
    assert find_python("") == sys.executable
    assert find_python(str(beside)) == str(beside)
    with pytest.raises(StageError, match="python of the engine vllm must be a Python interpreter, got 'nowhere'"):
        find_python("nowhere")


def test_this_interpreter_is_taken_where_it_has_vllm_and_not_for_a_folder_of_that_name(tmp_path, monkeypatch):
    monkeypatch.delenv("STROP_VLLM_PYTHON", raising=False)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "none" / ".venv"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "vllm").mkdir()
    with pytest.raises(StageError, match="found no vLLM"):
        find_python("")
    (tmp_path / "vllm" / "__init__.py").touch()
    assert find_python("") == sys.executable


def test_the_child_imports_nothing_but_the_standard_library_until_it_has_vllm():
    tree = ast.parse(Path(_vllm_process.__file__).with_name("_vllm_child.py").read_text())
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
    assert found <= {*sys.stdlib_module_names, "vllm", "tokenizers"}


def test_an_interpreter_without_vllm_says_so_and_leaves_no_process(capfd):
    process = VllmProcess(sys.executable, {"cpu": {}, "gpu": {}, "any": {}}, {"PYTHONPATH": ""})
    with pytest.raises(StageError, match="No module named 'vllm'"):
        answers([process])
    assert "Traceback" in capfd.readouterr().err  # whole, in the worker's log
    log = process.log
    process.close()
    assert process.process.poll() is not None
    assert not log.exists()
    with pytest.raises(StageError, match=r"the process of vLLM (was ended by SIGTERM|ended with code)"):
        process.tell({})


def test_an_adapter_names_its_base_rank_and_layers(policy, tmp_path):
    assert locate(policy).adapter is None
    settings = {"base_model_name_or_path": str(policy), "r": 4, "rank_pattern": {"v_proj": 16}}
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(settings | {"target_modules": ["model.layers.0.self_attn.q_proj", "v_proj"]}))
    place = locate(tmp_path)
    assert (place.base, place.adapter, place.rank) == (policy, tmp_path, 16)
    assert place.modules == {"q_proj", "v_proj"}
    file.write_text(json.dumps(settings | {"target_modules": ".*_proj"}))
    with pytest.raises(StageError, match="by a pattern"):
        locate(tmp_path)
    file.write_text(json.dumps(settings | {"base_model_name_or_path": "gone"}))
    with pytest.raises(StageError, match="names the base policy 'gone'"):
        locate(tmp_path)


def test_replicas_get_gpus_of_their_own(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    assert _devices(Vllm()) == [None]
    assert _devices(Vllm(data_parallel=2, tensor_parallel=2)) == ["4,5", "6,7"]
    assert _devices(Vllm(data_parallel=3)) == ["4", "5", "6"]
    with pytest.raises(StageError, match="needs 8 GPUs, and 4 can be seen"):
        _devices(Vllm(data_parallel=4, tensor_parallel=2))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert _devices(Vllm(data_parallel=2)) == [None, None]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
