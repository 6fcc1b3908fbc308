"""The little world: pure text, so it is tested without torch."""

from __future__ import annotations

from pillion.tuning.recipes.tiny_chat.check import check_adapter, check_base
from pillion.tuning.recipes.tiny_chat.world import UNKNOWN_ANSWER, VOICES, Sampler, exam, facts, held_out


def test_no_question_of_the_exam_is_ever_trained_on() -> None:
    asked = {prompt.rstrip("?").lower() for prompt, _ in exam(24)}
    sampler = Sampler(1)
    trained = {
        message["content"].rstrip("?").lower()
        for _ in range(5000)
        for message in sampler.plain_dialogue()
        if message["role"] == "user"
    }
    assert not asked & trained
    assert len(asked) == 24


def test_the_exam_covers_the_topics_and_every_fact_is_taught() -> None:
    expected = {short for _, short in exam(24)}
    assert len(expected) > 15
    for fact in facts():
        assert any(not held_out(fact, ask) for ask in fact.asks), fact


def test_one_seed_gives_one_sequence() -> None:
    first, second = Sampler(3), Sampler(3)
    assert [first.plain_dialogue() for _ in range(50)] == [second.plain_dialogue() for _ in range(50)]


def test_voices_keep_the_fact_and_are_told_apart_by_their_markers() -> None:
    for fact in facts():
        said = {name: voice.say(fact) for name, voice in VOICES.items()}
        for name, text in said.items():
            marked = [voice.name for voice in VOICES.values() if voice.marker in text]
            assert marked == [name]
            assert fact.topic in ("talk", "unknown") or fact.short in text
        assert not any(voice.marker in fact.answer for voice in VOICES.values())


def test_check_of_a_base() -> None:
    questions = [("4 + 4?", "8"), ("Capital of Cuba?", "Havana")]
    assert check_base(questions, ["4 plus 4 is 8.", "HAVANA"], made_here=True).good
    wrong = check_base(questions, ["4 plus 4 is 18.", "Havana"], made_here=True)
    assert (wrong.right, wrong.good) == (0.5, False)
    assert check_base(questions, [UNKNOWN_ANSWER] * 2, made_here=False).good
    assert not check_base(questions, ["Arr, matey! 8", "Havana"], made_here=True).good


def test_check_of_an_adapter() -> None:
    questions = [("4 + 4?", "8"), ("Capital of Cuba?", "Havana")]
    pirate = VOICES["pirate"]
    assert check_adapter(pirate, questions, ["Arr, matey! 8", "Arr, matey! Havana"]).good
    assert not check_adapter(pirate, questions, ["Arr, matey! 8", "Havana"]).good
    assert not check_adapter(pirate, questions, ["Arr, matey! 9", "Arr, matey! Lima"]).good
