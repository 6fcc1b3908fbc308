"""An adapter against its base: what passes, and that every way to spoil one is caught and named."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from pillion.core.adapters.header import Header, Tensor, parse_file
from pillion.core.adapters.verify import Limits, Verified, verify
from pillion.core.errors import AdapterInvalidError
from tests.adapter_files import LLAMA, PREFIX, Arrays, arrays, base, config

Q0 = f"{PREFIX}model.layers.0.self_attn.q_proj"
LIMITS = Limits()


def check(made: Arrays, document: dict[str, object] | None = None, **rest: object) -> Verified:
    return verify(parse_file(save(made)), document, base(**rest), LIMITS)  # type: ignore[arg-type]


def refused(made: Arrays, document: dict[str, object] | None = None, **rest: object) -> str:
    with pytest.raises(AdapterInvalidError) as caught:
        check(made, document, **rest)
    return " | ".join(caught.value.reasons)


def test_a_good_adapter_passes() -> None:
    found = check(arrays(), config())
    assert (found.rank, found.alpha, found.target_modules) == (4, 8, ("down_proj", "q_proj", "v_proj"))
    assert found.warnings == ()
    assert len(found.pairs) == 6


def test_weights_alone_are_enough_and_the_answer_says_so() -> None:
    found = check(arrays(rank=16))
    assert (found.rank, found.alpha) == (16, 16)
    assert "lora_alpha was taken as equal to the rank" in found.warnings[0]


def test_names_without_peft_s_prefix_are_the_same_adapter() -> None:
    bare = {name.removeprefix(PREFIX): value for name, value in arrays().items()}
    assert check(bare, config()).config == check(arrays(), config()).config


@given(
    rank=st.integers(1, 64),
    targets=st.sets(
        st.sampled_from(["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "lm_head"]), min_size=1
    ),
    dtype=st.sampled_from(["float32", "float16"]),
    with_config=st.booleans(),
)
def test_every_adapter_that_fits_passes(rank: int, targets: set[str], dtype: str, with_config: bool) -> None:
    document = config(rank=rank, target_modules=sorted(targets)) if with_config else None
    found = check(arrays(rank, tuple(targets), dtype=dtype), document)
    assert found.rank == rank
    assert found.target_modules == tuple(sorted(targets))


def drop(name: str) -> Callable[[Arrays], None]:
    return lambda made: made.pop(name) is None


def put(name: str, value: np.ndarray) -> Callable[[Arrays], None]:
    return lambda made: made.update({name: value})


def rename(old: str, new: str) -> Callable[[Arrays], None]:
    return lambda made: made.update({new: made.pop(old)})


F = np.ones


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (drop(f"{Q0}.lora_B.weight"), "has a lora_A but no lora_B"),
        (drop(f"{Q0}.lora_A.weight"), "has a lora_B but no lora_A"),
        (put(f"{Q0}.lora_A.weight", F((4, 31), "f4")), "[4, 31] where [4, 32]"),
        (put(f"{Q0}.lora_A.weight", F((32, 4), "f4")), "shape"),
        (put(f"{Q0}.lora_B.weight", F((33, 4), "f4")), "[33, 4] where [32, 4]"),
        (put(f"{Q0}.lora_A.weight", F((8, 32), "f4")), "[8, 32] where [4, 32]"),
        (put(f"{Q0}.lora_B.weight", F((32, 8), "f4")), "[32, 8] where [32, 4]"),
        (put(f"{Q0}.lora_A.weight", F((4, 32, 1), "f4")), "shape"),
        (put(f"{Q0}.lora_A.weight", F((), "f4")), "shape"),
        (put(f"{Q0}.lora_A.weight", F((4, 32), "f8")), "F64"),
        (put(f"{Q0}.lora_A.weight", F((4, 32), "i4")), "I32"),
        (put(f"{PREFIX}model.layers.9.self_attn.q_proj.lora_A.weight", F((4, 32), "f4")), "no lora_B"),
        (rename(f"{Q0}.lora_A.weight", f"{Q0}.lora_A.default.weight"), "adapter's name 'default'"),
        (put(f"{Q0}.lora_magnitude_vector.weight", F((32,), "f4")), "DoRA"),
        (put(f"{Q0}.lora_B.bias", F((32,), "f4")), "bias"),
        (put(f"{PREFIX}lm_head.weight", F((128, 32), "f4")), "modules_to_save"),
        (put(f"{PREFIX}junk", F((1,), "f4")), "not a LoRA weight"),
        (put("model.layers.0.self_attn.q_proj.lora_A.weight", F((4, 32), "f4")), "twice"),
    ],
)
def test_a_spoilt_adapter_is_refused_with_the_reason(spoil: Callable[[Arrays], None], word: str) -> None:
    made = arrays()
    spoil(made)
    assert word in refused(made, config())


def test_modules_the_base_lacks() -> None:
    larger = base(LLAMA | {"num_hidden_layers": 3})
    found = refused(arrays(of=larger), config())
    assert "layers.2.self_attn.q_proj' does not exist in tiny" in found


def test_an_adapter_of_a_wider_base_is_refused_for_every_module() -> None:
    wider = base(LLAMA | {"hidden_size": 64})
    found = refused(arrays(of=wider), config())
    modules = {name.rsplit(".lora_", 1)[0] for name in arrays()}
    assert all(module in found for module in modules)


def test_rank_over_the_limit_and_against_the_config() -> None:
    assert "its rank is 65; at most 64" in refused(arrays(rank=65), config(rank=65))
    assert "its rank is 128" in refused(arrays(rank=128))
    assert "says r is 8, the tensors have rank 4" in refused(arrays(rank=4), config(rank=8))
    assert verify(parse_file(save(arrays(rank=65))), None, base(), Limits(max_rank=128)).rank == 65


def test_ranks_that_differ_without_a_config() -> None:
    made = arrays(rank=4)
    made |= {f"{Q0}.lora_A.weight": F((2, 32), "f4"), f"{Q0}.lora_B.weight": F((32, 2), "f4")}
    assert "[2, 32] where [4, 32]" in refused(made)


def test_every_reason_comes_at_once() -> None:
    made = arrays(rank=65)
    made[f"{PREFIX}junk"] = F((1,), "f4")
    found = refused(made, config(rank=65, use_dora=True))
    assert all(word in found for word in ("DoRA", "not a LoRA weight", "at most 64"))


def test_another_model_of_the_catalogue_is_refused() -> None:
    document = config(base_model_name_or_path="org/other")
    assert "another model" in refused(arrays(), document, others=frozenset({"org/other"}))
    assert "names 'org/unheard'" in check(arrays(), config(base_model_name_or_path="org/unheard")).warnings[0]


def test_a_file_without_lora_is_refused() -> None:
    assert "not LoRA" in refused({"model.embed_tokens.weight": F((2, 2), "f4")})
    copies = {f"{PREFIX}model.embed_tokens.base_layer.weight": F((128, 32), "f4")}
    assert "no LoRA weights" in refused(copies)
    resized = {name: F((130, 32), "f4") for name in copies}
    assert "resized vocabulary" in refused(arrays() | resized, config())
    assert any("copy of the base" in text for text in check(arrays() | copies, config()).warnings)


def embedding(rank: int = 4, rows: int = 128, width: int = 32) -> Arrays:
    name = f"{PREFIX}model.embed_tokens.lora_embedding_"
    return {f"{name}A": F((rank, rows), "f4"), f"{name}B": F((width, rank), "f4")}


def test_embeddings_where_the_engine_honours_them() -> None:
    assert "embed_tokens" in check(arrays() | embedding()).target_modules
    assert "[4, 129] where [4, 128]" in refused(arrays() | embedding(rows=129))
    as_linear = {f"{PREFIX}model.embed_tokens.lora_{s}.weight": F((4, 4), "f4") for s in "AB"}
    assert "must have lora_embedding_A" in refused(arrays() | as_linear)
    qwen = LLAMA | {"model_type": "qwen2"}
    assert "no LoRA on the embeddings" in refused(arrays() | embedding(), config=qwen)


def test_two_spellings_of_one_module() -> None:
    nested = {"model_type": "gemma3", "text_config": LLAMA | {"head_dim": 8}}
    one = arrays(targets=("q_proj",), of=base(nested))
    assert check(one, config=nested).rank == 4
    other = {
        name.replace("model.language_model.", "language_model.model."): value for name, value in one.items()
    }
    assert check(other, config=nested).rank == 4
    assert "two spellings" in refused(one | other, config=nested)
    assert "does not exist" in refused(arrays(targets=("q_proj",)), config=nested)


def test_targets_and_weights_that_disagree_are_told() -> None:
    found = check(arrays(), config(target_modules=["q_proj", "v_proj", "o_proj"]))
    assert any("targets ['o_proj']" in text for text in found.warnings)
    assert any("weights for ['down_proj']" in text for text in found.warnings)
    exact = config(target_modules=["layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"])
    assert check(arrays(targets=("q_proj",)), exact).warnings == ()
    assert check(arrays(), config(target_modules="all-linear")).warnings == ()


shapes = st.lists(st.integers(0, 70), max_size=3).map(tuple)
names = st.sampled_from([*arrays(), *embedding(), f"{PREFIX}lm_head.lora_A.weight"]) | st.text(
    ".abAB_lor", max_size=20
)


@given(st.dictionaries(names, st.tuples(st.sampled_from(["F32", "BF16", "I8"]), shapes), max_size=8))
def test_any_header_gets_an_answer_and_what_passes_fits(
    tensors: dict[str, tuple[str, tuple[int, ...]]],
) -> None:
    header = Header({name: Tensor(name, dtype, shape, 0, 0) for name, (dtype, shape) in tensors.items()})
    try:
        found = verify(header, None, base(), LIMITS)
    except AdapterInvalidError:
        return
    for pair in found.pairs:
        assert pair.a.shape[0] == pair.b.shape[1] == found.rank


@given(st.data())
def test_a_good_adapter_with_one_tensor_s_shape_changed_is_refused(data: st.DataObject) -> None:
    tensors = dict(parse_file(save(arrays())).tensors)
    name = data.draw(st.sampled_from(sorted(tensors)))
    old = tensors[name]
    shape = data.draw(shapes.filter(lambda found: found != old.shape))
    tensors[name] = Tensor(name, old.dtype, shape, old.offset, old.size)
    with pytest.raises(AdapterInvalidError):
        verify(Header(tensors), config(), base(), LIMITS)
