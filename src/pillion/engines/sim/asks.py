"""What a client asks of the simulated engine, read from each endpoint's body."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pillion.engines.sim.words import prompt_tokens

# vLLM's own, by default.
MAX_N = 16384


class AskError(Exception):
    """A request the engine cannot answer, as vLLM would refuse it."""

    def __init__(
        self, status: int, message: str, kind: str = "BadRequestError", param: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind, self.param = status, message, kind, param

    def body(self) -> dict[str, Any]:
        return {
            "error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.status}
        }


@dataclass(frozen=True)
class Ask:
    """One request. `prompts` are tokenised; each is answered `n` times with `max_tokens` tokens."""

    model: str
    prompts: list[list[str]]
    max_tokens: int
    n: int = 1
    stream: bool = False
    include_usage: bool = False
    continuous_usage: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    echo: bool = False
    stop: tuple[str, ...] = ()
    raw: dict[str, Any] = field(default_factory=dict)

    @property
    def prompt_count(self) -> int:
        return sum(len(prompt) for prompt in self.prompts)

    @property
    def text(self) -> str:
        return " ".join(" ".join(prompt) for prompt in self.prompts)


@dataclass(frozen=True)
class Limits:
    default_tokens: int
    max_model_len: int


def completion(body: dict[str, Any], limits: Limits) -> Ask:
    prompt = body.get("prompt")
    if prompt is None or prompt == []:
        raise AskError(400, "Either prompt or prompt_embeds must be provided and non-empty.", param="prompt")
    many = isinstance(prompt, list) and isinstance(prompt[0], (str, list))
    prompts = [prompt_tokens(each) for each in (prompt if many else [prompt])]
    return _ask(
        body, prompts, limits, "max_tokens", logprobs=_whole(body, "logprobs"), echo=bool(body.get("echo"))
    )


def chat(body: dict[str, Any], limits: Limits) -> Ask:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(one, dict) for one in messages):
        raise AskError(400, "messages must be a list of at least one message.", param="messages")
    words = [word for one in messages for word in prompt_tokens(_content(one.get("content")))]
    tokens = "max_completion_tokens" if body.get("max_completion_tokens") is not None else "max_tokens"
    top = _whole(body, "top_logprobs") or 0
    return _ask(body, [words], limits, tokens, logprobs=top if body.get("logprobs") else None)


def responses(body: dict[str, Any], limits: Limits) -> Ask:
    given = body.get("input")
    items = given if isinstance(given, list) else [{"content": given}]
    if not given or not all(isinstance(one, dict) for one in items):
        raise AskError(400, "input must be a string or a list of messages.", param="input")
    words = [word for one in items for word in prompt_tokens(_content(one.get("content")))]
    return _ask(body, [words], limits, "max_output_tokens")


def sound(body: dict[str, Any], words: list[str], limits: Limits) -> Ask:
    """`words` stand for what is heard."""
    return _ask(body, [words], limits, "max_completion_tokens")


def embedding(body: dict[str, Any], limits: Limits) -> Ask:
    given = body.get("input")
    if given is None or given == []:
        raise AskError(400, "input must be provided and non-empty.", param="input")
    many = isinstance(given, list) and isinstance(given[0], (str, list))
    return _ask(body, [prompt_tokens(each) for each in (given if many else [given])], limits, "")


def _ask(
    body: dict[str, Any],
    prompts: list[list[str]],
    limits: Limits,
    tokens: str,
    logprobs: int | None = None,
    echo: bool = False,
) -> Ask:
    longest = max(len(prompt) for prompt in prompts)
    asked = _whole(body, tokens) if tokens else 0
    max_tokens = min(limits.default_tokens, limits.max_model_len - longest) if asked is None else asked
    if max_tokens < (0 if echo or not tokens else 1) or longest + max_tokens > limits.max_model_len:
        raise AskError(
            400,
            f"This model's maximum context length is {limits.max_model_len} tokens. However, you requested"
            f" {max_tokens} output tokens and your prompt contains {longest} input tokens.",
            param=tokens or "input",
        )
    n = _whole(body, "n")
    if n is not None and not 1 <= n <= MAX_N:
        raise AskError(400, f"n must be at least 1 and at most {MAX_N}, got {n}.", param="n")
    options = body.get("stream_options") or {}
    stop = body.get("stop") or ()
    return Ask(
        model=str(body.get("model") or ""),
        prompts=prompts,
        max_tokens=max_tokens,
        n=n or 1,
        stream=bool(body.get("stream")),
        include_usage=bool(options.get("include_usage")),
        continuous_usage=bool(options.get("continuous_usage_stats")),
        logprobs=logprobs,
        prompt_logprobs=_whole(body, "prompt_logprobs"),
        echo=echo,
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        raw=body,
    )


def _whole(body: dict[str, Any], name: str) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool):
        raise AskError(400, f"{name} must be a whole number.", param=name)
    return value


def _content(content: object) -> str:
    if isinstance(content, list):
        return " ".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""
