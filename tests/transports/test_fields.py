"""What servers write of each token is read as it stands, and what cannot be it is said."""

from __future__ import annotations

import io
from base64 import b64encode
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.guess_number import GuessNumber
from rollout import Engine, EngineConfig
from rollout.errors import MalformedReply
from rollout.store.folder import RunFolder, read_rollouts
from rollout.tokens.batch import joined
from rollout.transport import ServerInfo, TransportConfig
from tests.log_kit import capture_logs
from tests.rollout.test_histories import check_fields
from tests.transports.mixture import Mixture
from transports.fields import ABSENT, experts_of_bytes, experts_of_npy, mask_of_lists, tell_unreported
from transports.http.client import HttpClient
from transports.scripted import LAYERS, TOP_K
from transports.sglang import transport as sglang
from transports.vllm import transport as vllm


def npy(array: Any) -> msgspec.Raw:
    """As vLLM writes it."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return raw(file.getvalue())


def npy_header(text: str) -> msgspec.Raw:
    """A file whose header promises what it likes, before 8 bytes."""
    header = text.encode().ljust(117) + b"\n"
    return raw(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(8))


def raw(data: bytes) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(b64encode(data).decode()))


_SHAPES = st.tuples(st.integers(0, 4), st.integers(1, 3), st.integers(1, 3))


@given(_SHAPES, st.sampled_from(["uint8", "uint16", "int32", ">i4"]), st.randoms(use_true_random=False))
def test_vllms_file_is_read_in_any_type(shape: tuple[int, int, int], dtype: str, chance: Any) -> None:
    """The numbers stay as they are."""
    most = min(np.iinfo(dtype).max, 2**31 - 1)
    array = np.array([chance.randint(0, most) for _ in range(np.prod(shape))], dtype).reshape(shape)
    found = experts_of_npy(npy(array), "/x")
    assert found is not None
    assert (found.rows, found.layers, found.top_k) == shape
    assert np.frombuffer(found.data.data, found.dtype).tolist() == array.reshape(-1).tolist()


@given(_SHAPES, st.booleans())
def test_sglangs_bytes_are_read_by_what_was_asked(shape: tuple[int, int, int], known: bool) -> None:
    """Where the model's layers are not known, one has all of them, in the same order."""
    array = np.arange(np.prod(shape), dtype="<i4").reshape(shape)
    rows, layers, top_k = shape
    if not rows:
        return
    found = experts_of_bytes(raw(array.tobytes()), (layers, top_k) if known else None, rows, "/x")
    assert found is not None
    assert (found.layers, found.top_k) == ((layers, top_k) if known else (1, layers * top_k))
    assert found.rows == rows
    assert np.frombuffer(found.data.data, found.dtype).tolist() == array.reshape(-1).tolist()


def test_what_is_not_there_is_none() -> None:
    """Left out, or null."""
    assert experts_of_npy(ABSENT, "/x") is None
    assert experts_of_bytes(ABSENT, (2, 2), 3, "/x") is None
    assert mask_of_lists(ABSENT, "/x") is None


@pytest.mark.parametrize(
    ("field", "said"),
    [
        (msgspec.Raw(b'"not base64"'), "/x: routed_experts cannot be read"),
        (msgspec.Raw(b"[1]"), "/x: routed_experts cannot be read"),
        (raw(b"no file"), r"/x: routed_experts is no \.npy file"),
        (npy(np.zeros((2, 2), np.uint8)), r"/x: routed_experts is uint8 of shape \(2, 2\)"),
        (npy(np.zeros((2, 2, 2), np.float32)), "/x: routed_experts is float32"),
        (npy(np.zeros((2, 0, 2), np.uint8)), "/x: routed_experts has no experts"),
        (npy(np.full((2, 2, 2), -1, np.int16)), "/x: routed_experts has -1, which is no expert's number"),
        (npy(np.full((1, 1, 1), 2**40)), "which is no expert's number"),
        (raw(b"\x93NUMPY\x01\x00\xff"), r"no \.npy file"),
        (npy_header("{'descr': '|u1', 'fortran_order': False, 'shape': (2**60, 8, 8)}"), r"no \.npy file"),
        (npy_header("{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000, 8, 8)}"), r"no \.npy file"),
        (npy_header("{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 1, -8)}"), r"no \.npy file"),
        (npy_header("{'descr': '|O', 'fortran_order': False, 'shape': (1, 1, 1)}"), r"no \.npy file"),
        (npy_header("(" * 4000), r"no \.npy file"),
        (npy_header("{'descr': 7}"), r"no \.npy file"),
    ],
)
def test_what_is_no_array_of_experts_is_said(field: msgspec.Raw, said: str) -> None:
    """By the route, what came, and what it should be."""
    with pytest.raises(MalformedReply, match=said):
        experts_of_npy(field, "/x")


