"""Adapters through the API: uploads, names, caps, renames, deletes."""

from __future__ import annotations

import asyncio
import errno
import gzip
import io
import pickle
import tarfile
from contextlib import ExitStack
from typing import Any

import pytest

from pillion.core import tiers
from pillion.core.tiers import Caps
from tests import adapter_files
from tests.api.site import Site, Tenant, found, refused
from tests.control.world import CAPS


def archive(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def kept(site: Site) -> set[str]:
    """Digests in the artifact store, and what is half received."""
    root = site.control.artifacts.root
    return {path.name for path in root.glob("adapters/*/*")} | {path.name for path in root.glob("incoming/*")}


async def names(tenant: Tenant) -> list[str]:
    return [row["name"] for row in found(await tenant.get("/v1/adapters"))["data"]]


class TestUpload:
    async def test_a_bare_weights_file_is_enough(self, site: Site) -> None:
        answer = await site.a.upload("mine")
        assert answer.status_code == 201
        made = answer.json()
        assert made["id"].startswith("adp_")
        assert (made["name"], made["label"], made["base_model"], made["state"]) == (
            "mine",
            "mine",
            "tiny",
            "registered",
        )
        assert made["aliases"] == [f"mine:{made['row_id']}", "tiny:mine"]
        assert (made["rank"], made["alpha"], made["version"], made["region"]) == (4, 4.0, 1, None)
        assert set(made["target_modules"]) == {"q_proj", "v_proj", "down_proj"}
        assert any("alpha" in warning for warning in made["warnings"])
        assert made["attachments"] == []
        assert kept(site) == {made["digest"]}

    async def test_so_many_of_an_account_at_once(self, site: Site) -> None:
        most = site.control.settings.caps["reserved"].uploads
        with ExitStack() as others:
            for _ in range(most):
                others.enter_context(site.control.uploads.one(site.a.who.account, most))
            answer = await site.a.upload("mine")
            assert "uploads" in refused(answer, 429, "rate_limit_exceeded")["message"]
            assert answer.headers["retry-after"] == "1"
            assert kept(site) == set()
            assert (await site.b.upload("mine")).status_code == 201
        assert (await site.a.upload("mine")).status_code == 201
        refused(await site.a.upload("mine-too", weights=b"junk"), 422, "adapter_invalid")
        with ExitStack() as others:
            for _ in range(most):
                others.enter_context(site.control.uploads.one(site.a.who.account, most))

    async def test_with_its_config(self, site: Site) -> None:
        made = found(await site.a.upload("mine", config=adapter_files.config_bytes()))
        assert (made["alpha"], made["warnings"]) == (8.0, [])

    async def test_an_archive_of_a_peft_folder(self, site: Site) -> None:
        data = archive(
            {
                "x/adapter_model.safetensors": adapter_files.weights(),
                "x/adapter_config.json": adapter_files.config_bytes(),
            }
        )
        made = found(await site.a.upload("mine", weights=data))
        assert (made["alpha"], made["rank"]) == (8.0, 4)

    async def test_what_was_uploaded_is_downloaded(self, site: Site) -> None:
        data = adapter_files.weights(seed=5)
        made = found(await site.a.upload("mine", weights=data))
        answer = await site.a.get(f"/v1/adapters/{made['id']}/download")
        assert answer.status_code == 200
        assert answer.content == data
        assert "mine-v1.safetensors" in answer.headers["content-disposition"]
        (version,) = found(await site.a.get("/v1/adapters/mine/versions"))["data"]
        assert (version["version"], version["live"], version["digest"]) == (1, True, made["digest"])

    async def test_bound_to_a_region(self, site: Site) -> None:
        assert found(await site.a.upload("mine", region="far"))["region"] == "far"
        refused(await site.a.upload("second", region="nowhere"), 400, "invalid_request")
        assert await names(site.a) == ["mine"]

    @pytest.mark.parametrize(
        ("weights", "says"),
        [
            (pickle.dumps({"lora_A": [1.0]}), "pickle"),
            (b"hello", ""),
            (gzip.compress(b"x" * 1000), ""),
            (adapter_files.weights()[:100], ""),
            (adapter_files.weights(rank=65), "rank"),
            (adapter_files.weights(of=adapter_files.base({**adapter_files.LLAMA, "hidden_size": 64})), ""),
            (adapter_files.raw({}), ""),
            (adapter_files.raw(b"{"), ""),
            (archive({"../adapter_model.safetensors": adapter_files.weights()}), ""),
            (archive({"/etc/adapter_model.safetensors": adapter_files.weights()}), ""),
        ],
        ids=[
            "pickle",
            "text",
            "gzip",
            "truncated",
            "rank",
            "other base",
            "empty header",
            "broken header",
            "archive dots",
            "archive absolute",
        ],
    )
    async def test_bad_bytes_leave_nothing_behind(self, site: Site, weights: bytes, says: str) -> None:
        error = refused(await site.a.upload("mine", weights=weights), 422, "adapter_invalid")
        assert error["reasons"]
        assert says in " ".join(error["reasons"]).lower()
        assert kept(site) == set()
        assert await names(site.a) == []

    async def test_too_many_bytes_leave_nothing_behind(self, site: Site) -> None:
        limit = CAPS["reserved"].adapter_bytes
        refused(await site.a.upload("mine", weights=b"x" * (limit + 1)), 413, "adapter_too_large")
        assert kept(site) == set()

    async def test_an_empty_config_is_not_no_config(self, site: Site) -> None:
        error = refused(await site.a.upload("mine", config=b""), 422, "adapter_invalid")
        assert "adapter_config.json" in error["reasons"][0]
        data = {"name": "mine", "base_model": "tiny"}
        chosen = {
            "file": ("w", adapter_files.weights()),
            "config": ("", b""),
        }  # as browsers send what was not chosen
        found(await site.a.manage.post("/v1/adapters/upload", data=data, files=chosen))

    @pytest.mark.parametrize("where", ["HashingWriter.write", "HashingWriter.finish", "tempfile.mkdtemp"])
    async def test_a_full_disk(self, site: Site, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
        def full(*_: Any, **__: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(f"pillion.artifacts.store.{where}", full)
        answer = await site.a.upload("mine")
        assert "artifact store" in refused(answer, 503, "storage_full")["message"]
        assert int(answer.headers["retry-after"]) > 0
        monkeypatch.undo()
        assert kept(site) == set()
        await site.a.adapter("mine")

    async def test_a_config_that_is_too_large(self, site: Site) -> None:
        refused(await site.a.upload("mine", config=b" " * ((1 << 20) + 1)), 413, "adapter_too_large")
        assert kept(site) == set()

    @pytest.mark.parametrize("base", ["nothing", "plain", "embed", "Tiny", "../tiny", ""])
    async def test_a_base_that_cannot_be(self, site: Site, base: str) -> None:
        error = refused(await site.a.upload("mine", base), 400, "invalid_request")
        assert error["param"] == "base_model"
        assert kept(site) == set()

    @pytest.mark.parametrize(
        "parts",
        [
            {},
            {"name": (None, "mine")},
            {"name": (None, "mine"), "base_model": (None, "tiny")},
            {"name": (None, "mine"), "base_model": (None, "tiny"), "file": ("x", b"")},
            {"base_model": (None, "tiny"), "file": ("x", b"x")},
            {"name": (None, "m"), "base_model": (None, "tiny"), "file": ("x", b"x"), "rank": (None, "8")},
        ],
    )
    async def test_parts_that_are_missing_or_unknown(self, site: Site, parts: dict[str, Any]) -> None:
        answer = await site.a.manage.post("/v1/adapters/upload", files=parts)
        refused(answer, 400, "invalid_request")
        assert kept(site) == set()

    @pytest.mark.parametrize(
        "headers",
        [
            {},
            {"content-type": "application/json"},
            {"content-type": "multipart/form-data; boundary=" + "x" * 999},
        ],
    )
    async def test_what_is_no_form(self, site: Site, headers: dict[str, str]) -> None:
        answer = await site.a.manage.post("/v1/adapters/upload", content=b"{}", headers=headers)
        refused(answer, 400, "invalid_request")

    async def test_a_client_that_leaves_leaves_nothing_behind(self, site: Site) -> None:
        head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n' + b"x" * 100_000
        messages = [
            {"type": "http.request", "body": head, "more_body": True},
            {"type": "http.disconnect"},
        ]
        sent: list[Any] = []

        async def receive() -> Any:
            return messages.pop(0)

        async def send(message: Any) -> None:
            sent.append(message)

        fields = {
            "content-type": "multipart/form-data; boundary=b",
            "authorization": site.a.manage.headers["authorization"],
        }
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "path": "/v1/adapters/upload",
            "raw_path": b"/v1/adapters/upload",
            "query_string": b"",
            "headers": [(k.encode(), v.encode()) for k, v in fields.items()],
            "client": ("test", 1),
            "server": ("test", 80),
            "scheme": "http",
            "root_path": "",
        }
        await site.app(scope, receive, send)
        assert kept(site) == set()
        assert await names(site.a) == []

    async def test_the_same_bytes_twice_are_two_adapters_of_one_artifact(self, site: Site) -> None:
        one, two = found(await site.a.upload("one")), found(await site.a.upload("two"))
        assert one["digest"] == two["digest"]
        assert one["id"] != two["id"]
        assert kept(site) == {one["digest"]}


class TestNames:
    @pytest.mark.parametrize(
        "name", ["", "A", "a b", "a:b", "../x", "x" * 64, "12", "status", "upload", "warmup", "adp_x", "é"]
    )
    async def test_a_name_that_cannot_be(self, site: Site, name: str) -> None:
        assert refused(await site.a.upload(name), 400, "invalid_request")["param"] == "name"
        assert kept(site) == set()

    async def test_names_are_unique_in_an_account(self, site: Site) -> None:
        first = found(await site.a.upload("mine"))
        error = refused(await site.a.upload("mine", seed=9), 409, "name_taken")
        assert error["param"] == "name"
        assert kept(site) == {first["digest"]}
        assert found(await site.b.upload("mine"))["name"] == "mine"

    async def test_of_many_at_once_one_gets_the_name(self, site: Site) -> None:
        answers = await asyncio.gather(*(site.a.upload("mine", seed=seed) for seed in range(5)))
        assert sorted(a.status_code for a in answers) == [201, 409, 409, 409, 409]
        assert await names(site.a) == ["mine"]

    async def test_no_adapter_is_called_as_a_model_one_can_see(self, site: Site) -> None:
        refused(await site.a.upload("tiny"), 409, "name_taken")
        refused(await site.a.upload("embed"), 409, "name_taken")
        found(await site.a.post("/v1/registered-models", {"name": "own", "source": "hf:x/y"}))
        refused(await site.a.upload("own"), 409, "name_taken")
        assert found(await site.b.upload("own"))["name"] == "own"

    async def test_no_model_is_called_as_an_adapter_is_or_was(self, site: Site) -> None:
        await site.a.adapter("first")
        found(await site.a.patch("/v1/adapters/first", {"label": "second"}))
        found(await site.a.patch("/v1/adapters/first", {"label": "third"}))
        for name in ("first", "second", "third", "tiny"):
            body = {"name": name, "source": "hf:x/y"}
            refused(await site.a.post("/v1/registered-models", body), 409, "name_taken")
        found(await site.b.post("/v1/registered-models", {"name": "second", "source": "hf:x/y"}))

    async def test_a_rename_keeps_the_name_the_former_labels_and_the_id(self, site: Site) -> None:
        made = await site.a.adapter("mine")
        renamed = found(await site.a.patch("/v1/adapters/mine", {"label": "better"}))
        assert (renamed["id"], renamed["name"], renamed["label"]) == (made["id"], "mine", "better")
        assert renamed["aliases"] == [f"better:{made['row_id']}", "tiny:mine"]
        again = found(await site.a.patch("/v1/adapters/mine", {"label": "best"}))
        assert again["label"] == "best"
        (routed,) = (await site.world.snapshot(site.control)).adapters
        assert routed.labels == ("best", "better", "mine")
        back = found(await site.a.patch("/v1/adapters/mine", {"label": "mine"}))
        assert back["label"] == "mine"

    @pytest.mark.parametrize("label", ["", "A", "12", "status", "adp_x", "x" * 64, 5, None])
    async def test_a_label_that_cannot_be(self, site: Site, label: Any) -> None:
        await site.a.adapter("mine")
        refused(await site.a.patch("/v1/adapters/mine", {"label": label}), 400, "invalid_request")
        assert found(await site.a.get("/v1/adapters/mine"))["label"] == "mine"

    async def test_a_label_that_is_a_model(self, site: Site) -> None:
        await site.a.adapter("mine")
        refused(await site.a.patch("/v1/adapters/mine", {"label": "tiny"}), 409, "name_taken")

    async def test_two_adapters_may_have_one_label_since_the_row_id_tells_them_apart(
        self, site: Site
    ) -> None:
        one, two = await site.a.adapter("one"), await site.a.adapter("two")
        for name in ("one", "two"):
            found(await site.a.patch(f"/v1/adapters/{name}", {"label": "same"}))
        forms = {found(await site.a.get(f"/v1/adapters/{n}"))["aliases"][0] for n in ("one", "two")}
        assert forms == {f"same:{one['row_id']}", f"same:{two['row_id']}"}

    async def test_a_row_id_is_never_used_again(self, site: Site) -> None:
        first = await site.a.adapter("first")
        found(await site.a.delete("/v1/adapters/first"))
        assert (await site.a.adapter("first"))["row_id"] > first["row_id"]


class TestCaps:
    async def test_a_tier_has_room_for_so_many(self, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(CAPS, "reserved", Caps(2, 2_000_000))
        one, two = await site.a.adapter("one"), await site.a.adapter("two")
        answer = await site.a.upload("three", seed=7)
        error = refused(answer, 429, "insufficient_quota")
        assert "2" in error["message"]
        assert answer.headers["x-should-retry"] == "false"
        assert kept(site) == {one["digest"], two["digest"]}
        await site.a.delete("/v1/adapters/one")
        found(await site.a.upload("three"))

    def test_the_caps_of_the_tiers(self) -> None:
        expected = {"shared": 20, "reserved": 200, "dedicated": 200}
        assert {tier: caps.adapters for tier, caps in tiers.CAPS.items()} == expected
        assert {caps.adapter_bytes for caps in tiers.CAPS.values()} == {500_000_000}


class TestListing:
    async def test_pages_filters_and_parts(self, site: Site) -> None:
        for name in ("alpha", "beta", "alphabet"):
            await site.a.adapter(name)
        await site.b.adapter("alpha")
        first = found(await site.a.get("/v1/adapters", params={"limit": 2}))
        assert (first["object"], first["has_more"]) == ("list", True)
        rest = found(await site.a.get("/v1/adapters", params={"limit": 2, "after": first["next"]}))
        assert (rest["has_more"], rest["next"]) == (False, None)
        assert [row["name"] for row in first["data"] + rest["data"]] == ["alpha", "beta", "alphabet"]
        part = found(await site.a.get("/v1/adapters", params={"q": "alpha"}))
        assert [row["name"] for row in part["data"]] == ["alpha", "alphabet"]
        assert found(await site.a.get("/v1/adapters", params={"q": "%"}))["data"] == []
        assert found(await site.a.get("/v1/adapters", params={"base_model": "other"}))["data"] == []

    @pytest.mark.parametrize(
        "query", ["limit=0", "limit=1001", "limit=x", f"after={'9' * 41}", f"q={'x' * 101}"]
    )
    async def test_queries_that_cannot_be(self, site: Site, query: str) -> None:
        refused(await site.a.get(f"/v1/adapters?{query}"), 400, "invalid_request")

    @pytest.mark.parametrize(
        "path",
        ["adapters", "instances", "events", "usage/events", "billing/transactions", "account/audit"],
    )
    async def test_what_is_no_cursor_does_not_begin_anew(self, site: Site, path: str) -> None:
        for cursor in ("x", "-1", "1.5", "9" * 20, "%00"):
            answer = await site.a.get(f"/v1/{path}?after={cursor}")
            assert refused(answer, 400, "invalid_request")["param"] == "after"
        found(await site.a.get(f"/v1/{path}?after="))

    async def test_by_id_row_id_and_name(self, site: Site) -> None:
        made = await site.a.adapter("mine")
        for ref in (made["id"], made["row_id"], "mine"):
            assert found(await site.a.get(f"/v1/adapters/{ref}"))["id"] == made["id"]

    @pytest.mark.parametrize(
        "ref", ["..%2f..", "..", "%2e%2e", "a%00b", "0", "-1", "9" * 30, "adp_", "Mine", "%ff", "a%0a"]
    )
    async def test_a_ref_that_is_none_finds_nothing(self, site: Site, ref: str) -> None:
        await site.a.adapter("mine")
        assert (await site.a.get(f"/v1/adapters/{ref}")).status_code == 404


class TestDelete:
    async def test_what_is_deleted_is_gone(self, site: Site) -> None:
        made = await site.a.adapter("mine")
        gone = found(await site.a.delete("/v1/adapters/mine"))
        assert (gone["id"], gone["deleted"]) == (made["id"], True)
        for ref in (made["id"], made["row_id"], "mine"):
            refused(await site.a.get(f"/v1/adapters/{ref}"), 404, "not_found")
        refused(await site.a.delete("/v1/adapters/mine"), 404, "not_found")
        assert (await site.world.snapshot(site.control)).adapters == ()

    async def test_what_is_in_use_is_refused_unless_forced(self, site: Site) -> None:
        made, instance = await site.a.adapter("mine"), await site.running()
        await site.attached(site.a, instance["id"], made)
        refused(await site.a.delete("/v1/adapters/mine"), 409, "adapter_in_use")
        found(await site.a.delete("/v1/adapters/mine", params={"force": "true"}))
        assert found(await site.a.get(f"/v1/instances/{instance['id']}"))["attachments"] == []

    async def test_what_is_loaded_is_in_use_too(self, site: Site) -> None:
        await site.a.adapter("mine")
        await site.running()
        found(await site.a.post("/v1/adapters/mine/load", {}))
        refused(await site.a.delete("/v1/adapters/mine"), 409, "adapter_in_use")
