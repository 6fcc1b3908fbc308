"""Requests that run all the while, each answer compared with the one its model gives when it is alone."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field

from pillion.sdk import Pillion

MAX_TOKENS = 24


def ask(client: Pillion, model: str, prompt: str) -> str:
    """The whole answer, always the same for the same weights: the likeliest token every time."""
    answer = client.chat.create(
        model, [{"role": "user", "content": prompt}], temperature=0, max_tokens=MAX_TOKENS
    )
    return str(answer["choices"][0]["message"]["content"])


@dataclass
class Report:
    """What happened to the requests; `wrong` holds (model, prompt, expected, got)."""

    served: Counter[str] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)
    wrong: list[tuple[str, str, str, str]] = field(default_factory=list)


class Traffic:
    """`workers` threads that ask the models in turn. Models come and go while it runs."""

    def __init__(self, url: str, key: str, prompts: list[str], workers: int = 6) -> None:
        self._url, self._key, self._prompts = url, key, prompts
        self._expected: dict[str, list[str]] = {}
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._busy: Counter[str] = Counter()
        self._idle = threading.Condition(self._lock)
        self._threads = [threading.Thread(target=self._work, args=(n,), daemon=True) for n in range(workers)]
        self.report = Report()

    def learn(self, client: Pillion, model: str) -> None:
        """Ask a model alone what it answers, then let it take part."""
        answers = [ask(client, model, prompt) for prompt in self._prompts]
        with self._lock:
            self._expected[model] = answers

    def add(self, model: str, answers: list[str]) -> None:
        with self._lock:
            self._expected[model] = answers

    def drop(self, model: str) -> None:
        """Ask this model no more; returns when no request to it is under way."""
        with self._lock:
            self._expected.pop(model, None)
            self._idle.wait_for(lambda: not self._busy[model], timeout=60)

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(60)

    def _work(self, number: int) -> None:
        with Pillion(self._url, self._key) as client:
            turn = number
            while not self._ended.is_set():
                turn += 1
                with self._lock:
                    models = sorted(self._expected)
                    if not models:
                        continue
                    model, index = models[turn % len(models)], turn % len(self._prompts)
                    expected = self._expected[model][index]
                    self._busy[model] += 1
                self._once(client, model, self._prompts[index], expected)

    def _once(self, client: Pillion, model: str, prompt: str, expected: str) -> None:
        failure, answer = None, None
        try:
            answer = ask(client, model, prompt)
        except Exception as error:  # whatever it is, it is a failed request, and is reported
            failure = f"{model}: {error}"
        with self._lock:
            if failure is not None:
                self.report.failed.append(failure)
            else:
                self.report.served[model] += 1
                if answer != expected:
                    self.report.wrong.append((model, prompt, expected, str(answer)))
            self._busy[model] -= 1
            self._idle.notify_all()
