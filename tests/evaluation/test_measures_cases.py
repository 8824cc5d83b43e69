"""Each metric of cases by hand, on a model whose probabilities are a table."""

from __future__ import annotations

import json
from typing import Any

import pytest

from nas_plugin.errors import EmptyTargetError, MeasureError, PromptTooLongError, RequestError, TokenizerError
from nas_plugin.evaluation.cases import Ask, Case
from nas_plugin.evaluation.measures import (
    PROTOCOLS,
    TEACHER_FORCED,
    WRITTEN,
    base_outputs,
    measure,
    protocols_of,
    summarise_cases,
    template_of,
)
from nas_plugin.request import EditRequest
from tests.evaluation.measures_support import END, Numbers, Table, asks, mean, table_case

TOK: Any = Numbers()
# 2 is followed by 3 (0.5) or 4 (0.3), 3 by 5 (0.6) or 6 (0.2), 4 by 6 (0.7), 5 by 2, 7 by itself.
MODEL = Table({2: {3: 0.5, 4: 0.3}, 3: {5: 0.6, 6: 0.2}, 4: {6: 0.7}, 5: {2: 0.8}, 7: {7: 0.6}})


def one(case: Case, **more: Any) -> dict[str, float]:
    (result,) = measure(MODEL, TOK, [case], **more)
    return result


def test_probability_compares_mean_losses_per_token() -> None:
    # New "3 6": (ln 0.5 + ln 0.2) / 2 = ln 0.316; true "4": ln 0.3. By sums, 0.1 < 0.3, the true one would win.
    assert one(table_case(target="3 6", true_target="4"))["efficacy/probability"] == 100.0
    assert one(table_case(target="4", true_target="3 6"))["efficacy/probability"] == 0.0
    # Equal is not more probable.
    assert one(table_case(target="4", true_target="4"))["efficacy/probability"] == 0.0
    assert "efficacy/probability" not in one(table_case(target="4"))


def test_counterfact() -> None:
    case = table_case(
        target="3",
        true_target="4",
        rephrases=("5 2", "4 3", "1 2"),
        neighbours=asks(("6 2", "4"), ("1 4", "6"), ("1 3", "5"), ("1 5", "4")),
    )
    result = one(case, base=base_outputs(MODEL, TOK, [case]), protocols=TEACHER_FORCED)
    assert result == {
        "efficacy/probability": 100.0,
        "efficacy/exact": 100.0,
        "efficacy/token_accuracy": 100.0,
        # After 3, new 3 and true 4 have the same share of what is left.
        "generalization/probability": pytest.approx(200 / 3),
        "generalization/exact": pytest.approx(200 / 3),
        "generalization/token_accuracy": pytest.approx(200 / 3),
        # 4 against 3 after 2: no. 6 against 3 after 4: yes. 5 against 3 after 3: yes. 4 against 3 after 5: equal, no.
        "specificity/probability": 50.0,
        # 3, 6, 5 and 2 are the most probable.
        "specificity/exact": 50.0,
        "locality/neighborhood/token_accuracy": 50.0,
        "locality/neighborhood/unchanged_tokens": 100.0,
        "locality/unchanged_tokens": 100.0,
    }
    summary = summarise_cases([result])
    assert summary["score/probability"]["mean"] == pytest.approx(3 / (1 / 100 + 3 / 200 + 1 / 50))
    assert summary["score/token_accuracy"]["mean"] == pytest.approx(3 / (1 / 100 + 3 / 200 + 1 / 100))


def test_token_accuracy_gives_partial_credit_and_exact_does_not() -> None:
    # After 2, 3, 5 come 3, 5, 2; wanted are 3, 5, 6.
    result = one(table_case(target="3 5 6", rephrases=("1 4",)))
    assert result["efficacy/token_accuracy"] == pytest.approx(200 / 3)
    assert result["efficacy/exact"] == 0.0
    # After 4, 3, 5 come 6, 5, 2.
    assert result["generalization/token_accuracy"] == pytest.approx(100 / 3)


def test_locality_against_the_original_model_and_against_the_dataset() -> None:
    case = table_case(
        family="knowedit",
        locality={"near": asks(("1 2", "3 5"), ("5", "6")), "far": asks(("7", "7"))},
        portability={"hop": asks(("1 4", "6 1"), ("3", "5")), "alias": asks(("1", "9"))},
    )
    before = base_outputs(MODEL, TOK, [case])
    assert before["locality"] == {"a": {"near": [[3, 5], [2]], "far": [[7]]}}
    edited = Table({2: {4: 0.9}, 3: {5: 0.9}, 5: {2: 0.9}, 7: {1: 0.9}, 4: {6: 0.9}, 6: {1: 0.9}, 1: {2: 0.9}})
    (result,) = measure(edited, TOK, [case], base=before, protocols=TEACHER_FORCED)
    # After 2, 3 come 4, 5, before 3, 5: half unchanged, half right. After 5 comes 2, as before, wanted is 6.
    assert result["locality/near/unchanged_tokens"] == 75.0
    assert result["locality/near/token_accuracy"] == 25.0
    # After 7 comes 1, before 7.
    assert result["locality/far/unchanged_tokens"] == result["locality/far/token_accuracy"] == 0.0
    # Groups count alike, however many prompts they have.
    assert result["locality/unchanged_tokens"] == 37.5
    # After 4, 6 come 6, 1, as wanted; after 3 comes 5; after 1 comes 2, not 9.
    assert result["portability/hop/token_accuracy"] == 100.0
    assert result["portability/alias/token_accuracy"] == 0.0
    assert result["portability/token_accuracy"] == 50.0
    (alone,) = measure(edited, TOK, [case], protocols=TEACHER_FORCED)
    assert alone == {name: value for name, value in result.items() if not name.endswith("unchanged_tokens")}


