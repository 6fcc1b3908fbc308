"""Where a launch goes, on what, and with which LoRA caps (SPEC §4)."""

import pytest

from pillion.core.catalogue import Catalogue, CatalogueModel, GpuType, Region
from pillion.core.errors import InvalidRequestError
from pillion.core.launch import InstanceSpec, check_lora, default_gpu, place
from pillion.core.replica import LoraSpec

HF = CatalogueModel("qwen", "hf:Qwen/Qwen3")
PATH = CatalogueModel("disk", "path:/models/disk")
EMBEDDING = CatalogueModel("embed", "hf:e/e", kind="embedding", lora=False)
A, B, C = Region("a"), Region("b"), Region("c")


@pytest.mark.parametrize(
    ("regions", "wanted", "replicas", "home", "placed"),
    [
        ([A], None, None, None, {"a": 1}),
        ([A, B], None, None, None, {"a": 1, "b": 1}),
        ([A, B, C], None, None, None, {"a": 1, "b": 1}),
        ([A, B, C], None, 1, None, {"a": 1}),
        ([A, B, C], None, 5, None, {"a": 2, "b": 2, "c": 1}),
        ([A], None, 3, None, {"a": 3}),
        ([A, B, C], ["c"], None, None, {"c": 1}),
        ([A, B, C], ["c", "a"], None, None, {"c": 1, "a": 1}),
        ([A, B, C], ["c", "a", "b"], None, None, {"c": 1, "a": 1, "b": 1}),
        ([A, B, C], ["c", "c", "a"], None, None, {"c": 1, "a": 1}),
        ([A, B], [], None, None, {"a": 1, "b": 1}),
        ([A, B], None, None, "b", {"b": 1}),
        ([A, B], None, 2, "b", {"b": 2}),
        ([A, B], ["b", "a"], None, None, {"b": 1, "a": 1}),
        ([A, B], ["b"], 2, "b", {"b": 2}),
    ],
)
def test_place(regions, wanted, replicas, home, placed) -> None:
    assert place(regions, wanted, replicas, home) == placed


@pytest.mark.parametrize(
    ("wanted", "replicas", "home", "says"),
    [
        (["nowhere"], None, None, "'nowhere' does not exist"),
        (["a"], None, "b", "bound to region 'b'"),
        (["a", "b"], None, "b", "bound to region 'b'"),
        (None, 0, None, "at least 1"),
        (["a", "b"], 1, None, "2 regions"),
        (None, None, "gone", "'gone' does not exist"),
    ],
)
def test_what_cannot_be_placed_says_why(wanted, replicas, home, says) -> None:
    with pytest.raises(InvalidRequestError, match=says) as caught:
        place([A, B], wanted, replicas, home)
    assert caught.value.param in ("regions", "replicas")


def test_the_default_gpu_is_the_cheapest_that_all_chosen_regions_have() -> None:
    regions = {
        "a": Region("a", gpus={"H100": 8, "L4": 1, "cpu": 4}),
        "b": Region("b", gpus={"H100": 8, "L4": 2}),
        "c": Region("c", gpus={"TPU": 1}),
    }
    types = [GpuType("H100", 80, "2.49"), GpuType("L4", 24, "0.80"), GpuType("cpu", 0, "0")]
    assert default_gpu(regions, {"a": 1}, types) == "cpu"
    assert default_gpu(regions, {"a": 1, "b": 1}, types) == "L4"
    with pytest.raises(InvalidRequestError, match="no GPU type in common"):
        default_gpu(regions, {"a": 1, "c": 1}, types)


@pytest.mark.parametrize("lora", [LoraSpec(), LoraSpec(False, 999, 999)])
def test_lora_that_is_off_is_not_checked(lora: LoraSpec) -> None:
    assert check_lora(lora, EMBEDDING, 64) == lora


@pytest.mark.parametrize(
    "lora",
    [LoraSpec(True), LoraSpec(True, 1, 1), LoraSpec(True, 64, 64), LoraSpec(True, 16, 64, max_active=17)],
)
def test_lora_within_the_caps(lora: LoraSpec) -> None:
    assert check_lora(lora, HF, 64) == lora


@pytest.mark.parametrize(
    ("lora", "param"),
    [
        (LoraSpec(True, 0), "lora.max_adapters"),
        (LoraSpec(True, 65), "lora.max_adapters"),
        (LoraSpec(True, -1), "lora.max_adapters"),
        (LoraSpec(True, 16, 0), "lora.max_rank"),
        (LoraSpec(True, 16, 65), "lora.max_rank"),
        (LoraSpec(True, 16, 64, max_active=0), "lora.max_active"),
        (LoraSpec(True, 16, 64, max_active=18), "lora.max_active"),
    ],
)
def test_lora_beyond_the_caps_names_the_setting(lora: LoraSpec, param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        check_lora(lora, HF, 64)
    assert caught.value.param == param


@pytest.mark.parametrize("model", [EMBEDDING, CatalogueModel("x", "hf:x/x", lora=False)])
def test_models_without_lora_refuse_it(model: CatalogueModel) -> None:
    with pytest.raises(InvalidRequestError, match="does not take LoRA"):
        check_lora(LoraSpec(True), model, 64)


def test_embedding_models_never_take_lora_whatever_the_catalogue_says() -> None:
    with pytest.raises(InvalidRequestError):
        check_lora(LoraSpec(True), CatalogueModel("e", "hf:e/e", kind="embedding", lora=True), 64)


def test_an_instances_groups_are_one_per_region() -> None:
    spec = InstanceSpec(
        "hf:x/x", "chat", "sim", {"a": 2, "b": 1}, LoraSpec(True), engine_options={"slots": 3}
    )
    groups = {group.region: group for group in spec.groups(7, "qwen", 4)}
    assert spec.replicas == 3
    assert {region: group.replicas for region, group in groups.items()} == {"a": 2, "b": 1}
    assert all(
        (g.instance, g.generation, g.model.name, g.engine) == (7, 4, "qwen", "sim") for g in groups.values()
    )
    assert groups["a"].engine_options == {"slots": 3}


def test_the_catalogue_finds_by_name() -> None:
    catalogue = Catalogue((A, B), (HF, PATH))
    assert catalogue.model("qwen") is HF
    assert catalogue.model("QWEN") is None
    assert catalogue.region("b") is B
    assert catalogue.region("") is None
    assert catalogue.names() == {"qwen", "disk"}
