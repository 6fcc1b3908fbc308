"""What engines say of usage in their answers, as far as it is read."""

from __future__ import annotations

from typing import Annotated

import msgspec

Count = Annotated[int, msgspec.Meta(ge=0, le=2**31)]  # no answer has more


class Details(msgspec.Struct):
    cached_tokens: Count | None = None


class Usage(msgspec.Struct):
    """Chat's and completions' names, and those of responses."""

    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None
    input_tokens: Count | None = None
    output_tokens: Count | None = None
    prompt_tokens_details: Details | None = None
    input_tokens_details: Details | None = None


class Inner(msgspec.Struct):
    usage: Usage | None = None


class Document(msgspec.Struct):
    usage: Usage | None = None
    response: Inner | None = None


read_usage = msgspec.json.Decoder(Usage).decode
read_document = msgspec.json.Decoder(Document).decode
