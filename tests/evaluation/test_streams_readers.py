"""Each schema by hand: one record, every field of the case it makes."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from nas_plugin.demo.world import World
from nas_plugin.errors import EmptyTargetError, RequestError
from nas_plugin.evaluation.cases import Ask, Case
from nas_plugin.evaluation.probes import probes_of
from nas_plugin.evaluation.streams import load_stream
from nas_plugin.request import EditRequest

RECORDS: dict[str, dict[str, Any]] = {
    "counterfact": {
        "case_id": 7,
        "requested_rewrite": {
            "prompt": "The mother tongue of {} is",
            "relation_id": "P103",
            "target_new": {"str": "English", "id": "Q1860"},
            "target_true": {"str": "French", "id": "Q150"},
            "subject": "Danielle Darrieux",
        },
        "paraphrase_prompts": ["A. Danielle Darrieux, a native", "B. Danielle Darrieux spoke"],
        "neighborhood_prompts": ["The mother tongue of Montesquieu is"],
        "attribute_prompts": ["The mother tongue of Douglas Adams is"],
        "generation_prompts": ["Danielle Darrieux was born in"],
    },
    "counterfact-easyedit": {
        "case_id": 0,
        "prompt": "The mother tongue of Danielle Darrieux is",
        "target_new": "English",
        "subject": "Danielle Darrieux",
        "ground_truth": "French",
        "rephrase_prompt": "Danielle Darrieux spoke",
        "locality_prompt": "Michel Rocard is a native speaker of",
        "locality_ground_truth": "French",
    },
    "zsre-mend": {
        "subject": "Shelley's Case",
        "src": "Who named Shelley's Case?",
        "pred": "Hook",
        "rephrase": "Shelley's Case was named by whom?",
        "alt": "Coke",
        "answers": ["Dyer", "James Dyer"],
        "loc": "nq question: who wrote the song",
        "loc_ans": "Dix",
        "cond": "Hook >> Coke || Who named Shelley's Case?",
        "portability": {
            "Recalled Relation": "(Coke, born in, Mileham)",
            "New Question": "Where?",
            "New Answer": "Mileham",
        },
    },
    "zsre-knowedit": {
        "subject": "Epaspidoceras",
        "target_new": "Noctuidae",
        "prompt": "Which family does Epaspidoceras belong to?",
        "ground_truth": ["Aspidoceratidae", "Ammonites"],
        "rephrase_prompt": "What family are Epaspidoceras?",
        "cond": "Geometridae >> Noctuidae || Which family does Epaspidoceras belong to?",
        "locality": {"Relation_Specificity": [{"prompt": "Epaspidoceras taxon rank", "ground_truth": ["genus"]}]},
        "portability": {"Reasoning": [{"prompt": "What is its common name?", "ground_truth": "Owlet moths"}]},
    },
    "knowedit": {
        "subject": "Leonardo DiCaprio",
        "prompt": "The country of Leonardo DiCaprio is",
        "target_new": "Syria",
        "ground_truth": "United States of America",
        "portability": {
            "Reasoning": [
                {"prompt": "The currency there is", "ground_truth": [["Syrian pound", "SYP"]]},
                {"prompt": "The prize is", "ground_truth": [[]]},
            ],
            "Subject_Aliasing": [
                {"prompt": "The country of Di Caprio is", "ground_truth": [["Syria", "SYR", "Syria"]]}
            ],
            "Logical_Generalization": [],
        },
        "locality": {
            "Relation_Specificity": [{"prompt": "His father is", "ground_truth": [[""], ["George", "G."], ["Mr. D"]]}],
            "Forgetfulness": [{"prompt": "His other country is", "ground_truth": "Italy"}],
        },
    },
    "wikibigedit": {
        "tag": "update",
        "subject": "Steve Jobs",
        "update": "Where was Steve Jobs born?",
        "rephrase": "In which city was Steve Jobs born?",
        "ans": "Madrid",
        "personas": "Hey mate, where was Steve Jobs born?",
        "mhop": "Which language do people at his place of birth speak?",
        "mhop_ans": "Spanish",
        "loc": "Where was Marie Curie born?",
        "loc_ans": "Warsaw",
    },
    "wikibigedit-easyedit": {
        "prompt": "In which county is Crailing Church?",
        "target_new": "Roxburghshire",
        "subject": "Crailing Church",
        "rephrase_prompt": "Which county has Crailing Church?",
        "locality_prompt": "In which county is Carriden Church?",
        "locality_ground_truth": "West Lothian",
    },
    "mquake": {
        "case_id": 3,
        "requested_rewrite": [
            {
                "prompt": "{} was performed by",
                "target_new": {"str": "Madonna"},
                "target_true": {"str": "The Beatles"},
                "subject": "Hey Jude",
                "question": "Who performed Hey Jude?",
            },
            {
                "prompt": "{} is a citizen of",
                "target_new": {"str": "Australia"},
                "target_true": {"str": "India"},
                "subject": "Madonna",
                "question": "Which country is Madonna of?",
            },
        ],
        "questions": ["Of which country is the performer of Hey Jude?", "And again?"],
        "answer": "United Kingdom",
        "answer_alias": ["UK"],
        "new_answer": "Australia",
        "new_answer_alias": ["AU", "Commonwealth of Australia"],
    },
}


def load(tmp_path: Path, *records: Any, **options: Any) -> Any:
    path = tmp_path / "records.json"
    path.write_text(json.dumps(records), encoding="utf-8")
    return load_stream(path, **options)


def case_of(tmp_path: Path, schema: str) -> Case:
    stream = load(tmp_path, RECORDS[schema])
    assert stream.schema == schema
    (case,) = stream.cases
    assert stream.family == case.family
    return case


def test_counterfact(tmp_path: Path) -> None:
    assert case_of(tmp_path, "counterfact") == Case(
        id="7",
        family="counterfact",
        requests=(EditRequest("The mother tongue of Danielle Darrieux is", "Danielle Darrieux", "English", "7"),),
        true_target="French",
        rephrases=("A. Danielle Darrieux, a native", "B. Danielle Darrieux spoke"),
        neighbours=(Ask("The mother tongue of Montesquieu is", ("French",)),),
        generation_prompts=("Danielle Darrieux was born in",),
    )


def test_multi_counterfact_prompts_in_nested_lists_are_flattened(tmp_path: Path) -> None:
    record = RECORDS["counterfact"] | {
        "paraphrase_prompts": [["one", "two"], "three"],
        "neighborhood_prompts": "The native language of Barre is",
        "generation_prompts": None,
    }
    (case,) = load(tmp_path, record).cases
    assert case.rephrases == ("one", "two", "three")
    assert case.neighbours == (Ask("The native language of Barre is", ("French",)),)
    assert case.generation_prompts == ()


def test_counterfact_of_easyedit(tmp_path: Path) -> None:
    assert case_of(tmp_path, "counterfact-easyedit") == Case(
        id="0",
        family="counterfact",
        requests=(EditRequest("The mother tongue of Danielle Darrieux is", "Danielle Darrieux", "English", "0"),),
        true_target="French",
        rephrases=("Danielle Darrieux spoke",),
        neighbours=(Ask("Michel Rocard is a native speaker of", ("French",)),),
    )


def test_zsre_of_mend(tmp_path: Path) -> None:
    assert case_of(tmp_path, "zsre-mend") == Case(
        id="0",
        family="zsre",
        requests=(EditRequest("Who named Shelley's Case?", "Shelley's Case", "Coke", "0"),),
        true_target="Dyer",
        rephrases=("Shelley's Case was named by whom?",),
        locality={"neighborhood": (Ask("nq question: who wrote the song", ("Dix",)),)},
        portability={"one_hop": (Ask("Where?", ("Mileham",)),)},
    )


def test_zsre_of_knowedit(tmp_path: Path) -> None:
    assert case_of(tmp_path, "zsre-knowedit") == Case(
        id="0",
        family="zsre",
        requests=(EditRequest("Which family does Epaspidoceras belong to?", "Epaspidoceras", "Noctuidae", "0"),),
        true_target="Aspidoceratidae",
        rephrases=("What family are Epaspidoceras?",),
        locality={"Relation_Specificity": (Ask("Epaspidoceras taxon rank", ("genus",)),)},
        portability={"Reasoning": (Ask("What is its common name?", ("Owlet moths",)),)},
    )


def test_knowedit_takes_every_answer_and_alias_once_and_says_what_has_none(tmp_path: Path) -> None:
    stream = load(tmp_path, RECORDS["knowedit"])
    assert stream.cases == (
        Case(
            id="0",
            family="knowedit",
            requests=(EditRequest("The country of Leonardo DiCaprio is", "Leonardo DiCaprio", "Syria", "0"),),
            true_target="United States of America",
            locality={
                "Relation_Specificity": (Ask("His father is", ("George", "G.", "Mr. D")),),
                "Forgetfulness": (Ask("His other country is", ("Italy",)),),
            },
            portability={
                "Reasoning": (Ask("The currency there is", ("Syrian pound", "SYP")),),
                "Subject_Aliasing": (Ask("The country of Di Caprio is", ("Syria", "SYR")),),
            },
        ),
    )
    assert stream.unanswered == ((0, "portability.Reasoning[1].ground_truth"),)
    assert stream.left_out == ()


def test_wikibio_subject_is_taken_as_it_stands_in_the_text(tmp_path: Path) -> None:
    record = {
        "text": "A passage about Sir John Russell Reynolds, a neurologist.",
        "labels": "He was educated by his father.",
        "concept": "john russell reynolds",
        "locality": {"Relation_Specificity": [{"prompt": "His field is", "ground_truth": ["medicine"]}]},
    }
    stream = load(tmp_path, record)
    assert stream.schema == stream.family == "knowedit"
    (request,) = stream.cases[0].requests
    assert request.subject == "John Russell Reynolds" and request.prompt[request.start :].startswith("John Russell")
    assert request.target == "He was educated by his father." and stream.cases[0].true_target is None


def test_a_whole_word_is_preferred_when_case_is_ignored(tmp_path: Path) -> None:
    record = {"prompt": "After joANna, ANNA lives in", "subject": "Anna", "target_new": "Rome"}
    (request,) = load(tmp_path, record).cases[0].requests
    assert request.start == len("After joANna, ")


def test_wikibigedit(tmp_path: Path) -> None:
    assert case_of(tmp_path, "wikibigedit") == Case(
        id="0",
        family="wikibigedit",
        requests=(EditRequest("Where was Steve Jobs born?", "Steve Jobs", "Madrid", "0"),),
        rephrases=("In which city was Steve Jobs born?",),
        locality={"locality": (Ask("Where was Marie Curie born?", ("Warsaw",)),)},
        portability={
            "personas": (Ask("Hey mate, where was Steve Jobs born?", ("Madrid",)),),
            "mhop": (Ask("Which language do people at his place of birth speak?", ("Spanish",)),),
        },
    )


@pytest.mark.parametrize(
    "absent", [{}, {"rephrase": None, "personas": None, "mhop": None, "mhop_ans": None, "loc": None}]
)
def test_wikibigedit_asks_nothing_that_the_record_lacks(tmp_path: Path, absent: dict[str, None]) -> None:
    record = {key: RECORDS["wikibigedit"][key] for key in ("subject", "update", "ans")} | absent
    (case,) = load(tmp_path, record).cases
    assert case.rephrases == () and case.locality == {} and case.portability == {}


def test_wikibigedit_of_easyedit(tmp_path: Path) -> None:
    assert case_of(tmp_path, "wikibigedit-easyedit") == Case(
        id="0",
        family="wikibigedit",
        requests=(EditRequest("In which county is Crailing Church?", "Crailing Church", "Roxburghshire", "0"),),
        rephrases=("Which county has Crailing Church?",),
        locality={"locality": (Ask("In which county is Carriden Church?", ("West Lothian",)),)},
    )


def test_mquake_writes_every_fact_and_asks_with_aliases(tmp_path: Path) -> None:
    answers = ("Australia", "AU", "Commonwealth of Australia")
    assert case_of(tmp_path, "mquake") == Case(
        id="3",
        family="mquake",
        requests=(
            EditRequest("Hey Jude was performed by", "Hey Jude", "Madonna", "3/0"),
            EditRequest("Madonna is a citizen of", "Madonna", "Australia", "3/1"),
        ),
        questions=(Ask("Of which country is the performer of Hey Jude?", answers), Ask("And again?", answers)),
    )


def test_mquake_of_one_fact_knows_what_was_true(tmp_path: Path) -> None:
    record = copy.deepcopy(RECORDS["mquake"])
    del record["requested_rewrite"][1], record["new_answer_alias"]
    (case,) = load(tmp_path, record).cases
    assert case.true_target == "The Beatles" and case.requests[0].id == "3"
    assert case.questions[0].answers == ("Australia",)


def test_demo_is_the_worlds_edits() -> None:
    world, stream = World(), load_stream("demo")
    edits = world.edits(len(stream.cases))
    assert (stream.name, stream.family, stream.file) == ("demo", "demo", None)
    assert len(stream.cases) == world.n_people - world.n_pilots - world.n_held_out
    for number, (edit, case) in enumerate(zip(edits, stream.cases, strict=True)):
        assert case.id == str(number) and case.to_easyedit() | edit.to_request() == case.to_easyedit()
        assert case.rephrases == edit.paraphrases and case.true_target == edit.ground_truth
        assert case.neighbours == tuple(Ask(prompt, (edit.ground_truth,)) for prompt in edit.neighbours)


def test_easyedit_request_of_a_case(tmp_path: Path) -> None:
    flat = case_of(tmp_path, "counterfact").to_easyedit()
    assert flat == {
        "case_id": "7",
        "prompt": "The mother tongue of Danielle Darrieux is",
        "subject": "Danielle Darrieux",
        "target_new": "English",
        "ground_truth": "French",
        "rephrase_prompt": "A. Danielle Darrieux, a native",
        "locality": {"neighborhood": {"prompt": ["The mother tongue of Montesquieu is"], "ground_truth": ["French"]}},
        "portability": {},
    }
    asked = case_of(tmp_path, "knowedit").to_easyedit()
    assert "rephrase_prompt" not in asked
    assert asked["locality"]["Relation_Specificity"] == {"prompt": ["His father is"], "ground_truth": ["George"]}
    # What the evaluator makes of them: the rewrite, a rephrase or none, and every ask.
    assert [len(probes_of([request])) for request in (flat, asked)] == [3, 5]


def test_easyedit_request_holds_one_fact(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="case 3 writes 2 facts"):
        case_of(tmp_path, "mquake").to_easyedit()


ONE = (EditRequest("Lyon is in", "Lyon", "Spain"),)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: Ask(" ", ("x",)), EmptyTargetError, "prompt is empty"),
        (lambda: Ask("p", ()), RequestError, "at least one"),
        (lambda: Ask("p", ["x"]), RequestError, "tuple"),  # type: ignore[arg-type]
        (lambda: Ask("p", ("x", "")), EmptyTargetError, "answer to 'p'"),
        (lambda: Case("", "demo", ONE), EmptyTargetError, "id"),
        (lambda: Case("1", "trivia", ONE), RequestError, "case 1: family 'trivia'"),
        (lambda: Case("1", "demo", ()), RequestError, "no requests"),
        (lambda: Case("1", "demo", ("Lyon",)), RequestError, "requests"),  # type: ignore[arg-type]
        (lambda: Case("1", "demo", ONE, true_target=" "), EmptyTargetError, "true_target"),
        (lambda: Case("1", "demo", ONE, rephrases=("",)), EmptyTargetError, "rephrases"),
        (lambda: Case("1", "demo", ONE, rephrases="Lyon"), RequestError, "rephrases"),  # type: ignore[arg-type]
        (lambda: Case("1", "demo", ONE, neighbours=("p",)), RequestError, "neighbours"),  # type: ignore[arg-type]
        (lambda: Case("1", "demo", ONE, locality={"g": [Ask("p", ("x",))]}), RequestError, "locality.g"),  # type: ignore[dict-item]
    ],
)
def test_a_malformed_case_says_what_is_wrong(make: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        make()
