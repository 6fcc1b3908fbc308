"""Bad adapters through the one URL: each gets its error, leaves nothing behind, and disturbs no request in flight."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
import tarfile
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from pillion.sdk import Pillion

from .site import Site, adapter_file, ask, tag


def good(folder: Path, rank: int = 8) -> bytes:
    return adapter_file(folder, 7, rank).read_bytes()


def reheaded(data: bytes, change: Callable[[dict[str, dict[str, object]]], None]) -> bytes:
    """`data` with its safetensors header changed."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def drop_first_b(header: dict[str, dict[str, object]]) -> None:
    del header[next(name for name in header if name.endswith("lora_B.weight"))]


def rename_module(header: dict[str, dict[str, object]]) -> None:
    for name in list(header):
        header[name.replace("q_proj", "w_proj")] = header.pop(name)


def past_the_end(header: dict[str, dict[str, object]]) -> None:
    last = max(header.values(), key=lambda tensor: tensor["data_offsets"][1])  # type: ignore[index]
    last["data_offsets"] = [last["data_offsets"][0], last["data_offsets"][1] + 4096]  # type: ignore[index]


def tarred(name: str, data: bytes, link: str | None = None) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        entry = tarfile.TarInfo(name)
        if link is None:
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
        else:
            entry.type, entry.linkname = tarfile.SYMTYPE, link
            archive.addfile(entry)
    return packed.getvalue()


def bomb() -> bytes:
    packed = io.BytesIO()
    with (
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("adapter_model.safetensors", "w", force_zip64=True) as entry,
    ):
        for _ in range(600):
            entry.write(bytes(1_000_000))
    return packed.getvalue()


BAD: dict[str, Callable[[Path], bytes]] = {
    "a pickle": lambda _: pickle.dumps({"weights": [1, 2, 3]}),
    "a truncated header": lambda at: good(at)[:40],
    "an oversized header": lambda _: struct.pack("<Q", 2**40) + b"{}" * 100,
    "offsets out of range": lambda at: reheaded(good(at), past_the_end),
    "truncated weights": lambda at: good(at)[:-100],
    "A without B": lambda at: reheaded(good(at), drop_first_b),
    "a module the base lacks": lambda at: reheaded(good(at), rename_module),
    "a rank over the limit": lambda at: good(at, rank=65),
    "all B zero": lambda at: adapter_file(at, 9, scale=0.0).read_bytes(),
    "an absolute path in an archive": lambda at: tarred("/adapter_model.safetensors", good(at)),
    "a path out of an archive": lambda at: tarred("../adapter_model.safetensors", good(at)),
    "a link in an archive": lambda _: tarred("adapter_model.safetensors", b"", link="/etc/passwd"),
    "a zip bomb": lambda _: bomb(),
    "a gzip of nothing": lambda _: gzip.compress(b""),
}


@pytest.fixture
def http(site: Site, client: Pillion) -> httpx.Client:
    key = client.keys.create("http", scopes=["inference", "manage"]).key
    return httpx.Client(base_url=site.url, headers={"authorization": f"Bearer {key}"}, timeout=60)


def upload(http: httpx.Client, name: str, data: bytes, base: str = "tiny") -> httpx.Response:
    return http.post(
        "/v1/adapters/upload",
        data={"name": name, "base_model": base},
        files={"file": ("adapter.safetensors", data)},
    )


def test_bad_adapters_leave_nothing_and_disturb_nobody(
    site: Site, client: Pillion, http: httpx.Client, tmp_path: Path
) -> None:
    site.launch(client)
    before, ended, answers = site.artifacts(), threading.Event(), []

    def meanwhile() -> None:
        while not ended.is_set():
            answers.append(ask(client, "tiny"))

    with http:
        asking = threading.Thread(target=meanwhile)
        asking.start()
        try:
            for what, make in BAD.items():
                answer = upload(http, "bad", make(tmp_path))
                error = answer.json()["error"]
                assert (answer.status_code, error["code"]) in (
                    (422, "adapter_invalid"),
                    (413, "adapter_too_large"),
                ), what
                assert error["message"], what
                if answer.status_code == 422:
                    assert error["reasons"], what
        finally:
            ended.set()
            asking.join()
        assert http.get("/v1/adapters").json()["data"] == []
    assert site.artifacts() == before
    assert set(answers) == {tag(None)}


def test_too_large_is_refused_while_it_comes(site: Site, http: httpx.Client) -> None:
    before = site.artifacts()
    with http:
        boundary = "edge"
        start = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="a.safetensors"\r\n\r\n'
        ).encode()

        def body() -> object:
            yield start
            for _ in range(501):
                yield bytes(1_000_000)

        answer = http.post(
            "/v1/adapters/upload",
            content=body(),  # type: ignore[arg-type]
            headers={"content-type": f"multipart/form-data; boundary={boundary}"},
        )
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "adapter_too_large")
    assert site.artifacts() == before


@pytest.mark.parametrize(
    ("name", "status", "code"),
    [
        ("tiny", 409, "name_taken"),
        ("123", 400, "invalid_request"),
        ("adp_x", 400, "invalid_request"),
        ("status", 400, "invalid_request"),
        ("Über", 400, "invalid_request"),
        ("../x", 400, "invalid_request"),
    ],
)
def test_names_that_cannot_be(http: httpx.Client, tmp_path: Path, name: str, status: int, code: str) -> None:
    with http:
        answer = upload(http, name, good(tmp_path))
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


def test_attachments_that_cannot_be(site: Site, client: Pillion, http: httpx.Client, tmp_path: Path) -> None:
    full, plain = site.launch(client, slots=1), client.instances.launch("tiny", regions=["eu-1"]).id
    client.instances.wait_running(plain)
    for seed, name in ((1, "one"), (2, "two")):
        client.adapters.upload(name, "tiny", adapter_file(tmp_path, seed))
    client.adapters.upload("bound", "tiny", adapter_file(tmp_path, 3), region="us-1")
    client.adapters.attach("one", full)
    client.adapters.wait_ready("one", full)
    cases = [
        (full, "two", 409, "instance_at_capacity"),
        (full, "one", 409, "already_attached"),
        (plain, "two", 400, "invalid_request"),
        (full, "bound", 400, "invalid_request"),
        (full, "nobodys", 404, "not_found"),
        (full, "../one", 404, "not_found"),
        (999_999, "two", 404, "not_found"),
    ]
    with http:
        for instance, ref, status, code in cases:
            answer = http.post(f"/v1/instances/{instance}/adapters", json={"adapter": ref})
            assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), (instance, ref)
    assert ask(client, "tiny:one").startswith("sim tiny ")


def test_a_model_of_the_configuration_that_is_called_like_a_label_is_refused_at_the_start(
    own_site: Site, tmp_path: Path
) -> None:
    with own_site.client() as client:
        made = client.adapters.upload("mine", "tiny", adapter_file(tmp_path, 1))
        client.adapters.rename(made.id, "captain")
        client.adapters.rename(made.id, "major")
    assert own_site.stop() == 0
    text = own_site.config.read_text()
    own_site.config.write_text(text + '[[models]]\nname = "captain"\nsource = "hf:a/b"\n')
    assert own_site.refused() == 2
    assert "'captain'" in own_site.log()
    own_site.config.write_text(text)
    own_site.start()