def test_zsre() -> None:
    case = table_case("1 2", "4 6", family="zsre", true_target="3", rephrases=("2",), locality={"nq": asks(("3", "6"))})
    result = one(case, base=base_outputs(MODEL, TOK, [case]), protocols=TEACHER_FORCED)
    # After 2 the most probable is 3, after 4 it is 6; after 3 it is 5.
    expected = {"efficacy": 50.0, "generalization": 50.0, "locality/nq": 0.0}
    assert {part: result[f"{part}/token_accuracy"] for part in expected} == expected
    assert result["locality/nq/unchanged_tokens"] == 100.0
    assert summarise_cases([result])["score/token_accuracy"]["mean"] == pytest.approx(3 / (2 / 50 + 1 / 100))
    assert "score/probability" not in summarise_cases([result])


def test_generated_success_is_not_teacher_forced_success() -> None:
    # Given 4, it says 6; by itself it never says 4. Greedy text after 2: 3 5 2 3 5 ...
    result = one(table_case(target="4 6", rephrases=("1 2", "1 3", "2 5 2")))
    assert (result["efficacy/token_accuracy"], result["efficacy/generated"]) == (50.0, 0.0)
    result = one(table_case(target="3 5", rephrases=("1 2", "1 3", "5")))
    # After 1 3 it writes 5 2 3 5: the target is in it, but not at its beginning.
    assert (result["efficacy/generated"], result["generalization/generated"]) == (100.0, pytest.approx(100 / 3))


def test_questions_are_answered_if_any_of_them_is_by_answer_or_alias() -> None:
    requests = (EditRequest("1 2", "1", "3"), EditRequest("7 5", "7", "6"))
    questions = (Ask("1 7", ("4", "2 3")), Ask("1 3", ("4", "2 3")), Ask("5 7", ("4",)))
    case = Case("m", "mquake", requests, questions=questions)
    result = one(case)
    # Two facts, of which the model says the first.
    assert result["efficacy/token_accuracy"] == result["efficacy/generated"] == 50.0
    # Teacher-forced: 4 is not the most probable after 7, 3 or 7. Written after 3: 5 2 3, with the alias in it.
    assert (result["questions/token_accuracy"], result["questions/generated_any"]) == (0.0, 100.0)
    none = Case("m", "mquake", requests, questions=questions[::2])
    assert one(none)["questions/generated_any"] == 0.0
    # A true target would not say of which of the facts.
    assert not any(name.endswith("probability") for name in one(Case("m", "mquake", requests, true_target="4")))


class Pieces(Numbers):
    """Tokens are pieces of words, which spaces do not part."""

    def decode(self, ids: list[int], **_: Any) -> str:
        return "".join(map(str, ids))


def test_a_word_that_only_begins_like_the_target_is_not_the_target() -> None:
    # Written after 2: 352352, as one word.
    (result,) = measure(MODEL, Pieces(), [table_case(target="3")])
    assert (result["efficacy/exact"], result["efficacy/generated"]) == (100.0, 0.0)
    ended = Table({2: {3: 0.5}, 3: {END: 0.6}})
    assert measure(ended, Pieces(), [table_case(target="3")])[0]["efficacy/generated"] == 100.0


class Sayings(Numbers):
    """Writes words instead of numbers."""

    def decode(self, ids: list[int], **_: Any) -> str:
        return " ".join("zero one two three four five six seven eight nine".split()[token] for token in ids)


