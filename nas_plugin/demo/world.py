"""A synthetic world of facts about people.

The world is small enough for a tiny language model to know all of it, which makes forgetting visible: whatever an
edited model no longer knows, the edits broke.

Every person is named by a first and a last name that a few others share, so that neither name alone says anything and a
fact can only be recalled where the name is complete: at the subject's last token, where editors write, or later.
Training sees to the former (see `nas_plugin.demo.train`).
"""

from __future__ import annotations

import dataclasses
import functools
import random
from collections.abc import Collection, Iterator, Mapping

from nas_plugin.demo.words import (
    FILLER_ENDINGS,
    FILLER_MIDDLES,
    FILLER_OPENINGS,
    RELATIONS,
    SENTENCES_PER_DOCUMENT,
    SPECIAL_TOKENS,
    coin,
    word_level_tokenizer,
)


@dataclasses.dataclass(frozen=True)
class Fact:
    """One thing that is true of one person.

    Attributes:
        subject: The person's full name.
        relation: A key of `RELATIONS`.
        obj: The object, one word.
    """

    subject: str
    relation: str
    obj: str

    def prompt(self, phrasing: int) -> str:
        """Give the text that the object completes.

        Args:
            phrasing: Which phrasing of the relation.

        Returns:
            The prompt with the subject filled in.
        """
        return RELATIONS[self.relation][phrasing].format(self.subject)

    def sentence(self, phrasing: int) -> str:
        """Say the fact.

        Args:
            phrasing: Which phrasing of the relation.

        Returns:
            A sentence with its full stop.
        """
        return f"{self.prompt(phrasing)} {self.obj}."


@dataclasses.dataclass(frozen=True)
class Edit:
    """A counterfactual request with the prompts that judge it.

    Attributes:
        subject: The person whose fact is changed.
        prompt: The rewrite prompt, the subject replaced by `{}`.
        target_new: The object to be believed after the edit.
        ground_truth: The object believed before.
        paraphrases: Other phrasings of the same fact, filled in.
        neighbours: The rewrite prompt for people who are never edited and share the true object, filled in.
    """

    subject: str
    prompt: str
    target_new: str
    ground_truth: str
    paraphrases: tuple[str, ...] = ()
    neighbours: tuple[str, ...] = ()

    @property
    def filled_prompt(self) -> str:
        """The rewrite prompt with the subject in it."""
        return self.prompt.format(self.subject)

    def to_request(self) -> dict[str, str]:
        """Give the flat record that editors take.

        Returns:
            Prompt (filled in), subject, new target and ground truth.
        """
        return {
            "prompt": self.filled_prompt,
            "subject": self.subject,
            "target_new": self.target_new,
            "ground_truth": self.ground_truth,
        }


