"""What of a request's JSON an engine may see (SPEC §4, §9)."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from pillion.core.errors import InvalidRequestError

Document = dict[str, Any]

_SAMPLING = """
    frequency_penalty logit_bias logprobs max_tokens n presence_penalty seed stop stream stream_options temperature top_p
    user metadata store service_tier safety_identifier prompt_cache_key prompt_cache_retention
"""
_CHAT = """
    messages audio function_call functions max_completion_tokens modalities moderation parallel_tool_calls prediction
    prompt_cache_options reasoning_effort response_format tool_choice tools top_logprobs verbosity web_search_options
"""
_OTHERS = """
    model access_programs image
    prompt best_of echo suffix input dimensions encoding_format background context_management conversation
    include instructions max_output_tokens max_tool_calls previous_response_id reasoning text truncation
"""
# Engines' own, harmless to whoever shares the engine.
_EXTRAS = """
    add_generation_prompt add_special_tokens allowed_token_ids bad_words cache_salt chat_template_kwargs
    continue_final_message documents guided_choice guided_grammar guided_json guided_regex ignore_eos
    include_reasoning include_stop_str_in_output length_penalty min_p min_tokens normalize prompt_logprobs
    repetition_penalty return_token_ids return_tokens_as_token_ids skip_special_tokens
    spaces_between_special_tokens stop_token_ids structured_outputs thinking_token_budget top_k
    truncate_prompt_tokens use_activation use_beam_search
"""
ALLOWED = frozenset(f"{_SAMPLING} {_CHAT} {_OTHERS} {_EXTRAS}".split())
# These choose weights, run code or templates, load tensors, or reach into the engine's transport: refused on every
# path, because to drop them silently would answer another question than was asked.
DENIED = frozenset(
    [
        "audio_embeds",
        "bootstrap_host",
        "bootstrap_port",
        "bootstrap_room",
        "chat_template",
        "custom_logit_processor",
        "custom_params",
        "ec_transfer_params",
        "extra_args",
        "image_embeds",
        "input_embeds",
        "kv_transfer_params",
        "logits_processors",
        "lora_id",
        "lora_name",
        "lora_path",
        "lora_request",
        "media_io_kwargs",
        "mm_processor_kwargs",
        "multi_modal_data",
        "prompt_embeds",
        "session_params",
        "vllm_xargs",
    ]
)
TEMPLATE_SWITCHES = frozenset({"enable_thinking", "thinking", "thinking_mode", "reasoning_effort"})
OPENAI_PATHS = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"})
MEDIA_KEYS = ("image_url", "audio_url", "video_url", "file_url")
# What describes a schema, not content: an `image_url` in it is a property's name.
SCHEMAS = frozenset({"tools", "functions", "response_format", "structured_outputs", "guided_json", "text"})


@dataclass(frozen=True)
class BodyPolicy:
    """The operator's leave: `media_urls` for media by URL, `extras` for fields beyond `ALLOWED`."""

    media_urls: bool = False
    extras: frozenset[str] = frozenset()

    def apply(self, path: str, document: Document) -> Document:
        """What of the document goes to an engine. Raises `InvalidRequestError` for what must not be asked."""
        for name in document:
            if name in DENIED and name not in self.extras:
                raise _refused(name, "is not allowed here")
        _check_template(document, self.extras)
        if not self.media_urls:
            _check_media(document)
        if path == "/v1/responses":
            document = _stateless(document)
        if path not in OPENAI_PATHS:
            return document
        allowed = ALLOWED | self.extras
        return {name: value for name, value in document.items() if name in allowed}


def read_document(raw: bytes) -> tuple[Document, str]:
    """The body's JSON object and its `model`. Of a key that is there twice the last one counts, here and upstream."""
    try:
        document = msgspec.json.decode(raw)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise InvalidRequestError(f"The body is not valid JSON: {error}.") from None
    if not isinstance(document, dict):
        raise InvalidRequestError("The body must be a JSON object.")
    model = document.get("model")
    if not isinstance(model, str) or not model:
        raise InvalidRequestError(
            "The body must have a string 'model'. GET /v1/models lists what you can call.", param="model"
        )
    return document, model


def encode(document: Document, model: str, salt: str | None) -> bytes:
    """The body for an engine: its own name in `model`, the account's salt in `cache_salt` where one is due."""
    ours = {"model": model} if salt is None else {"model": model, "cache_salt": salt}
    return msgspec.json.encode(document | ours)


def cache_salt(pepper: bytes, account: str, document: Document) -> str:
    """A salt per account, so that no two share a prefix cache. A client's own salt divides its account further."""
    text = msgspec.json.encode(["cache_salt", account, document.get("cache_salt")])
    return hmac.new(pepper, text, hashlib.sha256).hexdigest()


def _refused(param: str, why: str) -> InvalidRequestError:
    return InvalidRequestError(f"The field '{param}' {why}.", param=param)


def _check_template(document: Document, extras: frozenset[str]) -> None:
    switches = document.get("chat_template_kwargs")
    if switches is None or "chat_template_kwargs" in extras:
        return
    if not isinstance(switches, dict) or not TEMPLATE_SWITCHES.issuperset(switches):
        raise _refused("chat_template_kwargs", f"may hold only {', '.join(sorted(TEMPLATE_SWITCHES))}")


def _check_media(document: Document) -> None:
    for url in _media_urls({name: value for name, value in document.items() if name not in SCHEMAS}):
        if not url.lower().startswith("data:"):
            raise InvalidRequestError(
                "Media by URL is not allowed here. Send it as a data: URL.", param="messages"
            )


def _media_urls(document: Document) -> Iterator[str]:
    """Every URL of an image, sound, video or file, wherever it is: strings and `{"url": …}` alike."""
    rest: list[Any] = [document]
    while rest:
        node = rest.pop()
        if isinstance(node, list):
            rest.extend(node)
        elif isinstance(node, dict):
            rest.extend(node.values())
            named = [node.get(key) for key in MEDIA_KEYS]
            if node.get("type") == "url":
                named.append(node.get("url"))
            for value in named:
                url = value.get("url") if isinstance(value, dict) else value
                if isinstance(url, str):
                    yield url


def _stateless(document: Document) -> Document:
    """Nothing is kept between requests, so nothing can be referred to."""
    for name in ("previous_response_id", "conversation"):
        if document.get(name) is not None:
            raise _refused(
                name, "needs stored responses, and none are stored; send the whole conversation in input"
            )
    if document.get("background"):
        raise _refused("background", "needs stored responses, and none are stored; use stream instead")
    for tool in document.get("tools") or ():
        if isinstance(tool, dict) and tool.get("type") not in ("function", "custom"):
            raise _refused(
                "tools", f"has the type {str(tool.get('type'))[:40]!r}; only function tools are run, by you"
            )
    return document | {"store": False}