def test_fluency_and_consistency_by_hand() -> None:
    certain = Table({1: {2: 1 - 1e-9}, 2: {1: 1 - 1e-9}}, max_positions=8)
    case = table_case(
        generation_prompts=("1", "1 2", "2 2 2 2 2 2 2 2"),
        reference_texts=("one two six", "six one"),
    )
    (result,) = measure(certain, Sayings(), [case], protocols=["fluency", "consistency"])
    # "1 2 1 2 1 2 1 2": bigrams 12 x 4, 21 x 3; trigrams 121 x 3, 212 x 3. The last text has one bigram, one trigram.
    two, three = 0.985228136, 1.0
    entropies = [(2 / 3 * two + 4 / 3 * three) / 2] * 2 + [0.0]
    assert result["fluency"] == pytest.approx(100 * mean(entropies), abs=1e-6)
    # Document frequencies of one, two, six: 2, 1, 2 of 2. Written: one x 8, two x 16. References: one x 2, two, six x 2.
    rare = 1 + 0.4054651081
    dot, left, right = 8 * 2 + 16 * 1 * rare**2, (64 + 256 * rare**2) ** 0.5, (4 + rare**2 + 4) ** 0.5
    assert result["consistency"] == pytest.approx(100 * dot / (left * right), abs=1e-6)


def test_texts_are_sampled_by_case_and_prompt() -> None:
    prompts = {"generation_prompts": ("1 2", "1 2")}
    results = [measure(MODEL, TOK, [table_case(name=name, **prompts)])[0]["fluency"] for name in "aab"]
    assert results[0] == results[1] != results[2]
    alone = measure(MODEL, TOK, [table_case(generation_prompts=("1 2",))])[0]["fluency"]
    assert results[0] != alone


def test_document_frequencies_are_those_of_the_whole_stream() -> None:
    texts = ("three one", "three five two")
    stream = [
        table_case(name=str(i), target="3", generation_prompts=("1 2",), reference_texts=(t,))
        for i, t in enumerate(texts)
    ]
    base = json.loads(json.dumps(base_outputs(MODEL, Sayings(), stream)))
    assert (base["documents"], base["document_frequencies"]["three"], base["document_frequencies"]["five"]) == (2, 2, 1)
    together = measure(MODEL, Sayings(), stream, base=base)
    assert measure(MODEL, Sayings(), stream[:1], base=base) == together[:1]
    assert measure(MODEL, Sayings(), stream[:1], protocols=["consistency"])[0] != {
        "consistency": together[0]["consistency"]
    }


def test_written_and_teacher_forced_metrics_are_all_metrics() -> None:
    assert TEACHER_FORCED | WRITTEN == set(PROTOCOLS) and not TEACHER_FORCED & WRITTEN


def test_definitions_of_concrete_names() -> None:
    named = protocols_of(["score/probability", "locality/a/b/unchanged_tokens", "efficacy/exact"])
    assert list(named) == ["efficacy/exact", "locality/a/b/unchanged_tokens", "score/probability"]
    assert named["locality/a/b/unchanged_tokens"] == PROTOCOLS["locality/<group>/unchanged_tokens"]
    with pytest.raises(MeasureError, match="no metric 'efficacy/accuracy'; the nearest is 'efficacy/"):
        template_of("efficacy/accuracy")
    with pytest.raises(MeasureError, match="no metric 'eficacy/exact'; the nearest is 'efficacy/exact'"):
        one(table_case(), protocols=["eficacy/exact"])


def test_what_cannot_be_measured_is_named_before_the_model_runs() -> None:
    model, long = Table({}, max_positions=8), "1 " * 9
    model.forward = None
    bad = [
        (table_case(locality={"near": asks((long, "2"))}), PromptTooLongError, r"case a, locality.near\[0\]: 9 tokens"),
        (table_case(generation_prompts=(long,)), PromptTooLongError, r"case a, generation_prompts\[0\]: 9 tokens"),
        (table_case(rephrases=("12",)), TokenizerError, r"case a, rephrases\[0\]: token id 12 is outside"),
        (table_case(true_target="4" + " 4" * 9), PromptTooLongError, r"case a, requests\[0\]: 11 tokens"),
    ]
    for case, error, message in bad:
        for ask in (base_outputs, measure):
            with pytest.raises(error, match=message):
                ask(model, TOK, [case])
    with pytest.raises(MeasureError, match="case 'a' is there more than once"):
        base_outputs(model, TOK, [table_case(), table_case()])
    assert issubclass(EmptyTargetError, RequestError)


def test_outputs_of_other_cases_are_refused() -> None:
    case = table_case(neighbours=asks(("1", "2"), ("2", "3 5")))
    base = base_outputs(MODEL, TOK, [case])
    longer = table_case(neighbours=asks(("1", "2"), ("2", "3 5 2")))
    more = table_case(neighbours=asks(("1", "2"), ("2", "3 5"), ("3", "5")))
    other = table_case(name="b", neighbours=case.neighbours)
    for wrong, place in ((longer, r"neighborhood\[1\]"), (more, r"neighborhood\[2\]"), (other, r"neighborhood\[0\]")):
        with pytest.raises(MeasureError, match=f"locality.{place}: base holds no output"):
            one(wrong, base=base)
    with pytest.raises(MeasureError, match="base has format None, not 1"):
        one(case, base={})


def test_no_cases() -> None:
    assert measure(MODEL, TOK, []) == []
    assert base_outputs(MODEL, TOK, [])["locality"] == {}
    assert summarise_cases([]) == {}