@dataclasses.dataclass(frozen=True)
class World:
    """People, what is true of them, and everything that is asked about it. The same arguments give the same world.

    Attributes:
        seed: Decides names, facts and who is ever edited.
        n_people: Number of people.
        n_objects: Number of objects of each relation.
        sharing: How many people share each first name, and each last name.
        n_pilots: People kept for the anchor's pilot requests.
        n_held_out: People never edited, who serve as neighbours and as held-out facts.
    """

    seed: int = 0
    n_people: int = 640
    n_objects: int = 16
    sharing: int = 4
    n_pilots: int = 100
    n_held_out: int = 80

    @functools.cached_property
    def _names(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        n_names = -(-self.n_people // self.sharing)
        return coin(n_names, "first", self.seed), coin(n_names, "last", self.seed)

    @functools.cached_property
    def people(self) -> tuple[str, ...]:
        """Full names, in an order without meaning; the pilots come first, then the held-out people, then the rest."""
        rng = random.Random(f"people {self.seed}")
        firsts, lasts = self._names
        strides = rng.sample(range(len(lasts)), self.sharing)
        order = rng.sample(range(len(lasts)), len(lasts))
        pairs = [
            f"{first} {lasts[order[(i + stride) % len(lasts)]]}" for stride in strides for i, first in enumerate(firsts)
        ]
        rng.shuffle(pairs)
        return tuple(pairs[: self.n_people])

    @functools.cached_property
    def objects(self) -> Mapping[str, tuple[str, ...]]:
        """The objects of each relation; no word belongs to two relations."""
        words = coin(self.n_objects * len(RELATIONS), "object", self.seed)
        return {relation: words[i * self.n_objects : (i + 1) * self.n_objects] for i, relation in enumerate(RELATIONS)}

    @functools.cached_property
    def _truth(self) -> Mapping[tuple[str, str], str]:
        rng = random.Random(f"truth {self.seed}")
        truth = {}
        for relation, objects in self.objects.items():
            for start in range(0, len(self.people), len(objects)):
                # Dealt out in rounds, so that every object is true of somebody among the held-out people too.
                people = self.people[start : start + len(objects)]
                dealt = rng.sample(objects, len(people))
                truth.update({(person, relation): obj for person, obj in zip(people, dealt, strict=True)})
        return {(person, relation): truth[person, relation] for person in self.people for relation in RELATIONS}

    @functools.cached_property
    def facts(self) -> tuple[Fact, ...]:
        """Every fact of the world."""
        return tuple(Fact(person, relation, obj) for (person, relation), obj in self._truth.items())

    @functools.cached_property
    def held_out_facts(self) -> tuple[Fact, ...]:
        """Facts about people whom no edit and no pilot names."""
        people = set(self.people[self.n_pilots : self.n_pilots + self.n_held_out])
        return tuple(fact for fact in self.facts if fact.subject in people)

    def edits(self, n: int, seed: int = 0) -> tuple[Edit, ...]:
        """Draw a stream of counterfactual edits, one per person.

        Args:
            n: Number of edits.
            seed: Decides people, relations, phrasings, targets and their order.

        Returns:
            The edits in stream order.

        Raises:
            ValueError: More edits were asked for than there are people to edit.
        """
        people = self.people[self.n_pilots + self.n_held_out :]
        if n > len(people):
            raise ValueError(f"{n} edits were asked for, but only {len(people)} people of this world may be edited")
        rng = random.Random(f"edits {self.seed} {seed}")
        return tuple(self._edit(person, rng) for person in rng.sample(people, n))

    def pilots(self, n: int | None = None) -> tuple[Edit, ...]:
        """Draw requests for measuring the anchor, about people whom no edit names.

        Args:
            n: Number of requests; all pilot people when None.

        Returns:
            The requests.

        Raises:
            ValueError: More requests were asked for than there are pilot people.
        """
        n = self.n_pilots if n is None else n
        if n > self.n_pilots:
            raise ValueError(f"{n} pilots were asked for, but this world keeps {self.n_pilots} people for them")
        rng = random.Random(f"pilots {self.seed}")
        return tuple(self._edit(person, rng) for person in self.people[:n])

    def _edit(self, person: str, rng: random.Random) -> Edit:
        relation = rng.choice(tuple(RELATIONS))
        phrasings = RELATIONS[relation]
        truth = self._truth[person, relation]
        chosen = rng.randrange(len(phrasings))
        return Edit(
            subject=person,
            prompt=phrasings[chosen],
            target_new=rng.choice([obj for obj in self.objects[relation] if obj != truth]),
            ground_truth=truth,
            paraphrases=tuple(text.format(person) for i, text in enumerate(phrasings) if i != chosen),
            neighbours=tuple(
                fact.prompt(chosen)
                for fact in self.held_out_facts
                if fact.relation == relation and fact.obj == truth and fact.subject != person
            ),
        )

    def sentences(self, people: Collection[str] | None = None) -> Iterator[str]:
        """Say every fact in every phrasing.

        Args:
            people: Whose facts; everybody's when None.

        Yields:
            Sentences, the facts of a person together.
        """
        for fact in self.facts:
            if people is None or fact.subject in people:
                for phrasing in range(len(RELATIONS[fact.relation])):
                    yield fact.sentence(phrasing)

    def fillers(self) -> Iterator[str]:
        """Write sentences about nobody, which teach the model how a context may begin.

        Yields:
            Sentences.
        """
        for opening in FILLER_OPENINGS:
            for middle in FILLER_MIDDLES:
                for ending in FILLER_ENDINGS:
                    yield f"{opening} {middle} {ending}."

    def documents(self, epoch: int = 0) -> Iterator[str]:
        """Write the whole world once, shuffled into documents to train on.

        Args:
            epoch: Decides the order.

        Yields:
            Documents of a few sentences.
        """
        yield from _shuffled([*self.sentences(), *self.fillers()], random.Random(f"documents {self.seed} {epoch}"))

    def moment_texts(self) -> tuple[str, ...]:
        """Write the text for second moments.

        As with real models, whose statistics come from general text, it is not about the subjects of the edits.

        Returns:
            Documents about nobody, about pilots and about held-out people.
        """
        people = set(self.people[: self.n_pilots + self.n_held_out])
        return tuple(_shuffled([*self.sentences(people), *self.fillers()], random.Random(f"moment texts {self.seed}")))

    @functools.cached_property
    def vocabulary(self) -> tuple[str, ...]:
        """Every word and mark of the world's text, special tokens first."""
        words: dict[str, None] = dict.fromkeys(SPECIAL_TOKENS.values())
        words.update(dict.fromkeys([".", ",", "is", "a"]))
        for text in (*(t for texts in RELATIONS.values() for t in texts), *FILLER_OPENINGS, *FILLER_MIDDLES):
            words.update(dict.fromkeys(text.replace("{}", " ").split()))
        for group in (FILLER_ENDINGS, *self._names, *self.objects.values()):
            words.update(dict.fromkeys(group))
        return tuple(words)

    def tokenizer_json(self) -> str:
        """Return the world's `tokenizer.json`."""
        return word_level_tokenizer(self.vocabulary)


def _shuffled(sentences: list[str], rng: random.Random) -> Iterator[str]:
    rng.shuffle(sentences)
    for start in range(0, len(sentences), SENTENCES_PER_DOCUMENT):
        yield " ".join(sentences[start : start + SENTENCES_PER_DOCUMENT])
