"""What of a request's JSON an engine may see (SPEC §4, §9). Values stay the client's bytes wherever they can."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from pillion.core.errors import InvalidRequestError
from pillion.gateway.tokens import BACKSLASH, Wanted

# The top level of the body: names, and values as they came.
Document = dict[str, msgspec.Raw]

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
MAX_SALT = 256  # characters; what is made of them is kept
MEDIA_KEYS = ("image_url", "audio_url", "video_url", "file_url")
# What describes a schema, not content: an `image_url` in it is a property's name.
SCHEMAS = frozenset({"tools", "functions", "response_format", "structured_outputs", "guided_json", "text"})


USAGE_PATHS = frozenset({"/v1/chat/completions", "/v1/completions"})
_document = msgspec.json.Decoder(dict[str, msgspec.Raw])
_string = msgspec.json.Decoder(str)
_encode = msgspec.json.Encoder().encode
_USAGE_ALWAYS = {"include_usage": True, "continuous_usage_stats": True}


@dataclass(frozen=True)
class BodyPolicy:
    """The operator's leave: `media_urls` for media by URL, `extras` for fields beyond `ALLOWED`."""

    media_urls: bool = False
    extras: frozenset[str] = frozenset()

    def apply(self, path: str, document: Document, *, may_hold_urls: bool = True) -> Document:
        """What of the document goes to an engine. Raises `InvalidRequestError` for what must not be asked."""
        names = document.keys()
        if not DENIED.isdisjoint(names):
            self._refuse_denied(names)
        if "chat_template_kwargs" in document and "chat_template_kwargs" not in self.extras:
            _check_template(_value(document, "chat_template_kwargs"))
        if not self.media_urls and may_hold_urls:
            _check_media(document)
        if "cache_salt" in document:
            _check_salt(document)
        if path == "/v1/responses":
            document = _stateless(document)
        if path not in OPENAI_PATHS or ALLOWED.issuperset(names):
            return document
        allowed = ALLOWED | self.extras
        return {name: value for name, value in document.items() if name in allowed}

    def _refuse_denied(self, names: Iterable[str]) -> None:
        for name in names:
            if name in DENIED and name not in self.extras:
                raise _refused(name, "is not allowed here")


def read_document(raw: bytes) -> tuple[Document, str]:
    """The body's JSON object and its `model`. Of a key that is there twice the last one counts, here and upstream."""
    try:
        document = _document.decode(raw)
    except msgspec.ValidationError:
        raise InvalidRequestError("The body must be a JSON object.") from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise InvalidRequestError(f"The body is not valid JSON: {error}.") from None
    try:
        model = _string.decode(document["model"])
    except (KeyError, msgspec.DecodeError, UnicodeDecodeError):
        model = ""
    if not model:
        raise InvalidRequestError(
            "The body must have a string 'model'. GET /v1/models lists what you can call.", param="model"
        )
    return document, model


def may_hold_urls(raw: bytes) -> bool:
    """Whether there may be a member for media in this JSON: their names all end so. Or an escape that may stand for one."""
    # Bytes are searched by `find`, and one byte by `in` as a number: `in` takes bytes for a number first, and that is slow.
    return raw.find(b'url"') >= 0 or (BACKSLASH in raw and raw.find(b"\\u") >= 0)


def encode(document: Document, model: msgspec.Raw, salt: msgspec.Raw | None) -> bytes:
    """The body for an engine: its own name in `model`, the account's salt in `cache_salt` where one is due."""
    document["model"] = model
    if salt is None:
        return _encode(document)
    own = document.get("cache_salt")
    document["cache_salt"] = salt
    body = _encode(document)
    # Another engine may be asked next, that is due none.
    if own is None:
        del document["cache_salt"]
    else:
        document["cache_salt"] = own
    return body


def ask_for_usage(path: str, document: Document) -> Wanted:
    """Has a stream tell its usage as it goes (in place); gives what of that the client itself asked for."""
    if path not in USAGE_PATHS or "stream" not in document:
        return Wanted.AS_IT_IS
    stream = _value(document, "stream")
    if not (stream is None or isinstance(stream, bool)):
        # An engine might take "yes" for true: a stream nobody counted.
        raise _refused("stream", "must be true or false")
    if not stream:
        return Wanted.AS_IT_IS
    options = _value(document, "stream_options") if "stream_options" in document else None
    if options is not None and not isinstance(options, dict):
        raise _refused("stream_options", "must be an object")
    options = options or {}
    document["stream_options"] = msgspec.Raw(msgspec.json.encode(options | _USAGE_ALWAYS))
    if not options.get("include_usage"):
        return Wanted.NOTHING
    return Wanted.ALWAYS if options.get("continuous_usage_stats") else Wanted.AT_THE_END


def cache_salt(pepper: bytes, account: str, own: Any) -> str:
    """A salt per account, so that no two share a prefix cache. A client's own salt divides its account further."""
    text = msgspec.json.encode(["cache_salt", account, own])
    return hmac.new(pepper, text, hashlib.sha256).hexdigest()


def _value(document: Document, name: str) -> Any:
    """A member, decoded. Raises `InvalidRequestError`."""
    try:
        return msgspec.json.decode(document[name])
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise InvalidRequestError(f"The field '{name}' is not valid JSON: {error}.", param=name) from None


def _refused(param: str, why: str) -> InvalidRequestError:
    return InvalidRequestError(f"The field '{param}' {why}.", param=param)


def _check_template(switches: Any) -> None:
    if switches is None:
        return
    if not isinstance(switches, dict) or not TEMPLATE_SWITCHES.issuperset(switches):
        raise _refused("chat_template_kwargs", f"may hold only {', '.join(sorted(TEMPLATE_SWITCHES))}")


def _check_salt(document: Document) -> None:
    salt = _value(document, "cache_salt")
    if salt is not None and not (isinstance(salt, str) and 0 < len(salt) <= MAX_SALT):
        raise _refused("cache_salt", f"must be a string of 1 to {MAX_SALT} characters")


def _check_media(document: Document) -> None:
    for name, raw in document.items():
        if name in SCHEMAS or (name not in MEDIA_KEYS and not may_hold_urls(bytes(raw))):
            continue
        for url in _media_urls({name: _value(document, name)}):
            if not url.lower().startswith("data:"):
                raise InvalidRequestError(
                    "Media by URL is not allowed here. Send it as a data: URL.", param="messages"
                )


def _media_urls(document: dict[str, Any]) -> Iterator[str]:
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
        if name in document and _value(document, name) is not None:
            raise _refused(
                name, "needs stored responses, and none are stored; send the whole conversation in input"
            )
    if "background" in document and _value(document, "background"):
        raise _refused("background", "needs stored responses, and none are stored; use stream instead")
    tools = _value(document, "tools") if "tools" in document else None
    for tool in tools if isinstance(tools, list) else ():
        if isinstance(tool, dict) and tool.get("type") not in ("function", "custom"):
            raise _refused(
                "tools", f"has the type {str(tool.get('type'))[:40]!r}; only function tools are run, by you"
            )
    return document | {"store": msgspec.Raw(b"false")}