def test_an_array_of_objects_is_not_unpickled() -> None:
    """A file from elsewhere runs nothing."""
    file = io.BytesIO()
    np.save(file, np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(MalformedReply, match=r"no \.npy file"):
        experts_of_npy(raw(file.getvalue()), "/x")


@pytest.mark.parametrize(
    ("size", "rows", "shape", "said"),
    [
        (12, 1, (2, 2), "has 12 bytes, which are not 1 positions of 2 layers with 2 experts each"),
        (10, 2, None, "has 10 bytes, which are not 2 positions"),
        (16, 0, (2, 2), "which are not 0 positions"),
        (0, 2, None, "has 0 bytes"),
        (4, -1, None, "which are not -1 positions"),
        (16, -1, (2, 2), "which are not -1 positions"),
    ],
)
def test_bytes_of_another_shape_are_said(size: int, rows: int, shape: tuple[int, int] | None, said: str) -> None:
    """SGLang's have no shape of their own: their number is all that can be checked."""
    with pytest.raises(MalformedReply, match=said):
        experts_of_bytes(raw(bytes(size)), shape, rows, "/x")


@pytest.mark.parametrize("field", [b"[[1.5]]", b"[1]", b'"a"', b"[[2147483648]]", b"[[-1]]"])
def test_what_is_no_mask_is_said(field: bytes) -> None:
    """Lists of ids, one a token."""
    with pytest.raises(MalformedReply, match="/x: the sampling mask"):
        mask_of_lists(msgspec.Raw(field), "/x")


@pytest.mark.parametrize("wanted", [set(), {"routed_experts"}, {"routed_experts", "sampling_mask"}])
def test_a_server_that_reports_none_is_told_of(wanted: set[str]) -> None:
    """Once for each that a run wants, with what to do about it; a server that reports it is not."""
    config = TransportConfig(base_url="http://gpu-7:8000", **dict.fromkeys(wanted, True))  # type: ignore[arg-type]
    with capture_logs() as events:
        tell_unreported(config, ServerInfo(dialect="vllm", model="m"), routed_experts="start it so")
        assert {event["event"] for event in events} == {f"{name}_not_reported" for name in wanted}
        assert all(event["server"] == "http://gpu-7:8000" for event in events)
        info = ServerInfo(dialect="vllm", model="m", reports_routed_experts=True, reports_sampling_mask=True)
        tell_unreported(config, info)
        assert len(events) == len(wanted)


@pytest.mark.slow
@pytest.mark.parametrize("dialect", ["vllm", "sglang"])
@pytest.mark.parametrize("mode", ["tito", "mito"])
async def test_a_whole_run_keeps_them_of_every_token(dialect: str, mode: Any, tmp_path: Path) -> None:
    """In a dialect's own words, by ids and by messages; its run folder has them, and every kind of batch."""
    speaks: dict[str, Any] = {"vllm": vllm.open, "sglang": sglang.open}
    asked: dict[str, Any] = {"routed_experts": True, "sampling_mask": True}
    client = HttpClient("http://x", transport=Mixture(dialect), retries=0)
    transport = await speaks[dialect](TransportConfig(base_url="http://x", **asked), client)
    config = EngineConfig(mode=mode, max_tokens=8, sampling={"temperature": 1.0, "top_k": 3}, max_turns=4, **asked)
    folder = RunFolder.create(tmp_path / "run")
    async with Engine(config, GuessNumber, transport=transport) as engine:
        async for group in engine.stream(GuessNumber().tasks(2, seed=0), rollouts_per_task=2):
            for rollout in group.rollouts:
                assert rollout.failure is None
                await folder.write(rollout)
    folder.close()
    samples = [sample for rollout in read_rollouts(tmp_path / "run") for sample in rollout.samples()]
    assert len(samples) >= 4
    for sample in samples:
        experts = sample.routed_experts
        assert experts is not None
        if dialect == "sglang":  # the folder that it names is of a dense model, and its bytes have no shape
            assert (experts.layers, experts.top_k) == (1, LAYERS * TOP_K)
            experts.layers, experts.top_k = LAYERS, TOP_K
        if mode == "tito" or dialect == "sglang":
            check_fields(sample)
    batch = joined(samples)
    assert batch.routed_experts is not None
    assert (batch.routed_experts < 0).all((1, 2)).sum() == len(samples)
    assert batch.sampling_mask_ids is not None or (mode, dialect) == ("mito", "vllm")
