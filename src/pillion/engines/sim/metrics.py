"""vLLM's metrics, as far as routers, scalers and dashboards read them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

_BUCKETS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


@dataclass
class Histogram:
    counts: list[int] = field(default_factory=lambda: [0] * len(_BUCKETS))
    count: int = 0
    total: float = 0.0

    def observe(self, seconds: float) -> None:
        self.count += 1
        self.total += seconds
        for index, bound in enumerate(_BUCKETS):
            if seconds <= bound:
                self.counts[index] += 1

    def lines(self, name: str, labels: str) -> list[str]:
        bounded = zip(_BUCKETS, self.counts, strict=True)
        return [
            f"# TYPE {name} histogram",
            *(f'{name}_bucket{{{labels},le="{bound}"}} {count}' for bound, count in bounded),
            f'{name}_bucket{{{labels},le="+Inf"}} {self.count}',
            f"{name}_count{{{labels}}} {self.count}",
            f"{name}_sum{{{labels}}} {self.total}",
        ]


@dataclass
class Metrics:
    """Counts of one engine. `running` and `waiting` hold requests per model name."""

    base: str
    slots: int
    running: Counter[str] = field(default_factory=Counter)
    waiting: Counter[str] = field(default_factory=Counter)
    finished: Counter[str] = field(default_factory=Counter)
    prompt_tokens: int = 0
    generation_tokens: int = 0
    first_token: Histogram = field(default_factory=Histogram)
    whole: Histogram = field(default_factory=Histogram)

    def text(self, now: float) -> str:
        """Prometheus' text format. `now` in seconds since the epoch."""
        labels = f'engine="0",model_name="{self.base}"'
        lines = [
            *_sample("gauge", "vllm:num_requests_running", labels, self.running.total()),
            *_sample("gauge", "vllm:num_requests_waiting", labels, self.waiting.total()),
            *_sample("gauge", "vllm:kv_cache_usage_perc", labels, 0.0),
            *_sample("counter", "vllm:prompt_tokens_total", labels, self.prompt_tokens),
            *_sample("counter", "vllm:generation_tokens_total", labels, self.generation_tokens),
            "# TYPE vllm:request_success_total counter",
            *(
                f'vllm:request_success_total{{{labels},finished_reason="{reason}"}} {count}'
                for reason, count in sorted(self.finished.items())
            ),
            *self.first_token.lines("vllm:time_to_first_token_seconds", labels),
            *self.whole.lines("vllm:e2e_request_latency_seconds", labels),
            "# TYPE vllm:lora_requests_info gauge",
            f'vllm:lora_requests_info{{max_lora="{self.slots}",running_lora_adapters="{self._adapters(self.running)}"'
            f',waiting_lora_adapters="{self._adapters(self.waiting)}"}} {now}',
        ]
        return "\n".join(lines) + "\n"

    def _adapters(self, requests: Counter[str]) -> str:
        return ",".join(sorted(name for name, count in requests.items() if count and name != self.base))


def _sample(kind: str, name: str, labels: str, value: float) -> list[str]:
    return [f"# TYPE {name} {kind}", f"{name}{{{labels}}} {value}"]
